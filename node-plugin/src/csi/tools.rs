//! What the Node service needs of the kernel and of the file systems' tools, as a trait, so that the service can be
//! tested without either. All calls block; [`super::work`] gives them threads and deadlines.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use kernel::{
    Class, DevNo,
    block::{BlockDevice, BlockError},
    dm::{Control, DmError, dev_node_path},
    mount::{self, FsKind, FsStats, Mount, MountError, Probe},
};
use pool::{ids::VolumeId, names::DmRole, units::Bytes};

use super::superblock;

/// A volume's top device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// Its number.
    pub dev: DevNo,
    /// Where it is opened.
    pub path: PathBuf,
    /// Its size.
    pub size: Bytes,
    /// Opens of it: mounts, processes, devices above.
    pub open_count: i32,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// A mount, or a file system's tool.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A block device.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Device-mapper.
    #[error(transparent)]
    Dm(#[from] DmError),
    /// A file or device.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ToolError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            ToolError::Mount(e) => e.class(),
            ToolError::Block(e) => e.class(),
            ToolError::Dm(e) => e.class(),
            ToolError::Io { source, .. } => Class::of_io(source),
        }
    }
}

type Done<T> = Result<T, ToolError>;

/// The kernel and the tools.
pub trait Tools: Send + Sync + 'static {
    /// The volume's top device; `None` when there is none.
    fn top(&self, volume: VolumeId) -> Done<Option<Top>>;
    /// The table of mounts.
    fn mounts(&self) -> Done<Vec<Mount>>;
    /// The device behind a device node; `None` when it is no device node.
    fn device_at(&self, path: &Path) -> Done<Option<DevNo>>;
    /// Whether a file system is alive on the device, in whatever mount namespace.
    fn fs_alive(&self, dev: DevNo) -> bool;
    /// What is on the device.
    fn probe(&self, device: &Path, within: Duration) -> Done<Probe>;
    /// Makes a file system on a blank device.
    fn make_fs(&self, device: &Path, kind: FsKind, within: Duration) -> Done<()>;
    /// Checks a file system that is not mounted.
    fn check(&self, device: &Path, kind: FsKind, within: Duration) -> Done<()>;
    /// Mounts.
    fn mount(&self, device: &Path, target: &Path, kind: FsKind, options: &[String]) -> Done<()>;
    /// Binds a folder or a device node.
    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Done<()>;
    /// Unmounts all layers of a path.
    fn unmount(&self, path: &Path) -> Done<()>;
    /// Bytes that the file system on the device spans; `None` when that cannot be told.
    fn fs_bytes(&self, device: &Path, kind: FsKind) -> Done<Option<u64>>;
    /// Grows a mounted file system to its device.
    fn grow(&self, device: &Path, mount_point: &Path, kind: FsKind, within: Duration) -> Done<()>;
    /// Usage of a mounted file system.
    fn usage(&self, path: &Path) -> Done<FsStats>;
}

/// The real ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelTools;

impl Tools for KernelTools {
    fn top(&self, volume: VolumeId) -> Done<Option<Top>> {
        let role = DmRole::Top(volume);
        let Some(info) = Control::open()?.info_opt(&role.dm_uuid())? else { return Ok(None) };
        // A device without an active table is one that is just being made.
        if !info.active {
            return Ok(None);
        }
        let size = match BlockDevice::new(info.dev).and_then(|b| b.bytes()) {
            Err(BlockError::NoDevice(_)) => return Ok(None),
            other => other?,
        };
        Ok(Some(Top {
            dev: info.dev,
            path: dev_node_path(&role.dm_name()),
            size,
            open_count: info.open_count,
            read_only: info.read_only,
        }))
    }

    fn mounts(&self) -> Done<Vec<Mount>> {
        Ok(mount::mounts()?)
    }

    fn device_at(&self, path: &Path) -> Done<Option<DevNo>> {
        match DevNo::of_path(path) {
            Ok(d) => Ok(Some(d)),
            Err(e) if e.raw_os_error() == Some(libc::ENOTBLK) || e.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(source) => Err(ToolError::Io { op: "stat", path: path.to_owned(), source }),
        }
    }

    fn fs_alive(&self, dev: DevNo) -> bool {
        // Every ext4 and xfs superblock has a folder there for as long as it lives, named after its device.
        let Ok(name) = BlockDevice::new(dev).and_then(|b| b.name()) else { return false };
        ["ext4", "xfs"].iter().any(|fs| Path::new("/sys/fs").join(fs).join(&name).exists())
    }

    fn probe(&self, device: &Path, within: Duration) -> Done<Probe> {
        Ok(mount::probe(device, within)?)
    }

    fn make_fs(&self, device: &Path, kind: FsKind, within: Duration) -> Done<()> {
        Ok(mount::make_fs(device, kind, within).map(drop)?)
    }

    fn check(&self, device: &Path, kind: FsKind, within: Duration) -> Done<()> {
        Ok(mount::check(device, kind, within)?)
    }

    fn mount(&self, device: &Path, target: &Path, kind: FsKind, options: &[String]) -> Done<()> {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Ok(mount::ensure_mounted(device, target, kind, &options).map(drop)?)
    }

    fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Done<()> {
        Ok(mount::ensure_bound(source, target, read_only).map(drop)?)
    }

    fn unmount(&self, path: &Path) -> Done<()> {
        Ok(mount::ensure_unmounted(path).map(drop)?)
    }

    fn fs_bytes(&self, device: &Path, kind: FsKind) -> Done<Option<u64>> {
        let fail = |source| ToolError::Io { op: "read", path: device.to_owned(), source };
        superblock::fs_bytes(device, kind).map_err(fail)
    }

    fn grow(&self, device: &Path, mount_point: &Path, kind: FsKind, within: Duration) -> Done<()> {
        Ok(mount::grow(device, mount_point, kind, within)?)
    }

    fn usage(&self, path: &Path) -> Done<FsStats> {
        Ok(mount::stats(path)?)
    }
}
