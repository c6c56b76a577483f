//! Goals as the agent works with them, and what it says about them: the session's messages with every field checked.
//!
//! Must not know: protobuf, the kernel.

use std::{collections::BTreeMap, net::IpAddr};

use pool::{
    goals::{ExportState, Role},
    ids::{DiskId, Epoch, NodeName, VolumeId},
    moving::Mirror,
    units::{ExtentSize, Sectors},
    volume::Map,
};

pub use crate::volumes_api::Standing;

/// Where a volume lies, with what is needed to build it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMap {
    /// The volume's name, for people.
    pub name: String,
    /// Bytes of an extent.
    pub extent_size: ExtentSize,
    /// The segments.
    pub map: Map,
}

impl VolumeMap {
    /// Sectors of the volume.
    pub fn size(&self) -> Sectors {
        self.extent_size.sectors_of(self.map.extents())
    }
}

/// Which export.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportKey {
    /// The volume.
    pub volume: VolumeId,
    /// The disk, one of this node's.
    pub disk: DiskId,
    /// For whom.
    pub consumer: NodeName,
}

/// A goal for an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportGoal {
    /// Which.
    pub key: ExportKey,
    /// Fencing number.
    pub epoch: Epoch,
    /// What it should be.
    pub state: ExportState,
    /// The map; always there for [`ExportState::Serving`].
    pub map: Option<VolumeMap>,
}

/// Where a remote slice is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The node that exports it.
    pub host: NodeName,
    /// Its address on the storage network.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The host has said that the export stands.
    pub ready: bool,
}

/// A goal for a volume's device on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentGoal {
    /// The volume.
    pub volume: VolumeId,
    /// Fencing number.
    pub epoch: Epoch,
    /// What the device should be.
    pub role: Role,
    /// The map; always there for roles that build a device.
    pub map: Option<VolumeMap>,
    /// The disks that are not this node's.
    pub remotes: BTreeMap<DiskId, Remote>,
}

impl AttachmentGoal {
    /// Whether it asks for a device, rather than for an end of one.
    pub fn builds(&self) -> bool {
        match self.role {
            Role::Writer | Role::Reader | Role::Guard => true,
            Role::FenceIfQuiet | Role::Absent => false,
        }
    }
}

/// State of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportStanding {
    /// Not known, or half made.
    #[default]
    Unknown,
    /// Reachable.
    Serving,
    /// Failing every I/O.
    Fenced,
    /// Nothing is left of it.
    Absent,
}

/// What is said about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// Which.
    pub key: ExportKey,
    /// Epoch of the goal that this answers.
    pub epoch: Epoch,
    /// State.
    pub standing: ExportStanding,
    /// Why it is not the goal's; empty when it is.
    pub reason: String,
}

/// What is said about a volume's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentReport {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch of the goal that this answers.
    pub epoch: Epoch,
    /// State.
    pub standing: Standing,
    /// A guard holds a write.
    pub held: bool,
    /// The device was not fenced because writes still arrive.
    pub busy: bool,
    /// Size of the device.
    pub size: Sectors,
    /// Disks whose leg has no path at the moment.
    pub queueing: Vec<DiskId>,
    /// The mirror that fills the map's spare; `None`: not looked for.
    pub mirror: Option<Mirror>,
    /// Why the state is not the goal's; empty when it is.
    pub reason: String,
}
