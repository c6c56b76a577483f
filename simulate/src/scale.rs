//! The planners at full size: volumes are created one by one in a pool of thousands of nodes, all moves are planned at once, and once more
//! after one disk has changed.
//!
//! Everything is pool's own: the index, the allocator, the planners, with facts such as the controller gathers. Must not know: traces, the
//! policies that are compared.

use std::time::{Duration, Instant};

use anyhow::Context;
use pool::{
    alloc::{Pool, Request},
    disk::{Disk, DiskClass, DiskState, Domain, Health},
    free::FreeRun,
    ids::{DiskId, Epoch, NodeName, PoolName, VolumeId},
    planner::{self, Busy, DiskFact, Proposal, VolumeFact},
    policy::MovePolicy,
    units::{ExtentSize, Extents},
    volume::Map,
};
use serde::Serialize;

use crate::random::Random;

/// Extents of a disk, and of the smallest and the greatest volume: the pool is then 72 % full.
const DISK: u64 = 500;
const VOLUME: (u64, u64) = (8, 64);
/// VMs are not spread evenly: the share of nodes below which a share x of the VMs is has this power. Full nodes borrow.
const CROWDING: f64 = 1.25;
/// Thousandths of a disk that stay for its owner, and the share of disks whose owner needs more than is free.
const RESERVE: u64 = 20;
const SHORT: f64 = 0.01;
/// The share of disks that are forecast to be overloaded.
const HOT: f64 = 0.03;
/// Extents that move at a time: 1 GiB, as the controller has it.
const MOST: u64 = 64;

/// How large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Disks of each.
    pub disks_per_node: usize,
    /// Volumes.
    pub volumes: usize,
}

impl Size {
    /// Ten disks and a hundred volumes a node.
    #[must_use]
    pub fn of_nodes(nodes: usize) -> Self {
        Self { nodes, disks_per_node: 10, volumes: nodes * 100 }
    }
}

/// What it took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scale {
    /// Nodes.
    pub nodes: usize,
    /// Disks.
    pub disks: usize,
    /// Volumes that were created.
    pub volumes: usize,
    /// Planning of one volume, 99th percentile.
    pub create_ms: f64,
    /// The same, median.
    pub create_p50_ms: f64,
    /// The same, the longest.
    pub create_max_ms: f64,
    /// All moves that are worth while, over all disks and volumes.
    pub full_plan_s: f64,
    /// How many.
    pub full_plan_moves: usize,
    /// The moves of one disk that has become overloaded, with the volumes that lie there.
    pub incremental_s: f64,
    /// How many.
    pub incremental_moves: usize,
    /// Memory at its greatest.
    pub rss_bytes: u64,
}

/// A pool with its volumes, and what planners are told of them.
struct World {
    pool: Pool,
    disks: Vec<DiskFact>,
    /// By id, from 1.
    volumes: Vec<VolumeFact>,
    created: Vec<Duration>,
}

/// Builds a pool of that size and measures.
///
/// # Errors
/// The size is nothing, a volume does not fit, or the kernel does not say how much memory was used.
pub fn measure(size: Size, seed: u64) -> anyhow::Result<Scale> {
    anyhow::ensure!(
        size.nodes > 0 && size.disks_per_node > 0,
        "a cluster has at least one node and one disk"
    );
    let mut world = World::new(size, &mut Random::new(seed))?;
    let policy = MovePolicy::default();
    let start = Instant::now();
    let full = plan(&policy, &world.disks, &world.volumes);
    let full_plan_s = start.elapsed().as_secs_f64();
    let (incremental, took) = world.one_more_is_hot(&policy);
    world.created.sort_unstable();
    let ms = |share: f64| {
        let at = (world.created.len() as f64 * share) as usize;
        world
            .created
            .get(at.min(world.created.len().saturating_sub(1)))
            .map_or(0.0, |d| d.as_secs_f64() * 1e3)
    };
    Ok(Scale {
        nodes: size.nodes,
        disks: world.disks.len(),
        volumes: world.volumes.len(),
        create_ms: ms(0.99),
        create_p50_ms: ms(0.5),
        create_max_ms: ms(1.0),
        full_plan_s,
        full_plan_moves: full.len(),
        incremental_s: took.as_secs_f64(),
        incremental_moves: incremental.len(),
        rss_bytes: peak_rss()?,
    })
}

