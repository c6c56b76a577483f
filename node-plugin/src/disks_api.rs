//! The seam between the two halves of the node plugin: the agent (session, exports, attachments) and the room that
//! owns the disks (inventory, claim, label, wipes). Neither knows how the other works.
//!
//! Invariants: a run is on the label of its disk, durably, before any table maps it ([`Disks::record_runs`]); nothing is
//! recorded or served by a goal that is older than a wipe ([`Disks::retirements`]).

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use csi_proto::node as proto;
use kernel::DevNo;
use pool::{
    ids::{DiskId, Epoch, VolumeId},
    units::{ExtentSize, Sectors},
    volume::Map,
};
use tokio::sync::{mpsc, watch};

use crate::retirements::{Overtaken, Retirements};

/// Where the extents of a serving disk lie on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataArea {
    /// The whole device.
    pub dev: DevNo,
    /// Its path, for people.
    pub path: PathBuf,
    /// Sector of the device at which extent 0 begins.
    pub start: Sectors,
    /// Sectors of all extents.
    pub len: Sectors,
}

/// What a disk's label has to say about a volume before the volume is mapped there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// The disk, one of this node's.
    pub disk: DiskId,
    /// The volume.
    pub volume: VolumeId,
    /// Its name, for people and for rescue.
    pub name: String,
    /// The whole map; the runs on `disk` are what the label takes.
    pub map: Map,
    /// Bytes of an extent; must be the disk's own.
    pub extent_size: ExtentSize,
    /// Epoch of the goal that brought the map.
    pub epoch: Epoch,
}

/// Why runs could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The disk is not there, or does not serve (yet).
    #[error("disk {0} does not serve on this node")]
    NotServing(DiskId),
    /// The label refuses: the runs lie outside of the disk, or belong to somebody else.
    #[error("label of disk {disk} refuses runs of volume {volume}: {why}")]
    Refused {
        /// The disk.
        disk: DiskId,
        /// The volume.
        volume: VolumeId,
        /// Why.
        why: String,
    },
    /// A wipe has overtaken the goal.
    #[error(transparent)]
    Overtaken(#[from] Overtaken),
    /// Writing failed; the label may or may not have them.
    #[error("label of disk {disk}: {source}")]
    Io {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The disks of this node, as the agent needs them.
#[async_trait]
pub trait Disks: Send + Sync + 'static {
    /// The data area of a disk that serves; `None` for any other disk. Answers at once, from memory.
    fn data_area(&self, disk: DiskId) -> Option<DataArea>;

    /// Makes durable that the runs of `record.map` on `record.disk` belong to the volume. Returns at once, without
    /// writing, when the label says so already. Must not block the async threads.
    async fn record_runs(&self, record: RunRecord) -> Result<(), RecordError>;

    /// Which goals wipes have overtaken.
    fn retirements(&self) -> Arc<Retirements>;

    /// Changes its value whenever a data area comes, goes or moves.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// What the session hands to the disk room. Goals are level-triggered: the newest for a disk or wipe counts.
#[derive(Clone, Debug)]
pub enum DiskOrder {
    /// The system's identity, `Welcome.pool_system`: comes before the goals of a session. Labels carry it.
    System(String),
    /// A claim, serve or release goal.
    Disk(proto::DiskGoal),
    /// A wipe.
    Wipe(proto::WipeGoal),
    /// The goals that came before this are all that is on record about this node's disks.
    FullGoalsEnd,
}

/// What the disk room says back. The session keeps the newest word on each device, disk and wipe and sends them
/// again at the start of every session, so each need be said only when it changes.
#[derive(Clone, Debug)]
pub enum DiskWord {
    /// A device, or that it has gone.
    Device(proto::Device),
    /// A disk.
    Disk(proto::ObservedDisk),
    /// A wipe.
    Wipe(proto::ObservedWipe),
}

/// The session's ends of the two channels.
#[derive(Debug)]
pub struct DiskLink {
    /// Goals for the disk room.
    pub orders: mpsc::UnboundedSender<DiskOrder>,
    /// Its reports.
    pub words: mpsc::UnboundedReceiver<DiskWord>,
}

/// The disk room's ends of the two channels.
#[derive(Debug)]
pub struct DiskRoomLink {
    /// Goals from the controller.
    pub orders: mpsc::UnboundedReceiver<DiskOrder>,
    /// Reports to it.
    pub words: mpsc::UnboundedSender<DiskWord>,
}

/// Both ends. Unbounded because a goal or a word must never block whoever has it; what is in flight is bounded by
/// the number of disks.
pub fn disk_link() -> (DiskLink, DiskRoomLink) {
    let (orders_tx, orders_rx) = mpsc::unbounded_channel();
    let (words_tx, words_rx) = mpsc::unbounded_channel();
    (DiskLink { orders: orders_tx, words: words_rx }, DiskRoomLink { orders: orders_rx, words: words_tx })
}
