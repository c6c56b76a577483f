//! Weir's own policy: what bursts is striped, the rest lies beside its VM, and moves are those of the controller's own planners
//! ([`pool::planner`]), which get such facts as the controller gathers and answer to the same budgets ([`pool::policy`]).
//!
//! Invariants: nothing is known of the hour that begins (but to the oracle, and it only of that hour). Must not know how it is scored.

use std::collections::BTreeSet;

use forecast::{ClassScores, Forecaster, Hour, USABLE};
use pool::{
    ids::{DiskId, Epoch, NodeName, PoolName, VolumeId},
    moving::MoveCause,
    planner::{self, Busy, DiskFact, PieceFact, Proposal, Shifts, VolumeFact, VolumeRates},
    policy::{MovePolicy, Spending, Spent, is_budgeted},
    units::{ExtentSize, Extents},
};

use super::Layout;
use crate::cluster::{Cluster, Loads};
use crate::evaluate::WANTED_VIOLATIONS;

/// A stripe has as many columns as its volume's peak (99.5 %) has parts of this share of a disk's cap.
const STRIPE_SHARE: f64 = 0.15;
/// So many columns lie beside the VM. One is what the reference has; with three (0.45 of the cap, where extents may come
/// home to) much more stays local and hardly more is overloaded: a VM's own disk is where it does least harm.
const HOME_COLUMNS: usize = 3;
/// The quantile that is a volume's peak.
const PEAK: f64 = 0.995;
/// KB of an I/O: what a trace counts in KB planners count in I/Os.
const IO_KB: f64 = 16.0;
/// Parts of a volume of which heat is known, as nodes measure it.
const PARTS: usize = 16;
/// Seconds in which a mean follows a change by two thirds, as nodes' heat and the controller's means do.
const WARM_S: f64 = 6.0 * 3600.0;
/// Extents that move at a time: 1 GiB, as the controller has it.
const MOST: u64 = 64;
/// Looks for moves within an hour. The controller looks each minute; what forecasts say changes once an hour.
const LOOKS: u64 = 12;

/// What is known of loads to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Foresight {
    /// Forecasts.
    Forecast,
    /// The next hour itself.
    Perfect,
}

pub(super) struct Weir<'a> {
    foresight: Foresight,
    cluster: &'a Cluster,
    loads: &'a Loads,
    start: usize,
    names: Vec<NodeName>,
    pool: PoolName,
    /// Of a striped volume, the node of each column; of others nothing.
    columns: Vec<Vec<usize>>,
    /// The heat of each volume's parts.
    parts: Vec<Vec<f64>>,
    /// What each volume does, as slowly as heat follows; KB/s.
    warm: Vec<f64>,
    /// When its VM migrated last, and when something of it moved last and why.
    migrated: Vec<Option<usize>>,
    moved: Vec<Option<(usize, MoveCause)>>,
    /// Of each node's disk what is for its own VMs, forecast; and the greatest that it did for others within the last hour.
    own: Vec<Forecaster>,
    lent: Vec<f64>,
    class: ClassScores,
    policy: MovePolicy,
    spent: Spent,
    shifts: Shifts,
}

/// What the nodes are expected to carry as volumes are placed: volumes peak independently, so variances add up.
struct Expected {
    volumes: Vec<(f64, f64)>,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Expected {
    fn new(volumes: Vec<(f64, f64)>, nodes: usize) -> Self {
        Self { volumes, mean: vec![0.0; nodes], variance: vec![0.0; nodes] }
    }

    /// Takes into account what a node has of a volume.
    fn add(&mut self, volume: usize, node: usize, share: f64) {
        let (mean, bound) = self.volumes[volume];
        let spread = (bound - mean).max(0.0) * share;
        self.mean[node] += share * mean;
        self.variance[node] += spread * spread;
    }

    fn peak(&self, node: usize) -> f64 {
        self.mean[node] + self.variance[node].sqrt()
    }

    fn quietest(&self, layout: &Layout, but: &[usize]) -> Option<usize> {
        (0..self.mean.len())
            .filter(|node| layout.free(*node) > 0 && !but.contains(node))
            .min_by(|a, b| self.peak(*a).total_cmp(&self.peak(*b)))
    }
}

/// Thousandths of I/Os a second.
fn thousandths(kb_s: f64) -> u64 {
    (kb_s / IO_KB * 1000.0).round() as u64
}

fn disk(node: usize) -> DiskId {
    DiskId::from_u128(node as u128 + 1)
}

impl<'a> Weir<'a> {
    pub(super) fn new(foresight: Foresight, cluster: &'a Cluster, loads: &'a Loads, start: usize) -> Self {
        let count = cluster.volumes.len();
        let name = |n: usize| format!("n{n}").parse().expect("a node's name");
        Self {
            foresight,
            cluster,
            loads,
            start,
            names: (0..cluster.nodes).map(name).collect(),
            pool: "default".parse().expect("a pool's name"),
            columns: vec![vec![]; count],
            parts: vec![vec![]; count],
            warm: vec![0.0; count],
            migrated: vec![None; count],
            moved: vec![None; count],
            own: vec![Forecaster::new(WANTED_VIOLATIONS); cluster.nodes],
            lent: vec![0.0; cluster.nodes],
            class: ClassScores::new(),
            policy: MovePolicy::default(),
            spent: Spent::default(),
            shifts: Shifts::default(),
        }
    }

