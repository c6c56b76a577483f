//! One block device as sysfs describes it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pool::units::{Bytes, SECTOR, Sectors};

use super::{
    BlockError,
    stat::{DiskStat, Inflight},
};
use crate::{
    DevNo,
    sysfs::{self, AttrError},
};

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    dev: DevNo,
    dir: PathBuf,
}

/// Sizes and abilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Smallest unit of I/O.
    pub logical_block: u32,
    /// Smallest unit that is written without reading first.
    pub physical_block: u32,
    /// Whether it has moving parts, as far as the kernel knows.
    pub rotational: bool,
    /// Largest discard; zero when there is none. What a discarded block returns is not known: the kernel no
    /// longer tells (`discard_zeroes_data` is always 0), so a discard is never a wipe.
    pub discard_max: Bytes,
    /// Largest write-zeroes; zero when the kernel writes zeroes itself.
    pub write_zeroes_max: Bytes,
    /// Whether its write cache is volatile, so that flushes matter.
    pub write_back: bool,
}

/// Who a disk is; empty where the hardware does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// World-wide name.
    pub wwn: String,
}

impl BlockDevice {
    /// The device with this number.
    pub fn new(dev: DevNo) -> Result<Self, BlockError> {
        Self::under(Path::new("/sys"), dev)
    }

    /// The device with this number under another sysfs (tests).
    pub fn under(sys: &Path, dev: DevNo) -> Result<Self, BlockError> {
        let dir = sys.join("dev/block").join(dev.to_string());
        if dir.is_dir() { Ok(Self { dev, dir }) } else { Err(BlockError::NoDevice(dev)) }
    }

    /// The device behind a path.
    pub fn of_path(path: &Path) -> Result<Self, BlockError> {
        let fail = |source| BlockError::Path { op: "look up", path: path.to_owned(), source };
        Self::new(DevNo::of_path(path).map_err(fail)?)
    }

    /// Its number.
    pub fn dev(&self) -> DevNo {
        self.dev
    }

