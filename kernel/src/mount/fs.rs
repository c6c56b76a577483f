//! File systems through their own tools: probe, make, check, grow, and their usage.
//!
//! The choices are those of kubelet's mount-utils, so that a volume behaves as with any other driver:
//! - probe: `blkid -p`; a partition table alone counts as content.
//! - ext4: `mkfs.ext4 -F -m0`; xfs: `mkfs.xfs -f`. Force is safe here because the probe came first.
//! - check before mounting: ext4 `e2fsck -p` (0 and 1 good, 2 asks for a reboot of a mounted root and is good
//!   here, 4 and up not). xfs is not checked: it replays its log at mount, and its `fsck.xfs` does nothing.
//! - grow: `resize2fs` on the device, `xfs_growfs` on the mount point. Both do nothing when nothing is to do.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    time::Duration,
};

use super::{MountError, tool};

/// A file system that volumes may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FsKind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No signature that blkid knows.
    Blank,
    /// A file system that volumes may have.
    Fs(FsKind),
    /// A file system whose making was interrupted: mkfs.xfs marks its first superblock until it is done. It was
    /// never mounted and holds nothing.
    Unfinished(FsKind),
    /// Anything else: another file system, a partition table, a member of LVM or MD.
    Other(String),
}

/// Usage of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStats {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that a user without privileges can still write.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes in all; 0 where the file system makes them as needed.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

impl FsKind {
    /// The kernel's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            FsKind::Ext4 => "ext4",
            FsKind::Xfs => "xfs",
        }
    }

    /// From the kernel's (and blkid's) name.
    pub fn parse(s: &str) -> Result<Self, MountError> {
        match s {
            "ext4" => Ok(FsKind::Ext4),
            "xfs" => Ok(FsKind::Xfs),
            other => Err(MountError::Unsupported(other.to_owned())),
        }
    }
}

/// Looks at the device itself, without blkid's cache.
pub fn probe(device: &Path, within: Duration) -> Result<Probe, MountError> {
    let out = tool::run("blkid", &["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export"], device, within)?;
    match out.status.code() {
        Some(0) => match parse_blkid(&String::from_utf8_lossy(&out.stdout)) {
            Probe::Fs(FsKind::Xfs)
                if xfs_unfinished(device).map_err(|e| MountError::call("read", device, e))? =>
            {
                Ok(Probe::Unfinished(FsKind::Xfs))
            }
            found => Ok(found),
        },
        // 2: nothing found. It says the same, silently, about a device that is not there or cannot be read,
        // which must never pass for a blank one.
        Some(2) => readable(device).map(|()| Probe::Blank).map_err(|e| MountError::call("read", device, e)),
        // 8: signatures that contradict each other.
        Some(8) => Ok(Probe::Other("several signatures".into())),
        _ => Err(tool::failed("blkid", &out)),
    }
}

/// `sb_inprogress`, byte 126 of the superblock (fs/xfs/libxfs/xfs_format.h).
fn xfs_unfinished(device: &Path) -> io::Result<bool> {
    let mut sb = [0; 512];
    File::open(device)?.read_exact(&mut sb)?;
    Ok(sb[126] != 0)
}

/// Reads where signatures stand: the first and last 128 KiB (btrfs has its own at 64 KiB; the second GPT and old
/// MD stand at the end).
fn readable(device: &Path) -> io::Result<()> {
    const EDGE: u64 = 128 << 10;
    let mut f = File::open(device)?;
    let size = f.seek(SeekFrom::End(0))?;
    for at in [0, size.saturating_sub(EDGE)] {
        f.seek(SeekFrom::Start(at))?;
        io::copy(&mut (&f).take(EDGE), &mut io::sink())?;
    }
    Ok(())
}

fn parse_blkid(text: &str) -> Probe {
    let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
    match (value("TYPE"), value("PTTYPE")) {
        (Some(t), _) => FsKind::parse(t).map_or_else(|_| Probe::Other(t.to_owned()), Probe::Fs),
        (None, Some(p)) => Probe::Other(format!("a {p} partition table")),
        (None, None) => Probe::Blank,
    }
}

/// Makes a file system on a blank device. A device that has this very kind already is left alone and answers
/// `false`; one with anything else is refused.
pub fn make_fs(device: &Path, kind: FsKind, within: Duration) -> Result<bool, MountError> {
    match probe(device, within)? {
        Probe::Fs(found) if found == kind => return Ok(false),
        Probe::Fs(found) => return Err(not_blank(device, found.as_str())),
        Probe::Other(found) => return Err(not_blank(device, &found)),
        Probe::Unfinished(found) if found != kind => return Err(not_blank(device, found.as_str())),
        Probe::Blank | Probe::Unfinished(_) => {}
    }
    match kind {
        FsKind::Ext4 => tool::run_ok("mkfs.ext4", &["-q", "-F", "-m0"], device, within)?,
        FsKind::Xfs => tool::run_ok("mkfs.xfs", &["-q", "-f"], device, within)?,
    };
    Ok(true)
}

