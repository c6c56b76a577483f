//! What nodes say, in the core's own words: the session turns messages into these and has checked every id by then.
//! Must not know: messages, streams.

use std::collections::BTreeMap;

use pool::{
    disk::DiskClass,
    goals::ExportState,
    ids::{DiskId, Epoch, NodeName, Term, VolumeId},
    moving::Mirror,
    units::{Bytes, Extents},
};

/// A node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub node: NodeName,
    /// Differs from boot to boot.
    pub boot_id: String,
    /// Its plugin's version.
    pub version: String,
    /// Where its exports are reached.
    pub address: String,
    /// At which port.
    pub port: u32,
    /// Topology labels.
    pub topology: BTreeMap<String, String>,
    /// The highest term that it has obeyed.
    pub term_seen: Term,
}

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// No signature of anything.
    Blank,
    /// A label of ours.
    Weir {
        /// The disk that it names.
        disk: DiskId,
        /// The pool that it names, as text: it may be from another system.
        pool: String,
    },
    /// Somebody else's.
    Foreign,
    /// In use on the node.
    Busy,
    /// It could not be read, or its label is damaged, or the node does not know.
    Unreadable,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its path now.
    pub path: String,
    /// Its serial number, where it has one.
    pub serial: String,
    /// Its size.
    pub size: Bytes,
    /// Logical block size in bytes.
    pub logical_block: u32,
    /// Physical block size in bytes.
    pub physical_block: u32,
    /// What it is made of.
    pub class: DiskClass,
    /// What is on it.
    pub content: Content,
    /// What was found there, or why it is busy or unreadable.
    pub findings: Vec<String>,
}

impl Device {
    /// The disk that its label names.
    pub(super) fn labelled(&self) -> Option<DiskId> {
        match self.content {
            Content::Weir { disk, .. } => Some(disk),
            Content::Blank | Content::Foreign | Content::Busy | Content::Unreadable => None,
        }
    }
}

/// How a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It serves.
    Serving,
    /// It is not there.
    Missing,
    /// It is there and fails.
    Failed,
    /// Its label is erased.
    Released,
}

/// A disk as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSeen {
    /// Which.
    pub disk: DiskId,
    /// How it is; `None`: the node does not know.
    pub condition: Option<Condition>,
    /// Its data extents.
    pub extents: Extents,
    /// Its device.
    pub device_id: String,
    /// Its path.
    pub path: String,
    /// Why it is not serving.
    pub reason: String,
}

/// An export as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSeen {
    /// The volume.
    pub volume: VolumeId,
    /// The disk.
    pub disk: DiskId,
    /// For whom.
    pub consumer: NodeName,
    /// The epoch of the goal that it answers.
    pub epoch: Epoch,
    /// How it is; `None`: the node does not know.
    pub state: Option<ExportState>,
    /// Why it is not as it should be.
    pub reason: String,
}

/// How a consumer's device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Nothing is left of it.
    Absent,
    /// It fails everything.
    Fenced,
    /// It reads, and holds the first write.
    Guarded,
    /// It does what its holder may.
    Open,
}

/// An attachment as its consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentSeen {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the goal that it answers.
    pub epoch: Epoch,
    /// How it is; `None`: the node does not know.
    pub state: Option<Attachment>,
    /// A write is held.
    pub held: bool,
    /// It refused to fence itself: writes still arrive.
    pub busy: bool,
    /// Size of the device.
    pub size: Bytes,
    /// Disks whose leg has no path at the moment.
    pub queueing: Vec<DiskId>,
    /// The mirror that fills the map's spare; `None`: the node has not looked.
    pub mirror: Option<Mirror>,
    /// Why it is not as it should be.
    pub reason: String,
}

/// A wipe as the node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WipeSeen {
    /// The disk.
    pub disk: DiskId,
    /// Which wipe.
    pub wipe: u64,
    /// Whether it is done.
    pub done: bool,
    /// Whether it will not be done as it was asked for.
    pub refused: bool,
    /// Why it does not go on.
    pub reason: String,
}

/// What changed on a node, or everything there when `full`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether it is everything.
    pub full: bool,
    /// Devices by stable name; `None` for one that has left.
    pub devices: Vec<(String, Option<Device>)>,
    /// Disks.
    pub disks: Vec<DiskSeen>,
    /// Exports.
    pub exports: Vec<ExportSeen>,
    /// Attachments.
    pub attachments: Vec<AttachmentSeen>,
    /// Wipes.
    pub wipes: Vec<WipeSeen>,
}