    /// Mean and peak of each volume, as far as they are known at the start (to the oracle: as they will be).
    fn history(&self) -> Vec<(f64, f64)> {
        let start = self.start * self.loads.steps_per_hour;
        let steps = match self.foresight {
            Foresight::Forecast => 0..start,
            Foresight::Perfect => start..self.loads.known.len(),
        };
        let known: Vec<usize> = steps.filter(|step| self.loads.known[*step]).collect();
        let of = |series: &Vec<f32>| {
            let mut seen: Vec<f64> = known.iter().map(|step| f64::from(series[*step])).collect();
            seen.sort_unstable_by(f64::total_cmp);
            let place = ((seen.len() as f64 * PEAK) as usize).min(seen.len().saturating_sub(1));
            (seen.iter().sum::<f64>() / seen.len().max(1) as f64, seen.get(place).copied().unwrap_or(0.0))
        };
        self.loads.kb_s.iter().map(of).collect()
    }

    /// Stripes what bursts over the quietest nodes, the widest first; the rest lies beside its VM. Then the disks' histories are made
    /// as if everything had lain there before.
    pub(super) fn place(&mut self, layout: &mut Layout) {
        let known = self.history();
        let width = |volume: usize| {
            let (_, peak) = known[volume];
            ((peak / (STRIPE_SHARE * self.cluster.cap)).ceil() as usize)
                .clamp(1, self.cluster.nodes - 1 + HOME_COLUMNS)
        };
        let mut order: Vec<usize> = (0..known.len()).collect();
        order.sort_by_key(|volume| (width(*volume) > HOME_COLUMNS, std::cmp::Reverse(width(*volume))));
        let widths: Vec<usize> = (0..known.len()).map(width).collect();
        let mut expected = Expected::new(known, self.cluster.nodes);
        for volume in order {
            let home = self.cluster.volumes[volume].home;
            let mut nodes = vec![home; HOME_COLUMNS.min(widths[volume])];
            while nodes.len() < widths[volume] {
                let Some(next) = expected.quietest(layout, &nodes) else { break };
                nodes.push(next);
            }
            let extents = layout.heat[volume].len();
            let striped = nodes.len() > HOME_COLUMNS;
            if striped {
                layout.heat[volume] = vec![1.0 / extents as f32; extents];
            }
            (0..extents).for_each(|extent| layout.put(volume, nodes[extent % nodes.len()]));
            for node in 0..self.cluster.nodes {
                expected.add(volume, node, layout.shares(volume)[node]);
            }
            if striped {
                self.columns[volume] = nodes;
            }
            let part = extents.div_ceil(PARTS);
            let heat = layout.heat[volume].chunks(part);
            self.parts[volume] = heat.map(|p| p.iter().map(|h| f64::from(*h)).sum()).collect();
        }
        (0..self.start).for_each(|hour| self.observe(layout, hour));
    }

