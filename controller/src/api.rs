//! What the controller can be asked for, by CSI, by node sessions and by people: requests, answers, errors. The
//! front ends (`csi`, `session`) know this file and not the core behind it.
//!
//! Every method is idempotent in the sense of the CSI specification: repeating a request that succeeded succeeds.

mod drain;

use std::collections::BTreeMap;

use pool::{
    access::Mode,
    ids::{DiskId, Epoch, NodeName, PoolName, VolumeId},
    units::Bytes,
};

pub use drain::{Blocked, DrainPlan, DrainRow, MoveRow, Pace, Parting, Planned, Target};

/// Topology segments, key -> value.
pub type Segments = BTreeMap<String, String>;

/// Where a volume must or should be usable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// At least one of these must be served, when there are any.
    pub requisite: Vec<Segments>,
    /// In order of preference.
    pub preferred: Vec<Segments>,
}

/// A volume to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// The caller's name for it; the key of idempotence.
    pub name: String,
    /// At least so much.
    pub required: Bytes,
    /// At most so much.
    pub limit: Option<Bytes>,
    /// StorageClass parameters as they came.
    pub parameters: BTreeMap<String, String>,
    /// VolumeAttributesClass parameters as they came.
    pub mutable_parameters: BTreeMap<String, String>,
    /// Capabilities it must have, as the CSI front end has checked them one by one.
    pub capabilities: Vec<Capability>,
    /// Where.
    pub topology: Topology,
}

/// One way in which a volume is to be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Capability {
    /// Raw block, or else a mounted file system.
    pub block: bool,
    /// File system asked for by the capability itself; empty where it does not matter.
    pub fs_type: String,
    /// How many nodes, and whether they write.
    pub mode: Mode,
}

/// A volume as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// The name it was made under.
    pub name: String,
    /// Its pool.
    pub pool: PoolName,
    /// Its size.
    pub size: Bytes,
    /// Who holds it.
    pub published: Vec<NodeName>,
    /// `None` when all is well, else what is wrong, for people.
    pub abnormal: Option<String>,
    /// File system to make in it when it has none; empty: the caller's choice.
    pub fs_type: String,
    /// Where it can be used: any one of these.
    pub accessible: Vec<Segments>,
    /// Passed on to whoever stages it.
    pub context: BTreeMap<String, String>,
}

/// A page of volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumePage {
    /// In order of id.
    pub volumes: Vec<VolumeInfo>,
    /// Where the next page starts.
    pub next: Option<String>,
}

/// Room for new volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Free for new volumes in all.
    pub available: Bytes,
    /// The largest single volume that fits.
    pub maximum_volume: Bytes,
    /// The smallest volume there is: one extent.
    pub minimum_volume: Bytes,
}

/// A volume in use on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The record's epoch.
    pub epoch: Epoch,
    /// The volume's size.
    pub size: Bytes,
    /// File system to make when it has none; empty: the caller's choice.
    pub fs_type: String,
}

/// Why a request failed. The text says with which object and what to do; [`ApiError::class`] says what it means.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// There is no such volume.
    #[error("volume {0} does not exist")]
    NoVolume(String),
    /// There is no such node.
    #[error("node {0} is not known: no weir-node has ever reported from it")]
    NoNode(String),
    /// There is no such disk.
    #[error("disk {0} is not on record")]
    NoDisk(DiskId),
    /// What a person gave names no disk.
    #[error("disk {0:?} does not exist: give its id, how that begins, or NODE:PATH")]
    NoSuchDisk(String),
    /// What a person gave names neither a node nor a disk.
    #[error(
        "{text:?} is neither a node (there are: {nodes}) nor a disk (its id, how that begins, or NODE:PATH)"
    )]
    NoTarget {
        /// What was given.
        text: String,
        /// A few nodes that there are.
        nodes: String,
    },
    /// The name is taken by a volume that differs from the request.
    #[error("a volume named {name:?} exists already and differs: {difference}")]
    Exists {
        /// The name.
        name: String,
        /// In what.
        difference: String,
    },
    /// The node has the volume in a way that does not go with the request.
    #[error("{0}")]
    Incompatible(String),
    /// No room, or none where it is wanted.
    #[error("{0}")]
    NoRoom(String),
    /// A size outside of what is possible.
    #[error("{0}")]
    OutOfRange(String),
    /// The volume is not in a state for this.
    #[error("{0}")]
    Precondition(String),
    /// Something else is under way with the same object: to be tried again.
    #[error("{0}")]
    Busy(String),
    /// Something that is needed cannot be reached at the moment: to be tried again.
    #[error("{0}")]
    Unavailable(String),
    /// A page token that no answer gave.
    #[error("page token {0:?} is not one that this controller gave")]
    BadToken(String),
    /// It took too long; whether it happens is open. To be asked again.
    #[error("{0}")]
    Unfinished(String),
    /// A defect, or a store that failed.
    #[error("{0}")]
    Internal(String),
}

