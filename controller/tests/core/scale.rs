//! Many volumes: loaded at start in a time that nobody notices.

use std::{sync::Arc, time::Instant};

use controller::{
    api::Api,
    store::{Store, embedded::Embedded},
};
use pool::{
    access::AccessState,
    disk::{Disk, DiskClass, DiskState, Domain, Health},
    ids::{DiskId, Epoch, VolumeId},
    layout::params::{ClaimRef, VolumeParams},
    record::{DiskRecord, Lifecycle, Record, VolumeRecord},
    units::Extents,
    volume::{Leg, Map, Segment},
};

use crate::{
    node::{EXTENT, quick},
    rig::start,
};

const VOLUMES: u64 = 10_000;

pub(crate) fn disk() -> Record {
    Record::Disk(Box::new(DiskRecord {
        disk: Disk {
            id: DiskId::from_u128(1),
            node: "n1".parse().unwrap(),
            pool: "p".parse().unwrap(),
            extents: Extents::new(2 * VOLUMES),
            extent_size: EXTENT,
            logical_block: 512,
            physical_block: 512,
            class: DiskClass::Ssd,
            state: DiskState::Serving,
            health: Health::Good,
            domain: Domain::default(),
            reserve: Extents::ZERO,
        },
        device_id: "d".into(),
        path: "/dev/d".into(),
        epoch: Epoch::ZERO,
        clean_through: Extents::new(2 * VOLUMES),
        fresh: None,
    }))
}

pub(crate) fn volume(i: u64) -> Record {
    let legs = vec![Leg { disk: DiskId::from_u128(1), first: Extents::new(2 * i) }];
    let mut v = VolumeRecord {
        id: VolumeId::from_u128(u128::from(i) + 1),
        name: format!("v{i}"),
        pool: "p".parse().unwrap(),
        extent_size: EXTENT,
        params: VolumeParams::default(),
        claim: ClaimRef::default(),
        map: Map(vec![Segment {
            start: Extents::ZERO,
            count: Extents::new(1),
            legs,
            stripe: None,
            spare: None,
        }]),
        access: AccessState::default(),
        lifecycle: Lifecycle::Active,
        moving: None,
        retired: vec![],
        history: vec![],
        explanation: None,
    };
    v.note(0, "created");
    Record::Volume(Box::new(v))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_volumes_load_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&dir.path().join("weir.redb")).unwrap());
    store.put(None, disk()).await.unwrap();
    let puts = (0..VOLUMES).map(|i| store.put(None, volume(i)));
    let begun = Instant::now();
    futures::future::try_join_all(puts).await.unwrap();
    println!("{VOLUMES} records written in {:?}", begun.elapsed());
    let begun = Instant::now();
    let (core, task) = start(quick(), store).await;
    let survey = core.survey().await;
    let took = begun.elapsed();
    println!("{VOLUMES} records loaded in {took:?}");
    assert_eq!(survey.volumes.len() as u64, VOLUMES);
    assert_eq!(survey.disks[0].free, EXTENT.bytes_of(Extents::new(VOLUMES)));
    // Beyond what a cost that grows with the square of their number would leave, on any machine.
    assert!(took.as_secs() < 60, "{took:?}");
    drop(core);
    task.await.unwrap().unwrap();
}
