//! The planners over random clusters: equal facts give equal plans, budgets of moves hold, and a plan that is carried out
//! again and again comes to an end without ever taking back what it did.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    ids::{DiskId, Epoch, NodeName, VolumeId},
    moving::MoveCause,
    planner::{Busy, DiskFact, PieceFact, Proposal, VolumeFact, Why, plan},
    policy::{HOLD_S, MovePolicy, STILL_S},
    units::{ExtentSize, Extents},
};
use proptest::{prelude::*, strategy::ValueTree as _};

const DISKS_A_NODE: usize = 2;

fn node(n: usize) -> NodeName {
    format!("n{n}").parse().unwrap()
}

fn disk(n: usize) -> DiskId {
    DiskId::from_u128(n as u128 + 1)
}

/// A cluster: what disks have beside the pieces that follow from volumes.
#[derive(Clone, Debug)]
struct World {
    disks: Vec<DiskFact>,
    volumes: Vec<VolumeFact>,
}

prop_compose! {
    fn a_disk()(extents in 50_u64..400, need in 0_u64..120, usable in prop_oneof![Just(0), 1_000_u64..200_000],
                own in 0_u64..100_000, serving in prop::bool::weighted(0.9)) -> (u64, u64, u64, u64, bool) {
        (extents, need, usable, own, serving)
    }
}

prop_compose! {
    fn a_volume(nodes: usize)(home in 0..nodes, still in prop_oneof![Just(0), Just(STILL_S)],
                moved in prop_oneof![Just(None), Just(Some(0)), Just(Some(HOLD_S))],
                lenders in 1_usize..5, bound in prop::bool::weighted(0.1),
                pieces in prop::collection::vec((0..nodes * DISKS_A_NODE, 1_u64..60, 0_u64..60_000), 1..5))
                -> (usize, u64, Option<u64>, usize, bool, Vec<(usize, u64, u64)>) {
        (home, still, moved, lenders, bound, pieces)
    }
}

prop_compose! {
    fn a_world()(nodes in 2_usize..6)
        (disks in prop::collection::vec(a_disk(), nodes * DISKS_A_NODE),
         volumes in prop::collection::vec(a_volume(nodes), 0..12)) -> World {
        build(&disks, &volumes)
    }
}

/// Where an extent has been, why it left, and in which round.
type Trail = Vec<(DiskId, MoveCause, u32)>;
type RawDisk = (u64, u64, u64, u64, bool);
type RawVolume = (usize, u64, Option<u64>, usize, bool, Vec<(usize, u64, u64)>);

fn build(disks: &[RawDisk], volumes: &[RawVolume]) -> World {
    let mut all: Vec<DiskFact> = disks
        .iter()
        .enumerate()
        .map(|(i, (extents, need, usable, own, serving))| DiskFact {
            disk: disk(i),
            node: node(i / DISKS_A_NODE),
            block: 512,
            extents: *extents,
            free: *extents,
            coming: 0,
            lendable: *extents,
            need: *need,
            usable: *usable,
            load: *own,
            left: 0,
            come: 0,
            serving: *serving,
        })
        .collect();
    let mut out = vec![];
    for (i, (home, still_s, moved_s, max_lenders, bound, pieces)) in volumes.iter().enumerate() {
        let (mut start, mut mine) = (0, vec![]);
        for (d, count, peak) in pieces {
            // What it does over hours is some part of its peak.
            let io = peak / (1 + count % 4);
            let count = (*count).min(all[*d].free);
            if count == 0 {
                continue;
            }
            all[*d].free -= count;
            all[*d].load += peak;
            mine.push(PieceFact {
                start: Extents::new(start),
                count,
                leg: 0,
                disk: disk(*d),
                io,
                peak: *peak,
                whole: None,
            });
            start += count;
        }
        out.push(VolumeFact {
            volume: VolumeId::from_u128(i as u128 + 1),
            epoch: Epoch::ZERO,
            home: node(*home),
            extent_size: ExtentSize::DEFAULT,
            still_s: *still_s,
            moved_s: *moved_s,
            coming_home: false,
            bound: *bound,
            block: 512,
            not: BTreeSet::new(),
            pieces: mine,
            max_lenders: *max_lenders,
        });
    }
    World { disks: all, volumes: out }
}

