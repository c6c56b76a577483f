//! Disks: which devices are claimed, and where those go that are carried.

use std::sync::Arc;

use controller::{
    api::Api,
    core::{
        FreshDisks,
        seen::{Attachment, Content},
    },
};
use pool::ids::DiskId;

use crate::{
    node::{Node, quick},
    rig::{RWO, Rig, extents, patient, start},
    stores::Memory,
    world::{World, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn only_blank_selected_devices_are_claimed() {
    let mut config = quick();
    config.pools[0].devices[0].paths = vec!["/dev/n1-*".into()];
    config.pools[0].fresh_disks = FreshDisks::Trust;
    let world = World::default();
    let (core, task) = start(config, Arc::new(Memory::default())).await;
    let (n1, n2) = (Node::new(&world, "n1", &[5, 5, 5, 1]), Node::new(&world, "n2", &[5]));
    n1.put("n1-serial-1", Content::Foreign);
    n1.put("n1-serial-2", Content::Busy);
    n1.put("n1-serial-3", Content::Weir { disk: DiskId::from_u128(9), pool: "q".into() });
    n1.connect(&core).await;
    n2.connect(&core).await;
    let survey = until("one disk serves", || async {
        let s = core.survey().await;
        (s.disks.iter().any(|d| d.free == extents(5)) && s.nodes.iter().all(|n| !n.unclaimed.is_empty()))
            .then_some(s)
    })
    .await;
    assert_eq!(survey.disks.len(), 1);
    let n1_left = &survey.nodes[0].unclaimed;
    assert_eq!(n1_left.len(), 3, "{n1_left:?}");
    assert!(n1_left[0].contains("carries ext4") && n1_left[1].contains("in use"), "{n1_left:?}");
    assert!(n1_left[2].contains("not on record"), "{n1_left:?}");
    assert!(survey.nodes[1].unclaimed[0].contains("selected by no pool"));
    n1.vanish().await;
    n2.vanish().await;
    drop(core);
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_followed_to_another_node() {
    let rig = Rig::new(&[10, 10]).await;
    let v = rig.create("v", 8, Some("n1")).await;
    let (disk, size) = rig.nodes[0].pull("n1-serial-0");
    rig.nodes[1].push("moved", disk, size);
    // The new node reports first: the old one has not said yet that the disk is gone.
    rig.nodes[1].rescan().await;
    until("the disk waits for n1's word", || async {
        rig.core.survey().await.nodes[1].unclaimed.first().map(|_| ())
    })
    .await;
    rig.nodes[0].rescan().await;
    rig.disk_is(disk, 1, "").await;
    rig.attach(v.id, 0, &RWO).await.unwrap();
    // Two nodes that show one label: neither is believed.
    rig.nodes[0].push("twin", disk, size);
    rig.nodes[0].rescan().await;
    until("the twin is left alone", || async {
        let s = rig.core.survey().await;
        s.nodes[0].unclaimed.iter().any(|u| u.contains("as well")).then_some(())
    })
    .await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_missed_before_its_node_died_is_taken_in_another_at_once() {
    let rig = Rig::over(patient(), Arc::new(Memory::default()), &[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    let (disk, size) = rig.nodes[0].pull("n1-serial-0");
    rig.nodes[0].connect(&rig.core).await;
    rig.disk_is(disk, 0, "missing").await;
    rig.nodes[0].perish().await;
    rig.dead(0).await;
    rig.nodes[1].push("carried", disk, size);
    rig.nodes[1].rescan().await;
    rig.disk_is(disk, 1, "serving").await;
    rig.attach(v.id, 1, &RWO).await.unwrap();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_two_nodes_reach_stays_until_its_node_has_looked_and_has_not_got_it() {
    let rig = Rig::over(patient(), Arc::new(Memory::default()), &[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    let disk = rig.disk_of(0).await;
    let says = |what: &'static str| {
        let core = rig.core.clone();
        async move {
            until(what, || async {
                let s = core.survey().await;
                let d = s.disks.iter().find(|d| d.disk == disk).unwrap();
                assert_eq!(d.node.as_str(), "n1");
                let n2 = s.nodes.into_iter().find(|n| n.node.as_str() == "n2")?;
                n2.unclaimed.iter().any(|why| why.contains(what)).then_some(())
            })
            .await;
        }
    };
    rig.nodes[1].push("reached", disk, extents(11));
    rig.nodes[1].rescan().await;
    says("which node n1 has as well").await;
    // Its plugin restarts, and speaks before it has looked.
    rig.nodes[0].set_blind(true);
    rig.nodes[0].connect(&rig.core).await;
    says("which has not said that it is missing there").await;
    rig.nodes[0].rescan().await;
    says("which has not said that it is missing there").await;
    rig.nodes[0].set_blind(false);
    rig.nodes[0].rescan().await;
    says("which node n1 has as well").await;
    rig.nodes[0].pull("n1-serial-0");
    rig.nodes[0].connect(&rig.core).await;
    rig.disk_is(disk, 1, "serving").await;
    rig.core.delete_volume(v.id).await.unwrap();
    rig.free(20).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_taken_elsewhere_though_its_node_has_another_under_its_name() {
    let rig = Rig::over(patient(), Arc::new(Memory::default()), &[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    let (disk, size) = rig.nodes[0].pull("n1-serial-0");
    rig.nodes[0].insert("n1-serial-0", size);
    rig.nodes[1].push("carried", disk, size);
    rig.nodes[1].rescan().await;
    rig.nodes[0].connect(&rig.core).await;
    rig.disk_is(disk, 1, "serving").await;
    rig.attach(v.id, 1, &RWO).await.unwrap();
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_a_volume_is_gone_though_its_lenders_disk_has_come_to_it() {
    let rig = Rig::over(patient(), Arc::new(Memory::default()), &[10, 10]).await;
    let v = rig.create("v", 4, Some("n1")).await;
    rig.attach(v.id, 1, &RWO).await.unwrap();
    let (disk, size) = rig.nodes[0].pull("n1-serial-0");
    rig.nodes[0].connect(&rig.core).await;
    rig.disk_is(disk, 0, "missing").await;
    rig.nodes[0].perish().await;
    rig.dead(0).await;
    rig.core.detach(v.id, Some(rig.name(1)), false).await.unwrap();
    until("only the lender's word is missing", || async {
        let away = rig.nodes[1].attachment(v.id).is_none_or(|a| a == Attachment::Absent);
        rig.row(v.id).await.filter(|r| away && r.leaving == [rig.name(1)])
    })
    .await;
    rig.nodes[1].push("carried", disk, size);
    rig.nodes[1].rescan().await;
    rig.settled(v.id, "Detached").await;
    rig.core.delete_volume(v.id).await.unwrap();
    rig.free(20).await;
    rig.end().await;
}
