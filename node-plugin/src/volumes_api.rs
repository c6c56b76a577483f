//! What the CSI Node service needs of the agent: volumes to be brought to this node and given up again. A trait, so
//! that the service can be tested without a kernel or a controller.

use std::{path::PathBuf, time::Instant};

use async_trait::async_trait;
use pool::{
    ids::{Epoch, VolumeId},
    units::Bytes,
};
use tokio::sync::watch;

/// How a volume is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachMode {
    /// Only reads.
    pub read_only: bool,
    /// The access mode admits several nodes (`MULTI_NODE_*`).
    pub multi_node: bool,
    /// As a block device; else with a file system.
    pub block: bool,
}

/// A volume that can be used on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Epoch of the decision.
    pub epoch: Epoch,
    /// Size of the device.
    pub size: Bytes,
    /// File system to make when the volume has none; empty: the caller's choice.
    pub fs_type: String,
    /// The device; its number stays the same until the volume is given up.
    pub device: PathBuf,
    /// Whether it holds writes until the source of a migration is fenced.
    pub guarded: bool,
}

/// State of a volume's device on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Not known yet, or not yet made.
    #[default]
    Unknown,
    /// Nothing is left of it.
    Absent,
    /// It fails every I/O.
    Fenced,
    /// It reads, and holds writes.
    Guarded,
    /// It can be used.
    Open,
}

/// What is observed of a volume on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeState {
    /// Epoch of the goal under which it was observed.
    pub epoch: Epoch,
    /// State.
    pub standing: Standing,
    /// Size of the device; zero when there is none.
    pub size: Bytes,
    /// The device, when there is one.
    pub device: Option<PathBuf>,
    /// Disks whose leg is without a path at the moment: I/O to them waits.
    pub queueing: Vec<pool::ids::DiskId>,
    /// Why the state is not the goal's, for people; empty when it is.
    pub reason: String,
}

/// Why a volume could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// The controller refused; the status says why and carries the gRPC code to pass on.
    #[error("controller: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// There was no session with a controller for the whole time.
    #[error("no session with the controller{}", because(.last))]
    NoController {
        /// The last failure to get one; empty when there was none.
        last: String,
    },
    /// Granted, but the device did not come up in time.
    #[error("volume {volume} was granted, its device is not ready: {reason}")]
    NotReady {
        /// The volume.
        volume: VolumeId,
        /// What it waits for.
        reason: String,
    },
}

fn because(s: &str) -> String {
    if s.is_empty() { String::new() } else { format!(" ({s})") }
}

/// Volumes on this node.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// Asks the controller for a volume and waits until it can be used here, at most until `deadline`. Asking again
    /// for what stands changes nothing.
    async fn attach(
        &self,
        volume: VolumeId,
        mode: AttachMode,
        deadline: Instant,
    ) -> Result<Attached, VolumesError>;

    /// Gives a volume up and waits until the controller says that this node may forget it. Nobody may have the
    /// device open.
    async fn detach(&self, volume: VolumeId, deadline: Instant) -> Result<(), VolumesError>;

    /// What is observed of a volume, now and from now on. A volume of which nothing is known starts as
    /// [`Standing::Unknown`].
    fn observe(&self, volume: VolumeId) -> watch::Receiver<VolumeState>;
}