impl World {
    fn plan(&self, policy: &MovePolicy, most: u64) -> Vec<Proposal> {
        plan(policy, Extents::new(most), &self.disks, &self.volumes, &Busy::default())
    }

    fn disk(&mut self, id: DiskId) -> &mut DiskFact {
        self.disks.iter_mut().find(|d| d.disk == id).unwrap()
    }

    /// Carries a plan out: what moved is where it should be, and what it left is wiped.
    fn carry_out(&mut self, all: &[Proposal]) {
        for p in all {
            let v = self.volumes.iter_mut().find(|v| v.volume == p.volume).unwrap();
            let i = v.pieces.iter().position(|x| x.start == p.start && x.disk == p.from).unwrap();
            let old = v.pieces[i].clone();
            let n = p.count.get();
            assert!(n > 0 && n <= old.count, "{p:?} of {old:?}");
            let (io, peak) = (old.io * n / old.count, old.peak * n / old.count);
            v.pieces[i] = PieceFact { disk: p.to, count: n, io, peak, ..old.clone() };
            if n < old.count {
                let rest = PieceFact {
                    start: Extents::new(old.start.get() + n),
                    count: old.count - n,
                    io: old.io - io,
                    peak: old.peak - peak,
                    ..old
                };
                v.pieces.insert(i + 1, rest);
            }
            v.moved_s = Some(0);
            v.coming_home = p.cause == MoveCause::Gravity;
            let from = self.disk(p.from);
            (from.free, from.load) = (from.free + n, from.load.saturating_sub(peak));
            let to = self.disk(p.to);
            to.free = to.free.checked_sub(n).expect("the disk has the room");
            to.load += peak;
        }
    }

    /// All the time passes that damping asks for: only the bounds themselves are left to stop it.
    fn wait(&mut self) {
        for v in &mut self.volumes {
            (v.still_s, v.moved_s) = (STILL_S, v.moved_s.map(|_| HOLD_S));
        }
    }
}

