//! A node of the pool, as last seen.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;

/// What the controller has on record about a node. The resource's name is the node's.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.storage",
    version = "v1alpha1",
    kind = "StorageNode",
    shortname = "wnode",
    category = "weir",
    status = "StorageNodeStatus",
    derive = "PartialEq",
    doc = "A node that serves or uses volumes. Written by the controller.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(
        name = "Alive",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Alive\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.term >= oldSelf.term", "message": "written by a controller whose reign is over"},
]))]
pub struct StorageNodeSpec {
    /// The reign of the controller that wrote this; it never shrinks.
    pub term: u64,
    /// Its topology labels, the node itself left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub domain: BTreeMap<String, String>,
    /// Where its exports are reached.
    pub address: String,
    /// At which port.
    pub port: u32,
    /// Its kernel's id of the boot in which it reported last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// A person has said that it never comes back (`weir forget`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

/// What people see of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageNodeStatus {
    /// The generation that this describes.
    pub observed_generation: i64,
    /// Alive.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