/// What the core offers to its front ends.
#[async_trait::async_trait]
pub trait Api: Send + Sync + 'static {
    /// Makes a volume, or finds the one made by the same request before.
    async fn create_volume(&self, request: CreateVolume) -> Result<VolumeInfo, ApiError>;
    /// Deletes a volume: returns once the decision is durable; wiping goes on after it. Unknown ids are fine.
    async fn delete_volume(&self, id: VolumeId) -> Result<(), ApiError>;
    /// One volume.
    async fn volume(&self, id: VolumeId) -> Result<VolumeInfo, ApiError>;
    /// A page of at most `max` volumes (0: as many as fit a message), from where `token` says.
    async fn volumes(&self, max: usize, token: &str) -> Result<VolumePage, ApiError>;
    /// Room in the pool that `parameters` name, for a volume used at `at` (`None`: anywhere).
    async fn capacity(
        &self,
        parameters: BTreeMap<String, String>,
        at: Option<Segments>,
    ) -> Result<Capacity, ApiError>;
    /// Whether the volume can be used so; `Ok(Some(why))` when not.
    async fn validate(
        &self,
        id: VolumeId,
        capabilities: Vec<Capability>,
        parameters: BTreeMap<String, String>,
    ) -> Result<Option<String>, ApiError>;
    /// Grows a volume to at least `required`; returns the new size once it is durable.
    async fn expand(
        &self,
        id: VolumeId,
        required: Bytes,
        limit: Option<Bytes>,
    ) -> Result<VolumeInfo, ApiError>;
    /// Changes what may change of a volume while it lives, to all that `parameters` say: its limits. What they do not name is not
    /// limited any more. Returns once it is on record; nodes follow.
    async fn modify(&self, id: VolumeId, parameters: BTreeMap<String, String>) -> Result<(), ApiError>;
    /// Gives the volume to a node and, with `wait`, returns once the node can use it.
    async fn attach(
        &self,
        id: VolumeId,
        node: NodeName,
        capability: Capability,
        wait: bool,
    ) -> Result<Attached, ApiError>;
    /// Takes the volume from a node (`None`: from all) and, with `wait`, returns once nothing is left of it there.
    async fn detach(&self, id: VolumeId, node: Option<NodeName>, wait: bool) -> Result<(), ApiError>;
    /// Whether the core is ready to serve; else why not.
    async fn ready(&self) -> Result<(), String>;
    /// The pool for people and tests: every disk, volume and loan, as JSON-ready data.
    async fn survey(&self) -> Survey;

    /// Has disks emptied, or (`undo`) no longer; `dry_run` only says what there is to do.
    async fn drain(&self, target: Target, undo: bool, dry_run: bool) -> Result<Vec<DrainRow>, ApiError>;
}

/// The pool at a glance.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Survey {
    /// The controller's reign.
    pub term: u64,
    /// Nodes with whether their lease runs.
    pub nodes: Vec<NodeRow>,
    /// Disks.
    pub disks: Vec<DiskRow>,
    /// Volumes.
    pub volumes: Vec<VolumeRow>,
    /// Moves of extents that are under way.
    pub moves: Vec<MoveRow>,
    /// Disks that are being emptied.
    pub drains: Vec<DrainRow>,
}

/// A node at a glance.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NodeRow {
    /// Its name.
    pub node: NodeName,
    /// Whether its lease runs.
    pub alive: bool,
    /// Where its exports are reached.
    pub address: String,
    /// Devices that are not part of a pool, with why: "path: reason".
    pub unclaimed: Vec<String>,
}

/// A disk at a glance.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DiskRow {
    /// Its id.
    pub disk: DiskId,
    /// Its node.
    pub node: NodeName,
    /// Its pool.
    pub pool: PoolName,
    /// Device path as last seen.
    pub path: String,
    /// State in a word.
    pub state: String,
    /// Data bytes.
    pub size: Bytes,
    /// Free for new volumes.
    pub free: Bytes,
    /// Waiting to be wiped.
    pub unwiped: Bytes,
}

/// A volume at a glance.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VolumeRow {
    /// Its id.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// Access phase in a word: `Detached`, `Attached`, `Guarded`, ...
    pub phase: String,
    /// Who holds it.
    pub holders: Vec<NodeName>,
    /// Nodes whose former access is not gone yet.
    pub leaving: Vec<NodeName>,
    /// The record's epoch.
    pub epoch: Epoch,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Segments: (logical start, extents, disk, first extent on it) for each leg.
    pub segments: Vec<(u64, u64, DiskId, u64)>,
    /// What happened last, newest last, for people.
    pub history: Vec<String>,
}
