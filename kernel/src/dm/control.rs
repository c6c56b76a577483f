//! The thin ioctl layer over /dev/mapper/control: one method per ioctl, no policy.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::io::Errno;

use super::{
    abi::{self, Cmd, UDEV_FLAGS, flag},
    buf::{Buf, MAX_BUFFER},
    error::DmError,
    node,
    table::Table,
};
use crate::{DevNo, error::last_errno};

/// Answers of most devices fit at once; larger ones double until they do.
const FIRST_BUFFER: usize = 16 << 10;
/// kmalloc's bound on one message (linux/dm-ioctl.h gives none; the kernel copies it in one piece).
const MAX_MESSAGE: usize = 4096;

/// What the kernel says about one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Its UUID; empty when it has none.
    pub uuid: String,
    /// Its number.
    pub dev: DevNo,
    /// How often it is open (mounts and stacked devices count).
    pub open_count: i32,
    /// Its event counter.
    pub event_nr: u32,
    /// Lines of the active table.
    pub target_count: u32,
    /// Whether I/O is held by a suspend.
    pub suspended: bool,
    /// Whether it has an active table.
    pub active: bool,
    /// Whether a table is preloaded.
    pub inactive: bool,
    /// Whether it is read-only.
    pub read_only: bool,
    /// Whether it goes away at its last close.
    pub deferred_remove: bool,
}

/// A device as the list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedDevice {
    /// Its name.
    pub name: String,
    /// Its UUID, when it has one.
    pub uuid: Option<String>,
    /// Its number.
    pub dev: DevNo,
    /// Its event counter.
    pub event_nr: u32,
}

/// One line of a table or status, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTarget {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// Name of the target type.
    pub kind: String,
    /// Its parameters or status.
    pub params: String,
}

/// A target type that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetVersion {
    /// Its name.
    pub name: String,
    /// Major, minor, patch level.
    pub version: [u32; 3],
}

/// Which of a device's two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that serves I/O.
    Active,
    /// The preloaded one.
    Inactive,
}

