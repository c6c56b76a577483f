//! The verifier in a node: writes stamped blocks with O_DIRECT, reads them back, and keeps a report of it all.
//!
//! Invariants: a slot has one writer and at most one write under way; a write counts as acknowledged only after the
//! call returned. The report is written by a thread of its own, so that a device that hangs shows in it. It goes to
//! the host's folder whole, by rename. Must not know: whose device it is.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use crate::verify::{BLOCK, Content, Report, Slots, Stamp, parse};

/// Pause between two reports.
const REPORT: Duration = Duration::from_millis(100);
/// Pause after an I/O that failed: a device that fails at once would fill the report.
const AFTER_ERROR: Duration = Duration::from_millis(50);
/// Errors and mismatches that are told in full.
const TOLD: usize = 8;
/// Each so many-th write is followed by a flush, each so many-th by a read of some slot.
const FLUSH_EVERY: u64 = 32;
const READ_EVERY: u64 = 3;

/// What to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device.
    #[arg(long)]
    device: PathBuf,
    /// Blocks that are written over and over, spread over the whole device.
    #[arg(long, default_value_t = 64)]
    slots: u64,
    /// Whose blocks they are.
    #[arg(long)]
    seed: u64,
    /// Writers, each with slots of its own.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Where the report goes.
    #[arg(long)]
    report: PathBuf,
    /// Ends once this file exists.
    #[arg(long)]
    stop: PathBuf,
    /// Ends after this time in any case.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// Rest between two writes of a writer, so that a test does not have the machine to itself.
    #[arg(long, default_value_t = 5)]
    pause_ms: u64,
}

/// Reads all slots once and prints what they hold, as JSON.
#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    /// The device.
    #[arg(long)]
    device: PathBuf,
    /// Slots, as the writer had them.
    #[arg(long, default_value_t = 64)]
    slots: u64,
}

/// A block's room at an address that O_DIRECT accepts.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Self {
        Self(vec![0; 2 * BLOCK])
    }

    fn block(&mut self) -> &mut [u8] {
        let at = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[at..at + BLOCK]
    }
}

fn open(device: &Path, write: bool) -> Result<(File, u64)> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    let file = File::options()
        .read(true)
        .write(write)
        .custom_flags(direct)
        .open(device)
        .with_context(|| format!("open {}", device.display()))?;
    let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).context("find the device's size")?;
    Ok((file, bytes))
}

