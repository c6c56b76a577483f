//! Schemas of values that the pure room spells: its enums, ids and names. Must not know: which fields use them.

use pool::layout::{FsType, Locality, Provisioning, Sharing};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::Quantity;

/// One of these words.
macro_rules! words {
    ($($f:ident = $list:expr;)+) => { $(
        pub(crate) fn $f(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "type": "string", "enum": $list })
        }
    )+ };
}

words! {
    locality = Locality::SPELLINGS;
    sharing = Sharing::SPELLINGS;
    provisioning = Provisioning::SPELLINGS;
    fs_type = FsType::SPELLINGS;
    lifecycle = ["active", "deleting"];
    move_cause = ["drain", "recall", "gravity", "spill", "fullness"];
    disk_class = ["hdd", "ssd", "nvme"];
    health = ["good", "suspect", "failing"];
    last_seen = ["claimed", "serving", "draining"];
    why_chosen = ["local", "lenderAlready", "mostRoom", "stripe", "wholeDisk"];
    why_passed = ["notNeeded", "lessRoom", "full", "takesNothingNew", "otherBlockSize", "otherDomain"];
}

/// An id of a volume or a disk.
pub(crate) fn id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    })
}

/// Ids, each once.
pub(crate) fn ids(g: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "x-kubernetes-list-type": "set", "maxItems": 4096, "items": id(g) })
}

/// The name of a pool or a node.
pub(crate) fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$" })
}

/// Names, each once.
pub(crate) fn names(g: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "x-kubernetes-list-type": "set", "maxItems": 4096, "items": name(g) })
}

/// A number that uses all of 64 bits: as text, since JSON numbers of the API server have 63.
pub(crate) fn hex64(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^[0-9a-f]{16}$" })
}

/// The extent sizes that there are.
fn extent_sizes() -> Vec<u64> {
    (22..=30).map(|n| 1 << n).collect()
}

/// Bytes of an extent.
pub(crate) fn extent_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "enum": extent_sizes() })
}

/// Bytes of an extent as people write them. One that was let through before this was checked may be corrected.
pub(crate) fn extent_quantity(g: &mut SchemaGenerator) -> Schema {
    let sizes = extent_sizes();
    let known = |v: &str| {
        format!(
            "(type({v}) == int ? {v} in {sizes:?} : \
             isQuantity({v}) && quantity({v}).isInteger() && quantity({v}).asInteger() in {sizes:?})"
        )
    };
    let bytes = |v: &str| format!("(type({v}) == int ? int({v}) : quantity({v}).asInteger())");
    let same = format!("!{} || {} == {}", known("oldSelf"), bytes("oldSelf"), bytes("self"));
    let rules = serde_json::json!([
        { "rule": known("self"), "message": "an extent is a power of two from 4Mi to 1Gi" },
        { "rule": same, "message": "a pool's extent size never changes" },
    ]);
    let mut schema = Quantity::json_schema(g);
    schema.insert("x-kubernetes-validations".to_owned(), rules);
    schema
}
