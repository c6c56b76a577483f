//! A block device by its number, in the form that device-mapper tables and sysfs use.

use std::{fmt, fs, io, os::unix::fs::FileTypeExt, os::unix::fs::MetadataExt, path::Path, str::FromStr};

/// Major and minor number of a block device. Printed as `major:minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNo {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DevNo {
    /// The device with these numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From a `dev_t` as stat(2) and the device-mapper ioctls give it.
    pub fn from_raw(dev: u64) -> Self {
        Self { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) }
    }

    /// As a `dev_t`.
    pub fn to_raw(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }

    /// The device behind a path, through links. Anything but a block device is `InvalidInput`.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        let m = fs::metadata(path)?;
        if !m.file_type().is_block_device() {
            return Err(io::Error::from_raw_os_error(libc::ENOTBLK));
        }
        Ok(Self::from_raw(m.rdev()))
    }
}

impl fmt::Display for DevNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&pool::names::dm_dev(self.major, self.minor))
    }
}

/// Why a text is no device number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device number of the form major:minor")]
pub struct BadDevNo(pub String);

impl FromStr for DevNo {
    type Err = BadDevNo;
    fn from_str(s: &str) -> Result<Self, BadDevNo> {
        let bad = || BadDevNo(s.chars().take(64).collect());
        let (major, minor) = s.trim().split_once(':').ok_or_else(bad)?;
        Ok(Self::new(major.parse().map_err(|_| bad())?, minor.parse().map_err(|_| bad())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        let d = DevNo::new(253, 1_000_000);
        assert_eq!(DevNo::from_raw(d.to_raw()), d);
        assert_eq!(d.to_string().parse(), Ok(d));
        for bad in ["", "8", "8:", ":1", "a:b", "8:1:2", "-1:0"] {
            assert!(bad.parse::<DevNo>().is_err(), "{bad:?}");
        }
        assert_eq!("259:3\n".parse(), Ok(DevNo::new(259, 3)));
    }

    #[test]
    fn a_file_is_not_a_block_device() {
        let e = DevNo::of_path(Path::new("/proc/self/stat")).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENOTBLK));
    }
}
