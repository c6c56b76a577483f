//! Small readers and writers for sysfs, configfs and procfs attributes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// An attribute that could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}")]
pub struct AttrError {
    /// `read`, `write "1" to`, ...
    pub what: String,
    /// The file or folder.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl AttrError {
    pub(crate) fn new(what: impl Into<String>, path: &Path, source: io::Error) -> Self {
        Self { what: what.into(), path: path.to_owned(), source }
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        crate::error::errno(&self.source)
    }

    /// What a caller may do about it.
    pub fn class(&self) -> crate::Class {
        crate::Class::of_io(&self.source)
    }
}

/// The attribute's text without surrounding white space.
pub(crate) fn read(path: &Path) -> Result<String, AttrError> {
    match fs::read_to_string(path) {
        Ok(s) => Ok(s.trim().to_owned()),
        Err(e) => Err(AttrError::new("read", path, e)),
    }
}

/// Whether an error says that the object is not there (any more). sysfs answers ENODEV or ENXIO for an open
/// attribute whose device has gone.
pub(crate) fn is_gone(e: &AttrError) -> bool {
    matches!(e.source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR))
}

/// As [`read`], `None` when the attribute or its device is not there.
pub(crate) fn read_opt(path: &Path) -> Result<Option<String>, AttrError> {
    match read(path) {
        Ok(s) => Ok(Some(s)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// An attribute that holds one number.
pub(crate) fn read_num(path: &Path) -> Result<u64, AttrError> {
    let s = read(path)?;
    s.parse().map_err(|e| {
        AttrError::new("parse", path, io::Error::new(io::ErrorKind::InvalidData, format!("{s:?}: {e}")))
    })
}

/// Writes the whole value in one write(2), as sysfs and configfs want it.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), AttrError> {
    fs::write(path, value).map_err(|e| AttrError::new(format!("write {value:?} to"), path, e))
}

/// Names in a folder, sorted; empty when the folder is not there.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, AttrError> {
    let list = match fs::read_dir(dir) {
        Ok(l) => l,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(AttrError::new("list", dir, e)),
    };
    let mut out = Vec::new();
    for entry in list {
        let entry = entry.map_err(|e| AttrError::new("list", dir, e))?;
        // Kernel object names are ASCII; anything else is not ours to touch.
        if let Ok(name) = entry.file_name().into_string() {
            out.push(name);
        }
    }
    out.sort();
    Ok(out)
}
