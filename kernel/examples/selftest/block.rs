//! Block device steps.

use std::{
    fs::File,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use kernel::{
    block::{self, BlockDevice, BlockError, Rejected},
    deadline::{Outcome, Runner},
};

use crate::{Ctx, PATIENCE, Step, Steps, check, io, remove};

pub(crate) const STEPS: Steps =
    &[("block-candidates", candidates), ("block-zero", zero), ("deadline", deadline)];

fn candidates(x: &Ctx) -> Step {
    let ours =
        || -> Result<_, BlockError> { Ok(block::candidates(&[])?.into_iter().find(|c| c.dev == x.disk)) };
    let free = ours()?.ok_or("the disk is not listed")?;
    check!(free.rejected.is_none(), "{:?}", free.rejected);
    let a = x.spec("a", 0, 8)?;
    x.control.ensure_device(&a)?;
    let held = ours()?.ok_or("the disk is not listed")?;
    check!(
        matches!(&held.rejected, Some(Rejected::Held(h) | Rejected::Ours(h)) if h.len() == 1),
        "{:?}",
        held.rejected
    );
    remove(&x.control, &["a"])?;
    let b = block::find_disk(&x.path.to_string_lossy())?;
    check!(b.dev() == x.disk, "found another disk");
    let l = b.limits()?;
    Ok(format!("{} {} {l:?}", free.name, free.size))
}

fn zero(x: &Ctx) -> Step {
    for n in [0, 255, 256, 511, 512] {
        io::write(&x.path, n, 0xaa)?;
    }
    let f = File::options().read(true).write(true).open(&x.path)?;
    let go = AtomicBool::new(false);
    let mut calls = 0;
    let t = Instant::now();
    block::zero_range(&f, 1 << 20, 1 << 20, 256 << 10, &go, |p| {
        calls += 1;
        debug_assert!(p.done <= p.total);
    })?;
    let took = t.elapsed();
    check!(calls == 4, "{calls} calls");
    for (n, want) in [(255, 0xaa), (256, 0), (511, 0), (512, 0xaa)] {
        check!(io::read(&x.path, n)? == want, "block {n}");
    }
    let stop = AtomicBool::new(false);
    let r = block::zero_range(&f, 0, 1 << 20, 256 << 10, &stop, |p| {
        stop.store(p.done >= 512 << 10, Ordering::Relaxed)
    });
    check!(matches!(r, Err(BlockError::Aborted { done: 524_288 })), "{r:?}");
    check!(io::read(&x.path, 0)? == 0 && io::read(&x.path, 255)? == 0xaa, "the abort was not heeded");
    let size = BlockDevice::new(x.disk)?.bytes()?.get();
    for (off, len) in [(1, 512), (0, 100), (size, 512), (u64::MAX - 511, 1024)] {
        let r = block::zero_range(&f, off, len, 4096, &go, |_| ());
        check!(matches!(r, Err(BlockError::Range { .. })), "{off}+{len}: {r:?}");
    }
    block::zero_range(&f, 0, 4 << 20, block::DEFAULT_CHUNK, &go, |_| ())?;
    Ok(format!("1 MiB in {took:?}"))
}

/// A kernel call that hangs (a write below which nothing answers) does not take its caller with it.
fn deadline(x: &Ctx) -> Step {
    let c = &x.control;
    let a = x.spec("a", 0, 8)?;
    c.ensure_device(&a)?;
    c.suspend(&a.uuid)?;
    let path = kernel::dm::dev_node_path(&a.name);
    let r = Runner::new(1);
    let out = r.run("a write below a suspend", Duration::from_millis(100), move || io::write(&path, 1, 1))?;
    let Outcome::TimedOut(p) = out else { return Err("written below a suspend".into()) };
    check!(r.running().len() == 1, "not counted");
    check!(r.run("another", PATIENCE, || ()).is_err(), "more than allowed");
    c.resume(&a.uuid)?;
    let Outcome::Done(w) = p.wait(PATIENCE) else { return Err("the write does not return".into()) };
    w?;
    check!(r.running().is_empty(), "still counted");
    remove(c, &["a"])?;
    Ok("timed out, counted, asked again".into())
}
