//! I/O limits of control groups (cgroup v2, `io.max`): how many reads, writes and bytes a second a group's processes may do on one
//! device. They hold for a bio-based device-mapper device as for a disk, and are changed while I/O goes on.
//!
//! Invariants: a group that has gone has no limits and is no error; writing what stands already does nothing. Layout of the
//! files: Documentation/admin-guide/cgroup-v2.rst, "IO Interface Files". Must not know: volumes, why there are limits.

use std::path::{Path, PathBuf};

use crate::{
    Class, DevNo, Ensured,
    sysfs::{self, AttrError},
};

/// Where the hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Folders between the root and a pod's: kubepods, its class, and what a nested kubelet puts above them.
const DEPTH: usize = 5;

/// Why limits could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// An attribute.
    #[error(transparent)]
    Attr(#[from] AttrError),
    /// The group's parent does not hand the controller down.
    #[error(
        "control group {0} has no io.max: the io controller is not enabled in cgroup.subtree_control of the groups above it"
    )]
    NoController(PathBuf),
    /// A line of io.max that this module cannot read.
    #[error("io.max of control group {group} has a line that cannot be read: {line:?}")]
    Line {
        /// The group.
        group: PathBuf,
        /// The line.
        line: String,
    },
}

impl CgroupError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            CgroupError::Attr(e) => e.class(),
            CgroupError::NoController(_) | CgroupError::Line { .. } => Class::Permanent,
        }
    }
}

/// Limits of one device in one group, each a second; `None`: as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoMax {
    /// Bytes read.
    pub rbps: Option<u64>,
    /// Bytes written.
    pub wbps: Option<u64>,
    /// Reads.
    pub riops: Option<u64>,
    /// Writes.
    pub wiops: Option<u64>,
}

impl IoMax {
    /// What holds where both hold.
    #[must_use]
    pub fn lesser(self, other: Self) -> Self {
        let of = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            rbps: of(self.rbps, other.rbps),
            wbps: of(self.wbps, other.wbps),
            riops: of(self.riops, other.riops),
            wiops: of(self.wiops, other.wiops),
        }
    }

    /// As io.max is written: all four, so that what is not limited any more is lifted.
    fn render(&self, dev: DevNo) -> String {
        let word = |n: Option<u64>| n.map_or("max".to_owned(), |n| n.to_string());
        let [rbps, wbps, riops, wiops] = [self.rbps, self.wbps, self.riops, self.wiops].map(word);
        format!("{dev} rbps={rbps} wbps={wbps} riops={riops} wiops={wiops}")
    }

    /// One line without its device: `rbps=2097152 wbps=max riops=max wiops=120`.
    fn parse(words: &str) -> Option<Self> {
        let mut limits = Self::default();
        for word in words.split_whitespace() {
            let (key, value) = word.split_once('=')?;
            let value = if value == "max" { None } else { Some(value.parse().ok()?) };
            match key {
                "rbps" => limits.rbps = value,
                "wbps" => limits.wbps = value,
                "riops" => limits.riops = value,
                "wiops" => limits.wiops = value,
                // A newer kernel may know more.
                _ => {}
            }
        }
        Some(limits)
    }
}

/// The hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
}

impl Default for Cgroups {
    fn default() -> Self {
        Self::at(ROOT)
    }
}

