//! Emptying disks: what is asked for, and how it goes.

use pool::{
    ids::{DiskId, NodeName, VolumeId},
    moving::MoveCause,
};
use serde::Serialize;

/// What is to be emptied, or leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A disk.
    Disk(DiskId),
    /// Every disk of a node.
    Node(NodeName),
}

/// A move of extents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MoveRow {
    /// Whose.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// The disk that they leave.
    pub from: DiskId,
    /// The disk that they go to.
    pub to: DiskId,
    /// Whose disk that is.
    pub to_node: NodeName,
    /// The node that copies.
    pub by: NodeName,
    /// Why.
    pub cause: MoveCause,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes copied so far.
    pub copied: u64,
    /// Still being copied; afterwards the place that is left is being given up.
    pub filling: bool,
}

/// How fast a disk is emptied, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// Bytes a second.
    pub bytes_s: f64,
    /// Of the last minute; otherwise what disks of the class do beside their users, until something has been measured.
    pub measured: bool,
}

/// A volume that cannot leave a disk now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// Which.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Bytes of it on the disk.
    pub bytes: u64,
    /// Bytes for which there is no room anywhere, where that is the reason.
    pub missing_bytes: u64,
    /// Why.
    pub why: String,
    /// What a person can do; empty where nothing has to be done.
    pub advice: String,
    /// It passes by itself.
    pub passing: bool,
}

/// Where a dry run would put extents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// Whose.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// The disk that they would go to.
    pub to: DiskId,
    /// Its node.
    pub to_node: NodeName,
    /// Bytes.
    pub bytes: u64,
}

/// What a dry run comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DrainPlan {
    /// By volume and disk.
    pub moves: Vec<Planned>,
    /// Bytes that would move.
    pub bytes: u64,
    /// Bytes beyond those that were planned for, since there are very many pieces: nothing is said of them.
    pub unplanned_bytes: u64,
}

/// A disk that is being emptied, or could be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DrainRow {
    /// The disk.
    pub disk: DiskId,
    /// Its node.
    pub node: NodeName,
    /// Where it was seen last.
    pub path: String,
    /// Its state.
    pub state: String,
    /// It is to be emptied.
    pub draining: bool,
    /// Volumes that have extents there.
    pub volumes: usize,
    /// Bytes of theirs.
    pub left_bytes: u64,
    /// Bytes that were left and wait to be wiped.
    pub wiping_bytes: u64,
    /// Bytes that have left since it is being emptied, or since this controller began.
    pub moved_bytes: u64,
    /// How fast.
    pub pace: Pace,
    /// Seconds until all that can leave has left, at that pace.
    pub eta_s: Option<u64>,
    /// Volumes that cannot leave now: the first few.
    pub blocked: Vec<Blocked>,
    /// How many more.
    pub more_blocked: usize,
    /// Of a dry run: what would go where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<DrainPlan>,
}

/// What is still on record of a disk or a node that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parting {
    /// Disks that are still on record.
    pub disks: usize,
    /// Volumes whose records still name it.
    pub volumes: usize,
    /// Nothing is left.
    pub done: bool,
}
