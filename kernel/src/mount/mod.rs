//! Mounts and file systems: mount, bind, unmount, the table of mounts, and the file systems' own tools.
//!
//! Invariants: nothing is formatted that was not probed just before and found blank; a tool that does not end
//! in time is killed and its outcome is unknown. Must not know: volumes, CSI.

mod fs;
mod info;
mod tool;

pub use fs::{FsKind, FsStats, Probe, check, grow, make_fs, probe, stats};
pub use info::{MOUNTINFO, Mount, parse_mountinfo};

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::{Class, Ensured};

/// Why a mount or file system call failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A system call failed.
    #[error("{op} {path}: {source}")]
    Call {
        /// Which call.
        op: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The table of mounts has a line that cannot be understood.
    #[error("{MOUNTINFO}: line {0:?} is not understood")]
    Table(String),
    /// Something else is mounted there.
    #[error("{path} has {found} mounted, expected {wanted}")]
    Occupied {
        /// The mount point.
        path: PathBuf,
        /// What is mounted.
        found: String,
        /// What was to be.
        wanted: String,
    },
    /// A mount option that is not known.
    #[error("mount option {0:?} is not supported")]
    Option(String),
    /// A tool could not be run.
    #[error("run {tool}: {source}")]
    Spawn {
        /// The tool.
        tool: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool failed.
    #[error("{tool} failed ({status}): {stderr}")]
    Tool {
        /// The tool.
        tool: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A tool did not end in time and was killed.
    #[error("{tool} did not end within {after:?} and was killed: {stderr}")]
    ToolTimeout {
        /// The tool.
        tool: String,
        /// The time it had.
        after: std::time::Duration,
        /// What it had said.
        stderr: String,
    },
    /// The device is not blank, or carries another file system than asked for.
    #[error("{device} carries {found}, not formatted")]
    NotBlank {
        /// The device.
        device: PathBuf,
        /// What is on it.
        found: String,
    },
    /// A step failed, and so did undoing the one before it.
    #[error("{cause}; undoing it failed too: {rollback}")]
    RollbackFailed {
        /// What failed first.
        #[source]
        cause: Box<MountError>,
        /// What failed then.
        rollback: Box<MountError>,
    },
    /// A kind of file system that is not supported for this.
    #[error("{0:?} is not a supported file system")]
    Unsupported(String),
}

impl MountError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            MountError::Call { source, .. } | MountError::Spawn { source, .. } => Class::of_io(source),
            MountError::Table(_) | MountError::Option(_) | MountError::Unsupported(_) => Class::Permanent,
            MountError::Occupied { .. } => Class::Busy,
            MountError::NotBlank { .. } => Class::Permanent,
            MountError::Tool { .. } => Class::Permanent,
            MountError::ToolTimeout { .. } | MountError::RollbackFailed { .. } => Class::OutcomeUnknown,
        }
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            MountError::Call { source, .. } | MountError::Spawn { source, .. } => crate::error::errno(source),
            MountError::RollbackFailed { cause, .. } => cause.errno(),
            MountError::Table(_)
            | MountError::Occupied { .. }
            | MountError::Option(_)
            | MountError::Tool { .. }
            | MountError::ToolTimeout { .. }
            | MountError::NotBlank { .. }
            | MountError::Unsupported(_) => None,
        }
    }

    fn call(op: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        MountError::Call { op, path: path.to_owned(), source: source.into() }
    }
}

/// All mounts of this mount namespace.
pub fn mounts() -> Result<Vec<Mount>, MountError> {
    let text = std::fs::read(MOUNTINFO).map_err(|e| MountError::call("read", Path::new(MOUNTINFO), e))?;
    parse_mountinfo(&text)
}

/// The topmost mount exactly at `path` (which must be free of links), or `None`.
pub fn mount_at(path: &Path) -> Result<Option<Mount>, MountError> {
    Ok(mounts()?.into_iter().rfind(|m| m.mount_point == path))
}

/// Whether something is mounted at `path`.
pub fn is_mounted(path: &Path) -> Result<bool, MountError> {
    Ok(mount_at(path)?.is_some())
}

/// Flags and file system data from options as people and Kubernetes write them.
fn split_options(options: &[&str]) -> Result<(MountFlags, String), MountError> {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for o in options {
        match *o {
            "" | "defaults" | "rw" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            // Userspace notes of other programs: meaningless here, and the kernel would refuse them.
            "nofail" | "_netdev" | "auto" | "noauto" => {}
            other if other.contains([',', '\0']) => return Err(MountError::Option(other.to_owned())),
            other => data.push(other),
        }
    }
    Ok((flags, data.join(",")))
}