    /// Its kernel name (`sda`, `dm-3`).
    pub fn name(&self) -> Result<String, BlockError> {
        let real = fs::canonicalize(&self.dir).map_err(|e| AttrError::new("resolve", &self.dir, e))?;
        Ok(real.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// Its size.
    pub fn size(&self) -> Result<Sectors, BlockError> {
        Ok(Sectors::new(sysfs::read_num(&self.dir.join("size"))?))
    }

    /// Whether it refuses writes.
    pub fn read_only(&self) -> Result<bool, BlockError> {
        Ok(sysfs::read_num(&self.dir.join("ro"))? != 0)
    }

    /// Whether it is a partition.
    pub fn is_partition(&self) -> bool {
        self.dir.join("partition").exists()
    }

    /// Whether its medium can be taken out; a partition answers for itself with `false`.
    pub fn removable(&self) -> Result<bool, BlockError> {
        Ok(sysfs::read_opt(&self.dir.join("removable"))?.as_deref() == Some("1"))
    }

    /// Devices that stand on it (device-mapper, MD).
    pub fn holders(&self) -> Result<Vec<String>, BlockError> {
        Ok(sysfs::names(&self.dir.join("holders"))?)
    }

    /// Names of its partitions.
    pub fn partitions(&self) -> Result<Vec<String>, BlockError> {
        let all = sysfs::names(&self.dir)?;
        Ok(all.into_iter().filter(|n| self.dir.join(n).join("partition").exists()).collect())
    }

    /// Sizes and abilities. A partition has those of its disk.
    pub fn limits(&self) -> Result<Limits, BlockError> {
        let q = if self.is_partition() { self.dir.join("../queue") } else { self.dir.join("queue") };
        let num = |name: &str| sysfs::read_num(&q.join(name));
        Ok(Limits {
            logical_block: num("logical_block_size")? as u32,
            physical_block: num("physical_block_size")? as u32,
            rotational: num("rotational")? != 0,
            discard_max: Bytes::new(num("discard_max_bytes")?),
            write_zeroes_max: Bytes::new(num("write_zeroes_max_bytes")?),
            write_back: self.write_back()?,
        })
    }

    /// Whether it has a volatile cache, so that flushes are sent to it.
    pub fn write_back(&self) -> Result<bool, BlockError> {
        let q = if self.is_partition() { self.dir.join("../queue") } else { self.dir.join("queue") };
        Ok(sysfs::read_opt(&q.join("write_cache"))?.as_deref() == Some("write back"))
    }

    /// Who it is. Each transport puts it elsewhere: NVMe and SCSI under `device`, virtio-blk beside it.
    pub fn identity(&self) -> Result<Identity, BlockError> {
        let first = |names: &[&str]| -> Result<String, AttrError> {
            for n in names {
                if let Some(s) = sysfs::read_opt(&self.dir.join(n))?.filter(|s| !s.is_empty()) {
                    return Ok(s);
                }
            }
            Ok(String::new())
        };
        let serial = first(&["device/serial", "serial"])?;
        let serial = if serial.is_empty() { self.scsi_serial()? } else { serial };
        Ok(Identity { model: first(&["device/model"])?, serial, wwn: first(&["wwid", "device/wwid"])? })
    }

    /// SCSI page 0x80: a header of four bytes, then the serial number.
    fn scsi_serial(&self) -> Result<String, BlockError> {
        let path = self.dir.join("device/vpd_pg80");
        match fs::read(&path) {
            Ok(b) => Ok(String::from_utf8_lossy(b.get(4..).unwrap_or(&[])).trim().to_owned()),
            Err(e) => {
                let e = AttrError::new("read", &path, e);
                if sysfs::is_gone(&e) { Ok(String::new()) } else { Err(e.into()) }
            }
        }
    }

    /// Its counters since it was made.
    pub fn stat(&self) -> Result<DiskStat, BlockError> {
        let path = self.dir.join("stat");
        let text = sysfs::read(&path)?;
        DiskStat::parse(&text).ok_or_else(|| unreadable(&path, &text))
    }

    /// I/O that was sent and has not come back. What a device-mapper target queues does count, what a delay
    /// target holds does not.
    pub fn inflight(&self) -> Result<Inflight, BlockError> {
        let path = self.dir.join("inflight");
        let text = sysfs::read(&path)?;
        Inflight::parse(&text).ok_or_else(|| unreadable(&path, &text))
    }

    /// Bytes of it.
    pub fn bytes(&self) -> Result<Bytes, BlockError> {
        let sectors = self.size()?.get();
        let bytes = sectors.checked_mul(SECTOR);
        bytes.map(Bytes::new).ok_or_else(|| unreadable(&self.dir.join("size"), &sectors.to_string()))
    }
}

fn unreadable(path: &Path, text: &str) -> BlockError {
    let e = std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{text:?}"));
    AttrError::new("parse", path, e).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there() {
        let t = tempfile::tempdir().unwrap();
        assert!(matches!(BlockDevice::under(t.path(), DevNo::new(8, 0)), Err(BlockError::NoDevice(_))));
    }

    #[test]
    fn attributes_of_a_virtio_disk() {
        let t = tempfile::tempdir().unwrap();
        let d = t.path().join("dev/block/254:0");
        for (k, v) in [
            ("size", "2097152"),
            ("ro", "0"),
            ("removable", "0"),
            ("serial", "weir-disk-1"),
            (
                "stat",
                "     103        0     4160       12       0        0        0        0        0       16       12        0        0        0        0        0        0",
            ),
            ("inflight", "       0        2"),
            ("queue/logical_block_size", "512"),
            ("queue/physical_block_size", "512"),
            ("queue/rotational", "1"),
            ("queue/discard_max_bytes", "2147483136"),
            ("queue/write_zeroes_max_bytes", "2147483136"),
            ("queue/write_cache", "write back"),
            ("vda1/partition", "1"),
        ] {
            fs::create_dir_all(d.join(k).parent().unwrap()).unwrap();
            fs::write(d.join(k), format!("{v}\n")).unwrap();
        }
        let b = BlockDevice::under(t.path(), DevNo::new(254, 0)).unwrap();
        assert_eq!(b.bytes().unwrap(), Bytes::gib(1));
        assert_eq!(b.identity().unwrap().serial, "weir-disk-1");
        assert!(b.limits().unwrap().write_back);
        assert_eq!(b.partitions().unwrap(), ["vda1"]);
        assert_eq!(b.inflight().unwrap(), Inflight { reads: 0, writes: 2 });
        assert_eq!(b.stat().unwrap().reads, 103);
    }
}
