//! The guest's serial port, heard on the host: counters, and when each verified step was done.
//!
//! Invariant: times are the host's monotonic clock as bytes arrive here, a few milliseconds after the guest sent them.

use std::{
    io::Read,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// What a guest counted since it booted, migrations included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads and writes that were right.
    pub ios: u64,
    /// Reads and writes that were refused.
    pub errors: u64,
    /// Blocks that did not hold what was written last.
    pub bad: u64,
}

impl Counters {
    /// Nothing went wrong.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.errors == 0 && self.bad == 0
    }
}

#[derive(Debug, Default)]
struct Heard {
    line: String,
    counters: Counters,
    steps: Vec<Instant>,
    /// Lines that are no counters: a kernel's complaints, say.
    other: Vec<String>,
}

impl Heard {
    fn byte(&mut self, byte: u8, now: Instant) {
        match byte {
            b'.' if self.line.is_empty() => self.steps.push(now),
            b'\n' => {
                let line = std::mem::take(&mut self.line);
                match parse(line.trim()) {
                    Some(counters) => self.counters = counters,
                    None if line.trim().is_empty() => {}
                    None => self.other.push(line),
                }
            }
            _ => self.line.push(char::from(byte)),
        }
    }
}

/// Counters from a line such as `IOS=00000940 ERR=00000000 BAD=00000000`.
fn parse(line: &str) -> Option<Counters> {
    let mut words = line.split(' ');
    let mut field = |key: &str| {
        let digits = words.next()?.strip_prefix(key)?.strip_prefix('=')?;
        u64::from_str_radix(digits, 16).ok()
    };
    let counters = Counters { ios: field("IOS")?, errors: field("ERR")?, bad: field("BAD")? };
    words.next().is_none().then_some(counters)
}

/// What a guest says.
#[derive(Debug, Clone)]
pub struct Console {
    heard: Arc<Mutex<Heard>>,
}

impl Console {
    /// Listens on a thread of its own until the stream ends, which it does with the VM.
    ///
    /// # Errors
    /// There can be no thread.
    pub(super) fn listen(mut from: impl Read + Send + 'static) -> Result<Console> {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let listener = Arc::clone(&heard);
        let thread = std::thread::Builder::new().name("console".into()).stack_size(1 << 17);
        thread
            .spawn(move || {
                let mut buffer = [0; 4096];
                // An error is the end of the VM or of its node, which whoever waits for progress sees.
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    let now = Instant::now();
                    let mut heard = lock(&listener);
                    buffer[..count].iter().for_each(|byte| heard.byte(*byte, now));
                }
            })
            .context("start a thread for the console")?;
        Ok(Console { heard })
    }

    /// The last counters; all zero before the first.
    #[must_use]
    pub fn counters(&self) -> Counters {
        lock(&self.heard).counters
    }

    /// Number of steps heard of.
    #[must_use]
    pub fn steps(&self) -> usize {
        lock(&self.heard).steps.len()
    }

    /// When steps were heard of, in order.
    #[must_use]
    pub fn times(&self) -> Vec<Instant> {
        lock(&self.heard).steps.clone()
    }

    /// What else was said.
    #[must_use]
    pub fn other(&self) -> Vec<String> {
        lock(&self.heard).other.clone()
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gaps between steps, heard of on any of `consoles`, that end within `from..to`; a gap that is not over by `to` counts as
/// if it were. In no order.
#[must_use]
pub fn gaps(consoles: &[&Console], from: Instant, to: Instant) -> Vec<Duration> {
    let mut times: Vec<Instant> = consoles.iter().flat_map(|c| c.times()).filter(|t| *t <= to).collect();
    times.sort_unstable();
    times.push(to);
    times.windows(2).filter(|pair| pair[1] >= from).map(|pair| pair[1] - pair[0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_counters_are_told_apart() {
        let mut heard = Heard::default();
        let now = Instant::now();
        let text = "...\nIOS=0000001F ERR=00000000 BAD=00000002\n..\nSeaBIOS 1.16. says\nIOS=00";
        text.bytes().for_each(|byte| heard.byte(byte, now));
        assert_eq!(heard.steps.len(), 5);
        assert_eq!(heard.counters, Counters { ios: 31, errors: 0, bad: 2 });
        assert!(!heard.counters.clean());
        assert_eq!(heard.other, ["SeaBIOS 1.16. says"]);
        assert_eq!(parse("IOS=1 ERR=0"), None);
        assert_eq!(parse("IOS=1 ERR=0 BAD=0 MORE=1"), None);
    }

    #[test]
    fn a_gap_spans_two_consoles_and_an_unfinished_one_counts() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let console = |times: &[u64]| {
            let heard = Heard { steps: times.iter().map(|ms| at(*ms)).collect(), ..Default::default() };
            Console { heard: Arc::new(Mutex::new(heard)) }
        };
        let (source, target) = (console(&[0, 10, 20]), console(&[320, 330]));
        let found = gaps(&[&source, &target], at(15), at(400));
        let ms: Vec<_> = found.iter().map(Duration::as_millis).collect();
        assert_eq!(ms, [10, 300, 10, 70]);
    }
}
