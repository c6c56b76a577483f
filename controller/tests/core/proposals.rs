//! Moves that are proposed begin as far as records, policy and budget allow, and say why.

use std::{sync::Arc, time::Duration};

use controller::{api::Api, core::CoreConfig};
use pool::{
    ids::{DiskId, VolumeId},
    moving::MoveCause,
    planner::{Proposal, Why},
    units::{Bytes, Extents},
};

use crate::{
    node::quick,
    rig::{RWO, Rig, extents},
    stores::Memory,
    world::until,
};

async fn rig(change: impl FnOnce(&mut CoreConfig)) -> (Rig, VolumeId, [DiskId; 2]) {
    let mut config = CoreConfig { lease: Duration::from_secs(20), ..quick() };
    change(&mut config);
    let rig = Rig::over(config, Arc::new(Memory::default()), &[10, 10]).await;
    let v = rig.create("v", 6, Some("n2")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let s = rig.core.survey().await;
    let on = |n| s.disks.iter().find(|d| d.node == rig.name(n)).unwrap().disk;
    let disks = [on(0), on(1)];
    (rig, v.id, disks)
}

async fn proposal(rig: &Rig, volume: VolumeId, [home, away]: [DiskId; 2], count: u64) -> Proposal {
    let row = rig.settled(volume, "Attached").await;
    let start = row.segments.iter().find(|s| s.2 == away).unwrap().0;
    Proposal {
        volume,
        epoch: row.epoch,
        start: Extents::new(start),
        count: Extents::new(count),
        leg: 0,
        from: away,
        to: home,
        io: 20_000,
        cause: MoveCause::Gravity,
        why: Why::Gravity { io: 20, gain_s: 138, cost_s: 1 },
    }
}

async fn ask(rig: &Rig, p: &Proposal) -> String {
    let refused = rig.core.propose(vec![p.clone()]).await.unwrap();
    refused.into_iter().map(|(_, why)| why).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_home_piece_by_piece() {
    let (rig, v, disks) = rig(|c| c.pools[0].moving.budget.daily_permille = 1000).await;
    let p = proposal(&rig, v, disks, 4).await;
    assert_eq!(ask(&rig, &p).await, "");
    assert!(ask(&rig, &p).await.contains("being changed"), "one at a time");
    let here = async || {
        let row = rig.row(v).await.unwrap();
        row.segments.iter().filter(|s| s.2 == disks[0]).map(|s| s.1).sum::<u64>()
    };
    let still = async || rig.core.survey().await.moves.is_empty();
    until("four are at home", || async { (here().await == 4 && still().await).then_some(()) }).await;
    assert!(ask(&rig, &p).await.contains("being changed"), "it is for a record that is no more");
    let p = proposal(&rig, v, disks, 2).await;
    assert_eq!(ask(&rig, &p).await, "");
    until("all are", || async { (here().await == 6 && still().await).then_some(()) }).await;
    let row = rig.settled(v, "Attached").await;
    let why = "gravity: its node has room; 20 I/Os a second become local";
    assert!(row.history.iter().any(|h| h.contains(why)), "{:?}", row.history);
    rig.free(14).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_budget_and_drains_come_first() {
    let (r, v, disks) = rig(|c| c.pools[0].moving.gravity = false).await;
    let p = proposal(&r, v, disks, 1).await;
    assert!(ask(&r, &p).await.contains("gravity"), "it is turned off");
    r.end().await;

    let (r, v, disks) = rig(|c| {
        c.pools[0].moving.budget.daily_permille = 1000;
        c.pools[0].moving.budget.hourly = extents(2);
    })
    .await;
    let mut p = proposal(&r, v, disks, 3).await;
    assert!(ask(&r, &p).await.contains("within the hour"));
    p.count = Extents::new(2);
    assert_eq!(ask(&r, &p).await, "");
    until("it has moved", || async { r.core.survey().await.moves.is_empty().then_some(()) }).await;
    let p = proposal(&r, v, disks, 1).await;
    assert!(ask(&r, &p).await.contains("within the hour"), "the budget of the hour is spent");
    // A lender that needs its room is not kept waiting by a budget.
    let why = Why::Recall { free: Bytes::ZERO, need: extents(1) };
    assert_eq!(ask(&r, &Proposal { cause: MoveCause::Recall, why, ..p }).await, "");
    until("it has moved", || async { r.core.survey().await.moves.is_empty().then_some(()) }).await;
    r.end().await;

    // 20 extents, 5 thousandths: one a day.
    let (r, v, disks) = rig(|_| ()).await;
    let p = proposal(&r, v, disks, 2).await;
    assert!(ask(&r, &p).await.contains("within a day"));
    let drained = controller::api::Target::Disk(disks[0]);
    r.core.drain(drained, false, false).await.unwrap();
    let p = Proposal { count: Extents::new(1), ..proposal(&r, v, disks, 1).await };
    assert!(!ask(&r, &p).await.is_empty(), "nothing goes to a disk that is being emptied");
    r.end().await;
}
