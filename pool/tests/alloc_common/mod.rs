//! Pools in a line, for the allocator's tests.

use pool::{
    alloc::{Pool, Request},
    disk::{Disk, DiskClass, DiskState, Domain, Health},
    free::FreeRun,
    ids::{DiskId, NodeName, PoolName},
    units::{ExtentSize, Extents},
};

pub(crate) fn e(n: u64) -> Extents {
    Extents::new(n)
}

pub(crate) fn name(n: &str) -> NodeName {
    n.parse().expect("a node name")
}

pub(crate) fn pool_name() -> PoolName {
    "p".parse().expect("a pool name")
}

pub(crate) fn disk_id(n: u128) -> DiskId {
    DiskId::from_u128(n)
}

pub(crate) fn disk(n: u128, node: &str, extents: u64) -> Disk {
    Disk {
        id: disk_id(n),
        node: name(node),
        pool: pool_name(),
        extents: e(extents),
        extent_size: ExtentSize::DEFAULT,
        logical_block: 4096,
        physical_block: 4096,
        class: DiskClass::Nvme,
        state: DiskState::Serving,
        health: Health::Good,
        domain: Domain::default(),
        reserve: e(0),
    }
}

/// A pool of these disks, all of their extents free.
pub(crate) fn pool_of(disks: impl IntoIterator<Item = Disk>) -> Pool {
    let mut p = Pool::new();
    p.define_pool(pool_name(), ExtentSize::DEFAULT).expect("new");
    for d in disks {
        let all = FreeRun { first: e(0), count: d.extents };
        p.add_disk(d, [all]).expect("a new disk");
    }
    p
}

pub(crate) fn request(extents: u64) -> Request {
    Request::new(pool_name(), e(extents))
}
