//! A volume: its record as a resource, and what people see of it.

use std::collections::{BTreeMap, BTreeSet};

use kube::CustomResource;
use pool::{
    alloc::{WhyChosen, WhyPassed},
    ids::{DiskId, Epoch, NodeName, PoolName},
    layout::{FsType, Locality, Provisioning, Sharing},
    moving::MoveCause,
    record::Lifecycle,
    units::{Bytes, ExtentSize, Extents, Sectors},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, Wipe, schema};

/// What the controller has on record about a volume. The resource's name is the volume's id.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.storage",
    version = "v1alpha1",
    kind = "LogicalVolume",
    shortname = "lv",
    category = "weir",
    status = "LogicalVolumeStatus",
    derive = "PartialEq",
    doc = "A volume: where it lies and who has access. Written by the controller.",
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Layout", type_ = "string", json_path = ".spec.params.layout.type"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Borrowed", type_ = "string", json_path = ".status.borrowed"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".spec.claim.pvcName", priority = 1),
    printcolumn(name = "Name", type_ = "string", json_path = ".spec.name", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.term >= oldSelf.term", "message": "written by a controller whose reign is over"},
    {"rule": "self.epoch >= oldSelf.epoch", "message": "an epoch only grows"},
    {"rule": "self.name == oldSelf.name && self.pool == oldSelf.pool && self.extentSize == oldSelf.extentSize",
     "message": "a volume's name, pool and extent size never change"},
    {"rule": "self.lifecycle == 'deleting' || oldSelf.lifecycle == 'active'",
     "message": "a volume that is being deleted does not come back"},
]))]
pub struct LogicalVolumeSpec {
    /// The reign of the controller that wrote this; it never shrinks.
    pub term: u64,
    /// The name under which it was asked for.
    #[schemars(length(max = 128))]
    pub name: String,
    /// The pool that it lies in.
    #[schemars(schema_with = "schema::name")]
    pub pool: PoolName,
    /// Bytes of an extent.
    #[schemars(schema_with = "schema::extent_size")]
    pub extent_size: ExtentSize,
    /// What was asked for.
    pub params: Params,
    /// For whom, where the caller said so.
    #[serde(default)]
    pub claim: Claim,
    /// Where it lies: runs of extents in logical order.
    #[serde(default)]
    #[schemars(length(max = 65536))]
    pub segments: Vec<Segment>,
    /// The fencing number; it only grows.
    #[schemars(with = "u64")]
    pub epoch: Epoch,
    /// Who has access.
    pub access: Access,
    /// Who is losing it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Leaving>")]
    pub leaving: BTreeMap<NodeName, Leaving>,
    /// Where it is in its life.
    #[schemars(schema_with = "schema::lifecycle")]
    pub lifecycle: Lifecycle,
    /// The move under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// What is still to be wiped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 65536))]
    pub retired: Vec<Wipe>,
    /// What happened, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub history: Vec<HistoryLine>,
    /// Why it lies where it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

/// What a volume was asked for with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Params {
    /// The pool that was asked for, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub pool: Option<PoolName>,
    /// How its extents are put together.
    pub layout: Layout,
    /// When extents are taken.
    #[schemars(schema_with = "schema::provisioning")]
    pub provisioning: Provisioning,
    /// How much it holds to its consumer's node.
    #[schemars(schema_with = "schema::locality")]
    pub locality: Locality,
    /// Nodes that it may borrow from at most.
    pub max_lenders: u32,
    /// Who may write.
    #[schemars(schema_with = "schema::sharing")]
    pub sharing: Sharing,
    /// The file system where it is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::fs_type")]
    pub fs_type: Option<FsType>,
    /// I/Os a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub throughput: Option<Bytes>,
}

/// A kind of layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LayoutType {
    /// One extent after the other.
    Linear,
    /// Interleaved over several disks.
    Striped,
    /// Several copies.
    Mirrored,
    /// One disk, all of it.
    WholeDisk,
}

/// How a volume's extents are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "(self.type == 'striped') == (has(self.stripes) && has(self.chunkSectors))",
     "message": "stripes and chunkSectors go with type striped, and only with it"},
    {"rule": "has(self.stripes) == has(self.chunkSectors)", "message": "stripes and chunkSectors go together"},
    {"rule": "(self.type == 'mirrored') == has(self.replicas)", "message": "replicas goes with type mirrored, and only with it"},
]))]
pub struct Layout {
    /// Which.
    #[serde(rename = "type")]
    pub kind: LayoutType,
    /// Disks at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stripes: Option<u32>,
    /// Sectors of 512 bytes that go to one disk before the next has its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub chunk_sectors: Option<Sectors>,
    /// Copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
}

/// For whom a volume was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Claim {
    /// The claim's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pvc_name: Option<String>,
    /// Its Kubernetes namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pvc_namespace: Option<String>,
    /// The name of the PersistentVolume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pv_name: Option<String>,
}

/// Contiguous extents of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Segment {
    /// First logical extent.
    #[schemars(with = "u64")]
    pub start: Extents,
    /// Number of extents.
    #[schemars(with = "u64", range(min = 1))]
    pub count: Extents,
    /// The copies, or the stripes in order.
    #[schemars(length(min = 1, max = 64))]
    pub legs: Vec<Leg>,
    /// For a striped segment: sectors that go to one leg before the next has its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub chunk_sectors: Option<Sectors>,
    /// A second place of one leg, while a move goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<Spare>,
}

