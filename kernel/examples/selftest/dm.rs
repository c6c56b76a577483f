//! Device-mapper steps.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kernel::{
    Class, DevNo, Ensured,
    dm::{
        DelayLeg, DmError, EventPoll, HOLD_MS, Line, PathState, Stripe, Table, Target, Which, dev_node_path,
        ensure_dev_node,
    },
    uevent::{Next, Uevents},
};
use pool::units::Sectors;

use crate::{Ctx, PATIENCE, Step, Steps, check, io, remove, spec, spread, uuid, wait};

pub(crate) const STEPS: Steps = &[
    ("dm-version", version),
    ("dm-ensure", ensure),
    ("dm-tables", tables),
    ("dm-swap-time", swap_time),
    ("dm-swap-under-io", swap_under_io),
    ("dm-preload", preload),
    ("dm-no-leak", no_leak),
    ("dm-refused-swap", refused_swap),
    ("dm-foreign", foreign),
    ("dm-remove", removal),
    ("dm-half-made", half_made),
    ("dm-large-table", large_table),
    ("dm-multipath-event", multipath_event),
    ("dm-mirror", mirror),
    ("dm-uevent", uevents),
];

fn version(x: &Ctx) -> Step {
    let v = x.control.version()?;
    let t = x.control.targets()?;
    for want in ["linear", "error", "delay", "flakey", "multipath", "mirror"] {
        check!(t.iter().any(|t| t.name == want), "target {want} is not loaded: {t:?}");
    }
    Ok(format!("interface {}.{}.{}, {} targets", v[0], v[1], v[2], t.len()))
}

fn ensure(x: &Ctx) -> Step {
    let c = &x.control;
    let a = x.spec("a", 0, 8)?;
    let (made, info) = c.ensure_device(&a)?;
    check!(made == Ensured::Created, "{made:?}");
    check!(DevNo::of_path(&dev_node_path(&a.name))? == info.dev, "the node is another device");
    io::write(&dev_node_path(&a.name), 1, 7)?;
    check!(c.ensure_device(&a)?.0 == Ensured::Identity, "second ensure changed something");
    let moved = spec("a", Table::single(Sectors::new(8 * 2048), x.linear(64))?)?;
    let (swapped, after) = c.ensure_device(&moved)?;
    check!(swapped == Ensured::Swapped && after.dev == info.dev, "{swapped:?} {after:?}");
    check!(io::read(&dev_node_path(&a.name), 1)? == 0, "the old place is still read");
    check!(c.ensure_device(&a)?.0 == Ensured::Swapped, "not swapped back");
    check!(io::read(&dev_node_path(&a.name), 1)? == 7, "the old place is lost");
    check!(c.list()?.iter().any(|d| d.uuid.as_deref() == Some(a.uuid.as_str())), "not listed");
    check!(c.deps(&a.uuid)? == vec![x.disk], "deps {:?}", c.deps(&a.uuid)?);
    // A node that a crash has taken away comes back.
    std::fs::remove_file(dev_node_path(&a.name))?;
    check!(c.ensure_device(&a)?.0 == Ensured::Identity, "not identity");
    check!(ensure_dev_node(&a.name, info.dev)?.exists(), "no node");
    remove(c, &["a"])?;
    check!(!dev_node_path(&a.name).exists(), "the node stays");
    Ok(format!("{}", info.dev))
}

/// Every form that is rendered reads back equal from the kernel.
fn tables(x: &Ctx) -> Step {
    let c = &x.control;
    let len = Sectors::new(2048);
    let leg = |delay_ms| DelayLeg { dev: x.disk, offset: Sectors::ZERO, delay_ms };
    let stripe = |mib: u64| Stripe { dev: x.disk, offset: Sectors::new(mib * 2048) };
    let targets = [
        x.linear(3),
        Target::Error,
        Target::Zero,
        Target::Striped { chunk: Sectors::new(128), stripes: vec![stripe(0), stripe(64)] },
        Target::Delay { read: leg(0), write: None, flush: None },
        Target::Delay { read: leg(0), write: Some(leg(HOLD_MS)), flush: Some(leg(0)) },
        Target::FlakeyErrorWrites { dev: x.disk, offset: Sectors::ZERO },
        Target::MultipathBio { path: Some(x.disk), queue_if_no_path: true },
        Target::MultipathBio { path: Some(x.disk), queue_if_no_path: false },
        Target::MultipathBio { path: None, queue_if_no_path: true },
        Target::Mirror { region: Sectors::new(1024), legs: vec![stripe(0), stripe(64)] },
    ];
    for t in &targets {
        let s = spec("t", Table::single(len, t.clone())?)?;
        c.ensure_device(&s)?;
        let seen = c.raw_table(&s.uuid, Which::Active)?;
        let table = c.table(&s.uuid, Which::Active)?;
        check!(table.as_ref() == Some(&s.table), "wanted {:?}, the kernel has {seen:?}", t.render());
        remove(c, &["t"])?;
    }
    Ok(format!("{} forms", targets.len()))
}