fn c_str(s: &str) -> Result<std::ffi::CString, MountError> {
    std::ffi::CString::new(s).map_err(|_| MountError::Option(s.to_owned()))
}

/// Mounts `device` at `target` unless it is mounted there already.
pub fn ensure_mounted(
    device: &Path,
    target: &Path,
    fs: FsKind,
    options: &[&str],
) -> Result<Ensured, MountError> {
    if let Some(m) = mount_at(target)? {
        let same = crate::DevNo::of_path(device).is_ok_and(|d| d == m.dev);
        return if same {
            Ok(Ensured::Identity)
        } else {
            Err(occupied(target, &m, &device.display().to_string()))
        };
    }
    let (flags, data) = split_options(options)?;
    let data = c_str(&data)?;
    rustix::mount::mount(device, target, fs.as_str(), flags, &*data)
        .map_err(|e| MountError::call("mount", target, e))?;
    Ok(Ensured::Created)
}

/// Binds `source` (a folder or a file) at `target`, which must exist and be of the same kind; with `read_only`,
/// the bind alone is read-only. Found already: left alone, except that its read-only state is made so.
pub fn ensure_bound(source: &Path, target: &Path, read_only: bool) -> Result<Ensured, MountError> {
    let found = mount_at(target)?;
    if let Some(m) = &found {
        if !same_object(source, target)? {
            return Err(occupied(target, m, &source.display().to_string()));
        }
        if m.is_read_only() == read_only {
            return Ok(Ensured::Identity);
        }
    } else {
        rustix::mount::mount_bind(source, target).map_err(|e| MountError::call("bind", target, e))?;
    }
    if read_only || found.is_some() {
        let ro = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        // A bind takes its read-only flag only on a second call; undo the bind when that fails, or the
        // target would be writable.
        if let Err(e) = rustix::mount::mount_remount(target, MountFlags::BIND | ro, c"") {
            let e = MountError::call("remount", target, e);
            let undone = if found.is_none() { unmount(target) } else { Ok(()) };
            return Err(match undone {
                Ok(()) => e,
                Err(r) => MountError::RollbackFailed { cause: Box::new(e), rollback: Box::new(r) },
            });
        }
    }
    Ok(if found.is_some() { Ensured::Swapped } else { Ensured::Created })
}

/// Whether two paths lead to the same file, folder or device.
fn same_object(a: &Path, b: &Path) -> Result<bool, MountError> {
    use std::os::unix::fs::MetadataExt;
    let stat = |p: &Path| std::fs::metadata(p).map_err(|e| MountError::call("stat", p, e));
    let (a, b) = (stat(a)?, stat(b)?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

fn occupied(target: &Path, m: &Mount, wanted: &str) -> MountError {
    MountError::Occupied {
        path: target.to_owned(),
        found: format!("{} ({}, {})", m.source, m.fs_type, m.dev),
        wanted: wanted.to_owned(),
    }
}

/// Makes mounts below `path` visible to other mount namespaces, or not.
pub fn set_propagation(path: &Path, shared: bool) -> Result<(), MountError> {
    let flags = if shared { MountPropagationFlags::SHARED } else { MountPropagationFlags::PRIVATE };
    rustix::mount::mount_change(path, flags).map_err(|e| MountError::call("change propagation of", path, e))
}

/// Unmounts the topmost mount at `path`. Never lazily: a mount that is detached and still in use would let the
/// volume be taken elsewhere under it.
fn unmount(path: &Path) -> Result<(), MountError> {
    rustix::mount::unmount(path, UnmountFlags::NOFOLLOW).map_err(|e| MountError::call("unmount", path, e))
}

/// Unmounts whatever is mounted at `path`, all layers of it. No error when nothing is.
pub fn ensure_unmounted(path: &Path) -> Result<Ensured, MountError> {
    let mut done = Ensured::Identity;
    while is_mounted(path)? {
        unmount(path)?;
        done = Ensured::Swapped;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let (f, d) = split_options(&["ro", "noatime", "discard", "errors=remount-ro", "defaults"]).unwrap();
        assert_eq!(f, MountFlags::RDONLY | MountFlags::NOATIME);
        assert_eq!(d, "discard,errors=remount-ro");
        assert!(split_options(&["a,b"]).is_err());
    }

    #[test]
    fn proc_is_mounted_and_a_folder_is_not() {
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
        let t = tempfile::tempdir().unwrap();
        assert_eq!(ensure_unmounted(t.path()).unwrap(), Ensured::Identity);
    }
}