    /// Learns what was done in an hour.
    fn observe(&mut self, layout: &Layout, hour: usize) {
        let each = self.loads.steps_per_hour;
        let steps = hour * each..(hour + 1) * each;
        let seconds = 3600.0 / each as f64;
        for (warm, series) in self.warm.iter_mut().zip(&self.loads.kb_s) {
            for load in &series[steps.clone()] {
                *warm += (f64::from(*load) - *warm) * seconds / (seconds + WARM_S);
            }
        }
        let known = self.loads.known[steps.clone()].iter().filter(|known| **known).count();
        let (own, lent) = self.by_node(layout, steps);
        for node in 0..self.cluster.nodes {
            self.lent[node] = lent[node].iter().copied().fold(0.0, f64::max);
            let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
            if known * 4 >= each * 3 {
                let seen = Hour {
                    number: self.loads.first_hour + hour as u64,
                    mean: mean(&own[node]),
                    peak: own[node].iter().copied().fold(0.0, f64::max),
                    late: mean(&own[node][each - (each / 4).max(1)..]),
                };
                self.own[node].observe(seen, &mut self.class);
            }
        }
    }

    /// KB/s by node and step, for the nodes' own VMs and for others'.
    fn by_node(&self, layout: &Layout, steps: std::ops::Range<usize>) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let mut own = vec![vec![0.0; steps.len()]; self.cluster.nodes];
        let mut lent = own.clone();
        for (volume, series) in self.loads.kb_s.iter().enumerate() {
            for (node, share) in layout.shares(volume).iter().enumerate().filter(|(_, s)| **s > 0.0) {
                let of = if layout.home[volume] == node { &mut own } else { &mut lent };
                for (sum, load) in of[node].iter_mut().zip(&series[steps.clone()]) {
                    *sum += share * f64::from(*load);
                }
            }
        }
        (own, lent)
    }

    /// One hour's moves.
    pub(super) fn hour(&mut self, layout: &mut Layout, hour: usize) {
        if hour > self.start {
            self.observe(layout, hour - 1);
        }
        for (_, volume, _) in self.cluster.migrations.iter().filter(|m| m.0 == hour) {
            self.migrated[*volume] = Some(hour);
        }
        if self.foresight == Foresight::Perfect {
            // It sees what lies where now: nothing has moved that it does not know of.
            self.shifts = Shifts::default();
        }
        let disks = self.disks(layout, hour);
        let peaks = self.peaks(hour);
        for look in 0..LOOKS {
            let now_s = hour as u64 * 3600 + look * 3600 / LOOKS;
            if !self.look(layout, &disks, &peaks, hour, now_s) {
                break;
            }
        }
    }

    /// Plans once, and does what the budgets allow; whether anything moved.
    fn look(
        &mut self,
        layout: &mut Layout,
        disks: &[DiskFact],
        peaks: &[f64],
        hour: usize,
        now_s: u64,
    ) -> bool {
        let mut disks = disks.to_vec();
        for (node, d) in disks.iter_mut().enumerate() {
            d.free = layout.free(node) as u64;
            d.lendable = d.free;
        }
        self.shifts.forget(now_s);
        self.shifts.apply(disks.iter_mut());
        let volumes: Vec<VolumeFact> =
            (0..peaks.len()).map(|v| self.volume(layout, v, peaks[v], hour)).collect();
        let plan = planner::plan(&self.policy, Extents::new(MOST), &disks, &volumes, &Busy::default());
        let before = layout.moved;
        for p in &plan {
            self.carry_out(layout, p, hour, now_s);
        }
        layout.moved > before
    }

    fn carry_out(&mut self, layout: &mut Layout, p: &Proposal, hour: usize, now_s: u64) {
        let node = |d: DiskId| (d.as_u128() - 1) as usize;
        let volume = (p.volume.as_u128() - 1) as usize;
        let spending = Spending {
            pool: &self.pool,
            pool_extents: Extents::new((self.cluster.nodes * self.cluster.disk_extents) as u64),
            from: p.from,
            to: p.to,
            extents: p.count,
            bytes: ExtentSize::DEFAULT.checked_bytes_of(p.count).unwrap_or_default(),
        };
        if is_budgeted(p.cause) {
            if self.spent.check(now_s, &self.policy.budget, &spending).is_err() {
                return;
            }
            self.spent.spend(now_s, &spending);
        }
        let (start, count) = (p.start.get() as usize, p.count.get() as usize);
        let columns = &mut self.columns[volume];
        if columns.is_empty() {
            (start..start + count).for_each(|extent| layout.shift(volume, extent, node(p.to)));
        } else {
            let (width, column) = (columns.len(), p.leg as usize);
            columns[column] = node(p.to);
            let all = layout.place[volume].len();
            (column..all).step_by(width).for_each(|extent| layout.shift(volume, extent, node(p.to)));
        }
        self.moved[volume] = Some((hour, p.cause));
        self.shifts.note(now_s, p);
    }