fn plan(policy: &MovePolicy, disks: &[DiskFact], volumes: &[VolumeFact]) -> Vec<Proposal> {
    planner::plan(policy, Extents::new(MOST), disks, volumes, &Busy::default())
}

impl World {
    fn new(size: Size, random: &mut Random) -> anyhow::Result<Self> {
        let name: PoolName = "default".parse().context("the pool's name")?;
        let nodes = (0..size.nodes).map(|n| format!("n{n}").parse()).collect::<Result<Vec<NodeName>, _>>()?;
        let mut pool = Pool::new();
        pool.define_pool(name.clone(), ExtentSize::DEFAULT)?;
        for (n, node) in nodes.iter().enumerate() {
            for d in 0..size.disks_per_node {
                let id = DiskId::from_u128((n * size.disks_per_node + d) as u128 + 1);
                let free = FreeRun { first: Extents::ZERO, count: Extents::new(DISK) };
                pool.add_disk(disk(id, node, &name), [free])?;
            }
        }
        let mut world = Self { pool, disks: vec![], volumes: vec![], created: vec![] };
        for i in 0..size.volumes {
            let home = (size.nodes as f64 * random.unit().powf(CROWDING)) as usize;
            let extents = VOLUME.0 + random.bits() % (VOLUME.1 - VOLUME.0 + 1);
            let request = Request {
                home: nodes.get(home).cloned(),
                seed: random.bits(),
                ..Request::new(name.clone(), Extents::new(extents))
            };
            world.create(VolumeId::from_u128(i as u128 + 1), &request, random)?;
        }
        world.rate(random);
        Ok(world)
    }

    fn create(&mut self, id: VolumeId, request: &Request, random: &mut Random) -> anyhow::Result<()> {
        let start = Instant::now();
        let plan = self.pool.plan(request);
        self.created.push(start.elapsed());
        let plan = plan.with_context(|| format!("volume {id} of {} extents", request.size))?;
        self.pool.apply(id, &plan)?;
        let home = request.home.clone().context("a volume without a home")?;
        // A few volumes do most of all I/O.
        let io = (5_000.0 / (1.0 - random.unit()).powf(0.7)).min(2e7);
        self.volumes.push(volume(id, home, &plan.map, io));
        Ok(())
    }

    /// Gives disks their loads, and as much ability as makes the wanted share of them hot.
    fn rate(&mut self, random: &mut Random) {
        let place: std::collections::HashMap<DiskId, usize> =
            self.pool.disks().enumerate().map(|(i, d)| (d.id, i)).collect();
        self.disks = self.pool.disks().map(|d| fact(&self.pool, d)).collect();
        for p in self.volumes.iter().flat_map(|v| &v.pieces) {
            if let Some(d) = place.get(&p.disk).and_then(|i| self.disks.get_mut(*i)) {
                d.load += p.io;
            }
        }
        let mut loads: Vec<u64> = self.disks.iter().map(|d| d.load).collect();
        loads.sort_unstable();
        let bound = loads.get((loads.len() as f64 * (1.0 - HOT)) as usize).copied().unwrap_or(0);
        for d in &mut self.disks {
            d.usable = (bound * 1000 / planner::SPILL).max(1);
            if random.unit() < SHORT {
                d.need = d.free + 1 + random.bits() % 16;
            }
        }
    }