/// What the threads share.
struct Shared {
    file: File,
    slots: Slots,
    seed: u64,
    pause: Duration,
    stop: AtomicBool,
    running: AtomicUsize,
    report: Mutex<Report>,
    /// When each writer's I/O began.
    since: Vec<Mutex<Option<Instant>>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes until told to stop, then reads everything back. Returns whether all was right.
///
/// # Errors
/// The device cannot be opened, or the report cannot be written. What goes wrong with I/O stands in the report.
pub fn verify(args: &Args) -> Result<bool> {
    let (file, bytes) = open(&args.device, true)?;
    let slots = Slots::of(bytes, args.slots);
    let threads = args.threads.clamp(1, slots.count);
    let count = usize::try_from(slots.count)?;
    let report = Report {
        seed: args.seed,
        slots: slots.count,
        acked: vec![0; count],
        begun: vec![0; count],
        ..Report::default()
    };
    let shared = Shared {
        file,
        slots,
        seed: args.seed,
        pause: Duration::from_millis(args.pause_ms),
        stop: AtomicBool::new(false),
        running: AtomicUsize::new(usize::try_from(threads)?),
        report: Mutex::new(report),
        since: (0..threads).map(|_| Mutex::new(None)).collect(),
    };
    std::thread::scope(|scope| {
        for (thread, since) in (0..threads).zip(&shared.since) {
            let shared = &shared;
            scope.spawn(move || {
                shared.work(thread, threads, since);
                shared.running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let end = Instant::now() + Duration::from_secs(args.seconds);
        while shared.running.load(Ordering::SeqCst) > 0 {
            if args.stop.exists() || Instant::now() > end {
                shared.stop.store(true, Ordering::SeqCst);
            }
            shared.publish(&args.report)?;
            std::thread::sleep(REPORT);
        }
        lock(&shared.report).done = true;
        shared.publish(&args.report)
    })?;
    let r = lock(&shared.report);
    Ok(r.errors == 0 && r.mismatches.is_empty())
}

impl Shared {
    fn publish(&self, path: &Path) -> Result<()> {
        let oldest = self.since.iter().filter_map(|s| *lock(s)).min();
        let report = {
            let mut r = lock(&self.report);
            r.waiting_ms = oldest.map_or(0, millis);
            r.clone()
        };
        let tmp = path.with_extension("tmp");
        fs::write(&tmp, serde_json::to_vec(&report)?)
            .and_then(|()| fs::rename(&tmp, path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// One writer: its slots in turn, then all of them once more to read.
    fn work(&self, thread: u64, threads: u64, since: &Mutex<Option<Instant>>) {
        let mine: Vec<u64> =
            (thread..self.slots.count).step_by(usize::try_from(threads).unwrap_or(1)).collect();
        let mut buffer = Buffer::new();
        let mut turn = 0;
        for slot in mine.iter().cycle() {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            turn += 1;
            self.write(*slot, turn % FLUSH_EVERY == 0, since, &mut buffer);
            if turn % READ_EVERY == 0 {
                let any = mine[usize::try_from(turn * 7).unwrap_or(0) % mine.len()];
                self.read(any, since, &mut buffer);
            }
            std::thread::sleep(self.pause);
        }
        for slot in mine {
            self.read(slot, since, &mut buffer);
        }
    }

    fn timed<T>(
        &self,
        since: &Mutex<Option<Instant>>,
        what: &str,
        slot: u64,
        io: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        let start = Instant::now();
        *lock(since) = Some(start);
        let done = io();
        *lock(since) = None;
        let mut r = lock(&self.report);
        r.max_stall_ms = r.max_stall_ms.max(millis(start));
        match done {
            Ok(value) => Some(value),
            Err(e) => {
                r.errors += 1;
                if r.first_errors.len() < TOLD {
                    r.first_errors.push(format!("{what} of slot {slot} after {} ms: {e}", millis(start)));
                }
                drop(r);
                std::thread::sleep(AFTER_ERROR);
                None
            }
        }
    }

    fn write(&self, slot: u64, flush: bool, since: &Mutex<Option<Instant>>, buffer: &mut Buffer) {
        let Ok(at) = usize::try_from(slot) else { return };
        let sequence = {
            let mut r = lock(&self.report);
            r.begun[at] += 1;
            r.begun[at]
        };
        Stamp { seed: self.seed, slot, sequence }.render(buffer.block());
        let offset = self.slots.offset(slot);
        let written = self.timed(since, "write", slot, || self.file.write_all_at(buffer.block(), offset));
        if written.is_some() {
            let mut r = lock(&self.report);
            r.acked[at] = sequence;
            r.writes += 1;
        }
        if flush {
            self.timed(since, "flush", slot, || self.file.sync_data());
        }
    }

    fn read(&self, slot: u64, since: &Mutex<Option<Instant>>, buffer: &mut Buffer) {
        let offset = self.slots.offset(slot);
        let read = self.timed(since, "read", slot, || self.file.read_exact_at(buffer.block(), offset));
        if read.is_none() {
            return;
        }
        let found = parse(buffer.block());
        let mut r = lock(&self.report);
        r.reads += 1;
        // The slot is this thread's: nothing of it is under way.
        if let Err(why) = r.allows(slot, &found).or_else(|why| before(&r, slot, &found, why))
            && r.mismatches.len() < TOLD
        {
            r.mismatches.push(why);
        }
    }
}

/// A slot that this verifier has not begun to write holds what was there before: no concern of its.
fn before(r: &Report, slot: u64, found: &Content, why: String) -> Result<(), String> {
    let begun = usize::try_from(slot).ok().and_then(|i| r.begun.get(i)).copied().unwrap_or_default();
    match found {
        Content::Block(s) if begun == 0 && s.seed != r.seed => Ok(()),
        Content::Damaged(_) if begun == 0 => Ok(()),
        Content::Block(_) | Content::Damaged(_) | Content::Zero => Err(why),
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Reads all slots of a device.
///
/// # Errors
/// The device cannot be opened or read.
pub fn read(args: &ReadArgs) -> Result<Vec<Content>> {
    let (file, bytes) = open(&args.device, false)?;
    let slots = Slots::of(bytes, args.slots);
    let mut buffer = Buffer::new();
    (0..slots.count)
        .map(|slot| {
            file.read_exact_at(buffer.block(), slots.offset(slot))
                .with_context(|| format!("read slot {slot}"))?;
            Ok(parse(buffer.block()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_verified_and_a_changed_block_is_found() {
        // O_DIRECT needs a file system that has it: not every /tmp does.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let at = |name: &str| dir.path().join(name);
        File::create(at("disk")).unwrap().set_len(1 << 20).unwrap();
        let args = |seed| Args {
            device: at("disk"),
            slots: 8,
            seed,
            threads: 2,
            report: at("report"),
            stop: at("stop"),
            seconds: 1,
            pause_ms: 1,
        };
        assert!(verify(&args(1)).unwrap());
        let report: Report = serde_json::from_slice(&fs::read(at("report")).unwrap()).unwrap();
        assert!(report.done && report.errors == 0 && report.writes > 0, "{report:?}");
        let found = read(&ReadArgs { device: at("disk"), slots: 8 }).unwrap();
        for (slot, c) in (0..).zip(&found) {
            report.allows(slot, c).unwrap();
        }
        // Not every slot has had its turn on a busy machine.
        let written = found.iter().position(|c| matches!(c, Content::Block(_))).unwrap();
        let in_it = written as u64 * ((1 << 20) / 8) + 100;
        let disk = File::options().read(true).write(true).open(at("disk")).unwrap();
        let mut byte = [0];
        disk.read_exact_at(&mut byte, in_it).unwrap();
        disk.write_all_at(&[!byte[0]], in_it).unwrap();
        let found = read(&ReadArgs { device: at("disk"), slots: 8 }).unwrap();
        assert!(report.allows(written as u64, &found[written]).is_err());
        fs::write(at("stop"), "").unwrap();
        assert!(verify(&args(2)).unwrap(), "blocks of an earlier verifier are no mismatch");
    }
}