fn swap_time(x: &Ctx) -> Step {
    let c = &x.control;
    let (a, b) = (x.spec("a", 0, 8)?, x.spec("a", 64, 8)?);
    c.ensure_device(&a)?;
    let (mut whole, mut commit) = (Vec::new(), Vec::new());
    for i in 0..20 {
        let t = Instant::now();
        c.swap(&a.uuid, if i % 2 == 0 { &b.table } else { &a.table })?;
        whole.push(t.elapsed());
        c.preload(&a.uuid, if i % 2 == 0 { &a.table } else { &b.table })?;
        let t = Instant::now();
        c.resume(&a.uuid)?;
        commit.push(t.elapsed());
    }
    remove(c, &["a"])?;
    Ok(format!("load and commit: {}; commit alone: {}", spread(whole), spread(commit)))
}

/// Writes go on during swaps; none fails and none is lost.
fn swap_under_io(x: &Ctx) -> Step {
    let c = &x.control;
    let a = x.spec("a", 0, 8)?;
    c.ensure_device(&a)?;
    let path = dev_node_path(&a.name);
    let rx = io::spawn(move || {
        let mut worst = Duration::ZERO;
        for n in 0..400u64 {
            let t = Instant::now();
            io::write(&path, n, n as u8)?;
            worst = worst.max(t.elapsed());
        }
        Ok(worst)
    });
    let mut swaps = 0;
    // A table that maps the same place differently, so that each swap is one.
    let halves =
        Table::concat([(Sectors::new(4 * 2048), x.linear(0)), (Sectors::new(4 * 2048), x.linear(4))])?;
    let (r, took) = loop {
        c.swap(&a.uuid, if swaps % 2 == 0 { &halves } else { &a.table })?;
        swaps += 1;
        match rx.recv_timeout(Duration::from_millis(5)) {
            Ok(r) => break r,
            Err(_) => check!(swaps < 20_000, "the writer does not end"),
        }
    };
    let worst = r?;
    for n in [0u64, 200, 399] {
        check!(io::read(&dev_node_path(&a.name), n)? == n as u8, "block {n} is lost");
    }
    remove(c, &["a"])?;
    Ok(format!("{swaps} swaps under 400 writes in {took:?}, worst write {worst:?}"))
}

fn preload(x: &Ctx) -> Step {
    let c = &x.control;
    let a = x.spec("a", 0, 8)?;
    c.ensure_device(&a)?;
    let path = dev_node_path(&a.name);
    check!(
        matches!(c.commit_preloaded(&a.uuid), Err(DmError::NothingPreloaded { .. })),
        "committed what was not preloaded"
    );
    c.preload(&a.uuid, &Table::error(a.table.len())?)?;
    check!(c.info(&a.uuid)?.inactive, "no inactive table");
    check!(
        c.table(&a.uuid, Which::Inactive)? == Some(Table::error(a.table.len())?),
        "inactive table differs"
    );
    check!(c.ensure_device(&a)?.0 == Ensured::Identity, "the preloaded table was taken for the active one");
    io::write(&path, 1, 1)?;
    c.clear_preloaded(&a.uuid)?;
    c.clear_preloaded(&a.uuid)?;
    check!(!c.info(&a.uuid)?.inactive, "not cleared");
    c.resume(&a.uuid)?;
    io::write(&path, 1, 2)?;
    c.preload(&a.uuid, &Table::error(a.table.len())?)?;
    c.commit_preloaded(&a.uuid)?;
    let e = io::write(&path, 1, 3).err().and_then(|e| e.raw_os_error());
    check!(e == Some(libc::EIO), "a fenced write said {e:?}");
    c.swap(&a.uuid, &a.table)?;
    check!(io::read(&path, 1)? == 2, "the fenced write arrived");
    // Left suspended with a fence preloaded by a crash: ensured back without committing the fence.
    c.preload(&a.uuid, &Table::error(a.table.len())?)?;
    c.suspend(&a.uuid)?;
    check!(!c.serves(&a.uuid, &a.table)?, "serves while suspended");
    check!(c.ensure_device(&a)?.0 == Ensured::Swapped, "not resumed");
    check!(c.serves(&a.uuid, &a.table)? && !c.info(&a.uuid)?.inactive, "not as before");
    io::write(&path, 1, 4)?;
    remove(c, &["a"])?;
    Ok("cleared, committed, recovered from a suspend".into())
}

