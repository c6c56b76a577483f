//! A snapshot of a volume.

use kube::CustomResource;
use pool::ids::{PoolName, VolumeId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, schema};

/// A snapshot. The resource's name is its id.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.storage",
    version = "v1alpha1",
    kind = "LogicalSnapshot",
    shortname = "lsnap",
    category = "weir",
    status = "LogicalSnapshotStatus",
    derive = "PartialEq",
    doc = "A snapshot of a volume. Written by the controller.",
    printcolumn(name = "Volume", type_ = "string", json_path = ".spec.volume"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.term >= oldSelf.term", "message": "written by a controller whose reign is over"},
    {"rule": "self.volume == oldSelf.volume && self.name == oldSelf.name && self.pool == oldSelf.pool",
     "message": "a snapshot's volume, name and pool never change"},
]))]
pub struct LogicalSnapshotSpec {
    /// The reign of the controller that wrote this; it never shrinks.
    pub term: u64,
    /// The name under which it was asked for.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// The volume that it is of.
    #[schemars(schema_with = "schema::id")]
    pub volume: VolumeId,
    /// The pool that it lies in.
    #[schemars(schema_with = "schema::name")]
    pub pool: PoolName,
}

/// What people see of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogicalSnapshotStatus {
    /// The generation that this describes.
    pub observed_generation: i64,
    /// The volume's size when it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Ready.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
