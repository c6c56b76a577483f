//! Disks are emptied while their volumes are in use, or not; whatever comes in between, nothing is lost and every move
//! ends.

use std::time::Duration;

use controller::{
    api::{Api, ApiError, Survey, Target},
    core::{CoreConfig, seen::Attachment},
};
use pool::ids::{DiskId, VolumeId};

use crate::{
    node::quick,
    rig::{RWO, RWX, Rig, extents},
    world::until,
};

async fn disk_of(rig: &Rig, node: usize) -> DiskId {
    let name = rig.name(node);
    rig.core.survey().await.disks.iter().find(|d| d.node == name).map(|d| d.disk).unwrap()
}

async fn drain(rig: &Rig, disk: DiskId) {
    rig.core.drain(Target::Disk(disk), false, false).await.unwrap();
}

fn left(s: &Survey, disk: DiskId) -> u64 {
    s.drains.iter().find(|d| d.disk == disk).map_or(0, |d| d.left_bytes + d.wiping_bytes)
}

async fn empty(rig: &Rig, disk: DiskId) {
    until("the disk is empty", || async {
        let s = rig.core.survey().await;
        (s.drains.iter().any(|d| d.disk == disk) && left(&s, disk) == 0 && s.moves.is_empty()).then_some(())
    })
    .await;
}

