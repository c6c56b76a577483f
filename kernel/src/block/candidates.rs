//! Which disks of a node could become pool disks, and how a disk is named by people.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use pool::units::Bytes;

use super::{BlockDevice, BlockError, Identity};
use crate::{DevNo, mount, sysfs};

/// Why a disk is no candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Of a kind that is left out: loop, ram, zram, floppy, optical, device-mapper, MD, network block devices.
    Kind,
    /// No medium.
    Empty,
    /// Its medium can be taken out.
    Removable,
    /// It refuses writes.
    ReadOnly,
    /// It is divided; these are its partitions.
    Partitioned(Vec<String>),
    /// Devices of somebody else stand on it: the disk, if it is one, is above (multipath, LVM, encryption).
    Held(Vec<String>),
    /// Devices of ours stand on it, and no others.
    Ours(Vec<String>),
    /// It is mounted or used as swap.
    Mounted,
    /// An exclusive open failed: somebody uses it.
    InUse,
    /// A namespace of another node; pools are made of disks that are beside the node.
    Remote,
}

/// A disk of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub dev: DevNo,
    /// Its kernel name.
    pub name: String,
    /// Where it is opened.
    pub path: PathBuf,
    /// Its size.
    pub size: Bytes,
    /// Who it is.
    pub identity: Identity,
    /// Why it may not be claimed; `None` when it may. Signatures on it are not looked at here.
    pub rejected: Option<Rejected>,
}

/// All whole disks of this node with the verdict on each. `also` names kernel names that are taken in although
/// their kind is left out (a loop device for a trial).
pub fn candidates(also: &[&str]) -> Result<Vec<Candidate>, BlockError> {
    candidates_where(also, &|_| true)
}

