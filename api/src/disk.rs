//! A claimed disk.

use std::collections::{BTreeMap, BTreeSet};

use kube::CustomResource;
use pool::{
    disk::{DiskClass, Health, LastSeen},
    ids::{Epoch, NodeName, PoolName},
    units::{ExtentSize, Extents},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, Stretch, schema};

/// Where a disk is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskState {
    /// On record; its label is being written.
    Claimed,
    /// Labelled and reachable: takes new extents.
    Serving,
    /// Serves what it holds, takes nothing new, is being emptied.
    Draining,
    /// Not seen now; `was` says what it returns to.
    Missing,
    /// No longer of the pool.
    Released,
}

/// Runs on a disk that are being wiped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Wipe {
    /// Names this set of runs, and never another one: 16 hexadecimal digits.
    #[schemars(schema_with = "schema::hex64")]
    pub wipe: String,
    /// The disk.
    #[schemars(schema_with = "schema::id")]
    pub disk: pool::ids::DiskId,
    /// The runs.
    #[schemars(length(max = 65536))]
    pub runs: Vec<Stretch>,
    /// Nodes that may still have a slice there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(schema_with = "schema::names")]
    pub consumers: BTreeSet<NodeName>,
    /// Epoch of the volume's record that gave them up; 0 for a fresh disk.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    #[schemars(with = "u64")]
    pub epoch: Epoch,
}

/// Not written then, so that a controller that does not know it yet can read what newer definitions serve.
fn is_none_yet(e: &Epoch) -> bool {
    *e == Epoch::default()
}

/// What the controller has on record about a disk. The resource's name is the disk's id, which stands in its label.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.storage",
    version = "v1alpha1",
    kind = "NodeDisk",
    shortname = "ndisk",
    category = "weir",
    status = "NodeDiskStatus",
    derive = "PartialEq",
    doc = "A disk of a pool. Written by the controller.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Path", type_ = "string", json_path = ".spec.path"),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.class"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.free"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Health", type_ = "string", json_path = ".spec.health"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.term >= oldSelf.term", "message": "written by a controller whose reign is over"},
    {"rule": "self.epoch >= oldSelf.epoch", "message": "an epoch only grows"},
    {"rule": "self.pool == oldSelf.pool && self.extentSize == oldSelf.extentSize",
     "message": "a claimed disk's pool and extent size never change"},
    {"rule": "(self.state == 'missing') == has(self.was)", "message": "was goes with state missing, and only with it"},
    {"rule": "self.state != 'released' ? oldSelf.state != 'released' : true",
     "message": "a released disk does not come back; claiming it again gives it a new id"},
]))]
pub struct NodeDiskSpec {
    /// The reign of the controller that wrote this; it never shrinks.
    pub term: u64,
    /// The node that it is in.
    #[schemars(schema_with = "schema::name")]
    pub node: NodeName,
    /// The pool that it belongs to.
    #[schemars(schema_with = "schema::name")]
    pub pool: PoolName,
    /// Data extents that it has; 0 until its label is written.
    #[schemars(with = "u64")]
    pub extents: Extents,
    /// Bytes of an extent.
    #[schemars(schema_with = "schema::extent_size")]
    pub extent_size: ExtentSize,
    /// Logical block size in bytes.
    pub logical_block: u32,
    /// Physical block size in bytes.
    pub physical_block: u32,
    /// What it is made of.
    #[schemars(schema_with = "schema::disk_class")]
    pub class: DiskClass,
    /// Where it is in its life.
    pub state: DiskState,
    /// What a missing disk returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::last_seen")]
    pub was: Option<LastSeen>,
    /// How it is.
    #[schemars(schema_with = "schema::health")]
    pub health: Health,
    /// Topology labels of its node, the node itself left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub domain: BTreeMap<String, String>,
    /// Extents kept for consumers on the disk's own node.
    #[schemars(with = "u64")]
    pub reserve: Extents,
    /// The device's stable name on its node.
    pub device_id: String,
    /// The device's path when last seen.
    pub path: String,
    /// The fencing number of its goals; it only grows.
    #[schemars(with = "u64")]
    pub epoch: Epoch,
    /// Extents from the first on that are known to be blank or wiped.
    #[schemars(with = "u64")]
    pub clean_through: Extents,
    /// The wipe under way beyond that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh: Option<Wipe>,
}

/// What people see of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeDiskStatus {
    /// The generation that this describes.
    pub observed_generation: i64,
    /// Bytes for data, `1.5Ti` say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Bytes that a volume can still get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<String>,
    /// Ready, Healthy.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
