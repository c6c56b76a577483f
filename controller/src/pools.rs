//! Pools as the core wants them, from the configuration file or from the cluster's StoragePool resources.
//!
//! Invariant: a resource that makes no sense is left out and said to be, so that one mistake takes nothing from other
//! pools; what its disks hold stays where it is. Must not know: what the core does with pools.

use std::time::Duration;

use ::api::{DeviceClass, FreshDisks, StoragePool, StoragePoolSpec};
use kube::{Api, Client, ResourceExt, api::ListParams};
use pool::ids::PoolName;

use crate::core;

/// How often the cluster's pools are looked at: people change them a few times a year.
const LOOK: Duration = Duration::from_secs(10);

/// The core's view of a pool.
pub fn core_pool(name: PoolName, spec: &StoragePoolSpec) -> core::PoolSpec {
    let nodes =
        |n: &::api::NodeSelector| core::NodeSelector { names: n.names.clone(), labels: n.labels.clone() };
    let class = |k: &DeviceClass| match k {
        DeviceClass::Hdd => pool::disk::DiskClass::Hdd,
        DeviceClass::Ssd => pool::disk::DiskClass::Ssd,
        DeviceClass::Nvme => pool::disk::DiskClass::Nvme,
    };
    let devices = |d: &::api::DeviceSelector| core::DeviceSelector {
        paths: d.paths.clone(),
        serials: d.serials.clone(),
        classes: d.classes.iter().map(class).collect(),
        min_size: Some(d.min_size.bytes()).filter(|b| !b.is_zero()),
    };
    core::PoolSpec {
        name,
        extent_size: spec.extent_size.0,
        logical_block: spec.logical_block,
        nodes: spec.nodes.iter().map(nodes).collect(),
        devices: spec.devices.iter().map(devices).collect(),
        fresh_disks: match spec.fresh_disks {
            FreshDisks::Wipe => core::FreshDisks::Wipe,
            FreshDisks::Trust => core::FreshDisks::Trust,
        },
        max_lenders: spec.max_lenders,
        reserve: spec.reserve.bytes(),
        moving: spec.moving.policy(),
    }
}

/// Why a resource is no pool.
fn understand(p: &StoragePool) -> Result<core::PoolSpec, String> {
    let name: PoolName = p.name_any().parse().map_err(|e: pool::ids::BadId| e.to_string())?;
    p.spec.check().map_err(|e| e.to_string())?;
    Ok(core_pool(name, &p.spec))
}

/// The cluster's pools, by name.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn in_cluster(client: &Client) -> Result<Vec<core::PoolSpec>, kube::Error> {
    let pools: Api<StoragePool> = Api::all(client.clone());
    let listed = pools.list(&ListParams::default()).await?;
    let mut out = Vec::with_capacity(listed.items.len());
    for p in &listed {
        match understand(p) {
            Ok(spec) => out.push(spec),
            Err(why) => tracing::error!(pool = p.name_any(), why, "a StoragePool makes no sense: left out"),
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// Waits until the cluster's pools are others than `known`.
pub async fn changed(client: &Client, known: &[core::PoolSpec]) {
    loop {
        tokio::time::sleep(LOOK).await;
        match in_cluster(client).await {
            Ok(now) if now != known => return,
            Ok(_) => {}
            Err(e) => tracing::warn!(error = %e, "the cluster's pools cannot be read; will retry"),
        }
    }
}
