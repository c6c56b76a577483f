//! The table of mounts, /proc/self/mountinfo (proc_pid_mountinfo(5)).

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use super::MountError;
use crate::DevNo;

/// Where the kernel shows this process's mounts.
pub const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its id.
    pub id: u32,
    /// The id of the mount that it stands on.
    pub parent: u32,
    /// The device (for file systems without one, a number that the kernel made up).
    pub dev: DevNo,
    /// What of the file system is shown: `/`, or the source of a bind.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Options of this mount.
    pub options: Vec<String>,
    /// `ext4`, `xfs`, ...
    pub fs_type: String,
    /// The device or whatever was given instead.
    pub source: String,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether this mount (not necessarily its file system) is read-only.
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }

    /// Whether the file system itself is read-only, because it was mounted so or because of an error.
    pub fn is_super_read_only(&self) -> bool {
        self.super_options.iter().any(|o| o == "ro")
    }
}

/// All mounts in the order in which they were made.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<Mount>, MountError> {
    let line =
        |l: &[u8]| parse_line(l).ok_or_else(|| MountError::Table(String::from_utf8_lossy(l).into_owned()));
    text.split(|&b| b == b'\n').filter(|l| !l.is_empty()).map(line).collect()
}

fn parse_line(l: &[u8]) -> Option<Mount> {
    let mut w = l.split(|&b| b == b' ');
    let text = |w: &[u8]| String::from_utf8_lossy(&unescape(w)).into_owned();
    let list = |w: &[u8]| text(w).split(',').map(str::to_owned).collect();
    let path = |w: &[u8]| PathBuf::from(OsString::from_vec(unescape(w)));
    let (id, parent) = (text(w.next()?).parse().ok()?, text(w.next()?).parse().ok()?);
    let dev = text(w.next()?).parse().ok()?;
    let (root, mount_point) = (path(w.next()?), path(w.next()?));
    let options = list(w.next()?);
    // Any number of optional fields, ended by a hyphen.
    w.find(|f| *f == b"-")?;
    let fs_type = text(w.next()?);
    let source = text(w.next()?);
    let super_options = list(w.next()?);
    Some(Mount { id, parent, dev, root, mount_point, options, fs_type, source, super_options })
}

/// The kernel writes blank, tab, newline and backslash as a backslash with three octal digits.
fn unescape(w: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(w.len());
    let mut i = 0;
    while i < w.len() {
        match (w[i], w.get(i + 1..i + 4)) {
            (b'\\', Some(d)) if d[0] <= b'3' && d.iter().all(|b| (b'0'..=b'7').contains(b)) => {
                out.push((d[0] - b'0') << 6 | (d[1] - b'0') << 3 | (d[2] - b'0'));
                i += 4;
            }
            (b, _) => {
                out.push(b);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &str = "\
24 30 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
30 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro
311 30 253:3 / /var/lib/kubelet/plugins/kubernetes.io/a\\040b\\134c rw,relatime shared:170 master:2 - xfs /dev/mapper/weir-x rw,attr2
312 30 0:5 /dm-3 /var/lib/kubelet/pods/p/volumeDevices/v ro,nosuid - devtmpfs udev rw,size=4k
";

    #[test]
    fn captured_lines() {
        let m = parse_mountinfo(CAPTURED.as_bytes()).unwrap();
        assert_eq!(m.len(), 4);
        assert_eq!(m[1].dev, DevNo::new(254, 1));
        assert_eq!(m[2].mount_point, PathBuf::from("/var/lib/kubelet/plugins/kubernetes.io/a b\\c"));
        assert_eq!(m[2].fs_type, "xfs");
        assert_eq!((m[3].root.to_str(), m[3].is_read_only()), (Some("/dm-3"), true));
        assert!(!m[3].is_super_read_only());
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\040b"), b"a b");
        assert_eq!(unescape(b"a\\"), b"a\\");
        assert_eq!(unescape(b"\\09"), b"\\09");
        assert_eq!(unescape(b"\\777"), b"\\777");
        assert_eq!(unescape(b"\\134040"), b"\\040");
    }

    #[test]
    fn a_cut_line_is_an_error() {
        assert!(parse_mountinfo(b"24 30 0:22 / /proc rw,nosuid").is_err());
        assert!(parse_mountinfo(b"x 30 0:22 / / rw - proc proc rw").is_err());
        assert_eq!(parse_mountinfo(b"").unwrap(), vec![]);
    }
}
