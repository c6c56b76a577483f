//! Scripted stories: create, attach, migrate, abort, conflict, evict, detach, delete, grow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use controller::{
    api::{Api, ApiError, Capability, CreateVolume},
    core::{CoreConfig, Handle, seen::Attachment},
    store::embedded::Embedded,
};
use pool::{
    ids::{NodeName, VolumeId},
    layout::params::Limits,
    units::Bytes,
};

use crate::{
    node::{Node, quick},
    rig::{ROX, RWO, RWX, Rig, extents, request, start},
    stores::Memory,
    world::{World, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_and_dies_and_leaves_nothing() {
    let rig = Rig::new(&[20, 20]).await;
    assert_eq!(rig.world.dirty(), 0, "fresh disks are wiped before anyone gets them");
    let v = rig.create("v", 30, Some("n1")).await;
    assert_eq!(v.size, extents(30));
    let row = rig.row(v.id).await.unwrap();
    assert_eq!(
        row.segments.iter().map(|s| s.1).collect::<Vec<_>>(),
        [20, 10],
        "local first, the rest borrowed"
    );
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.attach(v.id, 0, &RWO).await.unwrap();
    assert!(matches!(rig.attach(v.id, 0, &RWX).await, Err(ApiError::Incompatible(_))));
    assert!(matches!(rig.attach(v.id, 1, &RWO).await, Err(ApiError::Precondition(_))));
    let e = rig.core.delete_volume(v.id).await.unwrap_err();
    assert!(matches!(&e, ApiError::Precondition(why) if why.contains("n1")), "{e}");
    rig.detach(v.id, 0).await.unwrap();
    assert_eq!(rig.nodes[0].attachment(v.id), Some(Attachment::Absent));
    rig.detach(v.id, 0).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    assert!(matches!(rig.core.volume(v.id).await, Err(ApiError::NoVolume(_))));
    rig.free(40).await;
    assert_eq!(rig.world.dirty(), 0, "what was written was wiped");
    assert!(rig.row(v.id).await.is_none());
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_again_is_fine_at_every_moment() {
    // A store whose writes take their time, so that requests meet a write that is under way.
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("weir.redb")).unwrap();
    let rig = Rig::over(quick(), Arc::new(store), &[20]).await;
    for round in 0..30 {
        let v = rig.create(&format!("v{round}"), 2, None).await;
        let until_gone = || async {
            while rig.row(v.id).await.is_some() {
                rig.core.delete_volume(v.id).await.unwrap();
            }
            rig.core.delete_volume(v.id).await.unwrap();
        };
        futures::join!(until_gone(), until_gone(), until_gone(), until_gone());
    }
    rig.free(20).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_is_idempotent_by_name() {
    let rig = Rig::new(&[20]).await;
    let v = rig.create("v", 3, None).await;
    assert_eq!(rig.create("v", 3, None).await, v);
    let other = |f: fn(&mut CreateVolume)| {
        let mut r = request("v", 3, None);
        f(&mut r);
        let core = rig.core.clone();
        async move { core.create_volume(r).await }
    };
    assert_eq!(other(|r| r.required = Bytes::new(1)).await.unwrap(), v, "large enough");
    assert!(matches!(other(|r| r.required = extents(4)).await, Err(ApiError::Exists { .. })));
    assert!(matches!(other(|r| r.limit = Some(extents(2))).await, Err(ApiError::Exists { .. })));
    let striped = |r: &mut CreateVolume| drop(r.parameters.insert("fsType".into(), "xfs".into()));
    assert!(matches!(other(striped).await, Err(ApiError::Exists { .. })));
    let new = |f: fn(&mut CreateVolume)| {
        let mut r = request("w", 3, None);
        f(&mut r);
        let core = rig.core.clone();
        async move { core.create_volume(r).await }
    };
    let small = |r: &mut CreateVolume| {
        r.required = Bytes::new(5);
        r.limit = Some(Bytes::new(9));
    };
    assert!(matches!(new(small).await, Err(ApiError::OutOfRange(_))));
    assert!(matches!(new(|r| r.required = extents(18)).await, Err(ApiError::NoRoom(_))));
    assert!(matches!(new(|r| r.required = Bytes::new(u64::MAX)).await, Err(ApiError::OutOfRange(_))));
    assert!(matches!(
        new(|r| drop(r.parameters.insert("x".into(), "y".into()))).await,
        Err(ApiError::Invalid(_))
    ));
    let room = rig.core.capacity(BTreeMap::new(), None).await.unwrap();
    assert_eq!((room.available, room.minimum_volume), (extents(17), extents(1)));
    // The name is free again as soon as the deletion is on record.
    rig.core.delete_volume(v.id).await.unwrap();
    let w = rig.create("v", 3, None).await;
    assert_ne!(w.id, v.id);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_listed_in_pages() {
    let rig = Rig::new(&[20]).await;
    for i in 0..7 {
        rig.create(&format!("v{i}"), 1, None).await;
    }
    let (mut seen, mut token) = (vec![], String::new());
    loop {
        let page = rig.core.volumes(3, &token).await.unwrap();
        seen.extend(page.volumes.into_iter().map(|v| v.id));
        match page.next {
            Some(t) => token = t,
            None => break,
        }
    }
    assert_eq!(seen.len(), 7);
    assert!(seen.is_sorted());
    assert!(matches!(rig.core.volumes(3, "rubbish").await, Err(ApiError::BadToken(_))));
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_is_committed_by_the_first_write() {
    let rig = Rig::new(&[10, 10, 10]).await;
    let v = rig.create("v", 20, Some("n1")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    rig.attach(v.id, 1, &RWX).await.unwrap();
    assert_eq!(rig.nodes[1].attachment(v.id), Some(Attachment::Guarded));
    assert_eq!(rig.core.volume(v.id).await.unwrap().published.len(), 2);
    assert!(matches!(rig.attach(v.id, 2, &RWX).await, Err(ApiError::Precondition(_))));
    rig.nodes[1].write(v.id).await;
    let row = rig.settled(v.id, "Attached").await;
    assert_eq!(row.holders, [rig.name(1)]);
    until("the target writes", || async {
        (rig.nodes[1].attachment(v.id) == Some(Attachment::Open)).then_some(())
    })
    .await;
    assert!(row.history.iter().any(|h| h.contains("migrated n1 -> n2")), "{:?}", row.history);
    rig.detach(v.id, 0).await.unwrap();
    let measured = measured(&rig.core);
    assert!(measured.contains("weir_cutover_seconds_count 1\n"), "{measured}");
    assert!(measured.contains("weir_volume_steps_total{step=\"commit\"} 1\n"), "{measured}");
    assert_eq!(fences(&rig.core), [1, 0, 0]);
    rig.end().await;
}

/// Fences: of sources of cut-overs, of targets of those that were given up, of the dead.
fn fences(core: &Handle) -> [u64; 3] {
    let measured = measured(core);
    ["cut-over", "cut-over-given-up", "dead-holder"].map(|reason| {
        let begins = format!("weir_fences_total{{reason=\"{reason}\"}} ");
        measured.lines().find_map(|l| l.strip_prefix(&begins)).expect(reason).parse().unwrap()
    })
}

/// What the core has counted, as a scraper sees it.
fn measured(core: &Handle) -> String {
    let mut registry = observe::prometheus::registry::Registry::default();
    core.measures().register(&mut registry);
    let mut text = String::new();
    observe::prometheus::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tally_says_who_lends_what_to_whom() {
    let rig = Rig::new(&[10, 10, 10]).await;
    let v = rig.create("v", 15, Some("n1")).await;
    let idle = rig.core.tally().await.unwrap();
    assert_eq!((idle.nodes, idle.volumes["Detached"]), ((3, 0), 1));
    assert!(idle.loans.is_empty(), "{:?}", idle.loans);
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let t = rig.core.tally().await.unwrap();
    assert_eq!(t.volumes["Attached"], 1);
    assert_eq!(t.loans.values().map(|b| b.get()).sum::<u64>(), extents(5).get());
    assert!(t.loans.keys().all(|(lender, borrower)| *borrower == rig.name(0) && lender != borrower));
    let room = t.pools.values().next().unwrap();
    assert_eq!((room.size, room.free, room.unwiped), (extents(30), extents(15), extents(0)));
    rig.detach(v.id, 0).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    rig.free(30).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_never_writes_is_promoted_when_the_source_leaves() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 15, Some("n1")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    rig.attach(v.id, 1, &RWX).await.unwrap();
    rig.detach(v.id, 0).await.unwrap();
    let row = rig.settled(v.id, "Attached").await;
    assert_eq!(row.holders, [rig.name(1)]);
    assert_eq!(fences(&rig.core), [1, 0, 0]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_migration_leaves_the_source_alone() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 15, Some("n1")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    rig.attach(v.id, 1, &RWX).await.unwrap();
    rig.detach(v.id, 1).await.unwrap();
    let row = rig.settled(v.id, "Attached").await;
    assert_eq!(row.holders, [rig.name(0)]);
    assert_eq!(rig.nodes[0].attachment(v.id), Some(Attachment::Open));
    assert_eq!(fences(&rig.core), [0, 0, 0], "it never wrote");
    // And again, since the former access is gone.
    rig.attach(v.id, 1, &RWX).await.unwrap();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_still_writes_wins() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 15, Some("n1")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    rig.attach(v.id, 1, &RWX).await.unwrap();
    rig.nodes[0].set_writing(true);
    rig.nodes[1].write(v.id).await;
    let row = rig.settled(v.id, "Attached").await;
    assert_eq!(row.holders, [rig.name(0)]);
    assert!(row.history.iter().any(|h| h.contains("still writes")), "{:?}", row.history);
    assert_eq!(rig.nodes[1].attachment(v.id), Some(Attachment::Absent));
    assert_eq!(fences(&rig.core), [1, 1, 0]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_read_and_several_write_where_that_is_allowed() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("ro", 5, None).await;
    rig.attach(v.id, 0, &ROX).await.unwrap();
    rig.attach(v.id, 1, &ROX).await.unwrap();
    assert_eq!(rig.settled(v.id, "Attached").await.holders.len(), 2);
    let fs = Capability { block: false, ..RWX };
    assert!(matches!(rig.attach(v.id, 1, &fs).await, Err(ApiError::Invalid(_))));
    assert!(rig.core.validate(v.id, vec![fs], BTreeMap::new()).await.unwrap().is_some());
    assert!(rig.core.validate(v.id, vec![RWX, ROX], BTreeMap::new()).await.unwrap().is_none());
    rig.core.detach(v.id, None, true).await.unwrap();
    assert!(rig.settled(v.id, "Detached").await.holders.is_empty());
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_consumer_is_fenced_and_its_volume_granted_elsewhere() {
    let rig = Rig::new(&[10, 10, 10]).await;
    let v = rig.create("v", 10, Some("n2")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    assert!(matches!(rig.attach(v.id, 2, &RWO).await, Err(ApiError::Precondition(_))), "its lease runs");
    rig.nodes[0].vanish().await;
    rig.dead(0).await;
    // Its fence stands at the lender; the world's oracle does not know of fences.
    rig.world.shut(&rig.name(0), v.id);
    rig.attach(v.id, 2, &RWO).await.unwrap();
    // It comes back, takes its former access down, and may have the volume again when it is its turn.
    rig.nodes[0].connect(&rig.core).await;
    rig.settled(v.id, "Attached").await;
    assert_eq!(rig.nodes[0].attachment(v.id), Some(Attachment::Absent));
    assert_eq!(fences(&rig.core), [0, 0, 1]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_held_can_be_deleted_and_its_extents_wait_for_the_node() {
    let rig = Rig::new(&[10, 10]).await;
    // Half of it is borrowed.
    let v = rig.create("v", 15, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let Err(ApiError::Precondition(why)) = rig.core.delete_volume(v.id).await else {
        panic!("deleted under a node that lives")
    };
    assert!(why.contains("in use on n1"), "{why}");
    rig.nodes[0].vanish().await;
    rig.dead(0).await;
    rig.core.delete_volume(v.id).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    let row = rig.row(v.id).await.expect("its extents are not free yet");
    assert!(row.deleting && row.holders.is_empty() && row.leaving == [rig.name(0)], "{row:?}");
    assert_eq!(fences(&rig.core), [0, 0, 1]);
    rig.free(5).await;
    rig.nodes[0].connect(&rig.core).await;
    rig.free(20).await;
    assert_eq!(rig.row(v.id).await, None);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_held_in_a_migration_can_be_deleted_when_both_are_dead() {
    let rig = Rig::new(&[10, 10, 10]).await;
    let v = rig.create("v", 10, Some("n3")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    rig.attach(v.id, 1, &RWX).await.unwrap();
    rig.settled(v.id, "Guarded").await;
    rig.nodes[1].vanish().await;
    rig.dead(1).await;
    assert!(matches!(rig.core.delete_volume(v.id).await, Err(ApiError::Precondition(_))), "n1 lives");
    rig.nodes[0].vanish().await;
    rig.dead(0).await;
    rig.core.delete_volume(v.id).await.unwrap();
    for n in &rig.nodes[..2] {
        n.connect(&rig.core).await;
    }
    rig.free(30).await;
    assert_eq!(rig.row(v.id).await, None);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_lender_fails_attaching_at_once_and_never_blocks_a_detach() {
    let rig = Rig::new(&[10, 20]).await;
    let v = rig.create("v", 10, Some("n2")).await;
    let w = rig.create("w", 5, Some("n2")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.nodes[1].vanish().await;
    rig.dead(1).await;
    assert!(rig.core.volume(v.id).await.unwrap().abnormal.unwrap().contains("n2"));
    rig.detach(v.id, 0).await.unwrap();
    let x = rig.create("x", 2, Some("n2")).await;
    assert_eq!(x.abnormal, None, "nothing new goes to a dead node");
    let e = rig.attach(w.id, 0, &RWO).await.unwrap_err();
    assert!(matches!(&e, ApiError::Unavailable(why) if why.contains("n2")), "{e}");
    rig.nodes[1].connect(&rig.core).await;
    rig.attach(w.id, 0, &RWO).await.unwrap();
    rig.settled(v.id, "Detached").await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leaver_is_not_waited_for() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 10, Some("n2")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.nodes[0].vanish().await;
    rig.dead(0).await;
    rig.detach(v.id, 0).await.unwrap();
    assert_eq!(fences(&rig.core), [0, 0, 1]);
    rig.core.delete_volume(v.id).await.unwrap();
    assert!(rig.row(v.id).await.unwrap().deleting, "its device may still stand: nothing is wiped yet");
    rig.nodes[0].connect(&rig.core).await;
    rig.free(20).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_is_waited_for_and_then_no_longer() {
    let rig = Rig::with(CoreConfig { request_deadline: Duration::from_millis(300), ..quick() }, &[10]).await;
    let v = rig.create("v", 3, None).await;
    rig.nodes[0].set_stuck(true).await;
    let e = rig.attach(v.id, 0, &RWO).await.unwrap_err();
    assert!(matches!(e, ApiError::Unfinished(_)), "{e}");
    rig.nodes[0].set_stuck(false).await;
    until("the node to be through", || async {
        match rig.attach(v.id, 0, &RWO).await {
            Ok(()) => Some(()),
            Err(ApiError::Unfinished(_)) => None,
            Err(e) => panic!("{e}"),
        }
    })
    .await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_under_its_holder() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 5, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let grown = rig.core.expand(v.id, extents(15), None).await.unwrap();
    assert_eq!(grown.size, extents(15));
    assert_eq!(rig.core.expand(v.id, extents(3), None).await.unwrap().size, extents(15));
    assert!(matches!(rig.core.expand(v.id, extents(40), None).await, Err(ApiError::NoRoom(_))));
    let low = rig.core.expand(v.id, extents(3), Some(extents(10))).await;
    assert!(matches!(low, Err(ApiError::OutOfRange(_))));
    let row = rig.row(v.id).await.unwrap();
    assert_eq!(
        row.segments.iter().map(|s| s.1).collect::<Vec<_>>(),
        [10, 5],
        "it grew where it was, then borrowed"
    );
    rig.detach(v.id, 0).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    rig.free(20).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_whoever_has_the_volume_and_change_meanwhile() {
    let rig = Rig::new(&[10, 10]).await;
    let mut wanted = request("v", 3, Some("n1"));
    wanted.mutable_parameters = [("iops".to_owned(), "100".to_owned())].into();
    let v = rig.core.create_volume(wanted.clone()).await.unwrap();
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let have = || rig.nodes[0].limits(v.id);
    assert_eq!(have(), Limits { iops: Some(100), throughput: None });
    let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    rig.core.modify(v.id, of(&[("throughput", "1Mi")])).await.unwrap();
    let want = Limits { iops: None, throughput: Some(Bytes::mib(1)) };
    until("the new limits", || async { (have() == want).then_some(()) }).await;
    // The claim is bound to the volume that it made, whatever was changed since.
    assert_eq!(rig.core.create_volume(wanted).await.unwrap().id, v.id);
    rig.core.modify(v.id, of(&[("throughput", "1Mi")])).await.unwrap();
    for (bad, word) in [(of(&[("iops", "0")]), "iops"), (of(&[("locality", "none")]), "can change")] {
        let e = rig.core.modify(v.id, bad).await.unwrap_err();
        assert!(matches!(&e, ApiError::Invalid(why) if why.contains(word)), "{e}");
    }
    let nobody = rig.core.modify(VolumeId::from_u128(5), of(&[])).await;
    assert!(matches!(nobody, Err(ApiError::NoVolume(_))));
    rig.detach(v.id, 0).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    rig.free(20).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_younger_controllers_node_is_left_alone() {
    let store = Arc::new(Memory::default());
    let (old, _old_task) = start(quick(), store.clone()).await;
    let (new, _new_task) = start(quick(), store).await;
    let n = Node::new(&World::default(), "n1", &[5]);
    n.connect(&new).await;
    n.connect(&old).await;
    assert!(old.survey().await.nodes.is_empty(), "it has obeyed a younger one");
}

/// Admits nobody.
struct Nobody;

#[async_trait::async_trait]
impl controller::admission::Admission for Nobody {
    async fn admit(&self, n: &controller::admission::Newcomer) -> Result<(), controller::admission::Denied> {
        Err(controller::admission::Denied::Refused(format!("{} is held by a VM", n.name)))
    }
}

/// Admits everybody, and takes its time: meanwhile the volume goes from one node to another.
struct Meanwhile {
    core: Handle,
    from: NodeName,
    to: NodeName,
}

#[async_trait::async_trait]
impl controller::admission::Admission for Meanwhile {
    async fn admit(&self, n: &controller::admission::Newcomer) -> Result<(), controller::admission::Denied> {
        self.core.detach(n.volume, Some(self.from.clone()), true).await.unwrap();
        self.core.attach(n.volume, self.to.clone(), RWX, true).await.unwrap();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_is_judged_by_those_whom_it_comes_beside() {
    let rig = Rig::new(&[10, 10, 10]).await;
    let v = rig.create("v", 2, Some("n1")).await.id;
    rig.attach(v, 0, &RWX).await.unwrap();
    let meanwhile = Meanwhile { core: rig.core.clone(), from: rig.name(0), to: rig.name(2) };
    let late = rig.core.clone().with_admission(Arc::new(meanwhile));
    match late.attach(v, rig.name(1), RWX, true).await {
        Err(ApiError::Busy(why)) => assert!(why.contains("node n3 has taken it"), "{why}"),
        other => panic!("judged beside n1, it came beside n3: {other:?}"),
    }
    assert_eq!(rig.core.volume(v).await.unwrap().published, [rig.name(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_is_asked_about_and_a_holder_is_not() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 2, Some("n1")).await.id;
    let strict = rig.core.clone().with_admission(Arc::new(Nobody));
    let attach = |node: usize, c: Capability| {
        let (strict, name) = (&strict, rig.name(node));
        async move { strict.attach(v, name, c, true).await }
    };
    attach(0, RWX).await.unwrap();
    attach(0, RWX).await.unwrap();
    match attach(1, RWX).await {
        Err(ApiError::Precondition(why)) => assert!(why.contains("v is held by a VM"), "{why}"),
        other => panic!("{other:?}"),
    }
    // Said by the one that believes the orchestrator, it is in; and then it is a holder.
    rig.attach(v, 1, &RWX).await.unwrap();
    attach(1, RWX).await.unwrap();
    let mut free = request("free", 2, Some("n1"));
    free.parameters.insert("sharing".into(), "multiWriter".into());
    let free = rig.core.create_volume(free).await.unwrap().id;
    for node in [0, 1] {
        strict.attach(free, rig.name(node), RWX, true).await.unwrap();
    }
}
