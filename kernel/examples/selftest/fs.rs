//! File system steps.

use std::{fs, path::Path, time::Instant};

use kernel::{
    Ensured,
    dm::dev_node_path,
    mount::{self, FsKind, MountError, Probe},
};

use crate::{Ctx, PATIENCE, Step, Steps, check, ms, remove};

pub(crate) const STEPS: Steps = &[("fs-ext4", ext4), ("fs-xfs", xfs)];

const DIR: &str = "/run/weir-selftest";

fn ext4(x: &Ctx) -> Step {
    life(x, FsKind::Ext4, 64, 128)
}

/// mkfs.xfs refuses less than 300 MiB.
fn xfs(x: &Ctx) -> Step {
    life(x, FsKind::Xfs, 320, 440)
}

/// Blank, made, mounted, bound, grown, unmounted, checked, mounted again.
fn life(x: &Ctx, kind: FsKind, mibs: u64, grown: u64) -> Step {
    let c = &x.control;
    let (target, bound) = (Path::new(DIR).join("a"), Path::new(DIR).join("b"));
    fs::create_dir_all(&target)?;
    fs::create_dir_all(&bound)?;
    let start = 8;
    c.ensure_device(&x.spec("fs", start, mibs)?)?;
    let dev = dev_node_path("selftest-fs");
    wipe(&dev)?;
    check!(mount::probe(&dev, PATIENCE)? == Probe::Blank, "not blank");
    let t = Instant::now();
    check!(mount::make_fs(&dev, kind, PATIENCE)?, "said to be there");
    let made = t.elapsed();
    check!(!mount::make_fs(&dev, kind, PATIENCE)?, "made twice");
    let other = if kind == FsKind::Ext4 { FsKind::Xfs } else { FsKind::Ext4 };
    check!(
        matches!(mount::make_fs(&dev, other, PATIENCE), Err(MountError::NotBlank { .. })),
        "made over another"
    );
    mount::check(&dev, kind, PATIENCE)?;
    check!(mount::ensure_mounted(&dev, &target, kind, &["noatime"])? == Ensured::Created, "mount");
    check!(mount::ensure_mounted(&dev, &target, kind, &["noatime"])? == Ensured::Identity, "mounted twice");
    fs::write(target.join("f"), "kept")?;
    check!(mount::ensure_bound(&target, &bound, true)? == Ensured::Created, "bind");
    check!(mount::ensure_bound(&target, &bound, true)? == Ensured::Identity, "bound twice");
    check!(fs::write(bound.join("g"), "no").is_err(), "a read-only bind was written");
    fs::write(target.join("g"), "yes")?;
    let r = mount::ensure_bound(Path::new("/proc"), &bound, false);
    check!(matches!(r, Err(MountError::Occupied { .. })), "{r:?}");
    check!(mount::ensure_unmounted(&bound)? == Ensured::Swapped, "unbind");
    let before = mount::stats(&target)?;
    c.ensure_device(&x.spec("fs", start, grown)?)?;
    let t = Instant::now();
    mount::grow(&dev, &target, kind, PATIENCE)?;
    let grow = t.elapsed();
    mount::grow(&dev, &target, kind, PATIENCE)?;
    let after = mount::stats(&target)?;
    check!(after.total > before.total + (grown - mibs) * (900 << 10), "{before:?} -> {after:?}");
    check!(mount::ensure_unmounted(&target)? == Ensured::Swapped, "unmount");
    check!(mount::ensure_unmounted(&target)? == Ensured::Identity, "unmounted twice");
    mount::check(&dev, kind, PATIENCE)?;
    mount::ensure_mounted(&dev, &target, kind, &[])?;
    check!(fs::read_to_string(target.join("f"))? == "kept", "the file is lost");
    mount::ensure_unmounted(&target)?;
    wipe(&dev)?;
    remove(c, &["fs"])?;
    Ok(format!("made in {}, grown in {}", ms(made), ms(grow)))
}

/// The first 2 MiB, where every signature of the two kinds stands that blkid would find.
fn wipe(dev: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let f = fs::File::options().read(true).write(true).open(dev)?;
    let go = std::sync::atomic::AtomicBool::new(false);
    kernel::block::zero_range(&f, 0, 2 << 20, 1 << 20, &go, |_| ())?;
    Ok(())
}
