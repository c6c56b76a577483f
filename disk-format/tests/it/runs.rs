//! The run table: conflicts, idempotence, growth, removal, capacity, rebuilding a map.

use disk_format::{
    RunEntry, RunState, layout,
    model::AddRunsError,
    read_label,
    rescue::{RebuildError, rebuild_map, runs_of_map},
};
use pool::{
    ids::{DiskId, Epoch},
    units::{Extents, Sectors},
    volume::{Leg, Map, Segment, Stripe},
};
use proptest::prelude::*;

use crate::common::{add, empty_disk, run, summary, volume};

#[test]
fn an_extent_of_another_volume_is_refused_by_name() {
    let mut l = empty_disk().label().clone();
    l.add_runs(volume(1), &summary(1), &[run(0, 10, 5)]).unwrap();
    let before = l.clone();
    for r in [run(0, 10, 5), run(0, 14, 1), run(0, 8, 3), run(0, 0, 100)] {
        match l.add_runs(volume(2), &summary(1), &[run(0, 20, 1), r]) {
            Err(AddRunsError::RunConflict { volume: a, other: b, .. }) => {
                assert_eq!((a, b), (volume(2), volume(1)))
            }
            e => panic!("{e:?}"),
        }
        assert_eq!(l, before);
    }
    // Its own run at another logical place is a conflict too.
    assert!(matches!(
        l.add_runs(volume(1), &summary(1), &[run(9, 12, 5)]),
        Err(AddRunsError::RunConflict { other, .. }) if other == volume(1)
    ));
    assert_eq!(l.add_runs(volume(2), &summary(1), &[run(0, 15, 5)]), Ok(true));
    assert_eq!(l.check(), Ok(()));
}

#[test]
fn the_same_again_changes_nothing_and_a_grown_run_becomes_one() {
    let mut l = empty_disk().label().clone();
    assert_eq!(l.add_runs(volume(1), &summary(2), &[run(0, 10, 5)]), Ok(true));
    assert_eq!(l.add_runs(volume(1), &summary(2), &[run(0, 10, 5)]), Ok(false));
    assert_eq!(l.add_runs(volume(1), &summary(3), &[run(0, 10, 8)]), Ok(true));
    assert_eq!(l.runs_of(volume(1)).count(), 1);
    assert!(matches!(l.add_runs(volume(1), &summary(2), &[]), Err(AddRunsError::StaleEpoch { .. })));
    let filling = RunEntry { state: RunState::Filling, ..run(8, 30, 2) };
    l.add_runs(volume(1), &summary(3), &[filling]).unwrap();
    l.add_runs(volume(1), &summary(3), &[RunEntry { state: RunState::Live, ..filling }]).unwrap();
    assert!(l.runs_of(volume(1)).all(|r| r.state == RunState::Live));
}

#[test]
fn what_a_newer_map_has_no_more_waits_to_be_wiped_and_keeps_its_epoch() {
    let mut l = empty_disk().label().clone();
    let at = |epoch, r: RunEntry| RunEntry { epoch: Epoch::new(epoch), ..r };
    let state = |state, r: RunEntry| RunEntry { state, ..r };
    let said = |l: &disk_format::Label| {
        let said = l.runs_of(volume(1)).map(|r| (r.first.get(), r.count.get(), r.state, r.epoch.get()));
        said.collect::<Vec<_>>()
    };
    use RunState::{Filling, Live, Retired};
    assert_eq!(l.set_runs(volume(1), &summary(3), &[at(3, run(0, 10, 8))]), Ok(true));
    // Its ends have moved away; nobody told this disk of the moves. Then the volume grew.
    assert_eq!(l.set_runs(volume(1), &summary(9), &[at(9, run(2, 12, 4)), at(9, run(8, 18, 2))]), Ok(true));
    let now = [(10, 2, Retired, 3), (12, 4, Live, 9), (16, 2, Retired, 3), (18, 2, Live, 9)];
    assert_eq!(said(&l), now);
    assert_eq!(l.set_runs(volume(1), &summary(9), &[at(9, run(2, 12, 4)), at(9, run(8, 18, 2))]), Ok(false));
    // What waits to be wiped does not come back before that.
    assert!(l.set_runs(volume(1), &summary(10), &[at(10, run(2, 12, 6))]).is_err());
    assert_eq!(said(&l), now);
    for first in [10, 16] {
        l.remove_runs(volume(1), Extents::new(first), Extents::new(2)).unwrap();
    }
    assert_eq!(l.set_runs(volume(1), &summary(11), &[at(11, run(2, 12, 8))]), Ok(true));
    assert_eq!(said(&l), [(12, 8, Live, 11)]);
    // A place that was filled and is live by now, as part of a longer run.
    let filling = state(Filling, at(12, run(10, 20, 2)));
    l.set_runs(volume(1), &summary(12), &[at(12, run(2, 12, 8)), filling]).unwrap();
    l.set_runs(volume(1), &summary(14), &[at(14, run(2, 12, 10))]).unwrap();
    assert_eq!(said(&l), [(12, 10, Live, 14)]);
    // A part that is given up.
    let left = state(Retired, at(15, run(2, 12, 3)));
    l.set_runs(volume(1), &summary(15), &[at(15, run(5, 15, 7)), left]).unwrap();
    assert_eq!(said(&l), [(12, 3, Retired, 15), (15, 7, Live, 15)]);
    assert_eq!(l.check(), Ok(()));
    l.raise_epoch(volume(1), Epoch::new(20));
    assert!(matches!(l.set_runs(volume(1), &summary(19), &[]), Err(AddRunsError::StaleEpoch { .. })));
}

