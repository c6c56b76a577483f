//! How fast mirrors copy: dm-mirror's `raid1_resync_throttle`, the percent of its time that kcopyd may spend on them. There is one
//! for all mirrors of a kernel (drivers/md/dm-raid1.c, dm-kcopyd.c); at 100 nothing is held back.

use std::path::Path;

use crate::sysfs::{self, AttrError};

const PARAMETERS: &str = "/sys/module/dm_mirror/parameters";

/// Sets it, from 1 to 100. No error where dm-mirror is not loaded: then nothing copies.
///
/// # Errors
/// The kernel refuses.
pub fn set_mirror_throttle(percent: u32) -> Result<(), AttrError> {
    set_at(Path::new(PARAMETERS), percent.clamp(1, 100))
}

fn set_at(dir: &Path, percent: u32) -> Result<(), AttrError> {
    let file = dir.join("raid1_resync_throttle");
    match sysfs::read_opt(&file)? {
        None => Ok(()),
        Some(now) if now == percent.to_string() => Ok(()),
        Some(_) => sysfs::write(&file, &percent.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn it_is_written_where_there_is_one() {
        let dir = tempfile::tempdir().expect("a folder");
        set_at(dir.path(), 5).expect("no module, nothing to set");
        let file = dir.path().join("raid1_resync_throttle");
        fs::write(&file, "100\n").expect("the parameter");
        set_at(dir.path(), 100).expect("it is so");
        assert_eq!(fs::read_to_string(&file).expect("the parameter"), "100\n");
        set_at(dir.path(), 5).expect("set");
        assert_eq!(fs::read_to_string(&file).expect("the parameter"), "5");
    }
}