/// A second place of one leg, as long as the leg's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spare {
    /// Index of the leg.
    #[schemars(range(max = 63))]
    pub leg: u32,
    /// Where.
    pub place: Leg,
    /// Being filled; otherwise being given up.
    pub filling: bool,
}

/// A move of extents that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Moving {
    /// The node that copies.
    #[schemars(schema_with = "schema::name")]
    pub by: NodeName,
    /// The epoch at which the spare began to be filled, or to be given up.
    #[schemars(with = "u64")]
    pub since: Epoch,
    /// Why.
    #[schemars(schema_with = "schema::move_cause")]
    pub cause: MoveCause,
}

/// One copy of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Leg {
    /// The disk that holds it.
    #[schemars(schema_with = "schema::id")]
    pub disk: DiskId,
    /// Its first extent there.
    #[schemars(with = "u64")]
    pub first: Extents,
}

/// A run of extents on a disk that stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Stretch {
    /// First extent.
    #[schemars(with = "u64")]
    pub first: Extents,
    /// Number of extents.
    #[schemars(with = "u64", range(min = 1))]
    pub count: Extents,
}

/// How far an access has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AccessPhase {
    /// Nobody has it.
    Detached,
    /// `node` gets it as soon as those who leave are fenced.
    Granting,
    /// The `holders` have it.
    Attached,
    /// `source` writes, `target` is held back.
    Guarded,
    /// `source` is being fenced.
    CuttingOver,
}

/// Who has access, by decision on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "(self.phase == 'granting') == (has(self.node) && has(self.mode))",
     "message": "node and mode go with phase granting, and only with it"},
    {"rule": "(self.phase in ['guarded', 'cuttingOver']) == (has(self.source) && has(self.target) && has(self.since))",
     "message": "source, target and since go with phases guarded and cuttingOver, and only with them"},
    {"rule": "(self.phase == 'cuttingOver') == has(self.sourceLeft)",
     "message": "sourceLeft goes with phase cuttingOver, and only with it"},
]))]
pub struct Access {
    /// How far it has come.
    pub phase: AccessPhase,
    /// The holder to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub node: Option<NodeName>,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The holders, each with its mode.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Mode>")]
    pub holders: BTreeMap<NodeName, Mode>,
    /// Who holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub source: Option<NodeName>,
    /// Who is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub target: Option<NodeName>,
    /// The source gave the volume up, or died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_left: Option<bool>,
    /// The epoch at which this phase began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub since: Option<Epoch>,
}

/// How a holder uses a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mode {
    /// Only reads.
    pub read_only: bool,
    /// Asked for under an access mode that admits several nodes.
    pub multi_node: bool,
    /// Held by the controller's own wish, to move extents while nobody uses the volume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upkeep: bool,
}

/// A node whose access was revoked and is not yet known to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Leaving {
    /// The epoch of the revocation.
    #[schemars(with = "u64")]
    pub since: Epoch,
    /// Whether it was allowed to write.
    pub wrote: bool,
    /// The disks that other nodes exported to it.
    #[serde(default)]
    #[schemars(schema_with = "schema::ids")]
    pub disks: BTreeSet<DiskId>,
}

/// Something that happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HistoryLine {
    /// Counts the volume's lines, the dropped ones too.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    pub text: String,
}

/// Why a volume lies where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Placement {
    /// The consumer's node that was planned for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub home: Option<NodeName>,
    /// The locality that was asked for.
    #[schemars(schema_with = "schema::locality")]
    pub locality: Locality,
    /// The logical block size that was settled on, in bytes.
    pub logical_block: u32,
    /// What was taken, the first few disks.
    pub chosen: Vec<Choice>,
    /// Disks taken beyond those listed.
    pub more_chosen: u64,
    /// A few candidates that were not taken.
    pub passed: Vec<Rejection>,
}

/// Extents taken from one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Choice {
    /// The disk.
    #[schemars(schema_with = "schema::id")]
    pub disk: DiskId,
    /// Its node.
    #[schemars(schema_with = "schema::name")]
    pub node: NodeName,
    /// How many.
    #[schemars(with = "u64")]
    pub extents: Extents,
    /// Why.
    #[schemars(schema_with = "schema::why_chosen")]
    pub why: WhyChosen,
    /// How gladly it lent, from 0 to 1000.
    #[serde(default)]
    pub score: u32,
}

/// A candidate that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rejection {
    /// The disk, where it is one and not a node with all its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::id")]
    pub disk: Option<DiskId>,
    /// The node.
    #[schemars(schema_with = "schema::name")]
    pub node: NodeName,
    /// Extents that it had room for.
    #[schemars(with = "u64")]
    pub room: Extents,
    /// Why not.
    #[schemars(schema_with = "schema::why_passed")]
    pub why: WhyPassed,
    /// How gladly it would have lent, from 0 to 1000.
    #[serde(default)]
    pub score: u32,
}

/// What people see of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogicalVolumeStatus {
    /// The generation that this describes.
    pub observed_generation: i64,
    /// Its size, `40Gi` say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// What is going on with it, in a word: the phase of its access, or deleting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Who has it: `n1`, or `n1 -> n2` while it moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// What lies on other nodes than the one that has it: `4Gi from 2 nodes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub borrowed: Option<String>,
    /// Attached, Settled.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
