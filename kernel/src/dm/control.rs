//! The thin ioctl layer over /dev/mapper/control: one method per ioctl, no policy.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::io::Errno;

use super::{
    abi::{self, Cmd, HEADER, SPEC, UDEV_FLAGS, flag},
    error::DmError,
    node,
    table::Table,
};
use crate::{DevNo, error::last_errno};

/// Answers of most devices fit at once; larger ones double until they do.
const FIRST_BUFFER: usize = 16 << 10;
/// No table of ours comes near this (64 MiB is some 500,000 lines).
const MAX_BUFFER: usize = 64 << 20;
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

/// One request and its answer.
struct Buf {
    bytes: Vec<u8>,
    cmd: Cmd,
    device: String,
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
        super::parse::list(b.payload()).map_err(|why| b.malformed(why))
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

impl Buf {
    /// A request about the device with this UUID (none when empty), with `room` bytes for the answer.
    fn new(cmd: Cmd, uuid: &str, room: usize) -> Result<Self, DmError> {
        let device = if uuid.is_empty() { "-".to_owned() } else { uuid.to_owned() };
        let mut b = Self { bytes: vec![0; HEADER + room], cmd, device };
        b.put_u32(abi::OFF_VERSION, 4);
        b.put_u32(abi::OFF_DATA_START, HEADER as u32);
        if !uuid.is_empty() {
            b.set_uuid(uuid)?;
        }
        Ok(b)
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn put_u32(&mut self, at: usize, v: u32) {
        self.bytes[at..at + 4].copy_from_slice(&v.to_ne_bytes());
    }

    fn or_flags(&mut self, f: u32) {
        let v = self.u32(abi::OFF_FLAGS) | f;
        self.put_u32(abi::OFF_FLAGS, v);
    }

    fn set_name(&mut self, name: &str) -> Result<(), DmError> {
        self.set_text("name", abi::OFF_NAME, abi::NAME_LEN, name)
    }

    fn set_uuid(&mut self, uuid: &str) -> Result<(), DmError> {
        self.set_text("UUID", abi::OFF_UUID, abi::UUID_LEN, uuid)
    }

    fn set_text(&mut self, what: &'static str, at: usize, len: usize, s: &str) -> Result<(), DmError> {
        if s.len() >= len || s.is_empty() || s.contains('\0') {
            return Err(DmError::TooLong { what, device: s.to_owned(), got: s.len(), max: len - 1 });
        }
        self.bytes[at..at + s.len()].copy_from_slice(s.as_bytes());
        Ok(())
    }

    fn put_payload(&mut self, p: &[u8]) {
        if self.bytes.len() < HEADER + p.len() {
            self.bytes.resize(HEADER + p.len(), 0);
        }
        self.bytes[HEADER..HEADER + p.len()].copy_from_slice(p);
    }

    fn push_table(&mut self, table: &Table) -> Result<(), DmError> {
        let mut payload = Vec::new();
        for line in table.lines() {
            let (kind, params) = (line.target.kind(), line.target.render());
            if kind.len() >= abi::MAX_TYPE_NAME {
                return Err(DmError::TooLong {
                    what: "target type",
                    device: self.device.clone(),
                    got: kind.len(),
                    max: abi::MAX_TYPE_NAME - 1,
                });
            }
            let next = (SPEC + params.len() + 1).next_multiple_of(8);
            let at = payload.len();
            payload.resize(at + next, 0);
            let spec = &mut payload[at..];
            spec[..8].copy_from_slice(&line.start.get().to_ne_bytes());
            spec[8..16].copy_from_slice(&line.len.get().to_ne_bytes());
            spec[20..24].copy_from_slice(&(next as u32).to_ne_bytes());
            spec[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            spec[SPEC..SPEC + params.len()].copy_from_slice(params.as_bytes());
        }
        if payload.len() > MAX_BUFFER {
            return Err(DmError::TooLong {
                what: "table",
                device: self.device.clone(),
                got: payload.len(),
                max: MAX_BUFFER,
            });
        }
        self.put_payload(&payload);
        self.put_u32(abi::OFF_TARGET_COUNT, table.lines().len() as u32);
        Ok(())
    }

    /// What follows the header, from where the kernel says it starts.
    fn payload(&self) -> &[u8] {
        let start = (self.u32(abi::OFF_DATA_START) as usize).max(HEADER);
        self.bytes.get(start..).unwrap_or(&[])
    }

    fn info(&self) -> Result<DeviceInfo, DmError> {
        let text = |at: usize, len: usize| {
            super::parse::c_string(&self.bytes[at..at + len]).map_err(|why| self.malformed(why))
        };
        let flags = self.u32(abi::OFF_FLAGS);
        let dev =
            u64::from_ne_bytes(self.bytes[abi::OFF_DEV..abi::OFF_DEV + 8].try_into().expect("eight bytes"));
        Ok(DeviceInfo {
            name: text(abi::OFF_NAME, abi::NAME_LEN)?,
            uuid: text(abi::OFF_UUID, abi::UUID_LEN)?,
            dev: DevNo::from_raw(dev),
            open_count: self.u32(abi::OFF_OPEN_COUNT) as i32,
            event_nr: self.u32(abi::OFF_EVENT_NR),
            target_count: self.u32(abi::OFF_TARGET_COUNT),
            suspended: flags & flag::SUSPEND != 0,
            active: flags & flag::ACTIVE_PRESENT != 0,
            inactive: flags & flag::INACTIVE_PRESENT != 0,
            read_only: flags & flag::READONLY != 0,
            deferred_remove: flags & flag::DEFERRED_REMOVE != 0,
        })
    }

    fn malformed(&self, why: String) -> DmError {
        DmError::Malformed { op: self.cmd.as_str(), device: self.device.clone(), why }
    }
}

/// Whether an errno means that an object is in use.
pub(crate) fn is_busy(e: &DmError) -> bool {
    e.errno() == Some(Errno::BUSY)
}