/// A fresh device whose table is refused is not left behind.
fn no_leak(x: &Ctx) -> Step {
    let c = &x.control;
    let nowhere = Target::Linear { dev: DevNo::new(240, 77), offset: Sectors::ZERO };
    let bad = spec("a", Table::single(Sectors::new(2048), nowhere)?)?;
    let e = c.ensure_device(&bad).err().ok_or("made over a device that does not exist")?;
    check!(c.info_opt(&bad.uuid)?.is_none(), "left behind");
    // Past the end of the disk, on a device that exists: it keeps serving what it had.
    let a = x.spec("a", 0, 8)?;
    c.ensure_device(&a)?;
    let past = Target::Linear { dev: x.disk, offset: x.size };
    let e2 = c.swap(&a.uuid, &Table::single(Sectors::new(2048), past)?).err().ok_or("past the end")?;
    check!(c.serves(&a.uuid, &a.table)? && !c.info(&a.uuid)?.inactive, "does not serve the old table");
    remove(c, &["a"])?;
    Ok(format!("{e} [{}]; {e2} [{}]", e.class().as_str(), e2.class().as_str()))
}

/// multipath is never replaced by another type; the refusal leaves the device as it was.
fn refused_swap(x: &Ctx) -> Step {
    let c = &x.control;
    let mp = Target::MultipathBio { path: Some(x.disk), queue_if_no_path: true };
    let a = spec("a", Table::single(Sectors::new(8 * 2048), mp)?)?;
    c.ensure_device(&a)?;
    let e = c.swap(&a.uuid, &x.spec("a", 0, 8)?.table).err().ok_or("the kernel took it")?;
    check!(e.class() == Class::Permanent, "{e}: {:?}", e.class());
    check!(c.serves(&a.uuid, &a.table)?, "does not serve");
    io::write(&dev_node_path(&a.name), 1, 9)?;
    remove(c, &["a"])?;
    Ok(e.to_string())
}

fn foreign(x: &Ctx) -> Step {
    let c = &x.control;
    let a = x.spec("a", 0, 8)?;
    c.ensure_device(&a)?;
    let same_name = kernel::dm::DeviceSpec { uuid: uuid("b"), ..a.clone() };
    let same_uuid = kernel::dm::DeviceSpec { name: "selftest-b".into(), ..a.clone() };
    for s in [same_name, same_uuid] {
        let r = c.ensure_device(&s);
        check!(matches!(r, Err(DmError::Foreign { .. })), "{r:?}");
    }
    check!(c.ensure_device(&a)?.0 == Ensured::Identity, "touched");
    remove(c, &["a"])?;
    check!(c.list()?.iter().all(|d| !d.name.starts_with("selftest-")), "left behind: {:?}", c.list()?);
    Ok("a taken name and a taken UUID are left alone".into())
}

fn removal(x: &Ctx) -> Step {
    let c = &x.control;
    let a = x.spec("a", 0, 8)?;
    c.ensure_device(&a)?;
    let held = std::fs::File::open(dev_node_path(&a.name))?;
    let e = c.ensure_removed(&a.name, &a.uuid).err().ok_or("removed while open")?;
    check!(e.class() == Class::Busy, "{e}");
    let rx = io::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(held);
        Ok(())
    });
    c.ensure_removed_within(&a.name, &a.uuid, PATIENCE)?;
    rx.recv()?.0?;
    check!(c.ensure_removed(&a.name, &a.uuid)? == Ensured::Identity, "removed twice");
    // Deferred: gone at the last close.
    c.ensure_device(&a)?;
    let held = std::fs::File::open(dev_node_path(&a.name))?;
    c.remove(&a.uuid, true)?;
    check!(c.info(&a.uuid)?.deferred_remove, "not deferred");
    drop(held);
    wait("deferred removal", || Ok(c.info_opt(&a.uuid)?.is_none().then_some(())))?;
    check!(c.ensure_removed(&a.name, &a.uuid)? == Ensured::Identity, "there");
    check!(!dev_node_path(&a.name).exists(), "the node stays");
    Ok("busy, waited for, deferred".into())
}

