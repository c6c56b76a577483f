//! Cases of the access transitions and of the goals that follow from them, each found by the simulation.

use std::collections::BTreeMap;

use pool::{
    access::{
        Access, AccessState, Confirmations, Event, Facts, Gone, Leaving, Mode, Outcome, Place, Refusal,
        Sharing,
    },
    goals::{ExportState, Goals, Role, View, plan_goals},
    ids::{DiskId, Epoch, NodeName},
    record::{Retired, Stretch},
    units::Extents,
    volume::{Leg, Map, Segment},
};

const WRITER: Mode = Mode { read_only: false, multi_node: true, upkeep: false };

fn node(s: &str) -> NodeName {
    s.parse().expect("is a node name")
}

fn disk(n: u128) -> DiskId {
    DiskId::from_u128(n)
}

/// Disk 1 in node a, disk 2 in node b.
fn disks() -> BTreeMap<DiskId, NodeName> {
    BTreeMap::from([(disk(1), node("a")), (disk(2), node("b"))])
}

fn map() -> Map {
    let segment = |start, d| Segment {
        start: Extents::new(start),
        count: Extents::new(1),
        legs: vec![Leg { disk: disk(d), first: Extents::ZERO }],
        stripe: None,
        spare: None,
    };
    Map(vec![segment(0, 1), segment(1, 2)])
}

fn attach(s: &AccessState, who: &str, alive: &dyn Fn(&NodeName) -> bool) -> Result<Outcome, Refusal> {
    let facts =
        Facts { disks: &disks(), alive, sharing: Sharing::Migrate, confirmed: &Confirmations::default() };
    s.on(&Event::Attach { node: node(who), mode: WRITER }, &facts)
}

fn cutting_over() -> AccessState {
    AccessState {
        epoch: Epoch::new(4),
        access: Access::CuttingOver {
            source: node("a"),
            target: node("b"),
            source_left: true,
            since: Epoch::new(4),
        },
        leaving: BTreeMap::new(),
    }
}

#[test]
fn a_source_that_left_is_not_granted_the_volume_while_it_is_cut_over() {
    let refused = Err(Refusal::StillLeaving { node: node("a") });
    assert_eq!(attach(&cutting_over(), "a", &|_| true), refused);
    // Not even when both sides are taken for dead: it would hold the volume and be leaving at once.
    assert_eq!(attach(&cutting_over(), "a", &|_| false), refused);
}

#[test]
fn a_source_that_left_is_not_named_as_a_holder() {
    let refused = Err(Refusal::InUse { holders: vec![node("b")] });
    assert_eq!(attach(&cutting_over(), "c", &|_| true), refused);
}

fn roles(s: &AccessState, confirmed: &Confirmations) -> Vec<(String, Role)> {
    let view = View { access: s, map: &map(), retired: &[], disks: &disks(), confirmed, patient: &|_| true };
    let Goals { attachments, .. } = plan_goals(&view);
    attachments.into_iter().map(|g| (g.node.to_string(), g.role)).collect()
}

#[test]
fn a_consumer_opens_its_own_disks_only_when_a_leaver_is_fenced_there() {
    let leaver = Leaving { since: Epoch::new(5), wrote: true, disks: [disk(1), disk(2)].into() };
    let s = AccessState {
        epoch: Epoch::new(6),
        access: Access::Attached { holders: BTreeMap::from([(node("a"), WRITER)]) },
        leaving: BTreeMap::from([(node("c"), leaver)]),
    };
    let absent = ("c".to_owned(), Role::Absent);
    let mut confirmed = Confirmations::default();
    assert_eq!(roles(&s, &confirmed), std::slice::from_ref(&absent), "c may still write to the disk of a");
    confirmed.note(&node("c"), Place::Export(disk(2)), Epoch::new(6), Some(Gone::Absent));
    assert_eq!(roles(&s, &confirmed), std::slice::from_ref(&absent), "that was the other disk");
    confirmed.note(&node("c"), Place::Export(disk(1)), Epoch::new(6), Some(Gone::Fenced));
    assert_eq!(roles(&s, &confirmed), [("a".to_owned(), Role::Writer), absent]);
}

