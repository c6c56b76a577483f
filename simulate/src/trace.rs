//! Traces: CSV of timestamp_s,device,read_kb_s,write_kb_s, plain or zstd.
//!
//! Invariants: a sample without a row is missing, never 0; rows may come in any order and from several files; a bad row
//! is an error with file and line. Must not know what a trace is used for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The first bytes of a zstd frame.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// More steps than this a device are a mistake in a timestamp: 20 years of minutes.
const MOST_STEPS: u64 = 10_000_000;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be opened or read.
    #[error("cannot read the trace {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A row is no sample.
    #[error("{path}, line {line}: {what}")]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// There are not enough samples to tell their interval.
    #[error("the trace has no two samples of one device: {what}")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// The timestamps are too far apart for their interval.
    #[error("the trace spans {steps} intervals of {step_s} s: a timestamp must be wrong")]
    TooLong {
        /// Intervals.
        steps: u64,
        /// Seconds each.
        step_s: u64,
    },
}

/// One device's samples.
#[derive(Clone, PartialEq, Debug)]
pub struct Device {
    /// Its name in the trace.
    pub name: String,
    /// KB/s read and written, one a step; NaN where no row was.
    pub kb_s: Vec<f32>,
}

impl Device {
    /// The steps from its first to its last sample.
    #[must_use]
    pub fn lifetime(&self) -> std::ops::Range<usize> {
        let first = self.kb_s.iter().position(|v| !v.is_nan()).unwrap_or(0);
        let end = self.kb_s.iter().rposition(|v| !v.is_nan()).map_or(0, |last| last + 1);
        first..end
    }
}

/// Devices over one time grid.
#[derive(Clone, PartialEq, Debug)]
pub struct Trace {
    /// The first step, seconds since 1970.
    pub start_s: u64,
    /// Seconds a step.
    pub step_s: u64,
    /// Steps.
    pub steps: usize,
    /// By name.
    pub devices: Vec<Device>,
}

#[derive(Default)]
struct Rows {
    names: HashMap<String, u32>,
    rows: Vec<(u32, u64, f32)>,
}

impl Trace {
    /// Reads and joins files.
    ///
    /// # Errors
    /// If a file cannot be read, a row is no sample, or there is nothing to make a grid of.
    pub fn read(paths: &[PathBuf]) -> Result<Self, TraceError> {
        let mut rows = Rows::default();
        for path in paths {
            let opened = open(path).map_err(|source| TraceError::Read { path: path.clone(), source })?;
            rows.add(path, opened)?;
        }
        rows.grid()
    }

    /// Steps an hour, at least 1.
    #[must_use]
    pub fn steps_per_hour(&self) -> usize {
        usize::try_from(3600 / self.step_s.max(1)).unwrap_or(1).max(1)
    }
}

fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let packed = file.fill_buf()?.starts_with(&ZSTD);
    let plain: Box<dyn Read> =
        if packed { Box::new(zstd::Decoder::with_buffer(file)?) } else { Box::new(file) };
    Ok(Box::new(BufReader::with_capacity(1 << 18, plain)))
}

impl Rows {
    fn add(&mut self, path: &Path, mut from: Box<dyn BufRead>) -> Result<(), TraceError> {
        let mut text = String::new();
        for line in 1.. {
            text.clear();
            let read = from.read_line(&mut text);
            let read = read.map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
            if read == 0 {
                break;
            }
            let row = text.trim_end();
            if row.is_empty() || (line == 1 && row.starts_with("timestamp_s")) {
                continue;
            }
            self.row(row).map_err(|what| TraceError::Row { path: path.to_owned(), line, what })?;
        }
        Ok(())
    }

    fn row(&mut self, row: &str) -> Result<(), &'static str> {
        let mut fields = row.split(',');
        let mut field = || fields.next().map(str::trim).ok_or("fewer than 4 fields");
        let at: u64 = field()?.parse().map_err(|_| "the timestamp is no whole number of seconds")?;
        let name = field()?;
        let read: f32 = field()?.parse().map_err(|_| "read_kb_s is no number")?;
        let write: f32 = field()?.parse().map_err(|_| "write_kb_s is no number")?;
        if fields.next().is_some() {
            return Err("more than 4 fields");
        }
        if name.is_empty() {
            return Err("the device has no name");
        }
        let sum = read + write;
        if !(sum.is_finite() && read >= 0.0 && write >= 0.0) {
            return Err("a rate is negative or no finite number");
        }
        let next = u32::try_from(self.names.len()).map_err(|_| "too many devices")?;
        let device = match self.names.get(name) {
            Some(known) => *known,
            None => *self.names.entry(name.to_owned()).or_insert(next),
        };
        self.rows.push((device, at, sum));
        Ok(())
    }

    fn grid(mut self) -> Result<Trace, TraceError> {
        self.rows.sort_unstable_by_key(|row| (row.0, row.1));
        let mut gaps: HashMap<u64, usize> = HashMap::new();
        for pair in self.rows.windows(2).filter(|p| p[0].0 == p[1].0 && p[0].1 < p[1].1) {
            *gaps.entry(pair[1].1 - pair[0].1).or_default() += 1;
        }
        let usual = gaps.into_iter().max_by_key(|(gap, count)| (*count, std::cmp::Reverse(*gap)));
        let step_s = usual.ok_or(TraceError::Empty { what: "their interval is unknown" })?.0;
        let times = self.rows.iter().map(|row| row.1);
        let start_s = times.clone().min().unwrap_or(0) / step_s * step_s;
        let steps = (times.max().unwrap_or(0) - start_s) / step_s + 1;
        if steps > MOST_STEPS {
            return Err(TraceError::TooLong { steps, step_s });
        }
        let steps = usize::try_from(steps).unwrap_or(0);
        let names: BTreeMap<String, u32> = self.names.into_iter().collect();
        let mut by_number: Vec<Vec<f32>> = vec![vec![f32::NAN; steps]; names.len()];
        for (device, at, value) in self.rows {
            // Two rows in one step: the later one counts.
            by_number[device as usize][usize::try_from((at - start_s) / step_s).unwrap_or(0)] = value;
        }
        let devices = names
            .into_iter()
            .map(|(name, number)| Device { name, kb_s: std::mem::take(&mut by_number[number as usize]) });
        Ok(Trace { start_s, step_s, steps, devices: devices.collect() })
    }
}