/// What a crash leaves between create, load and resume is finished.
fn half_made(x: &Ctx) -> Step {
    let c = &x.control;
    let a = x.spec("a", 0, 8)?;
    c.create(&a.name, &a.uuid)?;
    check!(c.table(&a.uuid, Which::Active)?.is_none(), "a table without a load");
    check!(c.ensure_device(&a)?.0 == Ensured::Created, "empty device");
    remove(c, &["a"])?;
    c.create(&a.name, &a.uuid)?;
    c.preload(&a.uuid, &Table::error(a.table.len())?)?;
    check!(c.ensure_device(&a)?.0 == Ensured::Created, "device with a preloaded table");
    check!(c.serves(&a.uuid, &a.table)?, "serves something else");
    remove(c, &["a"])?;
    Ok("after create, after load".into())
}

/// An answer that is larger than the first buffer.
fn large_table(x: &Ctx) -> Step {
    let c = &x.control;
    let n = 3000u64;
    let line = |i: u64| Line {
        start: Sectors::new(i * 8),
        len: Sectors::new(8),
        target: Target::Linear { dev: x.disk, offset: Sectors::new((n - i) * 8) },
    };
    let s = spec("a", Table::new((0..n).map(line).collect())?)?;
    let t = Instant::now();
    c.ensure_device(&s)?;
    let made = t.elapsed();
    check!(c.ensure_device(&s)?.0 == Ensured::Identity, "reads back otherwise");
    remove(c, &["a"])?;
    Ok(format!("{n} lines, made in {made:?}"))
}

fn multipath_event(x: &Ctx) -> Step {
    let c = &x.control;
    let mp = Target::MultipathBio { path: Some(x.disk), queue_if_no_path: true };
    let a = spec("a", Table::single(Sectors::new(8 * 2048), mp)?)?;
    c.ensure_device(&a)?;
    let before = c.status_multipath(&a.uuid)?;
    check!(before.has_path(), "{before:?}");
    let poll = EventPoll::new()?;
    check!(!poll.wait(Some(Duration::from_millis(20)))?, "an event from nowhere");
    c.message(&a.uuid, 0, &format!("fail_path {}", x.disk))?;
    let t = Instant::now();
    check!(poll.wait(Some(PATIENCE))?, "no event");
    let seen = t.elapsed();
    let s = c.status_multipath(&a.uuid)?;
    check!(s.paths.iter().all(|p| p.1 == PathState::Failed), "{s:?}");
    // Queued while there is no path, done when it is back.
    let path = dev_node_path(&a.name);
    let rx = io::spawn(move || io::write(&path, 3, 5));
    check!(rx.recv_timeout(Duration::from_millis(200)).is_err(), "written without a path");
    c.reinstate_path(&a.uuid, x.disk)?;
    rx.recv_timeout(PATIENCE)?.0?;
    // Not queued when told to fail.
    c.message(&a.uuid, 0, &format!("fail_path {}", x.disk))?;
    c.set_queueing(&a.uuid, false)?;
    let e = io::write(&dev_node_path(&a.name), 3, 6).err().and_then(|e| e.raw_os_error());
    check!(e == Some(libc::EIO), "{e:?}");
    remove(c, &["a"])?;
    Ok(format!("event after {seen:?}"))
}

fn mirror(x: &Ctx) -> Step {
    let c = &x.control;
    let (src, dst) = (x.spec("src", 0, 8)?, x.spec("dst", 64, 8)?);
    let (src_dev, dst_dev) = (c.ensure_device(&src)?.1.dev, c.ensure_device(&dst)?.1.dev);
    io::write(&dev_node_path(&src.name), 9, 99)?;
    let leg = |dev| Stripe { dev, offset: Sectors::ZERO };
    let m = Target::Mirror { region: Sectors::new(1024), legs: vec![leg(src_dev), leg(dst_dev)] };
    let s = spec("a", Table::single(src.table.len(), m)?)?;
    c.ensure_device(&s)?;
    let t = Instant::now();
    wait("the copy", || Ok(c.status_mirror(&s.uuid)?.is_complete().then_some(())))?;
    let took = t.elapsed();
    remove(c, &["a"])?;
    check!(io::read(&dev_node_path(&dst.name), 9)? == 99, "not copied");
    remove(c, &["src", "dst"])?;
    Ok(format!("8 MiB in {took:?}"))
}

fn uevents(x: &Ctx) -> Step {
    let u = Uevents::open()?;
    let a = x.spec("a", 0, 8)?;
    let dev = x.control.ensure_device(&a)?.1.dev;
    let minor = dev.minor.to_string();
    let seen = wait("a uevent", || match u.next(Some(PATIENCE))? {
        Next::Event(e) if e.vars.get("MINOR") == Some(&minor) && e.subsystem == "block" => Ok(Some(e.action)),
        _ => Ok(None),
    })?;
    remove(&x.control, &["a"])?;
    check!(Path::new("/sys/block").exists(), "no sysfs");
    Ok(format!("first event: {seen}"))
}