#[test]
fn runs_that_make_no_sense_are_refused() {
    let mut l = empty_disk().label().clone();
    let end = l.identity().geometry.extents.get();
    let striped = |chunk| Some(Stripe { chunk: Sectors::new(chunk) });
    for r in [
        run(0, 0, 0),
        run(0, end, 1),
        run(0, 1, end),
        run(0, u64::MAX, 2),
        run(u64::MAX, 0, 2),
        RunEntry { leg: 1, ..run(0, 0, 1) },
        RunEntry { stripe: striped(3), ..run(0, 0, 1) },
        RunEntry { legs: u16::MAX, stripe: striped(8), ..run(u64::MAX - 8, 0, 1) },
    ] {
        assert!(
            matches!(l.add_runs(volume(1), &summary(1), &[r]), Err(AddRunsError::BadRun { .. })),
            "{r:?}"
        );
    }
}

#[test]
fn removal_splits_runs_and_takes_stripes_whole() {
    let mut l = empty_disk().label().clone();
    l.add_runs(volume(1), &summary(1), &[run(100, 10, 10)]).unwrap();
    assert_eq!(l.remove_runs(volume(1), Extents::new(13), Extents::new(4)), Ok(true));
    let left: Vec<_> = l.runs_of(volume(1)).map(|r| (r.start.get(), r.first.get(), r.count.get())).collect();
    assert_eq!(left, [(100, 10, 3), (107, 17, 3)]);
    assert_eq!(l.remove_runs(volume(1), Extents::new(13), Extents::new(4)), Ok(false));
    assert_eq!(l.remove_runs(volume(1), Extents::ZERO, Extents::new(u64::MAX)), Ok(true));
    assert!(l.volumes().is_empty());
    let stripe = RunEntry { legs: 2, stripe: Some(Stripe { chunk: Sectors::new(8) }), ..run(0, 0, 4) };
    l.add_runs(volume(1), &summary(1), &[stripe]).unwrap();
    assert!(l.remove_runs(volume(1), Extents::new(1), Extents::new(1)).is_err());
    assert_eq!(l.remove_runs(volume(1), Extents::ZERO, Extents::new(4)), Ok(true));
}

#[test]
fn a_full_table_says_so_and_writes_nothing() {
    let mut req = crate::common::request();
    req.now = 1;
    let big = disk_format::MemDisk::new(pool::units::Bytes::gib(1024), 4096);
    let mut d = disk_format::claim(big, &req, disk_format::Force::No).unwrap().into_disk();
    let runs = |n: u64| (0..n).map(|i| run(2 * i, 2 * i, 1)).collect::<Vec<_>>();
    let most = layout::RUNS_MAX as u64 - layout::RUNS_PER_PAGE as u64;
    let fits = d.label().with_runs_added(volume(1), &summary(1), &runs(most)).unwrap();
    d.update(fits.clone()).unwrap();
    let over = d.label().with_runs_added(volume(1), &summary(1), &runs(layout::RUNS_MAX as u64)).unwrap();
    assert!(matches!(d.update(over), Err(disk_format::UpdateLabelError::TableFull { .. })));
    let found = read_label(&d.into_storage()).unwrap();
    assert_eq!(found.label.volumes(), fits.volumes());
}

