//! What leaves: nodes and disks that never come back, and disks that are released.

use std::sync::Arc;

use controller::{
    api::{Api, ApiError, Target},
    core::{CoreConfig, DeviceSelector, OpenError, seen::Content},
};

use crate::{
    node::quick,
    rig::{RWO, RWX, Rig, patient, start},
    stores::Memory,
    world::until,
};

fn why<T: std::fmt::Debug>(refused: Result<T, ApiError>) -> String {
    match refused {
        Err(ApiError::Precondition(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// Asks until nothing of it is left.
async fn gone(rig: &Rig, target: &Target, forget: bool) {
    until("nothing of it is left", || async {
        match rig.core.part(target.clone(), forget).await {
            Ok(p) => p.done.then_some(()),
            // It was a disk.
            Err(ApiError::NoDisk(_)) => Some(()),
            Err(e) => panic!("{e}"),
        }
    })
    .await;
}

/// The same core, started again with another configuration; these nodes find it.
async fn again(rig: Rig, config: CoreConfig, store: Arc<Memory>, connect: &[usize]) -> Rig {
    let (world, nodes) = (rig.world.clone(), rig.nodes.clone());
    rig.end().await;
    let (core, task) = start(config, store).await;
    for n in connect {
        nodes[*n].connect(&core).await;
    }
    Rig::of(world, core, nodes, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_dead_node_on_which_nothing_lies_that_is_wanted_is_forgotten() {
    let rig = Rig::over(patient(), Arc::new(Memory::default()), &[10, 10]).await;
    let n1 = Target::Node(rig.name(0));
    let v = rig.create("v", 4, Some("n1")).await;
    let alive = why(rig.core.part(n1.clone(), true).await);
    assert!(alive.contains("n1 is alive") && alive.contains("weir drain n1"), "{alive}");
    rig.nodes[0].perish().await;
    rig.dead(0).await;
    let wanted = why(rig.core.part(n1.clone(), true).await);
    assert!(wanted.contains("parts of a volume") && wanted.contains(": v."), "{wanted}");
    assert!(rig.core.survey().await.nodes.iter().any(|n| n.node == rig.name(0)), "nothing was changed");
    rig.core.delete_volume(v.id).await.unwrap();
    until("what lay there is to be wiped", || async {
        rig.row(v.id).await.is_some_and(|r| r.segments.is_empty()).then_some(())
    })
    .await;
    gone(&rig, &n1, true).await;
    gone(&rig, &n1, true).await;
    let s = rig.core.survey().await;
    assert!(
        s.nodes.iter().all(|n| n.node != rig.name(0)) && s.disks.len() == 1 && s.volumes.is_empty(),
        "{s:#?}"
    );
    let nobody = Target::Node("n9".parse().unwrap());
    assert!(matches!(rig.core.part(nobody, true).await, Err(ApiError::NoNode(_))));
    let refused = rig.core.part(Target::Node(rig.name(1)), false).await;
    assert!(matches!(refused, Err(ApiError::Invalid(_))), "nodes are not released: {refused:?}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_node_is_not_heard_until_it_is_booted() {
    let rig = Rig::new(&[10, 10]).await;
    // Of another node's, and held by the one that is lost.
    let v = rig.create("v", 4, Some("n2")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.nodes[0].vanish().await;
    rig.dead(0).await;
    let n1 = Target::Node(rig.name(0));
    gone(&rig, &n1, true).await;
    let row = rig.row(v.id).await.unwrap();
    assert!(row.holders.is_empty() && row.leaving.is_empty(), "{row:?}");
    // It was only cut off: its device stands.
    let refused = rig.nodes[0].try_connect(&rig.core).await;
    assert_eq!(refused, Err(OpenError::Forgotten { node: rig.name(0) }));
    assert!(matches!(rig.attach(v.id, 0, &RWO).await, Err(ApiError::NoNode(_))));
    rig.nodes[0].perish().await;
    rig.attach(v.id, 1, &RWO).await.unwrap();
    rig.detach(v.id, 1).await.unwrap();
    rig.nodes[0].boot();
    until("it is taken in again", || async { rig.nodes[0].try_connect(&rig.core).await.ok() }).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    // Its old disk is left alone until a person erases it.
    let unclaimed = || async {
        let s = rig.core.survey().await;
        s.nodes.into_iter().find(|n| n.node == rig.name(0)).map(|n| n.unclaimed).filter(|u| !u.is_empty())
    };
    let said = until("it says why", unclaimed).await;
    assert!(said[0].contains("not on record"), "{said:?}");
    rig.nodes[0].put("n1-serial-0", Content::Blank);
    rig.nodes[0].strip("n1-serial-0");
    rig.nodes[0].rescan().await;
    rig.free(16).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_forgotten_node_goes_when_others_can_say_so() {
    let store = Arc::new(Memory::default());
    let rig = Rig::over(quick(), store.clone(), &[10, 10, 10]).await;
    let v = rig.create("v", 15, Some("n1")).await;
    rig.attach(v.id, 0, &RWX).await.unwrap();
    let lender = {
        let row = rig.row(v.id).await.unwrap();
        let disks = rig.core.survey().await.disks;
        let other = |d: &&controller::api::DiskRow| {
            d.node != rig.name(0) && row.segments.iter().any(|s| s.2 == d.disk)
        };
        disks.iter().find(other).map(|d| d.node.clone()).unwrap()
    };
    let at = (0..3).find(|i| rig.name(*i) == lender).unwrap();
    rig.nodes[0].perish().await;
    rig.nodes[at].vanish().await;
    rig.dead(0).await;
    rig.dead(at).await;
    rig.core.delete_volume(v.id).await.unwrap();
    let n1 = Target::Node(rig.name(0));
    let parting = rig.core.part(n1.clone(), true).await.unwrap();
    assert!(!parting.done, "its lender has not said that its export is gone");
    let row =
        until("it is on record", || async { rig.row(v.id).await.filter(|r| r.leaving == [rig.name(0)]) })
            .await;
    assert!(row.deleting);
    // It stands through another reign, in which nothing new is put there.
    let rig = again(rig, patient(), store, &[3 - at]).await;
    let w = rig.create("w", 3, Some("n1")).await;
    let lost: Vec<_> = rig.core.survey().await.disks.into_iter().filter(|d| d.node == rig.name(0)).collect();
    let row = rig.row(w.id).await.unwrap();
    assert!(lost.len() == 1 && row.segments.iter().all(|s| s.2 != lost[0].disk), "{row:?} {lost:?}");
    rig.core.delete_volume(w.id).await.unwrap();
    rig.nodes[at].connect(&rig.core).await;
    assert_eq!(rig.nodes[0].try_connect(&rig.core).await, Err(OpenError::Forgotten { node: rig.name(0) }));
    rig.free(20).await;
    gone(&rig, &n1, true).await;
    assert_eq!(rig.row(v.id).await, None);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_of_a_dead_node_are_taken_in_another_once_it_is_forgotten() {
    let store = Arc::new(Memory::default());
    let rig = Rig::over(patient(), store.clone(), &[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    rig.nodes[0].perish().await;
    rig.dead(0).await;
    let n1 = Target::Node(rig.name(0));
    let lost = why(rig.core.part(n1.clone(), true).await);
    assert!(lost.contains(": v.") && lost.contains("another node"), "{lost}");
    let (disk, size) = rig.nodes[0].pull("n1-serial-0");
    rig.nodes[1].push("carried", disk, size);
    rig.nodes[1].rescan().await;
    let at = |rig: &Rig| {
        let core = rig.core.clone();
        async move { core.survey().await.disks.into_iter().find(|d| d.disk == disk).map(|d| d.node) }
    };
    let told = |rig: &Rig| {
        let core = rig.core.clone();
        async move {
            let s = core.survey().await;
            s.nodes.iter().flat_map(|n| &n.unclaimed).any(|why| why.contains("weir forget n1")).then_some(())
        }
    };
    until("n2 says what to do", || told(&rig)).await;
    // Nothing that a controller remembers decides it.
    let rig = again(rig, patient(), store, &[1]).await;
    until("n2 says it again", || told(&rig)).await;
    assert_eq!(at(&rig).await, Some(rig.name(0)));
    gone(&rig, &n1, true).await;
    assert_eq!(at(&rig).await, Some(rig.name(1)));
    rig.attach(v.id, 1, &RWO).await.unwrap();
    assert_eq!(rig.row(v.id).await.unwrap().holders, [rig.name(1)]);
    rig.detach(v.id, 1).await.unwrap();
    rig.core.delete_volume(v.id).await.unwrap();
    rig.free(20).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_lost_is_forgotten_once_nothing_on_it_is_wanted() {
    let rig = Rig::over(patient(), Arc::new(Memory::default()), &[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    let disk = rig.disk_of(0).await;
    let target = Target::Disk(disk);
    let there = why(rig.core.part(target.clone(), true).await);
    assert!(there.contains("drain and release it"), "{there}");
    let (_, size) = rig.nodes[0].pull("n1-serial-0");
    rig.nodes[0].connect(&rig.core).await;
    rig.disk_is(disk, 0, "missing").await;
    assert!(why(rig.core.part(target.clone(), true).await).contains(": v."));
    rig.core.delete_volume(v.id).await.unwrap();
    until("its extents are to be wiped", || async {
        rig.row(v.id).await.is_some_and(|r| r.segments.is_empty()).then_some(())
    })
    .await;
    gone(&rig, &target, true).await;
    assert_eq!(rig.row(v.id).await, None, "nobody waits for its wipe");
    rig.free(10).await;
    // Should it turn up again, it is left alone.
    rig.nodes[0].push("n1-serial-0", disk, size);
    rig.nodes[0].connect(&rig.core).await;
    until("it is left alone", || async {
        let s = rig.core.survey().await;
        let n1 = s.nodes.into_iter().find(|n| n.node == rig.name(0))?;
        n1.unclaimed.iter().any(|why| why.contains("not on record")).then_some(())
    })
    .await;
    rig.free(10).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_that_no_pool_selects_is_released_and_its_label_erased() {
    let store = Arc::new(Memory::default());
    let rig = Rig::over(quick(), store.clone(), &[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    let disk = rig.disk_of(0).await;
    let target = Target::Disk(disk);
    assert!(why(rig.core.part(target.clone(), false).await).contains("drain it first"));
    rig.core.drain(target.clone(), false, false).await.unwrap();
    until("it is empty", || async {
        let d = rig.core.drain_progress(target.clone()).await.unwrap();
        d.disks.iter().all(|d| d.left_bytes + d.wiping_bytes == 0).then_some(())
    })
    .await;
    let selected = why(rig.core.part(target.clone(), false).await);
    assert!(selected.contains("pool p selects /dev/n1-serial-0"), "{selected}");
    let mut config = quick();
    config.pools[0].devices =
        vec![DeviceSelector { paths: vec!["/dev/n2*".into()], ..DeviceSelector::default() }];
    let rig = again(rig, config, store, &[0, 1]).await;
    until("its node shows it", || async {
        match rig.core.part(target.clone(), false).await {
            Ok(_) | Err(ApiError::NoDisk(_)) => Some(()),
            Err(e) => {
                assert!(e.to_string().contains("does not show"), "{e}");
                None
            }
        }
    })
    .await;
    gone(&rig, &target, false).await;
    until("its device is left alone", || async {
        rig.nodes[0].rescan().await;
        let s = rig.core.survey().await;
        let n1 = s.nodes.into_iter().find(|n| n.node == rig.name(0))?;
        n1.unclaimed.iter().any(|why| why.contains("selected by no pool")).then_some(())
    })
    .await;
    rig.free(6).await;
    rig.end().await;
}