/// The open control device.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Control {
    /// Opens the control device, making its node when it is missing.
    pub fn open() -> Result<Self, DmError> {
        node::ensure_control_node().map_err(DmError::Control)?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(Path::new(node::CONTROL))
            .map_err(DmError::Control)?;
        let c = Self { file };
        c.version()?;
        Ok(c)
    }

    /// The kernel's interface version.
    pub fn version(&self) -> Result<[u32; 3], DmError> {
        let b = self.run(Buf::new(Cmd::Version, "", 0)?)?;
        Ok([b.u32(abi::OFF_VERSION), b.u32(abi::OFF_VERSION + 4), b.u32(abi::OFF_VERSION + 8)])
    }

    /// All devices.
    pub fn list(&self) -> Result<Vec<ListedDevice>, DmError> {
        let b = self.run_growing(|size| {
            let mut b = Buf::new(Cmd::ListDevices, "", size)?;
            b.or_flags(flag::UUID);
            Ok(b)
        })?;
        let entries = super::parse::list(b.payload()).map_err(|why| b.malformed(why))?;
        let mut out = Vec::with_capacity(entries.len());
        for (mut device, uuid_known) in entries {
            // Interfaces before 4.45 (Linux 5.13) list no UUIDs.
            if !uuid_known {
                match self.info_by_name(&device.name) {
                    Ok(i) => device.uuid = Some(i.uuid).filter(|u| !u.is_empty()),
                    Err(e) if e.is_not_found() => continue,
                    Err(e) => return Err(e),
                }
            }
            out.push(device);
        }
        Ok(out)
    }

    /// Target types that are loaded, with their versions.
    pub fn targets(&self) -> Result<Vec<TargetVersion>, DmError> {
        let b = self.run_growing(|size| Buf::new(Cmd::ListVersions, "", size))?;
        super::parse::versions(b.payload()).map_err(|why| b.malformed(why))
    }

    /// Makes an empty device.
    pub fn create(&self, name: &str, uuid: &str) -> Result<DeviceInfo, DmError> {
        let mut b = Buf::new(Cmd::Create, "", 0)?;
        b.set_name(name)?;
        b.set_uuid(uuid)?;
        b.device = name.to_owned();
        self.run(b)?.info()
    }

    /// Removes a device; `deferred` lets it go at its last close when it is open.
    pub fn remove(&self, uuid: &str, deferred: bool) -> Result<(), DmError> {
        let mut b = Buf::new(Cmd::Remove, uuid, 0)?;
        if deferred {
            b.or_flags(flag::DEFERRED_REMOVE);
        }
        b.put_u32(abi::OFF_EVENT_NR, UDEV_FLAGS);
        self.run(b).map(drop)
    }

    /// What the kernel says about a device.
    pub fn info(&self, uuid: &str) -> Result<DeviceInfo, DmError> {
        self.run(Buf::new(Cmd::Status, uuid, 0)?)?.info()
    }

    /// As [`Control::info`]; `None` when there is no device with this UUID.
    pub fn info_opt(&self, uuid: &str) -> Result<Option<DeviceInfo>, DmError> {
        match self.info(uuid) {
            Ok(i) => Ok(Some(i)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What the kernel says about the device of this name.
    pub fn info_by_name(&self, name: &str) -> Result<DeviceInfo, DmError> {
        let mut b = Buf::new(Cmd::Status, "", 0)?;
        b.set_name(name)?;
        b.device = name.to_owned();
        self.run(b)?.info()
    }

    /// Loads the inactive table, replacing one that was preloaded before. Constructors run now: they open the
    /// devices below and may read from them.
    pub fn load(&self, uuid: &str, table: &Table, read_only: bool) -> Result<(), DmError> {
        let mut b = Buf::new(Cmd::TableLoad, uuid, 0)?;
        b.push_table(table)?;
        if read_only {
            b.or_flags(flag::READONLY);
        }
        self.run(b).map(drop)
    }

    /// Resumes a device. When a table is preloaded, it becomes the active one: the kernel suspends without
    /// flushing (what is queued stays queued and runs on the new table), swaps and resumes in this one call.
    pub fn resume(&self, uuid: &str) -> Result<DeviceInfo, DmError> {
        let mut b = Buf::new(Cmd::Suspend, uuid, 0)?;
        b.or_flags(flag::NOFLUSH | flag::SKIP_LOCKFS);
        b.put_u32(abi::OFF_EVENT_NR, UDEV_FLAGS);
        self.run(b)?.info()
    }

    /// Holds I/O, without flushing and without freezing a file system above. Releases what a delay target
    /// holds to its legs. Waits for what is in flight below targets that do not queue.
    pub fn suspend(&self, uuid: &str) -> Result<(), DmError> {
        let mut b = Buf::new(Cmd::Suspend, uuid, 0)?;
        b.or_flags(flag::SUSPEND | flag::NOFLUSH | flag::SKIP_LOCKFS);
        self.run(b).map(drop)
    }

    /// Drops the inactive table. No error when there is none.
    pub fn clear(&self, uuid: &str) -> Result<(), DmError> {
        self.run(Buf::new(Cmd::TableClear, uuid, 0)?).map(drop)
    }

    /// A table as the kernel prints it. `None` when the device has no such table.
    pub fn raw_table(&self, uuid: &str, which: Which) -> Result<Option<Vec<RawTarget>>, DmError> {
        let (b, info) = self.table_status(uuid, which, flag::STATUS_TABLE)?;
        let present = match which {
            Which::Active => info.active,
            Which::Inactive => info.inactive,
        };
        if !present {
            return Ok(None);
        }
        let count = b.u32(abi::OFF_TARGET_COUNT);
        super::parse::targets(b.payload(), count).map(Some).map_err(|why| b.malformed(why))
    }

    /// A table, parsed. `None` when the device has no such table.
    pub fn table(&self, uuid: &str, which: Which) -> Result<Option<Table>, DmError> {
        let Some(raw) = self.raw_table(uuid, which)? else { return Ok(None) };
        Table::from_raw(&raw).map(Some).map_err(|source| DmError::Table { device: uuid.to_owned(), source })
    }

    /// What the kernel says about a device and its active table, in one call. `None` when there is no device with this
    /// UUID.
    pub fn look(&self, uuid: &str) -> Result<Option<(DeviceInfo, Option<Table>)>, DmError> {
        let (b, info) = match self.table_status(uuid, Which::Active, flag::STATUS_TABLE) {
            Ok(x) => x,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        if !info.active {
            return Ok(Some((info, None)));
        }
        let count = b.u32(abi::OFF_TARGET_COUNT);
        let raw = super::parse::targets(b.payload(), count).map_err(|why| b.malformed(why))?;
        let table =
            Table::from_raw(&raw).map_err(|source| DmError::Table { device: uuid.to_owned(), source })?;
        Ok(Some((info, Some(table))))
    }

    /// The status lines of the active table. Never flushes (a flush below a dead path would hang).
    pub fn status(&self, uuid: &str) -> Result<Vec<RawTarget>, DmError> {
        let (b, _) = self.table_status(uuid, Which::Active, flag::NOFLUSH)?;
        let count = b.u32(abi::OFF_TARGET_COUNT);
        super::parse::targets(b.payload(), count).map_err(|why| b.malformed(why))
    }

    fn table_status(&self, uuid: &str, which: Which, flags: u32) -> Result<(Buf, DeviceInfo), DmError> {
        let inactive = if which == Which::Inactive { flag::QUERY_INACTIVE } else { 0 };
        let b = self.run_growing(|size| {
            let mut b = Buf::new(Cmd::TableStatus, uuid, size)?;
            b.or_flags(flags | inactive);
            Ok(b)
        })?;
        let info = b.info()?;
        Ok((b, info))
    }

    /// The devices that the active table stands on.
    pub fn deps(&self, uuid: &str) -> Result<Vec<DevNo>, DmError> {
        let b = self.run_growing(|size| Buf::new(Cmd::TableDeps, uuid, size))?;
        super::parse::deps(b.payload()).map_err(|why| b.malformed(why))
    }

    /// Sends a message to the target at `sector`; returns the answer, often empty.
    pub fn message(&self, uuid: &str, sector: u64, text: &str) -> Result<String, DmError> {
        if text.len() > MAX_MESSAGE || text.contains('\0') {
            return Err(DmError::TooLong {
                what: "message",
                device: uuid.to_owned(),
                got: text.len(),
                max: MAX_MESSAGE,
            });
        }
        let b = self.run_growing(|size| {
            let mut b = Buf::new(Cmd::Message, uuid, size)?;
            let mut payload = sector.to_ne_bytes().to_vec();
            payload.extend_from_slice(text.as_bytes());
            payload.push(0);
            b.put_payload(&payload);
            Ok(b)
        })?;
        // The answer replaces the message only when the kernel says so; the buffer else still holds ours.
        if b.u32(abi::OFF_FLAGS) & flag::DATA_OUT == 0 {
            return Ok(String::new());
        }
        super::parse::c_string(b.payload()).map_err(|why| b.malformed(why))
    }

    /// Blocks until the device's event counter has passed `event_nr`.
    pub fn wait(&self, uuid: &str, event_nr: u32) -> Result<DeviceInfo, DmError> {
        let mut b = Buf::new(Cmd::Wait, uuid, FIRST_BUFFER)?;
        b.put_u32(abi::OFF_EVENT_NR, event_nr);
        self.run(b)?.info()
    }

    /// Notes the present global event counter on this descriptor; poll(2) then reports `POLLIN` once it grows.
    pub(crate) fn arm_poll(&self) -> Result<(), DmError> {
        self.run(Buf::new(Cmd::ArmPoll, "", 0)?).map(drop)
    }

    /// Runs a request until its answer fits.
    fn run_growing(&self, make: impl Fn(usize) -> Result<Buf, DmError>) -> Result<Buf, DmError> {
        let mut size = FIRST_BUFFER;
        loop {
            let b = self.run(make(size)?)?;
            if b.u32(abi::OFF_FLAGS) & flag::BUFFER_FULL == 0 {
                return Ok(b);
            }
            if size >= MAX_BUFFER {
                return Err(b.malformed(format!("the answer does not fit {MAX_BUFFER} bytes")));
            }
            size *= 2;
        }
    }

    fn run(&self, mut b: Buf) -> Result<Buf, DmError> {
        let size = u32::try_from(b.bytes.len()).unwrap_or(u32::MAX);
        b.put_u32(abi::OFF_DATA_SIZE, size);
        // SAFETY: the buffer is as long as its data_size says, starts with a struct dm_ioctl, and outlives the
        // call; the kernel writes nothing beyond data_size.
        let rc = unsafe { libc::ioctl(self.file.as_raw_fd(), b.cmd.request() as _, b.bytes.as_mut_ptr()) };
        if rc < 0 {
            let source = last_errno();
            return Err(DmError::Ioctl { op: b.cmd.as_str(), device: b.device, source });
        }
        Ok(b)
    }
}

/// Whether an errno means that an object is in use.
pub(crate) fn is_busy(e: &DmError) -> bool {
    e.errno() == Some(Errno::BUSY)
}
