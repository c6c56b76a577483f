//! A pool: which nodes and devices belong to it, and how it is cut. The same shape in the cluster and in a controller's
//! configuration file.

use std::collections::{BTreeMap, BTreeSet};

use kube::CustomResource;
use pool::{
    policy::{Budget, HOLD_S, MovePolicy, STILL_S},
    units::{Bytes, ExtentSize},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::{Condition, Quantity, Span, schema};

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
    /// What moves by itself between disks, and how much of it.
    #[serde(default, skip_serializing_if = "MoveSettings::is_default")]
    pub moving: MoveSettings,
}

/// What moves by itself between disks, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MoveSettings {
    /// Extents come home to the node that uses them, while that pays.
    pub gravity: bool,
    /// Extents leave disks that are forecast to be overloaded.
    pub spill: bool,
    /// Lent extents leave disks whose owner needs the room.
    pub recall: bool,
    /// Extents leave disks that are fuller than so many percent; none when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 99))]
    pub fullness: Option<u32>,
    /// GiB that one disk gives or takes within an hour, for gravity, spill and fullness.
    #[schemars(range(min = 1, max = 65536))]
    pub gib_per_hour_per_disk: u32,
    /// Thousandths of the pool's extents that move within a day, for the same.
    #[schemars(range(min = 1, max = 1000))]
    pub permille_per_day: u32,
    /// Moves off one disk at a time, and onto one: drains as well.
    #[schemars(range(min = 1, max = 8))]
    pub moves_per_disk: u32,
    /// Moves that a node has to do with at a time: drains as well.
    #[schemars(range(min = 1, max = 64))]
    pub moves_per_node: u32,
    /// How long what has moved by itself stays where it is: 6h unless said. A lender that needs the room does not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
    /// How long nothing must have happened to a volume before it comes home: 10m unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub still: Option<Span>,
}

impl Default for MoveSettings {
    fn default() -> Self {
        let MovePolicy { gravity, spill, recall, fullness, budget, hold_s: _, still_s: _ } =
            MovePolicy::default();
        Self {
            gravity,
            spill,
            recall,
            fullness,
            // The default is a few GiB.
            gib_per_hour_per_disk: u32::try_from(budget.hourly.get() >> 30).unwrap_or(u32::MAX),
            permille_per_day: budget.daily_permille,
            moves_per_disk: budget.per_disk,
            moves_per_node: budget.per_node,
            // The policy's own, which a later version may change.
            hold: None,
            still: None,
        }
    }
}

impl MoveSettings {
    /// Whether nobody has said anything.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// It, as the mover wants it.
    #[must_use]
    pub fn policy(&self) -> MovePolicy {
        MovePolicy {
            gravity: self.gravity,
            spill: self.spill,
            recall: self.recall,
            fullness: self.fullness,
            hold_s: self.hold.map_or(HOLD_S, Span::as_seconds),
            still_s: self.still.map_or(STILL_S, Span::as_seconds),
            budget: Budget {
                hourly: Bytes::gib(u64::from(self.gib_per_hour_per_disk)),
                daily_permille: self.permille_per_day,
                per_disk: self.moves_per_disk,
                per_node: self.moves_per_node,
            },
        }
    }

    fn check(&self) -> Result<(), BadPool> {
        let all = [
            ("spec.moving.fullness", self.fullness.unwrap_or(50), 50..=99),
            ("spec.moving.gibPerHourPerDisk", self.gib_per_hour_per_disk, 1..=65536),
            ("spec.moving.permillePerDay", self.permille_per_day, 1..=1000),
            ("spec.moving.movesPerDisk", self.moves_per_disk, 1..=8),
            ("spec.moving.movesPerNode", self.moves_per_node, 1..=64),
        ];
        let wrong = all.into_iter().find(|(_, n, may)| !may.contains(n));
        match wrong {
            None => Ok(()),
            Some((field, n, may)) => {
                let problem = format!("{n}: {} to {} are allowed", may.start(), may.end());
                Err(BadPool { field, problem })
            }
        }
    }
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
        schema::extent_quantity(g)
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
             (has(self.classes) && size(self.classes) > 0) || \
             (has(self.minSize) && (type(self.minSize) == int ? self.minSize > 0 : !self.minSize.startsWith('0')))",
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
        self.moving.check()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(moving: &str) -> StoragePoolSpec {
        let text = format!("devices: [{{paths: ['/dev/n*']}}]\n{moving}");
        serde_yaml::from_str(&text).expect("a pool")
    }

    #[test]
    fn what_moves_by_itself_is_said_in_the_pool() {
        assert_eq!(parse("").moving.policy(), MovePolicy::default());
        let some = parse("moving: {gravity: false, fullness: 85, gibPerHourPerDisk: 4}").moving.policy();
        let short = parse("moving: {hold: 30s, still: 2m}").moving;
        assert_eq!((short.policy().hold_s, short.policy().still_s), (30, 120));
        assert!(serde_yaml::from_str::<MoveSettings>("hold: soon").is_err());
        // An older controller knows nothing of what is new: it is written only where somebody said it.
        let text = serde_yaml::to_string(&parse("")).expect("a text");
        assert!(!text.contains("moving") && !text.contains("hold"), "{text}");
        assert!(!some.gravity && some.spill && some.recall && some.fullness == Some(85));
        assert_eq!((some.budget.hourly, some.budget.per_disk), (Bytes::gib(4), 1));
        for (bad, field) in [
            ("moving: {fullness: 40}", "spec.moving.fullness"),
            ("moving: {fullness: 100}", "spec.moving.fullness"),
            ("moving: {gibPerHourPerDisk: 0}", "spec.moving.gibPerHourPerDisk"),
            ("moving: {permillePerDay: 1001}", "spec.moving.permillePerDay"),
            ("moving: {movesPerDisk: 0}", "spec.moving.movesPerDisk"),
            ("moving: {movesPerNode: 65}", "spec.moving.movesPerNode"),
        ] {
            assert_eq!(parse(bad).check().map_err(|e| e.field), Err(field), "{bad}");
        }
        let unknown = "devices: [{paths: [x]}]\nmoving: {gravitation: true}";
        assert!(serde_yaml::from_str::<StoragePoolSpec>(unknown).is_err());
    }
}
