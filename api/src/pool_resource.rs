//! A pool: which nodes and devices belong to it, and how it is cut. The same shape in the cluster and in a controller's
//! configuration file.

use std::collections::{BTreeMap, BTreeSet};

use kube::CustomResource;
use pool::units::{Bytes, ExtentSize};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::{Condition, Quantity};

/// What belongs to a pool.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.storage",
    version = "v1alpha1",
    kind = "StoragePool",
    shortname = "wpool",
    category = "weir",
    status = "StoragePoolStatus",
    derive = "PartialEq",
    doc = "A pool of disks. Written by people.",
    printcolumn(name = "Extent", type_ = "string", json_path = ".spec.extentSize"),
    printcolumn(name = "Disks", type_ = "integer", json_path = ".status.disks"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.free"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StoragePoolSpec {
    /// Unit of allocation: a power of two from 4Mi to 1Gi.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "a pool's extent size never changes"},
    ]))]
    pub extent_size: ExtentSizeQuantity,
    /// Only devices with this logical block size, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [512, 4096]))]
    pub logical_block: Option<u32>,
    /// Which nodes lend their disks: those that one selector fits; all when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub nodes: Vec<NodeSelector>,
    /// Which of their devices belong to the pool: those that one selector fits.
    #[schemars(length(min = 1, max = 64))]
    pub devices: Vec<DeviceSelector>,
    /// What becomes of the old contents of a disk that is claimed.
    #[serde(default)]
    pub fresh_disks: FreshDisks,
    /// Lenders of a volume unless its class says otherwise: 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max_lenders: Option<u32>,
    /// Kept on each disk for consumers on its own node.
    #[serde(default)]
    pub reserve: Quantity,
}

/// An [`ExtentSize`] written as a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Quantity", into = "Quantity")]
pub struct ExtentSizeQuantity(pub ExtentSize);

impl TryFrom<Quantity> for ExtentSizeQuantity {
    type Error = pool::units::BadExtentSize;

    fn try_from(q: Quantity) -> Result<Self, Self::Error> {
        ExtentSize::new(q.bytes().get()).map(Self)
    }
}

impl From<ExtentSizeQuantity> for Quantity {
    fn from(e: ExtentSizeQuantity) -> Self {
        Quantity::new(e.0.bytes())
    }
}

impl JsonSchema for ExtentSizeQuantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ExtentSizeQuantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        Quantity::json_schema(g)
    }
}

/// Nodes by name or label. A node belongs when any name pattern matches and every label is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeSelector {
    /// Patterns with `*` and `?`; empty: every node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub names: Vec<String>,
    /// Topology labels with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Devices by what they are. A device belongs when every criterion that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.paths) && size(self.paths) > 0) || (has(self.serials) && size(self.serials) > 0) || \
             (has(self.classes) && size(self.classes) > 0) || has(self.minSize)",
    "message": "says nothing, and would take every blank device: give paths, serials, classes or minSize",
}]))]
pub struct DeviceSelector {
    /// Patterns for the path, `/dev/nvme*n1` say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub paths: Vec<String>,
    /// Patterns for the serial number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub serials: Vec<String>,
    /// Kinds of device.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub classes: BTreeSet<DeviceClass>,
    /// At least so large.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_size: Quantity,
}

fn is_zero(q: &Quantity) -> bool {
    q.bytes().is_zero()
}

impl DeviceSelector {
    fn says_nothing(&self) -> bool {
        self.paths.is_empty()
            && self.serials.is_empty()
            && self.classes.is_empty()
            && self.min_size.bytes() == Bytes::ZERO
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceClass {
    /// Rotating.
    Hdd,
    /// Solid state behind SATA, SAS or virtio.
    Ssd,
    /// NVMe.
    Nvme,
}

/// What becomes of the old contents of a disk that is claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FreshDisks {
    /// Zeroed before a volume gets them, in the background.
    #[default]
    Wipe,
    /// Known to be zero already: new drives, or drives that were erased.
    Trust,
}

/// What is wrong with a pool, where its shape alone does not say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadPool {
    /// Which field.
    pub field: &'static str,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

impl StoragePoolSpec {
    /// Checks what a type cannot say. In a cluster the API server has checked the same by the schema.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), BadPool> {
        let bad = |field, problem| Err(BadPool { field, problem });
        if let Some(n) = self.max_lenders.filter(|n| !(1..=64).contains(n)) {
            return bad("spec.maxLenders", format!("{n}: 1 to 64 are allowed"));
        }
        if let Some(b) = self.logical_block.filter(|b| ![512, 4096].contains(b)) {
            return bad("spec.logicalBlock", format!("{b}: 512 and 4096 are allowed"));
        }
        if self.devices.is_empty() || self.devices.iter().any(DeviceSelector::says_nothing) {
            let problem = "says nothing, and would take every blank device or none: give paths, serials, classes or \
                           minSize";
            return bad("spec.devices", problem.to_owned());
        }
        Ok(())
    }
}

/// What people see of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StoragePoolStatus {
    /// The generation that this describes.
    pub observed_generation: i64,
    /// Disks that belong to it.
    pub disks: u64,
    /// Nodes that they are in.
    pub nodes: u64,
    /// Bytes for data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Bytes that are free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<String>,
    /// Ready.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
