//! Device nodes. Lab nodes and many minimal hosts have no udev: then /dev/mapper/NAME is a node that we make.
//! Where udev runs, its link of the same name is taken as it is.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::fs::{CWD, FileType, Mode};

use super::error::DmError;
use crate::DevNo;

pub(crate) const CONTROL: &str = "/dev/mapper/control";
const DIR: &str = "/dev/mapper";

/// Where a device-mapper device is opened.
pub fn dev_node_path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Makes sure that /dev/mapper/NAME is the block device `dev`.
pub fn ensure_dev_node(name: &str, dev: DevNo) -> Result<PathBuf, DmError> {
    let path = dev_node_path(name);
    if DevNo::of_path(&path).is_ok_and(|d| d == dev) {
        return Ok(path);
    }
    make_node(&path, FileType::BlockDevice, dev)
        .map_err(|source| DmError::Node { device: name.to_owned(), source })?;
    Ok(path)
}

/// Removes /dev/mapper/NAME; no error when it is not there.
pub fn remove_dev_node(name: &str) -> Result<(), DmError> {
    match fs::remove_file(dev_node_path(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(DmError::Node { device: name.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// Makes a node beside its place and moves it there, so that nobody ever sees a wrong one.
fn make_node(path: &Path, kind: FileType, dev: DevNo) -> io::Result<()> {
    fs::create_dir_all(DIR)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    static TURN: AtomicU32 = AtomicU32::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let tmp = path.with_file_name(format!(".{name}.{}.{turn}", std::process::id()));
    match rustix::fs::mknodat(CWD, &tmp, kind, Mode::RUSR | Mode::WUSR, dev.to_raw()) {
        Err(rustix::io::Errno::EXIST) => {
            // Left by a process with our number that died here.
            fs::remove_file(&tmp)?;
            rustix::fs::mknodat(CWD, &tmp, kind, Mode::RUSR | Mode::WUSR, dev.to_raw())?;
        }
        other => other?,
    }
    fs::rename(&tmp, path)
}

/// Makes /dev/mapper/control when it is missing.
pub(crate) fn ensure_control_node() -> io::Result<()> {
    match fs::metadata(CONTROL) {
        Ok(m) if m.file_type().is_char_device() => return Ok(()),
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "not a character device")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let major = number_of(&fs::read_to_string("/proc/devices")?, "misc");
    let minor = number_of(&fs::read_to_string("/proc/misc")?, "device-mapper");
    match (major, minor) {
        (Some(major), Some(minor)) => {
            make_node(Path::new(CONTROL), FileType::CharacterDevice, DevNo::new(major, minor))
        }
        _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
    }
}

/// The number in front of a name in /proc/devices or /proc/misc.
fn number_of(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|l| {
        let (n, rest) = l.trim().split_once(' ')?;
        (rest.trim() == name).then(|| n.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_names_in_proc() {
        let devices = "Character devices:\n  1 mem\n 10 misc\n\nBlock devices:\n253 device-mapper\n";
        let misc = "236 device-mapper\n 58 rfkill\n144 nvram\n";
        assert_eq!(number_of(devices, "misc"), Some(10));
        assert_eq!(number_of(misc, "device-mapper"), Some(236));
        assert_eq!(number_of(misc, "fuse"), None);
    }
}
