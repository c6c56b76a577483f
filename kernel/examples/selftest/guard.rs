//! Guard steps: reads served, the first write held, committed or aborted.

use std::time::{Duration, Instant};

use kernel::{
    DevNo,
    block::BlockDevice,
    dm::{Table, Target, dev_node_path, guard_top, guard_write_leg},
};
use pool::units::Sectors;

use crate::{Ctx, PATIENCE, Step, Steps, check, io, ms, remove, spec, spread, uuid, wait};

pub(crate) const STEPS: Steps = &[
    ("guard-commit", commit),
    ("guard-abort", abort),
    ("guard-discard", discard),
    ("guard-no-write", no_write),
];

const MIBS: u64 = 16;

fn len() -> Sectors {
    Sectors::new(MIBS * 2048)
}

struct Guard {
    map: DevNo,
    real: Table,
}

/// Puts a guard up: the map, the write leg, the top.
fn put_up(x: &Ctx) -> Result<Guard, Box<dyn std::error::Error>> {
    let c = &x.control;
    let map_spec = x.spec("map", 0, MIBS)?;
    let map = c.ensure_device(&map_spec)?.1.dev;
    let wr = c.ensure_device(&spec("wr", guard_write_leg(map, len())?)?)?.1.dev;
    c.ensure_device(&spec("top", guard_top(map, wr, len())?)?)?;
    Ok(Guard { map, real: map_spec.table })
}

fn take_down(x: &Ctx) -> Result<(), Box<dyn std::error::Error>> {
    remove(&x.control, &["top", "wr", "map"])
}

fn top() -> std::path::PathBuf {
    dev_node_path("selftest-top")
}

/// Waits for a held write; how long it took to see it.
fn held(x: &Ctx) -> Result<Duration, Box<dyn std::error::Error>> {
    let t = Instant::now();
    wait("a held write", || Ok((x.control.status_delay(&uuid("top"))?.writes > 0).then_some(())))?;
    Ok(t.elapsed())
}

fn commit(x: &Ctx) -> Step {
    let (mut seen, mut swaps, mut pauses) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=5u8 {
        let g = put_up(x)?;
        let fresh = x.control.ensure_device(&spec("wr", guard_write_leg(g.map, len())?)?)?.0;
        check!(fresh == kernel::Ensured::Identity, "the write leg reads back otherwise");
        io::read(&top(), 5)?;
        let before = io::read(&dev_node_path("selftest-map"), 5)?;
        let map = BlockDevice::new(g.map)?;
        let stat = map.stat()?;
        let rx = io::spawn(move || io::write(&top(), 5, round));
        seen.push(held(x)?);
        check!(rx.recv_timeout(Duration::from_millis(50)).is_err(), "the write was not held");
        check!(io::read(&top(), 5)? == before, "a read sees the held write");
        check!(!map.stat()?.wrote_since(&stat), "a write reached the map");
        let t = Instant::now();
        let through = Table::single(len(), Target::Linear { dev: g.map, offset: Sectors::ZERO })?;
        x.control.swap(&uuid("wr"), &through)?;
        x.control.swap(&uuid("top"), &g.real)?;
        swaps.push(t.elapsed());
        rx.recv_timeout(PATIENCE)?.0?;
        pauses.push(t.elapsed());
        check!(io::read(&top(), 5)? == round, "the held write did not arrive");
        // What the guard was made of goes while the top serves.
        remove(&x.control, &["wr", "map"])?;
        io::write(&top(), 6, round)?;
        take_down(x)?;
    }
    Ok(format!(
        "seen: {}; swaps: {}; until the write was done: {}",
        spread(seen),
        spread(swaps),
        spread(pauses)
    ))
}

fn abort(x: &Ctx) -> Step {
    let g = put_up(x)?;
    let before = io::read(&top(), 5)?;
    let rx = io::spawn(move || io::write(&top(), 5, before.wrapping_add(1)));
    held(x)?;
    let t = Instant::now();
    x.control.fence(&uuid("top"), len())?;
    let (r, _) = rx.recv_timeout(PATIENCE)?;
    let took = t.elapsed();
    let e = r.err().and_then(|e| e.raw_os_error());
    check!(e == Some(libc::EIO), "the held write said {e:?}");
    check!(io::read(&dev_node_path("selftest-map"), 5)? == before, "the held write arrived");
    check!(g.map != x.disk, "no map");
    take_down(x)?;
    Ok(format!("EIO after {}", ms(took)))
}

/// A discard is advertised, held like a write, and fails on an abort.
fn discard(x: &Ctx) -> Step {
    put_up(x)?;
    io::write(&dev_node_path("selftest-map"), 5, 0x5a)?;
    let info = x.control.info(&uuid("top"))?;
    let limits = BlockDevice::new(info.dev)?.limits()?;
    check!(!limits.discard_max.is_zero(), "the guard advertises no discard");
    let rx = io::spawn(move || io::discard(&top(), 5));
    held(x)?;
    x.control.fence(&uuid("top"), len())?;
    let e = rx.recv_timeout(PATIENCE)?.0.err().and_then(|e| e.raw_os_error());
    check!(e == Some(libc::EIO), "the held discard said {e:?}");
    check!(io::read(&dev_node_path("selftest-map"), 5)? == 0x5a, "the discard arrived");
    take_down(x)?;
    Ok(format!("write cache {}", if limits.write_back { "kept" } else { "lost" }))
}

/// Promoted without a write (the source let go first): nothing is held, both swaps go through.
fn no_write(x: &Ctx) -> Step {
    let g = put_up(x)?;
    check!(x.control.status_delay(&uuid("top"))?.writes == 0, "held from nowhere");
    let t = Instant::now();
    let through = Table::single(len(), Target::Linear { dev: g.map, offset: Sectors::ZERO })?;
    x.control.swap(&uuid("wr"), &through)?;
    x.control.swap(&uuid("top"), &g.real)?;
    let took = t.elapsed();
    io::write(&top(), 5, 1)?;
    take_down(x)?;
    Ok(ms(took))
}