#[test]
fn a_confirmation_is_not_taken_back_by_an_older_word() {
    let (who, place) = (node("c"), Place::Export(disk(1)));
    let gone = |c: &Confirmations| c.gone(&who, place, Epoch::new(5));
    let mut c = Confirmations::default();
    c.note(&who, place, Epoch::new(5), Some(Gone::Absent));
    c.note(&who, place, Epoch::new(5), Some(Gone::Fenced));
    c.note(&who, place, Epoch::new(5), None);
    c.note(&who, place, Epoch::new(4), None);
    assert_eq!(gone(&c), Some(Gone::Absent));
    c.note(&who, place, Epoch::new(6), None);
    assert_eq!(gone(&c), None, "a newer word counts");
}

#[test]
fn a_reader_gets_a_volume_from_upkeep_when_the_writer_is_gone() {
    let holders = BTreeMap::from([(node("a"), Mode::UPKEEP)]);
    let s =
        AccessState { epoch: Epoch::new(4), access: Access::Attached { holders }, leaving: BTreeMap::new() };
    let ask = |s: &AccessState, read_only| {
        let mode = Mode { read_only, ..WRITER };
        let facts = Facts {
            disks: &disks(),
            alive: &|_| true,
            sharing: Sharing::Migrate,
            confirmed: &Confirmations::default(),
        };
        s.on(&Event::Attach { node: node("a"), mode }, &facts)
    };
    let Ok(Outcome::Changed(next, _)) = ask(&s, false) else { panic!("a writer takes it over at once") };
    assert_eq!(next.sole_holder(), Some(&node("a")));
    let Ok(Outcome::Changed(next, _)) = ask(&s, true) else { panic!("upkeep yields") };
    assert_eq!(next.access, Access::Detached);
    assert!(next.leaving[&node("a")].wrote, "whoever comes next waits for its fence");
    assert_eq!(ask(&next, true), Err(Refusal::StillLeaving { node: node("a") }));
}

#[test]
fn a_slice_on_a_disk_that_the_map_has_left_is_taken_down() {
    let (left, hosts) = (disk(3), BTreeMap::from([(disk(1), node("a")), (disk(3), node("c"))]));
    let map = Map(map().0.into_iter().take(1).collect());
    let retired = [Retired {
        wipe: 1,
        disk: left,
        runs: vec![Stretch { first: Extents::ZERO, count: Extents::new(1) }],
        consumers: [node("a")].into(),
        epoch: Epoch::new(4),
    }];
    let holders = BTreeMap::from([(node("a"), WRITER)]);
    for access in [Access::Attached { holders }, Access::Detached] {
        let s = AccessState { epoch: Epoch::new(5), access, leaving: BTreeMap::new() };
        let goals = plan_goals(&View {
            access: &s,
            map: &map,
            retired: &retired,
            disks: &hosts,
            confirmed: &Confirmations::default(),
            patient: &|_| true,
        });
        let [e] = &goals.exports[..] else { panic!("one export is spoken of: {goals:?}") };
        assert_eq!((e.disk, &e.consumer, e.state), (left, &node("a"), ExportState::Absent));
    }
}

#[test]
fn the_slices_of_a_source_that_is_cut_over_are_not_taken_away_for_a_wipe() {
    let (source, target) = (node("b"), node("a"));
    let retired = [Retired {
        wipe: 1,
        disk: map().disks().into_iter().find(|d| disks()[d] != source).expect("a disk of another node"),
        runs: vec![Stretch { first: Extents::new(9), count: Extents::new(1) }],
        consumers: [source.clone()].into(),
        epoch: Epoch::new(4),
    }];
    let since = Epoch::new(5);
    let access = Access::CuttingOver { source: source.clone(), target, source_left: true, since };
    let s = AccessState { epoch: since, access, leaving: BTreeMap::new() };
    let goals = plan_goals(&View {
        access: &s,
        map: &map(),
        retired: &retired,
        disks: &disks(),
        confirmed: &Confirmations::default(),
        patient: &|_| true,
    });
    assert!(goals.exports.iter().all(|e| e.consumer != source), "it has time to go by itself: {goals:?}");
}