    /// A disk that was at peace is overloaded now; what there is to do about it, and how long it took to find out.
    fn one_more_is_hot(&mut self, policy: &MovePolicy) -> (Vec<Proposal>, Duration) {
        let at_peace = |d: &&mut DiskFact| d.load > 0 && d.load * 1000 < d.usable * planner::TAKE;
        let Some(hot) = self.disks.iter_mut().find(at_peace) else { return (vec![], Duration::ZERO) };
        hot.usable = hot.load;
        let hot = hot.disk;
        let start = Instant::now();
        let there: std::collections::BTreeSet<VolumeId> = self.pool.owners(hot).map(|(v, _)| v).collect();
        let some: Vec<VolumeFact> = there
            .iter()
            .filter_map(|v| self.volumes.get(usize::try_from(v.as_u128()).ok()?.checked_sub(1)?).cloned())
            .collect();
        let found = plan(policy, &self.disks, &some);
        (found, start.elapsed())
    }
}

fn disk(id: DiskId, node: &NodeName, pool: &PoolName) -> Disk {
    Disk {
        id,
        node: node.clone(),
        pool: pool.clone(),
        extents: Extents::new(DISK),
        extent_size: ExtentSize::DEFAULT,
        logical_block: 4096,
        physical_block: 4096,
        class: DiskClass::Nvme,
        state: DiskState::Serving,
        health: Health::Good,
        domain: Domain::default(),
        reserve: Extents::new(DISK * RESERVE / 1000),
    }
}

fn fact(pool: &Pool, d: &Disk) -> DiskFact {
    DiskFact {
        disk: d.id,
        node: d.node.clone(),
        block: d.logical_block,
        extents: d.extents.get(),
        free: pool.usage(d.id).map_or(0, |u| u.free.get()),
        coming: 0,
        lendable: pool.lendable(d.id).unwrap_or_default().get(),
        need: d.reserve.get(),
        usable: 0,
        load: 0,
        left: 0,
        come: 0,
        serving: true,
    }
}

/// `io` thousandths of I/Os a second, evenly over the volume.
fn volume(volume: VolumeId, home: NodeName, map: &Map, io: f64) -> VolumeFact {
    let mut pieces: Vec<_> = map.0.iter().flat_map(planner::pieces).collect();
    let all: u64 = pieces.iter().map(|p| p.count).sum();
    for p in &mut pieces {
        p.io = (io * p.count as f64 / all.max(1) as f64) as u64;
        p.peak = p.io;
    }
    VolumeFact {
        volume,
        epoch: Epoch::ZERO,
        home,
        extent_size: ExtentSize::DEFAULT,
        still_s: 24 * 3600,
        moved_s: None,
        coming_home: false,
        bound: false,
        block: 4096,
        not: std::collections::BTreeSet::new(),
        pieces,
        max_lenders: 8,
    }
}

/// Bytes of memory that this process had at once, at most.
fn peak_rss() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("parse VmHWM")?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_has_all_that_a_large_one_has() {
        let size = Size { nodes: 30, disks_per_node: 4, volumes: 1200 };
        let s = measure(size, 1).expect("it fits");
        assert_eq!((s.nodes, s.disks, s.volumes), (30, 120, 1200));
        assert!(s.full_plan_moves > 0 && s.incremental_moves > 0, "{s:?}");
        assert!(s.create_p50_ms > 0.0 && s.create_p50_ms <= s.create_ms && s.create_ms <= s.create_max_ms);
        assert!(s.rss_bytes > 1 << 20);
        assert!(measure(Size { nodes: 0, ..size }, 1).is_err());
        let full = Size { volumes: 3000, ..size };
        assert!(measure(full, 1).is_err(), "more than the pool has");
    }

    #[test]
    fn plans_are_the_same_each_time_and_move_what_they_should() {
        let size = Size { nodes: 20, disks_per_node: 4, volumes: 800 };
        let world = || World::new(size, &mut Random::new(7)).expect("it fits");
        let w = world();
        let found = plan(&MovePolicy::default(), &w.disks, &w.volumes);
        let again = world();
        assert_eq!(found, plan(&MovePolicy::default(), &again.disks, &again.volumes));
        let hot: Vec<DiskId> =
            w.disks.iter().filter(|d| d.load * 1000 >= d.usable * planner::SPILL).map(|d| d.disk).collect();
        assert!(!hot.is_empty() && found.iter().any(|p| hot.contains(&p.from)), "{hot:?}");
    }
}