fn not_blank(device: &Path, found: &str) -> MountError {
    MountError::NotBlank { device: device.to_owned(), found: found.to_owned() }
}

/// Checks, and repairs what can be repaired without asking, before a mount.
pub fn check(device: &Path, kind: FsKind, within: Duration) -> Result<(), MountError> {
    match kind {
        FsKind::Ext4 => {
            let out = tool::run("e2fsck", &["-p"], device, within)?;
            if out.status.code().is_some_and(|c| c & !3 == 0) {
                Ok(())
            } else {
                Err(tool::failed("e2fsck", &out))
            }
        }
        FsKind::Xfs => Ok(()),
    }
}

/// Grows a mounted file system to the size of its device.
pub fn grow(device: &Path, mount_point: &Path, kind: FsKind, within: Duration) -> Result<(), MountError> {
    match kind {
        FsKind::Ext4 => tool::run_ok("resize2fs", &[], device, within),
        FsKind::Xfs => tool::run_ok("xfs_growfs", &["-d"], mount_point, within),
    }
    .map(drop)
}

/// Usage of the file system at `path`.
pub fn stats(path: &Path) -> Result<FsStats, MountError> {
    let s = rustix::fs::statvfs(path).map_err(|e| MountError::call("statvfs", path, e))?;
    let bytes = |blocks: u64| blocks.saturating_mul(s.f_frsize);
    Ok(FsStats {
        total: bytes(s.f_blocks),
        available: bytes(s.f_bavail),
        used: bytes(s.f_blocks.saturating_sub(s.f_bfree)),
        inodes: s.f_files,
        inodes_free: s.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blkid_says() {
        for (text, want) in [
            ("DEVNAME=/dev/vda\nTYPE=ext4\n", Probe::Fs(FsKind::Ext4)),
            ("DEVNAME=/dev/vda\nTYPE=xfs\n", Probe::Fs(FsKind::Xfs)),
            ("DEVNAME=/dev/vda\nTYPE=LVM2_member\n", Probe::Other("LVM2_member".into())),
            ("DEVNAME=/dev/vda\nPTTYPE=gpt\n", Probe::Other("a gpt partition table".into())),
            ("DEVNAME=/dev/vda\n", Probe::Blank),
        ] {
            assert_eq!(parse_blkid(text), want, "{text:?}");
        }
    }

    /// The tools work on files as well, so the whole life of a file system is tried without a device.
    #[test]
    fn a_file_is_probed_formatted_once_and_checked() {
        let t = tempfile::tempdir().unwrap();
        let img = t.path().join("img");
        let within = Duration::from_secs(60);
        File::create(&img).unwrap().set_len(16 << 20).unwrap();
        assert_eq!(probe(&img, within).unwrap(), Probe::Blank);
        assert!(make_fs(&img, FsKind::Ext4, within).unwrap());
        assert_eq!(probe(&img, within).unwrap(), Probe::Fs(FsKind::Ext4));
        assert!(!make_fs(&img, FsKind::Ext4, within).unwrap());
        assert!(matches!(make_fs(&img, FsKind::Xfs, within), Err(MountError::NotBlank { .. })));
        check(&img, FsKind::Ext4, within).unwrap();
        assert!(probe(Path::new("/no/such"), within).is_err());
    }

    #[test]
    fn an_interrupted_mkfs_is_done_again() {
        use std::os::unix::fs::FileExt;
        let t = tempfile::tempdir().unwrap();
        let img = t.path().join("img");
        let within = Duration::from_secs(60);
        let f = File::create(&img).unwrap();
        f.set_len(320 << 20).unwrap();
        assert!(make_fs(&img, FsKind::Xfs, within).unwrap());
        f.write_all_at(&[1], 126).unwrap();
        assert_eq!(probe(&img, within).unwrap(), Probe::Unfinished(FsKind::Xfs));
        assert!(matches!(make_fs(&img, FsKind::Ext4, within), Err(MountError::NotBlank { .. })));
        assert!(make_fs(&img, FsKind::Xfs, within).unwrap());
        assert_eq!(probe(&img, within).unwrap(), Probe::Fs(FsKind::Xfs));
    }

    #[test]
    fn usage_of_a_file_system() {
        let s = stats(Path::new("/")).unwrap();
        assert!(s.total >= s.used && s.total > 0);
    }
}
