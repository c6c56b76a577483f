//! Moves that nobody asks for: from histories and facts to plans, and through the core. Time is driven: the calendar of core and
//! histories is the test's, leases are told by the clock.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use controller::{
    api::Api,
    core::{Core, CoreConfig},
    fault::Fault,
    flow::{
        DiskSample, Heat, Rates, Recording, VolumeSample,
        moves::{Moves, Pace, Round},
        sweep,
    },
};
use forecast::{DeviceClass, Observed};
use pool::{
    ids::{DiskId, Epoch, NodeName, VolumeId},
    moving::MoveCause,
    policy::MovePolicy,
    units::Bytes,
};

use crate::{
    node::{Node, quick},
    rig::{RWO, RWX, Rig, extents, request},
    stores::Memory,
    world::{World, until},
};

const START: u64 = 1_800_000_000 / 3600 * 3600;
const HOUR: u64 = 3600;
/// More than any disk of the class is believed to be able to do.
const HEAVY: f64 = 30_000.0;

/// A rig with its calendar, and the moves.
struct Feed {
    rig: Rig,
    moves: Moves,
    clock: Arc<AtomicU64>,
    disks: Vec<DiskId>,
    sequence: u64,
}

fn loose(c: &mut CoreConfig) {
    c.lease = Duration::from_secs(20);
    c.lend_by_forecast = false;
    c.pools[0].moving.budget.daily_permille = 1000;
}

impl Feed {
    async fn new(sizes: &[u64], pace: Pace, change: impl FnOnce(&mut CoreConfig)) -> Self {
        let mut config = quick();
        loose(&mut config);
        change(&mut config);
        let (world, clock) = (World::default(), Arc::new(AtomicU64::new(START)));
        let told = clock.clone();
        let (core, handle) = Core::start(config, Arc::new(Memory::default()), Fault::none()).await.unwrap();
        let core = core.with_clock(Arc::new(move || told.load(Ordering::SeqCst) * 1000));
        let task = tokio::spawn(core.run());
        let node = |(i, n): (usize, &u64)| Node::new(&world, &format!("n{}", i + 1), &[*n]);
        let nodes: Vec<Node> = sizes.iter().enumerate().map(node).collect();
        for n in &nodes {
            n.connect(&handle).await;
        }
        let rig = Rig::of(world, handle, nodes, task);
        rig.free(sizes.iter().sum()).await;
        let s = rig.core.survey().await;
        let on = |n: &Node| s.disks.iter().find(|d| d.node == n.name).unwrap().disk;
        let disks = rig.nodes.iter().map(on).collect();
        let moves = Moves::new(rig.core.clone(), pace);
        Self { rig, moves, clock, disks, sequence: 0 }
    }