/// As [`candidates`], but only looking at those disks whose kernel name is wanted: the others are not opened.
pub fn candidates_where(also: &[&str], wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Candidate>, BlockError> {
    let mounted = mounted_devices()?;
    let mut out = Vec::new();
    for name in sysfs::names(Path::new("/sys/block"))?.into_iter().filter(|n| wanted(n)) {
        match candidate(&name, also, &mounted) {
            Ok(c) => out.extend(c),
            // Gone while it was looked at.
            Err(BlockError::Attr(e)) if sysfs::is_gone(&e) => {}
            Err(BlockError::NoDevice(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

fn candidate(name: &str, also: &[&str], mounted: &BTreeSet<DevNo>) -> Result<Option<Candidate>, BlockError> {
    let dir = Path::new("/sys/block").join(name);
    if sysfs::read_opt(&dir.join("hidden"))?.as_deref() == Some("1") {
        return Ok(None);
    }
    let Some(dev) = sysfs::read(&dir.join("dev"))?.parse().ok() else { return Ok(None) };
    let b = BlockDevice::new(dev)?;
    let path = Path::new("/dev").join(name.replace('!', "/"));
    let rejected = reject(&b, name, &path, also, mounted)?;
    Ok(Some(Candidate {
        dev,
        name: name.to_owned(),
        size: b.bytes()?,
        identity: b.identity()?,
        path,
        rejected,
    }))
}

fn reject(
    b: &BlockDevice,
    name: &str,
    path: &Path,
    also: &[&str],
    mounted: &BTreeSet<DevNo>,
) -> Result<Option<Rejected>, BlockError> {
    let asked_for = also.contains(&name);
    if !asked_for && is_left_out(name) {
        return Ok(Some(Rejected::Kind));
    }
    if is_remote(name)? {
        return Ok(Some(Rejected::Remote));
    }
    if b.size()?.is_zero() {
        return Ok(Some(Rejected::Empty));
    }
    if !asked_for && b.removable()? {
        return Ok(Some(Rejected::Removable));
    }
    if b.read_only()? {
        return Ok(Some(Rejected::ReadOnly));
    }
    let (holders, partitions) = (b.holders()?, b.partitions()?);
    if !holders.is_empty() {
        let others: Vec<_> = holders.iter().filter(|h| !is_ours(h)).collect();
        let named = |of: Vec<&String>| of.into_iter().map(|h| with_dm_name(h)).collect();
        return Ok(Some(if others.is_empty() {
            Rejected::Ours(named(holders.iter().collect()))
        } else {
            Rejected::Held(named(others))
        }));
    }
    if !partitions.is_empty() {
        return Ok(Some(Rejected::Partitioned(partitions)));
    }
    if mounted.contains(&b.dev()) {
        return Ok(Some(Rejected::Mounted));
    }
    match open_exclusive(path) {
        Ok(_) => Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(Some(Rejected::InUse)),
        Err(source) => Err(BlockError::Path { op: "open", path: path.to_owned(), source }),
    }
}

/// The kernel gives an exclusive open of a block device to one user only: a mount, a device-mapper table, swap
/// and MD hold it as well.
fn open_exclusive(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(path)
}

/// Whether a device, by its kernel name, is a device-mapper device of ours.
fn is_ours(name: &str) -> bool {
    dm_attribute(name, "uuid").is_some_and(|uuid| uuid.starts_with(pool::names::DM_UUID_PREFIX))
}

/// A kernel name, and the device-mapper name where it has one.
fn with_dm_name(name: &str) -> String {
    dm_attribute(name, "name").map_or_else(|| name.to_owned(), |dm| format!("{name} ({dm})"))
}

/// An attribute of a device-mapper device; `None` for others, and for one that has just gone.
fn dm_attribute(name: &str, which: &str) -> Option<String> {
    sysfs::read_opt(&Path::new("/sys/block").join(name).join("dm").join(which)).ok().flatten()
}

fn is_left_out(name: &str) -> bool {
    ["loop", "ram", "zram", "fd", "sr", "dm-", "md", "nbd", "rbd", "drbd"].iter().any(|kind| {
        name.strip_prefix(kind).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Whether it is an NVMe namespace that is reached over a network. With native multipath, `device` is the
/// subsystem, whose controllers stand in it.
fn is_remote(name: &str) -> Result<bool, BlockError> {
    if !name.starts_with("nvme") {
        return Ok(false);
    }
    let device = Path::new("/sys/block").join(name).join("device");
    let own = sysfs::read_opt(&device.join("transport"))?;
    let mut transports = Vec::from_iter(own);
    for c in sysfs::names(&device)?.iter().filter(|c| c.starts_with("nvme")) {
        transports.extend(sysfs::read_opt(&device.join(c).join("transport"))?);
    }
    Ok(transports.iter().any(|t| t != "pcie"))
}

fn mounted_devices() -> Result<BTreeSet<DevNo>, BlockError> {
    let table = mount::mounts().map_err(|e| BlockError::Path {
        op: "read",
        path: PathBuf::from(mount::MOUNTINFO),
        source: io::Error::other(e),
    })?;
    Ok(table.into_iter().map(|m| m.dev).collect())
}

/// The disk that a person means: a path (`/dev/sdb`, `/dev/disk/by-id/...`), the name of a by-id link, or a
/// serial number. Exactly one must match.
pub fn find_disk(wanted: &str) -> Result<BlockDevice, BlockError> {
    let unresolved = |why: &str| BlockError::Unresolved { wanted: wanted.to_owned(), why: why.to_owned() };
    if wanted.is_empty() {
        return Err(unresolved("no name given"));
    }
    if wanted.starts_with('/') {
        return BlockDevice::of_path(Path::new(wanted));
    }
    let by_id = Path::new("/dev/disk/by-id").join(wanted);
    if !wanted.contains('/') && by_id.exists() {
        return BlockDevice::of_path(&by_id);
    }
    let mut found = Vec::new();
    for name in sysfs::names(Path::new("/sys/block"))? {
        let dev = sysfs::read_opt(&Path::new("/sys/block").join(&name).join("dev"))?;
        let Some(dev) = dev.and_then(|d| d.parse().ok()) else { continue };
        let b = match BlockDevice::new(dev) {
            Err(BlockError::NoDevice(_)) => continue,
            other => other?,
        };
        if b.identity()?.serial == wanted {
            found.push(b);
        }
    }
    match found.len() {
        0 => Err(unresolved("no by-id link and no serial number is this")),
        1 => Ok(found.remove(0)),
        _ => Err(unresolved("several disks have this serial number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_are_left_out() {
        for (name, out) in [
            ("loop0", true),
            ("dm-12", true),
            ("md127", true),
            ("sr0", true),
            ("sda", false),
            ("nvme0n1", false),
            ("vda", false),
            ("mdx", false),
            ("ram", false),
        ] {
            assert_eq!(is_left_out(name), out, "{name}");
        }
    }

    #[test]
    fn a_disk_nobody_has() {
        for wanted in ["", "no-such-serial", "/dev/null"] {
            assert!(find_disk(wanted).is_err(), "{wanted:?}");
        }
    }
}
