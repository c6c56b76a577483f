//! Small disks and labels for the tests.

use std::collections::BTreeMap;

use disk_format::{
    ClaimRequest, Force, LabelDisk, MemDisk, PoolUid, RunEntry, RunState, VolumeSummary, claim,
};
use pool::{
    access::Sharing,
    ids::{DiskId, Epoch, VolumeId},
    layout::Layout,
    units::{Bytes, ExtentSize, Extents},
};

pub(crate) const SIZE: Bytes = Bytes::mib(4096);

pub(crate) fn request() -> ClaimRequest {
    ClaimRequest {
        pool: "fast".parse().expect("a name"),
        pool_uid: PoolUid(0xabc),
        disk: DiskId::from_u128(7),
        extent_size: ExtentSize::MIN,
        now: 1_700_000_000,
    }
}

pub(crate) fn empty_disk() -> LabelDisk<MemDisk> {
    claim(MemDisk::new(SIZE, 512), &request(), Force::No).expect("an empty disk is claimed").into_disk()
}

pub(crate) fn volume(n: u128) -> VolumeId {
    VolumeId::from_u128(n)
}

pub(crate) fn summary(epoch: u64) -> VolumeSummary {
    VolumeSummary {
        name: "pvc-0123".into(),
        size: Bytes::gib(1),
        layout: Layout::Linear,
        sharing: Sharing::Migrate,
        epoch: Epoch::new(epoch),
        params: BTreeMap::from([("fsType".into(), "ext4".into()), ("locality".into(), "prefer".into())]),
    }
}

pub(crate) fn run(start: u64, first: u64, count: u64) -> RunEntry {
    RunEntry {
        start: Extents::new(start),
        first: Extents::new(first),
        count: Extents::new(count),
        leg: 0,
        legs: 1,
        stripe: None,
        epoch: Epoch::new(1),
        state: RunState::Live,
    }
}

/// Adds a volume to a disk and writes it.
pub(crate) fn add(d: &mut LabelDisk<MemDisk>, v: u128, r: RunEntry) {
    let next = d.label().with_runs_added(volume(v), &summary(1), &[r]).expect("the run fits");
    d.update(next).expect("memory does not fail");
}
