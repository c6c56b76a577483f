//! Paths that a caller names. The table of mounts shows paths without links, so every path is resolved up to its
//! last component; the last one itself is not followed: what it may lead to is a device or a mount that hangs.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use pool::ids::VolumeId;

use super::error::CsiError;

/// A path as the request gives it: absolute and without `..`.
pub(super) fn parse(field: &str, s: &str) -> Result<PathBuf, CsiError> {
    if s.is_empty() {
        return Err(CsiError::missing(field));
    }
    let p = Path::new(s);
    let plain = p.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !plain || !p.is_absolute() || s.contains('\0') || p.file_name().is_none() {
        return Err(CsiError::Argument(format!("{field} must be an absolute path without `..`")));
    }
    Ok(p.components().collect())
}

/// The path with the links in its folder resolved; `None` when the folder is not there.
pub(super) fn resolve(volume: VolumeId, path: &Path) -> Result<Option<PathBuf>, CsiError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Some(path.to_owned())) };
    match fs::canonicalize(dir) {
        Ok(real) => Ok(Some(real.join(name))),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(fail(volume, "resolve", dir, e)),
    }
}

/// What is at a path that nothing is mounted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Folder,
    File,
    Other,
}

pub(super) fn look(volume: VolumeId, path: &Path) -> Result<Found, CsiError> {
    match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => Ok(Found::Folder),
        Ok(m) if m.is_file() => Ok(Found::File),
        Ok(_) => Ok(Found::Other),
        Err(e) if is_absent(&e) => Ok(Found::Nothing),
        Err(e) => Err(fail(volume, "look at", path, e)),
    }
}

/// Makes the folder, and those it lies in.
pub(super) fn ensure_folder(volume: VolumeId, path: &Path) -> Result<(), CsiError> {
    fs::create_dir_all(path).map_err(|e| fail(volume, "create folder", path, e))
}

/// Makes an empty file to bind a device on.
pub(super) fn ensure_file(volume: VolumeId, path: &Path) -> Result<(), CsiError> {
    if let Some(dir) = path.parent() {
        ensure_folder(volume, dir)?;
    }
    let made = fs::File::options().create(true).append(true).open(path);
    made.map(drop).map_err(|e| fail(volume, "create file", path, e))
}

/// Removes what was made for a publish: an empty folder or an empty file, nothing else.
pub(super) fn remove_target(volume: VolumeId, path: &Path) -> Result<(), CsiError> {
    let removed = match look(volume, path)? {
        Found::Nothing => return Ok(()),
        Found::Folder => fs::remove_dir(path),
        Found::File => match fs::symlink_metadata(path) {
            Ok(m) if m.len() > 0 => Err(io::Error::other("the file is not empty, so it is not the driver's")),
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        },
        Found::Other => Err(io::Error::other("neither a folder nor a file, so it is not the driver's")),
    };
    match removed {
        Err(e) if !is_absent(&e) => Err(fail(volume, "remove", path, e)),
        _ => Ok(()),
    }
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn fail(volume: VolumeId, op: &'static str, path: &Path, source: io::Error) -> CsiError {
    CsiError::Path { volume, op, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId::from_u128(1);

    #[test]
    fn only_plain_absolute_paths() {
        for bad in ["", "a/b", "/a/../b", "/", "/a\0b"] {
            assert!(parse("target_path", bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse("p", "/a//b/").unwrap(), Path::new("/a/b"));
    }

    #[test]
    fn only_what_is_empty_is_removed() {
        let t = tempfile::tempdir().unwrap();
        let (dir, file) = (t.path().join("d/e"), t.path().join("x/f"));
        ensure_folder(V, &dir).unwrap();
        ensure_file(V, &file).unwrap();
        ensure_file(V, &file).unwrap();
        assert!(remove_target(V, &t.path().join("d")).is_err(), "not empty");
        fs::write(t.path().join("full"), "data").unwrap();
        assert!(remove_target(V, &t.path().join("full")).is_err());
        for p in [&dir, &file, &file] {
            remove_target(V, p).unwrap();
            assert_eq!(look(V, p).unwrap(), Found::Nothing);
        }
        assert_eq!(resolve(V, &t.path().join("gone/x")).unwrap(), None);
    }

    #[test]
    fn links_in_the_folder_are_resolved_and_the_last_one_is_not() {
        let t = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(t.path()).unwrap();
        fs::create_dir(real.join("real")).unwrap();
        std::os::unix::fs::symlink(real.join("real"), real.join("link")).unwrap();
        assert_eq!(resolve(V, &real.join("link/x")).unwrap(), Some(real.join("real/x")));
        assert_eq!(resolve(V, &real.join("link")).unwrap(), Some(real.join("link")));
    }
}
