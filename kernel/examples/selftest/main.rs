//! kernel-selftest: what the `kernel` crate promises, tried on a real kernel.
//!
//! Run as root inside a node, against a spare blank disk of at least 480 MiB, which it wipes. Needs the modules
//! dm-delay, dm-flakey, dm-multipath, dm-mirror, nvmet-tcp, nvme-tcp and tcp_diag, and configfs. Prints
//! `ok NAME (DETAIL)` or `FAIL NAME: WHY` for each step and the counts at the end; the exit status is 1 when a
//! step failed.

mod block;
mod dm;
mod export;
mod fs;
mod guard;
mod io;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use kernel::{
    DevNo,
    block::BlockDevice,
    dm::{Control, DeviceSpec, Table, Target},
    mount::{Probe, probe},
};
use pool::units::Sectors;

/// What a step brings: a detail to print.
type Step = Result<String, Box<dyn Error>>;

/// Named steps.
type Steps = &'static [(&'static str, fn(&Ctx) -> Step)];

/// A step fails when this does not hold.
macro_rules! check {
    ($cond:expr, $($why:tt)+) => {
        if !$cond {
            return Err(format!($($why)+).into());
        }
    };
}
pub(crate) use check;

/// No step waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the steps share.
struct Ctx {
    control: Control,
    disk: DevNo,
    path: PathBuf,
    size: Sectors,
}

impl Ctx {
    /// A linear target from a MiB of the disk.
    fn linear(&self, mib: u64) -> Target {
        Target::Linear { dev: self.disk, offset: Sectors::new(mib * 2048) }
    }

    /// A device over `mibs` MiB from MiB `at` of the disk.
    fn spec(&self, name: &str, at: u64, mibs: u64) -> Result<DeviceSpec, Box<dyn Error>> {
        spec(name, Table::single(Sectors::new(mibs * 2048), self.linear(at))?)
    }
}

/// A device of the selftest's own; its UUID follows from its name.
fn spec(name: &str, table: Table) -> Result<DeviceSpec, Box<dyn Error>> {
    Ok(DeviceSpec { name: format!("selftest-{name}"), uuid: uuid(name), table })
}

fn uuid(name: &str) -> String {
    format!("WEIRTEST-{name}")
}

/// Removes devices of the selftest, uppermost first.
fn remove(c: &Control, names: &[&str]) -> Result<(), Box<dyn Error>> {
    for n in names {
        c.ensure_removed_within(&format!("selftest-{n}"), &uuid(n), PATIENCE)?;
    }
    Ok(())
}

/// Removes what a failed step has left, as far as it is not in use by another: several rounds, because the list
/// does not say what stands on what. Slices and the leg belong to several steps and stay.
fn clean(c: &Control) -> Result<(), Box<dyn Error>> {
    for _ in 0..3 {
        for d in c.list()? {
            let Some(name) = d.uuid.as_deref().and_then(|u| u.strip_prefix("WEIRTEST-")) else { continue };
            if name.starts_with("slice") || name == "leg" {
                continue;
            }
            match c.ensure_removed(&d.name, &uuid(name)) {
                Err(e) if e.class() != kernel::Class::Busy => return Err(e.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Waits until `check` brings something.
fn wait<T>(
    what: &str,
    mut check: impl FnMut() -> Result<Option<T>, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(v) = check()? {
            return Ok(v);
        }
        check!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Milliseconds for a detail.
fn ms(d: Duration) -> String {
    format!("{:.1} ms", d.as_secs_f64() * 1000.0)
}

/// Least, median and most of some times.
fn spread(mut t: Vec<Duration>) -> String {
    t.sort();
    let at = |i: usize| t.get(i).copied().map_or_else(|| "-".into(), ms);
    format!("min {} median {} max {} of {}", at(0), at(t.len() / 2), at(t.len().saturating_sub(1)), t.len())
}

struct Tally {
    only: Vec<String>,
    passed: u32,
    failed: u32,
}

impl Tally {
    fn step(&mut self, ctx: &Ctx, name: &str, f: fn(&Ctx) -> Step) {
        if !self.only.is_empty() && !self.only.iter().any(|o| name.starts_with(o.as_str())) {
            return;
        }
        let t = Instant::now();
        match f(ctx) {
            Ok(detail) => {
                self.passed += 1;
                println!("ok {name} ({detail}; {} in all)", ms(t.elapsed()));
            }
            Err(e) => {
                self.failed += 1;
                println!("FAIL {name}: {e}");
                if let Err(e) = clean(&ctx.control) {
                    println!("# not cleaned up after {name}: {e}");
                }
            }
        }
    }
}

fn open(disk: &Path) -> Result<Ctx, Box<dyn Error>> {
    match probe(disk, PATIENCE)? {
        Probe::Blank => {}
        found => return Err(format!("{} is not blank: {found:?}", disk.display()).into()),
    }
    let b = BlockDevice::of_path(disk)?;
    let size = b.size()?;
    check!(size.get() >= 480 * 2048, "{} is smaller than 480 MiB", disk.display());
    Ok(Ctx { control: Control::open()?, disk: b.dev(), path: disk.to_owned(), size })
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(disk) = args.next() else {
        eprintln!("usage: kernel-selftest DISK [STEP-PREFIX...]");
        return ExitCode::from(2);
    };
    let ctx = match open(Path::new(&disk)) {
        Ok(c) => c,
        Err(e) => {
            eprintln!("kernel-selftest: {e}");
            return ExitCode::from(2);
        }
    };
    let mut t = Tally { only: args.collect(), passed: 0, failed: 0 };
    for (name, f) in
        [dm::STEPS, block::STEPS, guard::STEPS, export::STEPS, fs::STEPS].into_iter().flatten().copied()
    {
        t.step(&ctx, name, f);
    }
    println!("selftest: {} ok, {} failed", t.passed, t.failed);
    if t.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