fn policy() -> impl Strategy<Value = MovePolicy> {
    let fullness = prop_oneof![Just(None), (60_u32..=95).prop_map(Some)];
    (any::<bool>(), any::<bool>(), any::<bool>(), fullness).prop_map(|(gravity, spill, recall, fullness)| {
        MovePolicy { gravity, spill, recall, fullness, ..MovePolicy::default() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn equal_facts_give_equal_plans_in_whatever_order(w in a_world(), p in policy(), most in 1_u64..50) {
        let first = w.plan(&p, most);
        let mut other = w.clone();
        other.disks.reverse();
        other.volumes.reverse();
        prop_assert_eq!(&first, &other.plan(&p, most));
        prop_assert_eq!(&first, &w.plan(&p, most));
    }

    #[test]
    fn a_plan_keeps_to_the_policy_and_to_its_bounds(w in a_world(), p in policy(), most in 1_u64..50) {
        let all = w.plan(&p, most);
        let facts: BTreeMap<DiskId, &DiskFact> = w.disks.iter().map(|d| (d.disk, d)).collect();
        let (mut from, mut to, mut volumes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for m in &all {
            prop_assert!(p.allows(m.cause), "{m:?}");
            prop_assert!(m.count.get() >= 1 && m.count.get() <= most, "{m:?}");
            prop_assert!(from.insert(m.from) && to.insert(m.to) && volumes.insert(m.volume), "{all:?}");
            let v = w.volumes.iter().find(|v| v.volume == m.volume).unwrap();
            prop_assert!(!v.bound);
            let t = facts[&m.to];
            prop_assert!(t.serving && t.free > t.need + m.count.get(), "{m:?} to {t:?}");
            match m.cause {
                MoveCause::Gravity => prop_assert!(t.node == v.home && facts[&m.from].node != v.home),
                MoveCause::Recall => prop_assert!(facts[&m.from].node != v.home && t.node != facts[&m.from].node),
                MoveCause::Spill | MoveCause::Fullness | MoveCause::Drain => {}
            }
            prop_assert!(!m.why.to_string().is_empty());
        }
    }

    #[test]
    fn plans_come_to_an_end_and_take_nothing_back(w in a_world(), p in policy(), most in 1_u64..50) {
        let mut w = w;
        w.wait();
        // By volume and logical extent.
        let mut been: BTreeMap<(VolumeId, u64), Trail> = BTreeMap::new();
        // When something last left a disk. What has spilled may come home once more has left than itself.
        let mut relieved: BTreeMap<DiskId, u32> = BTreeMap::new();
        let mut rounds = 0;
        loop {
            let all = w.plan(&p, most);
            if all.is_empty() {
                break;
            }
            for m in &all {
                for e in m.start.get()..m.start.get() + m.count.get() {
                    let trail = been.entry((m.volume, e)).or_default();
                    let since = relieved.get(&m.to).copied().unwrap_or(0);
                    let home = |cause, left| {
                        (cause, m.cause) == (MoveCause::Spill, MoveCause::Gravity) && left < since
                    };
                    prop_assert!(
                        trail.iter().all(|(d, cause, left)| *d != m.to || home(*cause, *left)),
                        "extent {e} of {} goes back to {} after {trail:?}: {m:?}", m.volume, m.to
                    );
                    trail.push((m.from, m.cause, rounds));
                }
            }
            relieved.extend(all.iter().map(|m| (m.from, rounds)));
            w.carry_out(&all);
            w.wait();
            rounds += 1;
            prop_assert!(rounds < 2000, "no end: {all:?}");
        }
    }
}

#[test]
fn the_random_clusters_do_move() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut causes, mut long) = (BTreeMap::new(), 0);
    for _ in 0..400 {
        let (mut w, p, most) = (a_world(), policy(), 1_u64..50).new_tree(&mut runner).unwrap().current();
        w.wait();
        for round in 0.. {
            let all = w.plan(&p, most);
            all.iter().for_each(|m| *causes.entry(m.cause).or_insert(0) += 1);
            if all.is_empty() {
                long += usize::from(round > 2);
                break;
            }
            w.carry_out(&all);
            w.wait();
        }
    }
    let all = [MoveCause::Recall, MoveCause::Spill, MoveCause::Gravity, MoveCause::Fullness];
    assert!(all.iter().all(|c| causes.get(c).is_some_and(|n| *n > 50)), "{causes:?}");
    assert!(long > 50, "plans of several rounds: {long}");
}

fn two_nodes(local_free: u64, io: u64, need: u64) -> World {
    // n0 has disks 0 and 1, n1 has disks 2 and 3.
    let raw =
        [(100, 0, 100_000, 0, true), (0, 0, 0, 0, false), (100, need, 100_000, 0, true), (0, 0, 0, 0, false)];
    let mut w = build(&raw, &[(0, STILL_S, None, 8, false, vec![(2, 40, io)])]);
    w.disks[0].free = local_free;
    w
}

#[test]
fn a_volume_comes_home_when_that_pays_and_there_is_room() {
    let p = MovePolicy::default();
    let moves = two_nodes(60, 20_000, 0).plan(&p, 64);
    let [m] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!((m.cause, m.from, m.to, m.count.get()), (MoveCause::Gravity, disk(2), disk(0), 40));
    assert!(matches!(m.why, Why::Gravity { io: 20, .. }), "{:?}", m.why);
    assert!(m.why.to_string().contains("20 I/Os a second become local"), "{}", m.why);
    // Cold, no room, not still, turned off: it stays.
    assert!(two_nodes(60, 100, 0).plan(&p, 64).is_empty());
    assert!(two_nodes(2, 20_000, 0).plan(&p, 64).is_empty());
    let mut w = two_nodes(60, 20_000, 0);
    w.volumes[0].still_s = STILL_S - 1;
    assert!(w.plan(&p, 64).is_empty());
    assert!(two_nodes(60, 20_000, 0).plan(&MovePolicy { gravity: false, ..p }, 64).is_empty());
}

#[test]
fn a_lender_gets_back_what_it_needs_and_no_more() {
    let p = MovePolicy { gravity: false, ..MovePolicy::default() };
    // 60 free, 75 needed: 15 and half a margin.
    let moves = two_nodes(60, 0, 75).plan(&p, 64);
    let [m] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!((m.cause, m.to, m.count.get()), (MoveCause::Recall, disk(0), 16));
    assert!(m.why.to_string().contains("may need"), "{}", m.why);
    let mut w = two_nodes(60, 0, 75);
    w.carry_out(&moves);
    assert!(w.plan(&p, 64).is_empty(), "it has what it needs");
    assert!(two_nodes(60, 0, 60).plan(&p, 64).is_empty());
    // What waits to be wiped is counted: it need not be recalled twice.
    let mut w = two_nodes(60, 0, 75);
    w.disks[2].coming = 20;
    assert!(w.plan(&p, 64).is_empty());
}

#[test]
fn an_overloaded_disk_spills_what_is_lent_first() {
    let raw = [
        (100, 0, 100_000, 0, true),
        (0, 0, 0, 0, false),
        (100, 0, 100_000, 50_000, true),
        (100, 0, 100_000, 0, true),
    ];
    let own = (1, STILL_S, None, 8, false, vec![(2, 10, 10_000)]);
    let lent = (0, STILL_S, None, 8, false, vec![(2, 10, 15_000)]);
    let w = build(&raw, &[own, lent]);
    let moves = w.plan(&MovePolicy { gravity: false, ..MovePolicy::default() }, 64);
    let [m] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!((m.cause, m.volume, m.to), (MoveCause::Spill, VolumeId::from_u128(2), disk(0)));
    assert!(m.why.to_string().contains("75 %"), "{}", m.why);
}

#[test]
fn a_disk_takes_back_no_part_of_what_it_has_spilled() {
    let raw =
        [(50, 0, 112_000, 0, true), (0, 0, 0, 0, false), (50, 0, 103_400, 20_400, true), (0, 0, 0, 0, false)];
    let mut w = build(&raw, &[(1, STILL_S, None, 2, false, vec![(2, 4, 52_000)])]);
    let p = MovePolicy::default();
    let moves = w.plan(&p, 3);
    let [m] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!((m.cause, m.from, m.to, m.count.get()), (MoveCause::Spill, disk(2), disk(0), 3));
    w.carry_out(&moves);
    w.wait();
    // It has room below 45 % for one of the three.
    assert!(w.plan(&p, 3).is_empty());
    w.disk(disk(2)).load = 0;
    let moves = w.plan(&p, 3);
    let [m] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!((m.cause, m.to, m.count.get()), (MoveCause::Gravity, disk(2), 3));
}

#[test]
fn what_no_disk_can_bear_as_a_whole_goes_in_parts() {
    let raw = |others: u64| {
        [
            (100, 0, 100_000, others, true),
            (0, 0, 0, 0, false),
            (100, 0, 100_000, 0, true),
            (0, 0, 0, 0, false),
        ]
    };
    let v = (1, STILL_S, None, 8, false, vec![(2, 40, 100_000)]);
    let p = MovePolicy { gravity: false, ..MovePolicy::default() };
    // 45 % of what the other disk can do are 18 extents, and may not be reached.
    let moves = build(&raw(0), std::slice::from_ref(&v)).plan(&p, 64);
    let [m] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!((m.cause, m.to, m.count.get(), m.io), (MoveCause::Spill, disk(0), 17, 42_500));
    let moves = build(&raw(33_000), std::slice::from_ref(&v)).plan(&p, 64);
    assert!(moves.is_empty(), "four of forty extents would not help: {moves:?}");
}

#[test]
fn a_full_disk_is_relieved_down_to_the_bound() {
    let raw = [(100, 0, 0, 0, true), (100, 0, 0, 0, true), (0, 0, 0, 0, false), (0, 0, 0, 0, false)];
    let mut w = build(&raw, &[(0, STILL_S, None, 8, false, vec![(0, 95, 0)])]);
    let p = MovePolicy { fullness: Some(90), ..MovePolicy::default() };
    let moves = w.plan(&p, 64);
    let [m] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!((m.cause, m.to, m.count.get()), (MoveCause::Fullness, disk(1), 5));
    w.carry_out(&moves);
    w.wait();
    assert!(w.plan(&p, 64).is_empty());
    assert!(w.plan(&MovePolicy::default(), 64).is_empty(), "off unless asked for");
}