    /// What is so of each disk, before anything moves in this hour.
    fn disks(&self, layout: &Layout, hour: usize) -> Vec<DiskFact> {
        let each = self.loads.steps_per_hour;
        let load = |node: usize| match self.foresight {
            Foresight::Forecast => self.own[node].forecast(1).peak_bound + self.lent[node],
            Foresight::Perfect => {
                let (own, lent) = self.by_node(layout, hour * each..(hour + 1) * each);
                own[node].iter().zip(&lent[node]).map(|(a, b)| a + b).fold(0.0, f64::max)
            }
        };
        (0..self.cluster.nodes)
            .map(|node| DiskFact {
                disk: disk(node),
                node: self.names[node].clone(),
                block: 4096,
                extents: self.cluster.disk_extents as u64,
                free: 0,
                coming: 0,
                lendable: 0,
                need: 0,
                usable: thousandths(USABLE * self.cluster.cap),
                load: thousandths(load(node)),
                left: 0,
                come: 0,
                serving: true,
            })
            .collect()
    }

    /// The peak of each volume as planners are told: what it did last; to the oracle, what it will do. KB/s.
    fn peaks(&self, hour: usize) -> Vec<f64> {
        let each = self.loads.steps_per_hour;
        let of = |series: &Vec<f32>| match self.foresight {
            Foresight::Forecast => (hour * each).checked_sub(1).map_or(0.0, |last| f64::from(series[last])),
            Foresight::Perfect => {
                series[hour * each..(hour + 1) * each].iter().copied().map(f64::from).fold(0.0, f64::max)
            }
        };
        self.loads.kb_s.iter().map(of).collect()
    }

    fn volume(&self, layout: &Layout, volume: usize, peak: f64, hour: usize) -> VolumeFact {
        let since_s = |then: usize| (hour - then) as u64 * 3600;
        let mut fact = VolumeFact {
            volume: VolumeId::from_u128(volume as u128 + 1),
            epoch: Epoch::ZERO,
            home: self.names[layout.home[volume]].clone(),
            extent_size: ExtentSize::DEFAULT,
            still_s: self.migrated[volume].map_or(u64::MAX, since_s),
            moved_s: self.moved[volume].map(|(at, _)| since_s(at)),
            coming_home: self.moved[volume].is_some_and(|(at, cause)| {
                cause == MoveCause::Gravity && self.migrated[volume].is_none_or(|m| m <= at)
            }),
            bound: false,
            block: 4096,
            not: BTreeSet::new(),
            pieces: self.pieces(layout, volume),
            max_lenders: self.cluster.nodes,
        };
        let parts = &self.parts[volume];
        let extents = layout.place[volume].len().div_ceil(PARTS) as u64;
        let part_bytes = ExtentSize::DEFAULT.bytes().get() * extents;
        let mean = self.warm[volume] / IO_KB;
        planner::spread(&VolumeRates { part_bytes, parts, mean, peak: (peak / IO_KB).max(mean) }, &mut fact);
        fact
    }

    fn pieces(&self, layout: &Layout, volume: usize) -> Vec<PieceFact> {
        let place = &layout.place[volume];
        let piece = |start: usize, count: usize, leg: usize, node: usize, whole| PieceFact {
            start: Extents::new(start as u64),
            count: count as u64,
            leg: leg as u32,
            disk: disk(node),
            io: 0,
            peak: 0,
            whole,
        };
        let columns = &self.columns[volume];
        if !columns.is_empty() {
            let whole: BTreeSet<DiskId> = columns.iter().map(|n| disk(*n)).collect();
            // Rows that are not full count as full.
            let rows = place.len().div_ceil(columns.len());
            let legs = columns.iter().enumerate();
            return legs.map(|(leg, node)| piece(0, rows, leg, *node, Some(whole.clone()))).collect();
        }
        let runs = place.chunk_by(|a, b| a == b).scan(0, |start, run| {
            let begin = std::mem::replace(start, *start + run.len());
            Some(piece(begin, run.len(), 0, run[0], None))
        });
        runs.collect()
    }
}
