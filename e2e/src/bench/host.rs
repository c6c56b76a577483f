//! What else the host does while something is measured: work of others takes processors from the nodes, and nothing in
//! the nodes can tell. So it is measured too, and waited for within reason.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::cluster::Cluster;

/// What others may use of all processors while something is measured.
const QUIET: f64 = 0.1;
/// How long to look before that is judged.
const LOOK: Duration = Duration::from_secs(1);

/// Processor time so far, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    total: u64,
    busy: u64,
}

/// A look at the host's processors, to be compared with a later one.
pub(super) struct Sample {
    ticks: Ticks,
    ours: BTreeMap<u32, u64>,
}

impl Sample {
    /// Now.
    pub(super) fn now(c: &Cluster) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let ticks = parse_ticks(&stat).context("parse /proc/stat")?;
        let mut pids = vec![std::process::id()];
        pids.extend(c.controller_pid());
        for node in c.lab().nodes() {
            pids.extend(node.running()?.map(|r| r.qemu.pid));
        }
        let ours = pids
            .into_iter()
            .map(|pid| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                    .with_context(|| format!("process {pid}"))?;
                Ok((pid, parse_process(&stat).with_context(|| format!("process {pid}: {stat}"))?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { ticks, ours })
    }

    /// The share of all processors that others have used since.
    pub(super) fn others_since(&self, c: &Cluster) -> Result<f64> {
        let now = Self::now(c)?;
        let ours: u64 = now
            .ours
            .iter()
            .map(|(pid, ticks)| ticks.saturating_sub(self.ours.get(pid).copied().unwrap_or(0)))
            .sum();
        let busy = now.ticks.busy.saturating_sub(self.ticks.busy);
        let total = now.ticks.total.saturating_sub(self.ticks.total).max(1);
        Ok(busy.saturating_sub(ours) as f64 / total as f64)
    }
}

/// From `/proc/stat`: all but idle and iowait is busy; guest time is part of user time.
fn parse_ticks(stat: &str) -> Option<Ticks> {
    let numbers: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|w| w.parse().ok()).collect();
    let total: u64 = numbers.get(..8)?.iter().sum();
    Some(Ticks { total, busy: total - numbers[3] - numbers[4] })
}

/// User and system time from `/proc/PID/stat`; the name in it may hold anything, up to the last bracket.
fn parse_process(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    Some(words.get(11)?.parse::<u64>().ok()? + words.get(12)?.parse::<u64>().ok()?)
}

/// How much longer a run may wait for others, in all.
pub(super) struct Patience(pub(super) Duration);

impl Patience {
    /// Waits until others leave the host alone, or until patience ends.
    pub(super) fn wait(&mut self, c: &Cluster) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < self.0 {
            let sample = Sample::now(c)?;
            // This is the time over which is measured; there is nothing to wait for but time.
            std::thread::sleep(LOOK);
            if sample.others_since(c)? < QUIET {
                break;
            }
        }
        self.0 = self.0.saturating_sub(start.elapsed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let t = parse_ticks("cpu  10 1 5 70 4 1 2 7 9 9\ncpu0 1").unwrap();
        assert_eq!(t, Ticks { total: 100, busy: 26 });
        assert_eq!(parse_ticks("cpu  1 2"), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 50 6 0 0 20 0 1 0";
        assert_eq!(parse_process(stat), Some(56));
    }
}