impl Cgroups {
    /// The hierarchy that is mounted here.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The group of a pod, by the uid that the API server gave it; `None` where it has none (any more). The kubelet makes it
    /// before it asks for the pod's volumes, as `.../podUID`, or `...-podUID.slice` with `_` for `-`, by its cgroup driver.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn pod(&self, uid: &str) -> Result<Option<PathBuf>, CgroupError> {
        // What is no uid may be the end of one, or lead elsewhere.
        if uid.is_empty() || !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Ok(None);
        }
        let plain = format!("pod{uid}");
        let slice = format!("-pod{}.slice", uid.replace('-', "_"));
        let mut level = vec![self.root.clone()];
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for dir in level {
                for name in sysfs::names(&dir)? {
                    if name == plain || name.ends_with(&slice) {
                        return Ok(Some(dir.join(name)));
                    }
                    // Nothing else leads to pods.
                    if name.contains("kube") || matches!(name.as_str(), "burstable" | "besteffort") {
                        next.push(dir.join(name));
                    }
                }
            }
            level = next;
        }
        Ok(None)
    }

    /// Limits of a device in a group; none where there is no group, or no controller.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn io_max(&self, group: &Path, dev: DevNo) -> Result<IoMax, CgroupError> {
        let Some(text) = sysfs::read_opt(&group.join("io.max"))? else { return Ok(IoMax::default()) };
        let name = dev.to_string();
        let own = text.lines().find_map(|l| l.split_once(' ').filter(|(d, _)| *d == name));
        let Some((_, words)) = own else { return Ok(IoMax::default()) };
        let bad = || CgroupError::Line { group: group.to_owned(), line: words.to_owned() };
        IoMax::parse(words).ok_or_else(bad)
    }

    /// Makes these the limits of a device in a group. No error where the group has gone.
    ///
    /// # Errors
    /// There is no controller, or the kernel refuses.
    pub fn set_io_max(&self, group: &Path, dev: DevNo, want: IoMax) -> Result<Ensured, CgroupError> {
        let file = group.join("io.max");
        if !file.exists() {
            return match group.exists() && want != IoMax::default() {
                true => Err(CgroupError::NoController(group.to_owned())),
                false => Ok(Ensured::Identity),
            };
        }
        if self.io_max(group, dev)? == want {
            return Ok(Ensured::Identity);
        }
        match sysfs::write(&file, &want.render(dev)) {
            Ok(()) => Ok(Ensured::Swapped),
            Err(e) if sysfs::is_gone(&e) && !group.exists() => Ok(Ensured::Identity),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const UID: &str = "5c3cae4f-6de0-470e-8165-611c8a81b73b";

    fn dev() -> DevNo {
        DevNo::new(253, 7)
    }

    #[test]
    fn a_pods_group_is_found_whoever_made_it() {
        let slice = UID.replace('-', "_");
        for path in [
            format!("kubepods/pod{UID}"),
            format!("kubepods/burstable/pod{UID}"),
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice"),
            format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slice}.slice"),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            fs::create_dir_all(dir.path().join(&path)).expect("the group");
            fs::create_dir_all(dir.path().join("system.slice/x")).expect("another");
            fs::write(dir.path().join("cgroup.procs"), "").expect("a file");
            let c = Cgroups::at(dir.path());
            assert_eq!(c.pod(UID).expect("a look"), Some(dir.path().join(&path)));
            assert_eq!(c.pod("5c3cae4f-6de0-470e-8165-611c8a81b73c").expect("a look"), None);
            for bad in ["", "../x", "a/b", "*"] {
                assert_eq!(c.pod(bad).expect("a look"), None, "{bad}");
            }
        }
    }

    #[test]
    fn the_lesser_limit_holds() {
        let a = IoMax { riops: Some(200), rbps: Some(9), ..IoMax::default() };
        let b = IoMax { riops: Some(100), wiops: Some(7), ..IoMax::default() };
        let both = IoMax { rbps: Some(9), wbps: None, riops: Some(100), wiops: Some(7) };
        assert_eq!((a.lesser(b), b.lesser(a), a.lesser(IoMax::default())), (both, both, a));
    }

    #[test]
    fn limits_are_written_as_the_kernel_takes_them_and_read_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let c = Cgroups::at(dir.path());
        let want = IoMax { riops: Some(200), wiops: Some(200), rbps: Some(1 << 20), wbps: None };
        assert!(matches!(c.set_io_max(dir.path(), dev(), want), Err(CgroupError::NoController(_))));
        let file = dir.path().join("io.max");
        fs::write(&file, "8:0 rbps=1 wbps=max riops=max wiops=max\n").expect("the file");
        assert_eq!(c.io_max(dir.path(), dev()).expect("none"), IoMax::default());
        assert_eq!(c.set_io_max(dir.path(), dev(), want).expect("set"), Ensured::Swapped);
        let text = fs::read_to_string(&file).expect("the file");
        assert_eq!(text, "253:7 rbps=1048576 wbps=max riops=200 wiops=200");
        assert_eq!(c.io_max(dir.path(), dev()).expect("some"), want);
        assert_eq!(c.set_io_max(dir.path(), dev(), want).expect("stands"), Ensured::Identity);
        fs::write(&file, "253:7 rbps=x").expect("the file");
        assert!(matches!(c.io_max(dir.path(), dev()), Err(CgroupError::Line { .. })));
        let gone = dir.path().join("gone");
        assert_eq!(c.set_io_max(&gone, dev(), want).expect("no group"), Ensured::Identity);
        assert_eq!(c.io_max(&gone, dev()).expect("no group"), IoMax::default());
    }
}
