//! What the disk room needs of the kernel, as a trait, so that it can be tested without one. All calls block.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use csi_proto::node::DiskClass;
use disk_format::{FileStorage, OpenMode, Storage, StorageError};
use kernel::{
    DevNo,
    block::{self, BlockDevice, BlockError, Rejected},
    dm::{Control, DeviceSpec, DmError, Table, Target, Which},
};
use pool::{
    ids::DiskId,
    names,
    units::{Bytes, Sectors},
};

use crate::config::Glob;

/// A disk of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub dev: DevNo,
    /// Where it is opened.
    pub path: PathBuf,
    /// Its size.
    pub size: Bytes,
    /// Logical block size in bytes.
    pub logical_block: u32,
    /// Physical block size in bytes.
    pub physical_block: u32,
    /// What it is made of.
    pub class: DiskClass,
    /// Serial number; empty when it has none.
    pub serial: String,
    /// World-wide name; empty when it has none.
    pub wwn: String,
    /// Model.
    pub model: String,
    /// Why it may not be claimed; `None` when it may, as far as the kernel knows.
    pub rejected: Option<Rejected>,
}

/// A range of a disk that a device-mapper table maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Name of the device-mapper device.
    pub by: String,
    /// First sector on the disk.
    pub start: Sectors,
    /// Sectors.
    pub len: Sectors,
}

impl Mapping {
    /// Whether it meets `len` sectors from `start` on.
    pub fn meets(&self, start: Sectors, len: Sectors) -> bool {
        let end = |s: Sectors, n: Sectors| s.get().saturating_add(n.get());
        self.start.get() < end(start, len) && start.get() < end(self.start, self.len)
    }
}

/// Why the kernel did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// A block device.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Device-mapper.
    #[error(transparent)]
    Dm(#[from] DmError),
    /// A device could not be opened.
    #[error("open {}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The holding device cannot be described.
    #[error("hold: {0}")]
    Table(#[from] kernel::dm::BadTable),
}

/// The kernel's side of disks.
pub trait Hardware: Send + Sync + 'static {
    /// The disks that may be looked at.
    fn list(&self) -> Result<Vec<Found>, HardwareError>;
    /// Opens a disk.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Box<dyn Storage + Send>, StorageError>;
    /// Keeps everybody but our own tables from using a disk.
    fn hold(&self, disk: DiskId, dev: DevNo) -> Result<(), HardwareError>;
    /// Ends that.
    fn unhold(&self, disk: DiskId) -> Result<(), HardwareError>;
    /// What device-mapper maps of a disk, apart from the hold, in active and in preloaded tables.
    fn mappings(&self, dev: DevNo) -> Result<Vec<Mapping>, HardwareError>;
    /// Zeroes bytes of a disk and flushes; `progress` is told the bytes done.
    fn zero(
        &self,
        path: &Path,
        offset: Bytes,
        len: Bytes,
        abort: &AtomicBool,
        progress: &mut dyn FnMut(Bytes),
    ) -> Result<(), HardwareError>;
}

/// The real one.
#[derive(Clone, Debug, Default)]
pub struct KernelHardware {
    /// Devices that may be looked at; empty: every whole disk. One that is named may also be of a kind that is left
    /// out otherwise (a loop device).
    pub devices: Vec<Glob>,
}

/// Sectors of a hold: the disk's first 4 KiB, which the label's layout keeps empty.
const HOLD_LEN: Sectors = Sectors::new(8);

impl KernelHardware {
    fn named(&self, name: &str) -> bool {
        let path = format!("/dev/{}", name.replace('!', "/"));
        self.devices.iter().any(|g| g.matches(&path))
    }
}

fn found(c: block::Candidate) -> Result<Found, BlockError> {
    let limits = BlockDevice::new(c.dev)?.limits()?;
    let class = match (limits.rotational, c.name.starts_with("nvme")) {
        (_, true) => DiskClass::Nvme,
        (true, false) => DiskClass::Hdd,
        (false, false) => DiskClass::Ssd,
    };
    Ok(Found {
        dev: c.dev,
        path: c.path,
        size: c.size,
        logical_block: limits.logical_block,
        physical_block: limits.physical_block,
        class,
        serial: c.identity.serial,
        wwn: c.identity.wwn,
        model: c.identity.model,
        rejected: c.rejected,
    })
}

