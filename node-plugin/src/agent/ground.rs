//! What the agent asks of the kernel, as a trait: the real one stands in [`super::real`], and tests bring one that
//! stops at any step. Every call is synchronous and may block; [`super::calls`] runs them.
//!
//! Must not know: goals, epochs, volumes' maps.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use kernel::{
    AttrError, Class, DevNo,
    block::BlockError,
    dm::{DmError, Table},
    nvme::NvmeError,
    nvmet::NvmetError,
};
use pool::{
    ids::{DiskId, NodeName, SliceId},
    moving::Mirror,
    names::DmRole,
    units::Sectors,
};

use super::pace::Foreground;

/// A device-mapper device as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub dev: DevNo,
    /// Its active table; `None` when it has none.
    pub table: Option<Table>,
    /// Whether I/O is held by a suspend.
    pub suspended: bool,
    /// Whether a table waits to be swapped in by any resume.
    pub preloaded: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether it takes flushes seriously: a device above one whose setting changed must be reloaded.
    pub write_back: bool,
    /// Whether its node under /dev/mapper is right.
    pub node_ok: bool,
    /// How far it is, where it is a mirror.
    pub mirror: Option<Mirror>,
}

/// An imported slice's block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Import {
    /// Its number.
    pub dev: DevNo,
    /// Its size.
    pub size: Sectors,
    /// Whether a controller serves it now.
    pub live: bool,
}

/// A connection to a lender's subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's name for it.
    pub name: String,
    /// The subsystem.
    pub nqn: String,
    /// The lender's address and port.
    pub peer: Option<(IpAddr, u16)>,
    /// Whether it serves I/O.
    pub live: bool,
}

/// All imports and connections at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fabric {
    /// Slices by id.
    pub imports: BTreeMap<SliceId, Import>,
    /// Connections to subsystems of ours.
    pub links: Vec<Link>,
}

/// What changes data, counted since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteActivity {
    /// Writes and discards completed.
    pub completed: u64,
    /// Writes, discards and flushes in flight.
    pub in_flight: u64,
}

/// An export for nvmet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSpec {
    /// The disk.
    pub disk: DiskId,
    /// For whom.
    pub consumer: NodeName,
    /// The namespace's uuid.
    pub slice: SliceId,
    /// The slice's device.
    pub role: DmRole,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// Device-mapper.
    #[error(transparent)]
    Dm(#[from] DmError),
    /// The exporting side of NVMe over TCP.
    #[error(transparent)]
    Nvmet(#[from] NvmetError),
    /// The importing side.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    /// A block device's attributes.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A parameter of a module.
    #[error(transparent)]
    Attr(#[from] AttrError),
    /// The counters of all devices.
    #[error("read /proc/diskstats: {0}")]
    Stats(#[source] std::io::Error),
}

impl GroundError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            GroundError::Dm(e) => e.class(),
            GroundError::Nvmet(e) => e.class(),
            GroundError::Nvme(e) => e.class(),
            GroundError::Block(e) => e.class(),
            GroundError::Attr(e) => e.class(),
            GroundError::Stats(e) => Class::of_io(e),
        }
    }
}

/// Result of a call.
pub type Result<T> = std::result::Result<T, GroundError>;

/// The kernel.
pub trait Ground: Send + Sync + 'static {
    /// Every device of ours. Costs a walk over all devices: for the start of the plugin and for full reviews.
    fn roles(&self) -> Result<Vec<DmRole>>;
    /// A device, or `None` when there is none.
    fn device(&self, role: &DmRole) -> Result<Option<Found>>;
    /// Makes the device with this table, or swaps its table under running I/O.
    fn set_table(&self, role: &DmRole, table: &Table, read_only: bool) -> Result<()>;
    /// Drops a preloaded table.
    fn clear(&self, role: &DmRole) -> Result<()>;
    /// Removes a device; busy while somebody has it open.
    fn remove(&self, role: &DmRole) -> Result<()>;
    /// Whether each path of a multipath device works.
    fn paths(&self, role: &DmRole) -> Result<Vec<(DevNo, bool)>>;
    /// Lets a failed path be tried again.
    fn reinstate(&self, role: &DmRole, path: DevNo) -> Result<()>;
    /// Makes a multipath device without a path fail what it queues.
    fn fail_queued(&self, role: &DmRole) -> Result<()>;
    /// Whether a guard holds a write.
    fn holds_write(&self, role: &DmRole) -> Result<bool>;
    /// What a device has written and is writing.
    fn write_activity(&self, dev: DevNo) -> Result<WriteActivity>;
    /// Waits for an event of any device; the event counters of all of ours afterwards, `None` when the time ran out.
    fn dm_events(&self, timeout: Duration) -> Result<Option<BTreeMap<DmRole, u32>>>;

    /// Everything imported.
    fn fabric(&self) -> Result<Fabric>;
    /// Waits until something about block devices or connections may have changed; false when the time ran out.
    fn fabric_changed(&self, timeout: Duration) -> Result<bool>;
    /// Connects to a lender's subsystem for a disk; no error when that stands already.
    fn connect(&self, disk: DiskId, address: IpAddr, port: u16) -> Result<()>;
    /// Looks for namespaces again.
    fn rescan(&self, link: &Link) -> Result<()>;
    /// Makes a connection anew that says it is live and is not.
    fn reset(&self, link: &Link) -> Result<()>;
    /// Ends a connection. False, and nothing done, when a namespace of it is in use and it is not to end nevertheless.
    fn disconnect(&self, link: &Link, though_held: bool) -> Result<bool>;

    /// I/O of all volumes that have a device here.
    fn foreground(&self) -> Result<Foreground>;
    /// Percent of its time that the kernel may spend on copies.
    fn set_copy_share(&self, percent: u32) -> Result<()>;

    /// The namespaces of a subsystem by uuid, with their numbers.
    fn exported(&self, disk: DiskId, consumer: &NodeName) -> Result<BTreeMap<SliceId, u32>>;
    /// Makes a slice's namespace under this number (`None`: a free one), reachable as soon as its subsystem is
    /// linked; its number. No-op when it stands.
    fn export(&self, spec: &ExportSpec, nsid: Option<u32>) -> Result<u32>;
    /// Makes a slice's subsystem reachable. After a boot all its namespaces must stand before: an initiator that
    /// reconnects drops those that it does not find, and they come back under other device numbers.
    fn link(&self, spec: &ExportSpec) -> Result<()>;
    /// Tells the consumer about a slice's new size.
    fn resize_export(&self, spec: &ExportSpec, nsid: u32) -> Result<()>;
    /// Takes a namespace away, and its subsystem when that was the last one.
    fn unexport(&self, spec: &ExportSpec, nsid: u32) -> Result<()>;
}