#[test]
fn summaries_have_limits_and_read_back() {
    let mut d = empty_disk();
    let mut s = summary(1);
    s.name = "ü".repeat(100);
    s.layout = pool::layout::Layout::Striped { stripes: 3, chunk: Sectors::new(128) };
    s.sharing = pool::access::Sharing::MultiWriter;
    s.params.insert("k".repeat(255), "v".repeat(1000));
    let l = d.label().with_runs_added(volume(1), &s, &[run(0, 0, 1)]).unwrap();
    d.update(l.clone()).unwrap();
    assert_eq!(read_label(&d.into_storage()).unwrap().label.volumes(), l.volumes());
    s.params.insert("x".into(), "v".repeat(1000));
    assert!(matches!(l.with_runs_added(volume(1), &s, &[]), Err(AddRunsError::Summary { .. })));
    assert!(l.with_runs_added(volume(2), &summary(1), &[]).is_err());
}

#[test]
fn a_label_made_from_another_state_is_refused() {
    let mut d = empty_disk();
    let stale = d.label().with_runs_added(volume(9), &summary(1), &[run(0, 90, 1)]).unwrap();
    add(&mut d, 1, run(0, 0, 1));
    assert!(matches!(d.update(stale), Err(disk_format::UpdateLabelError::NotBasedOnThis { .. })));
}

#[test]
fn a_map_is_made_again_from_all_disks() {
    let leg = |d, f| Leg { disk: DiskId::from_u128(d), first: Extents::new(f) };
    let mut map = Map::default();
    let seg = |start, count, legs, stripe| Segment {
        start: Extents::new(start),
        count: Extents::new(count),
        legs,
        stripe,
        spare: None,
    };
    map.push(seg(0, 8, vec![leg(1, 5)], None));
    map.push(seg(8, 6, vec![leg(2, 0), leg(3, 7)], None));
    map.push(seg(14, 8, vec![leg(3, 20), leg(1, 30)], Some(Stripe { chunk: Sectors::new(128) })));
    let all = |state| -> Vec<(DiskId, RunEntry)> {
        let of = |d: DiskId| runs_of_map(&map, d, Epoch::new(1), state).into_iter().map(move |r| (d, r));
        map.disks().into_iter().flat_map(of).collect()
    };
    let mut runs = all(RunState::Live);
    runs.extend(all(RunState::Filling));
    assert_eq!(rebuild_map(runs.clone()), Ok(map.clone()));
    runs.retain(|(d, r)| *d != DiskId::from_u128(3) || r.stripe.is_some());
    assert_eq!(rebuild_map(runs.clone()), Err(RebuildError::MissingLeg { start: Extents::new(8), leg: 1 }));
    runs.push((DiskId::from_u128(9), runs[0].1));
    assert!(matches!(rebuild_map(runs), Err(RebuildError::TwoHolders { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Against the slow oracle: an owner (volume and logical extent) for each extent.
    #[test]
    fn the_table_agrees_with_an_array(
        ops in prop::collection::vec((1u128..4, 0u64..3, 0u64..40, 1u64..8, any::<bool>()), 1..40),
    ) {
        let mut d = empty_disk();
        let mut owner: Vec<Option<(u128, u64)>> = vec![None; 64];
        for (v, skew, first, count, add) in ops {
            let range = first as usize..(first + count) as usize;
            let mut l = d.label().clone();
            if add {
                let r = run(first + skew, first, count);
                let ok = range.clone().all(|i| owner[i].is_none_or(|o| o == (v, i as u64 + skew)));
                prop_assert_eq!(l.add_runs(volume(v), &summary(1), &[r]).is_ok(), ok);
                if ok {
                    range.for_each(|i| owner[i] = Some((v, i as u64 + skew)));
                }
            } else {
                l.remove_runs(volume(v), Extents::new(first), Extents::new(count)).unwrap();
                range.filter(|i| owner[*i].is_some_and(|o| o.0 == v)).collect::<Vec<_>>()
                    .into_iter().for_each(|i| owner[i] = None);
            }
            prop_assert_eq!(l.check(), Ok(()));
            d.update(l).unwrap();
        }
        let found = read_label(&d.into_storage()).unwrap().label;
        let mut seen = vec![None; 64];
        for (v, e) in found.volumes() {
            for r in e.runs.values() {
                for i in 0..r.count.get() {
                    seen[(r.first.get() + i) as usize] = Some((v.as_u128(), r.start.get() + i));
                }
            }
        }
        prop_assert_eq!(seen, owner);
    }
}
