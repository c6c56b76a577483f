//! Pools as the core wants them, from the configuration file or from the cluster's StoragePool resources.
//!
//! Invariant: a resource that makes no sense, whatever it says, is left out and said to be, so that one mistake takes nothing
//! from other pools; what its disks hold stays where it is and works. Must not know: what the core does with pools.

use std::{collections::BTreeMap, time::Duration};

use ::api::{DeviceClass, FreshDisks, StoragePool, StoragePoolSpec};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
};
use pool::ids::PoolName;

use crate::{cluster::ask, core};

/// How often the cluster's pools are looked at: people change them a few times a year.
const LOOK: Duration = Duration::from_secs(10);
/// How long after one attempt to read them for the first time the next one comes.
const RETRY: Duration = Duration::from_secs(2);

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

/// The cluster's pools at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Those that make sense, by name.
    pub pools: Vec<core::PoolSpec>,
    /// Why the others make none, by name.
    pub left_out: BTreeMap<String, String>,
}

/// What a resource says, or why it is no pool.
pub(crate) fn understand(p: &DynamicObject) -> Result<core::PoolSpec, String> {
    let name: PoolName = p.name_any().parse().map_err(|e: pool::ids::BadId| e.to_string())?;
    let spec: StoragePoolSpec =
        serde_json::from_value(p.data["spec"].clone()).map_err(|e| format!("spec: {e}"))?;
    spec.check().map_err(|e| e.to_string())?;
    Ok(core_pool(name, &spec))
}

/// The cluster's StoragePools as they stand there: a list of what has to make sense would fail as a whole.
pub(crate) fn api(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<StoragePool>(&()))
}

/// All of them.
pub(crate) async fn list(client: &Client) -> kube::Result<Vec<DynamicObject>> {
    Ok(ask(api(client).list(&ListParams::default())).await?.items)
}

/// Looks at the cluster's pools. What is left out now and was not `before` is said in the log.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn in_cluster(client: &Client, before: &Found) -> kube::Result<Found> {
    let mut found = Found::default();
    for p in list(client).await? {
        match understand(&p) {
            Ok(spec) => found.pools.push(spec),
            Err(why) => {
                let pool = p.name_any();
                if before.left_out.get(&pool) != Some(&why) {
                    tracing::error!(pool, why, "a StoragePool makes no sense: left out");
                }
                found.left_out.insert(pool, why);
            }
        }
    }
    found.pools.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The cluster's pools as a controller starts with them, whenever the API server gives them: it may be away, or still make
/// room for a kind whose definition was just applied. Why they cannot be read is told to `waiting` each time.
pub async fn at_start(client: &Client, waiting: impl Fn(&str)) -> Found {
    loop {
        match in_cluster(client, &Found::default()).await {
            Ok(found) => return found,
            Err(e) => {
                tracing::warn!(error = %e, "the cluster's StoragePools cannot be read; will retry");
                waiting(&format!("the cluster's StoragePools cannot be read (are the CRDs installed?): {e}"));
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Waits until the cluster's pools are others than `known`.
pub async fn changed(client: &Client, known: &Found) {
    let mut last = known.clone();
    loop {
        tokio::time::sleep(LOOK).await;
        match in_cluster(client, &last).await {
            Ok(now) if now.pools != known.pools => return,
            Ok(now) => last = now,
            Err(e) => tracing::warn!(error = %e, "the cluster's pools cannot be read; will retry"),
        }
    }
}