impl Hardware for KernelHardware {
    fn list(&self) -> Result<Vec<Found>, HardwareError> {
        let all = self.devices.is_empty();
        let listed = block::candidates_where(&[], &|name| all || self.named(name))?;
        let kind: Vec<String> = listed
            .iter()
            .filter(|c| c.rejected == Some(Rejected::Kind) && !all)
            .map(|c| c.name.clone())
            .collect();
        let also: Vec<&str> = kind.iter().map(String::as_str).collect();
        let listed =
            if also.is_empty() { listed } else { block::candidates_where(&also, &|name| self.named(name))? };
        let mut out = Vec::new();
        for c in listed {
            match found(c) {
                Ok(f) => out.push(f),
                // Gone since it was listed.
                Err(BlockError::NoDevice(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(out)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Box<dyn Storage + Send>, StorageError> {
        Ok(Box::new(FileStorage::open(path, mode)?))
    }

    fn hold(&self, disk: DiskId, dev: DevNo) -> Result<(), HardwareError> {
        let (name, uuid) = names::disk_hold(disk);
        let table = Table::single(HOLD_LEN, Target::Linear { dev, offset: Sectors::ZERO })?;
        Control::open()?.ensure_device(&DeviceSpec { name, uuid, table })?;
        Ok(())
    }

    fn unhold(&self, disk: DiskId) -> Result<(), HardwareError> {
        let (name, uuid) = names::disk_hold(disk);
        Control::open()?.ensure_removed(&name, &uuid)?;
        Ok(())
    }

    fn mappings(&self, dev: DevNo) -> Result<Vec<Mapping>, HardwareError> {
        let dm = Control::open()?;
        let mut out = Vec::new();
        for d in dm.list()? {
            let Some(uuid) = d.uuid.filter(|u| names::parse_disk_hold(u).is_none()) else { continue };
            for which in [Which::Active, Which::Inactive] {
                let table = match dm.table(&uuid, which) {
                    Ok(t) => t,
                    Err(e) if e.is_not_found() => None,
                    Err(e) => return Err(e.into()),
                };
                for line in table.iter().flat_map(Table::lines) {
                    let on = ranges_on(&line.target, line.len, dev);
                    out.extend(on.into_iter().map(|(start, len)| Mapping { by: d.name.clone(), start, len }));
                }
            }
        }
        Ok(out)
    }

    fn zero(
        &self,
        path: &Path,
        offset: Bytes,
        len: Bytes,
        abort: &AtomicBool,
        progress: &mut dyn FnMut(Bytes),
    ) -> Result<(), HardwareError> {
        let fail = |source| HardwareError::Open { path: path.to_owned(), source };
        let f = File::options().read(true).write(true).open(path).map_err(fail)?;
        let told = |p: block::Progress| progress(Bytes::new(p.done));
        Ok(block::zero_range(&f, offset.get(), len.get(), block::DEFAULT_CHUNK, abort, told)?)
    }
}

/// The ranges of `dev` that a target of `len` sectors reaches. One that is not understood reaches everything on a
/// device that it names.
fn ranges_on(target: &Target, len: Sectors, dev: DevNo) -> Vec<(Sectors, Sectors)> {
    let whole = (Sectors::ZERO, Sectors::new(u64::MAX));
    match target {
        Target::Error | Target::Zero => Vec::new(),
        Target::Linear { dev: d, offset } | Target::FlakeyErrorWrites { dev: d, offset } => {
            Vec::from_iter((*d == dev).then_some((*offset, len)))
        }
        Target::Striped { stripes, .. } | Target::Mirror { legs: stripes, .. } => {
            // A stripe's share is shorter; more than is mapped only delays a wipe.
            stripes.iter().filter(|s| s.dev == dev).map(|s| (s.offset, len)).collect()
        }
        Target::Delay { read, write, flush } => [Some(read), write.as_ref(), flush.as_ref()]
            .into_iter()
            .flatten()
            .filter(|l| l.dev == dev)
            .map(|l| (l.offset, len))
            .collect(),
        Target::MultipathBio { path, .. } => Vec::from_iter((*path == Some(dev)).then_some(whole)),
        Target::Other { params, .. } => {
            let named = params.split_whitespace().any(|w| w.parse() == Ok(dev));
            Vec::from_iter(named.then_some(whole))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_targets_reach() {
        let (d, o) = (DevNo::new(254, 16), DevNo::new(8, 0));
        let (at, len) = (Sectors::new(2048), Sectors::new(64));
        let linear = |dev| Target::Linear { dev, offset: at };
        assert_eq!(ranges_on(&linear(d), len, d), [(at, len)]);
        assert_eq!(ranges_on(&linear(o), len, d), []);
        let other = |p: &str| Target::Other { kind: "thin-pool".into(), params: p.into() };
        assert_eq!(ranges_on(&other("254:16 8:0 128 0"), len, d).len(), 1);
        assert_eq!(ranges_on(&other("254:1 8:0 128 0"), len, d), []);
    }

    #[test]
    fn ranges_meet_where_they_share_a_sector() {
        let m = Mapping { by: "x".into(), start: Sectors::new(10), len: Sectors::new(10) };
        for (start, len, meets) in
            [(0, 10, false), (0, 11, true), (19, 1, true), (20, 5, false), (12, 2, true)]
        {
            assert_eq!(m.meets(Sectors::new(start), Sectors::new(len)), meets, "{start}+{len}");
        }
    }
}