    async fn settled(sizes: &[u64], change: impl FnOnce(&mut CoreConfig)) -> Self {
        Self::new(sizes, Pace { settle: Duration::ZERO, every: Duration::from_secs(60) }, change).await
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Every node records for so many seconds: the load of its disk, and of volumes that it holds.
    fn record(&mut self, seconds: u64, loads: &[f64], volumes: &[(usize, VolumeId, f64)]) {
        let end = self.now() + seconds;
        for at_s in (self.now() + 10..=end).step_by(10) {
            self.sequence += 1;
            for (i, load) in loads.iter().enumerate() {
                let disk = DiskSample {
                    disk: self.disks[i],
                    class: DeviceClass::Ssd,
                    all: Observed { load: *load, queue: 0.5, latency: Some(2e-4) },
                    lent: 0.0,
                    loans: BTreeMap::new(),
                    read_bytes_s: 0.0,
                    write_bytes_s: 0.0,
                    health: None,
                };
                let own = volumes.iter().filter(|v| v.0 == i);
                let heat = |io: f64| Some(Heat { part_bytes: extents(1).get(), ios: vec![io / 8.0; 8] });
                let volumes = own.map(|(_, v, io)| VolumeSample {
                    volume: *v,
                    load: *io,
                    rates: Rates::default(),
                    heat: heat(*io),
                });
                let r = Recording {
                    sequence: self.sequence,
                    at_s,
                    disks: vec![disk],
                    volumes: volumes.collect(),
                    histories: vec![],
                };
                self.rig.core.flow().take(&self.rig.name(i), at_s, r);
            }
        }
        self.clock.store(end, Ordering::SeqCst);
    }

    /// Weighs and plans once, and waits until what has begun is done.
    async fn round(&mut self) -> Round {
        let now = self.now();
        sweep::sweep(&self.rig.core.flow().clone(), &self.rig.core, now).await.unwrap();
        let r = self.moves.round(now, Duration::from_secs(now - START)).await.unwrap();
        let begun = r.proposed.iter().filter(|p| r.refused.iter().all(|(v, _)| *v != p.volume));
        let begun: Vec<_> = begun.map(|p| (p.volume, p.epoch)).collect();
        until("moves are done", || async {
            let s = self.rig.core.survey().await;
            let wiped = s.disks.iter().all(|d| d.unwiped == Bytes::ZERO);
            let moved = |(v, e): &(VolumeId, Epoch)| s.volumes.iter().any(|r| r.volume == *v && r.epoch > *e);
            (begun.iter().all(moved) && s.moves.is_empty() && wiped).then_some(())
        })
        .await;
        r
    }

    /// The core ends when nobody asks it any more.
    async fn end(self) {
        let Self { rig, moves, .. } = self;
        drop(moves);
        rig.end().await;
    }

    async fn on(&self, v: VolumeId, disk: usize) -> u64 {
        let row = self.rig.row(v).await.unwrap();
        row.segments.iter().filter(|s| s.2 == self.disks[disk]).map(|s| s.1).sum()
    }

    async fn volume(&self, name: &str, n: u64, home: usize) -> VolumeId {
        let at: NodeName = self.rig.name(home);
        let v = self.rig.create(name, n, Some(at.as_str())).await;
        self.rig.attach(v.id, home, &RWO).await.unwrap();
        self.rig.settled(v.id, "Attached").await;
        v.id
    }

    /// Hours of a load, a round every ten minutes; what began.
    async fn hours(&mut self, n: u64, loads: &[f64], volumes: &[(usize, VolumeId, f64)]) -> Vec<Round> {
        let mut all = vec![];
        for _ in 0..n * 6 {
            self.record(HOUR / 6, loads, volumes);
            let r = self.round().await;
            if !r.proposed.is_empty() {
                all.push(r);
            }
        }
        all
    }
}

fn causes(all: &[Round]) -> Vec<MoveCause> {
    all.iter().flat_map(|r| r.proposed.iter().map(|p| p.cause)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lender_gets_its_reserve_back_and_no_more() {
    // Of 30 extents on n3, 8 are for n3. A volume at n1 borrows 20 of them, then n3 makes one of 6.
    let mut f = Feed::settled(&[10, 20, 30], |c| c.pools[0].reserve = extents(8)).await;
    let lent = f.volume("lent", 30, 0).await;
    let before = [f.on(lent, 1).await, f.on(lent, 2).await];
    assert_eq!(before[0] + before[1], 20, "{before:?}");
    let lender = if before[0] > before[1] { 1 } else { 2 };
    f.record(60, &[0.0; 3], &[]);
    assert!(f.round().await.proposed.is_empty(), "its reserve is whole");
    f.volume("own", 6, lender).await;
    f.record(60, &[0.0; 3], &[]);
    let mut rounds = vec![];
    for _ in 0..12 {
        f.record(60, &[0.0; 3], &[]);
        rounds.push(f.round().await);
    }
    let causes = causes(&rounds);
    assert!(!causes.is_empty() && causes.iter().all(|c| *c == MoveCause::Recall), "{causes:?}");
    assert!(rounds.iter().all(|r| r.refused.is_empty()), "{rounds:?}");
    let s = f.rig.core.survey().await;
    let free = s.disks.iter().find(|d| d.disk == f.disks[lender]).unwrap().free;
    assert!(free >= extents(8) && free <= extents(10), "{free}");
    assert!(rounds.iter().rev().take(4).all(|r| r.proposed.is_empty()), "it ends");
    let row = f.rig.row(lent).await.unwrap();
    assert!(row.history.iter().any(|h| h.contains("recall: its lender has")), "{:?}", row.history);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_disk_spills_and_it_comes_home_once_the_load_has_gone() {
    let mut f = Feed::settled(&[20, 20], |_| ()).await;
    let v = f.volume("v", 8, 0).await;
    let io = 4000.0;
    // The disk of n1 does more than it is believed to be able to, whatever of it is moved.
    let spilled = f.hours(3, &[HEAVY, 10.0], &[(0, v, io)]).await;
    assert!(!spilled.is_empty() && causes(&spilled).iter().all(|c| *c == MoveCause::Spill), "{spilled:?}");
    let away = f.on(v, 1).await;
    assert!(away > 0);
    assert_eq!(spilled.len(), 1, "what has moved stays: {spilled:?}");
    // The load goes; what was away comes home piece by piece, not before it was held, and then nothing moves for days.
    let still = f.hours(2, &[10.0, 10.0], &[(0, v, 50.0)]).await;
    assert!(still.is_empty(), "{still:?}");
    let home = f.hours(8, &[10.0, 10.0], &[(0, v, 50.0)]).await;
    assert!(!home.is_empty() && causes(&home).iter().all(|c| *c == MoveCause::Gravity), "{home:?}");
    assert_eq!(f.on(v, 1).await, 0);
    // A day after the load the forecast may expect it again: it spills once and comes home, and that is all.
    let days = f.hours(48, &[10.0, 10.0], &[(0, v, 50.0)]).await;
    assert!(days.len() <= 6, "{days:?}");
    assert_eq!(f.on(v, 1).await, 0);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_borrowed_run_comes_home_after_a_migration_if_the_pool_wants_it() {
    for wanted in [true, false] {
        let mut f = Feed::settled(&[10, 20], |c| c.pools[0].moving.gravity = wanted).await;
        let v = f.rig.create("v", 6, Some("n1")).await.id;
        f.rig.attach(v, 0, &RWX).await.unwrap();
        f.rig.attach(v, 1, &RWX).await.unwrap();
        f.rig.nodes[1].write(v).await;
        f.rig.settled(v, "Attached").await;
        f.rig.detach(v, 0).await.unwrap();
        f.rig.settled(v, "Attached").await;
        let soon = f.record_and_round(v).await;
        assert!(soon.proposed.is_empty(), "VMs that migrate often migrate on: {soon:?}");
        let later = f.hours(1, &[10.0, 10.0], &[(1, v, 500.0)]).await;
        assert_eq!(f.on(v, 0).await, if wanted { 0 } else { 6 }, "{later:?}");
        assert_eq!(later.is_empty(), !wanted);
        f.end().await;
    }
}

impl Feed {
    async fn record_and_round(&mut self, v: VolumeId) -> Round {
        self.record(120, &[10.0, 10.0], &[(1, v, 500.0)]);
        self.round().await
    }

    /// A volume at n1 of which all lies at n2, as after a migration; hot, and long settled.
    async fn astray(&mut self) -> VolumeId {
        let v = self.rig.create("v", 6, Some("n2")).await.id;
        self.rig.attach(v, 0, &RWO).await.unwrap();
        self.rig.settled(v, "Attached").await;
        self.record(HOUR, &[10.0, 10.0], &[(0, v, 500.0)]);
        v
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_hold_for_what_is_planned() {
    let mut f = Feed::settled(&[20, 20], |c| c.pools[0].moving.budget.hourly = extents(4)).await;
    let v = f.astray().await;
    for _ in 0..4 {
        f.record(60, &[10.0, 10.0], &[(0, v, 500.0)]);
        f.round().await;
    }
    // Three at a time: the second time would be the fifth and sixth extent within the hour.
    assert_eq!((f.on(v, 0).await, f.on(v, 1).await), (3, 3));
    f.record(60, &[10.0, 10.0], &[(0, v, 500.0)]);
    let refused = f.round().await.refused;
    assert!(refused.iter().any(|(_, why)| why.contains("within the hour")), "{refused:?}");
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_proposed_too_early_or_on_old_samples() {
    let pace = Pace { settle: Duration::from_secs(2 * HOUR), every: Duration::from_secs(60) };
    let mut f = Feed::new(&[20, 20], pace, |_| ()).await;
    let v = f.astray().await;
    assert!(f.round().await.settling);
    f.record(HOUR, &[10.0, 10.0], &[(0, v, 500.0)]);
    // Nothing was recorded for a minute.
    f.clock.fetch_add(61, Ordering::SeqCst);
    let r = f.round().await;
    assert!(!r.settling && r.proposed.is_empty(), "{r:?}");
    f.record(120, &[10.0, 10.0], &[(0, v, 500.0)]);
    assert_eq!(causes(&[f.round().await]), [MoveCause::Gravity]);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_out_of_date_is_refused_and_does_no_harm() {
    let mut f = Feed::settled(&[20, 20], |_| ()).await;
    let v = f.astray().await;
    let now = f.now();
    let planned = f.moves.plan(now, Duration::from_secs(HOUR)).await.unwrap().unwrap();
    assert_eq!(planned.len(), 1, "{planned:?}");
    f.rig.detach(v, 0).await.unwrap();
    f.rig.settled(v, "Detached").await;
    let refused = f.rig.core.propose(planned.clone()).await.unwrap();
    assert!(refused.len() == 1 && refused[0].1.contains("being changed"), "{refused:?}");
    f.rig.core.delete_volume(v).await.unwrap();
    f.rig.free(40).await;
    let refused = f.rig.core.propose(planned).await.unwrap();
    assert!(refused.len() == 1, "{refused:?}");
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_still_pool_is_left_alone() {
    let mut f = Feed::settled(&[20, 20], |c| c.pools[0].moving = MovePolicy::still()).await;
    let v = f.astray().await;
    assert!(f.round().await.proposed.is_empty());
    assert_eq!(f.on(v, 1).await, 6);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bursty_by_its_limits_is_striped_and_the_rest_is_not() {
    let mut f = Feed::settled(&[20; 4], |_| ()).await;
    let auto = async |f: &Feed, name: &str, n: u64, iops: Option<u64>| {
        let mut r = request(name, n, Some("n1"));
        r.parameters.insert("layout".to_owned(), "auto".to_owned());
        r.mutable_parameters.extend(iops.map(|n| ("iops".to_owned(), n.to_string())));
        let id = f.rig.core.create_volume(r).await.unwrap().id;
        let row = f.rig.row(id).await.unwrap();
        let disks: std::collections::BTreeSet<_> = row.segments.iter().map(|s| s.2).collect();
        (id, disks.len(), row.history[0].clone())
    };
    let (_, disks, why) = auto(&f, "unknown", 4, Some(3000)).await;
    assert!(disks == 1 && why.contains("created, linear: no disk of the pool is known yet"), "{why}");
    f.record(60, &[10.0; 4], &[]);
    f.round().await;
    let (_, disks, why) = auto(&f, "free", 4, None).await;
    assert!(disks == 1 && why.contains("no limit says what it may do"), "{why}");
    let (_, disks, why) = auto(&f, "calm", 4, Some(500)).await;
    assert!(disks == 1 && why.contains("created, linear: its limits let it do 9 %"), "{why}");
    // An unproven SSD is believed 10,000 I/Os a second; 3,000 writes of 4 KiB cost 1.75 each.
    let (bursty, disks, why) = auto(&f, "bursty", 8, Some(3000)).await;
    assert!(disks == 4 && why.contains("created, striped over 4 disks: its limits let it do 53 %"), "{why}");
    let (again, ..) = auto(&f, "bursty", 8, Some(3000)).await;
    assert_eq!(again, bursty);
    let (again, ..) = auto(&f, "bursty", 8, Some(100)).await;
    assert_eq!(again, bursty, "limits may have changed since, and how it lies with them");
    // Three disks that have room are taken as two.
    f.rig.create("full", 18, Some("n4")).await;
    let (_, disks, why) = auto(&f, "less", 4, Some(3000)).await;
    assert!(disks == 2 && why.ends_with("; there is no room for 4 disks"), "{why}");
    f.end().await;
}