async fn moving(rig: &Rig, id: VolumeId) {
    until("a move is under way", || async {
        rig.core.survey().await.moves.iter().any(|m| m.volume == id && m.filling).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_emptied_under_its_user() {
    let rig = Rig::new(&[10, 10, 20]).await;
    let v = rig.create("v", 15, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let disk = disk_of(&rig, 0).await;
    let plan = rig.core.drain(Target::Disk(disk), false, true).await.unwrap();
    assert_eq!((plan[0].volumes, plan[0].left_bytes), (1, extents(10).get()));
    assert!(plan[0].blocked.is_empty(), "{plan:?}");
    assert!(rig.core.survey().await.drains.is_empty(), "a dry run changes nothing");
    drain(&rig, disk).await;
    empty(&rig, disk).await;
    let row = rig.settled(v.id, "Attached").await;
    assert!(row.segments.iter().all(|s| s.2 != disk), "{row:?}");
    assert_eq!(row.segments.iter().map(|s| s.1).sum::<u64>(), 15);
    assert!(row.history.iter().any(|h| h.contains("drain")), "{:?}", row.history);
    assert_eq!(rig.nodes[0].attachment(v.id), Some(Attachment::Open));
    // Nothing new goes there, until it is wished for again.
    assert!(rig.core.create_volume(crate::rig::request("w", 16, None)).await.is_err());
    rig.core.drain(Target::Disk(disk), true, false).await.unwrap();
    rig.create("w", 16, None).await;
    rig.detach(v.id, 0).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_emptied_of_volumes_that_nobody_uses() {
    let rig = Rig::new(&[10, 20]).await;
    let mut all = vec![];
    for i in 0..3 {
        all.push(rig.create(&format!("v{i}"), 3, Some("n1")).await.id);
    }
    let disk = disk_of(&rig, 0).await;
    rig.core.drain(Target::Node(rig.name(0)), false, false).await.unwrap();
    empty(&rig, disk).await;
    for id in all {
        let row = rig.settled(id, "Detached").await;
        assert!(row.segments.iter().all(|s| s.2 != disk), "{row:?}");
        rig.core.delete_volume(id).await.unwrap();
    }
    rig.free(30).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_place_elsewhere_stays_and_says_why() {
    let rig = Rig::new(&[10, 4]).await;
    let v = rig.create("v", 8, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let disk = disk_of(&rig, 0).await;
    drain(&rig, disk).await;
    let row = until("it is blocked", || async {
        let s = rig.core.survey().await;
        s.drains.into_iter().find(|d| d.left_bytes == extents(4).get() && !d.blocked.is_empty())
    })
    .await;
    assert!(row.blocked[0].why.contains("missing"), "{row:?}");
    assert!(rig.core.drain(Target::Disk(DiskId::from_u128(9)), false, false).await.is_err());
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_calls_a_move_off() {
    let rig = Rig::new(&[10, 10, 10]).await;
    let v = rig.create("v", 10, Some("n1")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    rig.nodes[0].set_slow(true).await;
    let disk = disk_of(&rig, 0).await;
    drain(&rig, disk).await;
    moving(&rig, v.id).await;
    rig.attach(v.id, 1, &RWX).await.unwrap();
    let s = rig.core.survey().await;
    assert!(s.moves.iter().all(|m| !m.filling), "{:?}", s.moves);
    rig.nodes[1].write(v.id).await;
    rig.settled(v.id, "Attached").await;
    rig.detach(v.id, 0).await.unwrap();
    rig.nodes[0].set_slow(false).await;
    empty(&rig, disk).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn growing_calls_a_move_off() {
    // Nobody dies here, however slow the machine is.
    let rig = Rig::with(CoreConfig { lease: Duration::from_secs(20), ..quick() }, &[10, 10, 10]).await;
    let v = rig.create("v", 10, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.nodes[0].set_slow(true).await;
    let disk = disk_of(&rig, 0).await;
    drain(&rig, disk).await;
    moving(&rig, v.id).await;
    let of = rig.core.survey().await.moves;
    // What does not grow disturbs nothing.
    assert_eq!(rig.core.expand(v.id, extents(10), None).await.unwrap().size, extents(10));
    assert!(matches!(rig.core.expand(v.id, extents(60), None).await, Err(ApiError::NoRoom(_))));
    assert_eq!(rig.core.survey().await.moves, of);

    assert_eq!(rig.core.expand(v.id, extents(12), None).await.unwrap().size, extents(12));
    let row = rig.row(v.id).await.unwrap();
    let at = |what: &str| row.history.iter().position(|h| h.contains(what));
    assert!(at("called off").is_some() && at("called off") < at("grown to"), "{:?}", row.history);
    rig.nodes[0].set_slow(false).await;
    empty(&rig, disk).await;
    assert_eq!(rig.settled(v.id, "Attached").await.size, extents(12));
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_takes_a_volume_out_of_the_movers_hands() {
    let rig = Rig::new(&[10, 20, 10]).await;
    let v = rig.create("v", 6, Some("n1")).await;
    rig.nodes[0].set_slow(true).await;
    let disk = disk_of(&rig, 0).await;
    drain(&rig, disk).await;
    moving(&rig, v.id).await;
    assert!(rig.core.volume(v.id).await.unwrap().published.is_empty(), "nobody uses it");
    // Elsewhere: the move is called off, and begins again under the new holder.
    rig.attach(v.id, 2, &RWO).await.unwrap();
    assert_eq!(rig.row(v.id).await.unwrap().holders, [rig.name(2)]);
    empty(&rig, disk).await;
    rig.detach(v.id, 2).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_can_be_deleted_while_it_moves() {
    let rig = Rig::new(&[10, 20]).await;
    let v = rig.create("v", 6, Some("n1")).await;
    rig.nodes[0].set_slow(true).await;
    let disk = disk_of(&rig, 0).await;
    drain(&rig, disk).await;
    moving(&rig, v.id).await;
    rig.core.delete_volume(v.id).await.unwrap();
    rig.free(30).await;
    empty(&rig, disk).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_of_the_new_place_dies() {
    let rig = Rig::new(&[10, 10, 10]).await;
    let v = rig.create("v", 6, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.nodes[0].set_slow(true).await;
    let disk = disk_of(&rig, 0).await;
    drain(&rig, disk).await;
    moving(&rig, v.id).await;
    let to = rig.core.survey().await.moves[0].to;
    let target = if disk_of(&rig, 1).await == to { 1 } else { 2 };
    rig.nodes[target].vanish().await;
    until("it is called off", || async {
        rig.core.survey().await.moves.iter().all(|m| !m.filling || m.to != to).then_some(())
    })
    .await;
    // It goes to the other one; the first place is given up and wiped once its host is back.
    rig.nodes[0].set_slow(false).await;
    until("it is elsewhere", || async {
        let row = rig.row(v.id).await?;
        row.segments.iter().all(|s| s.2 != disk && s.2 != to).then_some(())
    })
    .await;
    rig.nodes[target].connect(&rig.core).await;
    until("nothing waits for a wipe", || async {
        rig.core.survey().await.disks.iter().all(|d| d.unwiped.get() == 0).then_some(())
    })
    .await;
    rig.end().await;
}
