//! A writer in a node, as a VM would be one: it writes one block after the other with direct I/O, each with a number,
//! and says how long the device took. Driven by lines on stdin, so that the clock of one node measures each pause whole.
//!
//! `go N`: check that the block last written, on whatever node, holds N; then write N+1, N+2, ... and answer
//! `{"first_us"}` as soon as the first write is done. `stop`: end with the write in flight and answer what was done.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::stats::percentile;
use crate::lab::{Chunk, Node, Stdin, argv};

const BLOCK: usize = 4096;
/// Blocks that are written in turn.
const BLOCKS: u64 = 256;
/// Rest between two writes: dense enough to see any pause, and a node is left to do other things.
const PACE: Duration = Duration::from_millis(2);
/// Longest time in which a command must be answered: above every deadline inside of Weir.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest life of a writer.
const LIFE: Duration = Duration::from_secs(1800);

/// The device is open.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Ready {
    ready: bool,
}

/// The first write after a `go`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct First {
    /// From its issue to its completion.
    pub(super) first_us: f64,
}

/// What was written between `go` and `stop`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Run {
    /// The last number that was written.
    pub(super) last: u64,
    pub(super) writes: u64,
    /// Time of a write.
    pub(super) p50_us: f64,
    pub(super) max_us: f64,
}

/// The writer itself, in a node.
///
/// # Errors
/// The device cannot be opened, a write fails, or a block does not hold what was written to it.
pub fn serve(device: &str) -> Result<()> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(direct)
        .open(device)
        .with_context(|| format!("open {device}"))?;
    let (tx, commands) = mpsc::channel();
    std::thread::spawn(move || {
        // The end of stdin, for whatever reason, is the end of commands.
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if tx.send(line).is_err() {
                return;
            }
        }
    });
    let mut block = AlignedBlock::new();
    let mut out = io::stdout().lock();
    answer(&mut out, &Ready { ready: true })?;
    while let Ok(command) = commands.recv() {
        let last =
            command.strip_prefix("go ").with_context(|| format!("unknown command {command:?}"))?.parse()?;
        if last > 0 {
            check(&file, block.bytes(), last)?;
        }
        write_until_stopped(&file, &mut block, last, &commands, &mut out)?;
    }
    Ok(())
}

/// One block at an address that direct I/O accepts.
struct AlignedBlock {
    memory: Vec<u8>,
    begin: usize,
}

impl AlignedBlock {
    fn new() -> Self {
        let memory = vec![0; 2 * BLOCK];
        let begin = memory.as_ptr().align_offset(BLOCK);
        Self { memory, begin }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + BLOCK]
    }
}

fn check(file: &File, buffer: &mut [u8], number: u64) -> Result<()> {
    file.read_exact_at(buffer, number % BLOCKS * BLOCK as u64).context("read the last block")?;
    let found = buffer.iter().take(8).rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    ensure!(found == number, "the last block that was written holds {found} and not {number}");
    Ok(())
}

fn write_until_stopped(
    file: &File,
    block: &mut AlignedBlock,
    mut last: u64,
    commands: &Receiver<String>,
    out: &mut impl Write,
) -> Result<()> {
    let mut times = Vec::new();
    loop {
        last += 1;
        let buffer = block.bytes();
        buffer[..8].copy_from_slice(&last.to_le_bytes());
        let start = Instant::now();
        file.write_all_at(buffer, last % BLOCKS * BLOCK as u64).with_context(|| format!("write {last}"))?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        if let [first_us] = times[..] {
            answer(out, &First { first_us })?;
        }
        match commands.recv_timeout(PACE) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(command) if command == "stop" => break,
            Ok(other) => bail!("unknown command {other:?} while writing"),
        }
    }
    let at = |p| percentile(&times, p).context("nothing was written");
    answer(out, &Run { last, writes: times.len() as u64, p50_us: at(0.5)?, max_us: at(1.0)? })
}

fn answer(out: &mut impl Write, what: &impl Serialize) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    out.flush().context("answer")
}

/// The host's hold on a writer in a node.
pub(super) struct Writer {
    commands: io::PipeWriter,
    answers: Receiver<String>,
    ended: JoinHandle<Result<()>>,
}

impl Writer {
    /// Starts one on a device and waits until it has opened it.
    pub(super) fn start(node: &Arc<Node>, device: &str) -> Result<Self> {
        let (from, commands) = io::pipe().context("make a pipe")?;
        let (tx, answers) = mpsc::channel();
        let (node, device) = (Arc::clone(node), device.to_owned());
        let ended = std::thread::spawn(move || run(&node, &device, from, &tx));
        let mut writer = Self { commands, answers, ended };
        let Ready { ready } = writer.answer()?;
        ensure!(ready, "the writer is not ready");
        Ok(writer)
    }

    /// Lets it write; returns when the first write is done.
    pub(super) fn go(&mut self, last: u64) -> Result<First> {
        self.say(&format!("go {last}\n"))?;
        self.answer()
    }

    /// Stops it; it keeps the device open.
    pub(super) fn stop(&mut self) -> Result<Run> {
        self.say("stop\n")?;
        self.answer()
    }

    /// Ends it.
    pub(super) fn end(self) -> Result<()> {
        drop(self.commands);
        self.ended.join().map_err(|_| anyhow::anyhow!("the writer's thread panicked"))?
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.commands.write_all(line.as_bytes()).context("command the writer")
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line =
            self.answers.recv_timeout(ANSWER).context("no answer of the writer: it failed or hangs")?;
        serde_json::from_str(&line).with_context(|| format!("the writer said {line:?}"))
    }
}

fn run(node: &Node, device: &str, from: io::PipeReader, tx: &Sender<String>) -> Result<()> {
    let command = argv(["/lab/bin/weir-lab", "agent", "writer", device]);
    let (mut out, mut complaints) = (Vec::new(), Vec::new());
    let exit = node.stream(command, Stdin::From(Box::new(from)), LIFE, |chunk| match chunk {
        Chunk::Stdout(bytes) => {
            out.extend_from_slice(bytes);
            while let Some(end) = out.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = out.drain(..=end).collect();
                // Nobody listens any more when the benchmark has failed elsewhere.
                drop(tx.send(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
        }
        Chunk::Stderr(bytes) => complaints.extend_from_slice(bytes),
    })?;
    if exit.code() == 0 {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&complaints).trim_end().to_owned();
    eprintln!("writer on {}: {why}", node.name());
    bail!("the writer on {} failed: {why}", node.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_another_number_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        std::fs::write(&path, vec![0; BLOCK * BLOCKS as usize]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&300u64.to_le_bytes(), 300 % BLOCKS * BLOCK as u64).unwrap();
        let mut block = AlignedBlock::new();
        check(&file, block.bytes(), 300).unwrap();
        let stale = check(&file, block.bytes(), 300 + BLOCKS).unwrap_err();
        assert!(stale.to_string().contains("300"));
    }

    #[test]
    fn a_run_ends_with_stop_and_tells_the_last_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        std::fs::write(&path, vec![0; BLOCK * BLOCKS as usize]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (tx, rx) = mpsc::channel();
        tx.send("stop".to_owned()).unwrap();
        let mut block = AlignedBlock::new();
        let mut out = Vec::new();
        write_until_stopped(&file, &mut block, 41, &rx, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("\"last\":42"));
        check(&file, block.bytes(), 42).unwrap();
        assert_eq!(block.bytes().as_ptr().align_offset(BLOCK), 0);
    }
}
