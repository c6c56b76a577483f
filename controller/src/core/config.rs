//! What the core is configured with. Must not know: where the configuration was written down.

use std::{collections::BTreeMap, time::Duration};

use pool::{
    disk::DiskClass,
    ids::PoolName,
    policy::MovePolicy,
    units::{Bytes, ExtentSize},
};

/// What is done with the extents of a disk that was just claimed, before anyone gets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreshDisks {
    /// They are zeroed: a blank device has no signature, which does not mean that it has no data.
    #[default]
    Wipe,
    /// They are taken for zeroed: whoever set this vouches for it (new virtual disks, factory-fresh drives).
    Trust,
}

/// Chooses nodes: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelector {
    /// The name matches one of these (`*` and `?` are wildcards); empty: any name.
    pub names: Vec<String>,
    /// The node's topology has all of these labels.
    pub labels: BTreeMap<String, String>,
}

/// Chooses devices: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSelector {
    /// The path matches one of these (`*` and `?` are wildcards); empty: any path.
    pub paths: Vec<String>,
    /// The serial number matches one of these (wildcards too); empty: any.
    pub serials: Vec<String>,
    /// The device is of one of these classes; empty: any.
    pub classes: Vec<DiskClass>,
    /// At least so large.
    pub min_size: Option<Bytes>,
}

/// A pool: which devices belong to it, and how it is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name.
    pub name: PoolName,
    /// Bytes of an extent; fixed once a disk has been claimed.
    pub extent_size: ExtentSize,
    /// Only devices with this logical block size, in bytes.
    pub logical_block: Option<u32>,
    /// Nodes: one selector must match; empty: every node.
    pub nodes: Vec<NodeSelector>,
    /// Devices: one selector must match; empty: none, so that a pool never takes a device by omission.
    pub devices: Vec<DeviceSelector>,
    /// What is done with freshly claimed disks.
    pub fresh_disks: FreshDisks,
    /// Lenders of a volume whose parameters do not say.
    pub max_lenders: Option<u32>,
    /// Bytes of every disk that are kept for consumers on its own node.
    pub reserve: Bytes,
    /// What moves by itself, and how many moves there may be at a time.
    pub moving: MovePolicy,
}

impl PoolSpec {
    /// A pool of this name that takes no device, with the defaults of everything else.
    pub fn new(name: PoolName) -> Self {
        Self {
            name,
            extent_size: ExtentSize::DEFAULT,
            logical_block: None,
            nodes: Vec::new(),
            devices: Vec::new(),
            fresh_disks: FreshDisks::default(),
            max_lenders: None,
            reserve: Bytes::ZERO,
            moving: MovePolicy::default(),
        }
    }
}

/// What the core needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// The pools.
    pub pools: Vec<PoolSpec>,
    /// A node that says nothing for so long is taken for dead.
    pub lease: Duration,
    /// A node says something at least so often.
    pub heartbeat: Duration,
    /// How long a leaver may take to take its own device down before its exports are taken away under it.
    pub patience: Duration,
    /// How long a request waits for nodes before it answers "unfinished".
    pub request_deadline: Duration,
    /// How long a finished expansion waits for the holders' devices to show it.
    pub resize_wait: Duration,
    /// The most that one wipe of a fresh disk covers: its progress is recorded after each.
    pub fresh_chunk: Bytes,
    /// The most that one move of a linear volume's extents covers: what a crash makes it copy again.
    pub move_piece: Bytes,
    /// Whether offers bound what disks lend.
    pub lend_by_forecast: bool,
}

impl Default for CoreConfig {
    /// The lease is five heartbeats: one lost packet is no death, and an eviction stays within the seconds that a
    /// guest's disk timeout allows. Requests give up before the 30 s after which Kubernetes's sidecars would.
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            lease: Duration::from_secs(5),
            heartbeat: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            request_deadline: Duration::from_secs(20),
            resize_wait: Duration::from_secs(5),
            fresh_chunk: Bytes::gib(4),
            move_piece: Bytes::gib(1),
            lend_by_forecast: true,
        }
    }
}
