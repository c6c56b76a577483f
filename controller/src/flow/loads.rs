//! What histories say to planners of moves: what disks can do and are about to do, where a volume's I/O goes.
//!
//! Invariants: what was not heard of for a minute, or is not known yet, is nothing that a plan may rest on: a disk can then do
//! 0, a volume's pieces do 0. Must not know: the core, what is worth moving.

use std::collections::VecDeque;

use forecast::STALE_S;
use pool::{
    planner::{self, DiskFact, VolumeFact, VolumeRates},
    units::{Bytes, ExtentSize},
};

use super::{DiskRow, Flow, VolumeRow};

/// A forecast counts from here on: about a day of the series. Until then the next hour is expected to be like the last
/// minutes.
const BELIEVED: f64 = 0.05;
/// Hours after which a forecast is none any more.
const OLD_H: u64 = 3;
/// Seconds in which what a volume is taken to do follows a change by two thirds: the nodes' heat does the same.
const WARM_S: f64 = 6.0 * 3600.0;

/// The greatest of the last few means over stretches of equal length.
#[derive(Clone, Debug)]
pub(super) struct Peaks {
    stretch_s: u64,
    keep: u64,
    /// Number of the stretch, sum, samples; newest last.
    means: VecDeque<(u64, f64, u32)>,
}

impl Peaks {
    /// Of an hour, in stretches of five minutes, as forecasts count.
    pub(super) fn of_an_hour() -> Self {
        Self { stretch_s: 300, keep: 12, means: VecDeque::new() }
    }

    /// Of five minutes, in stretches of one.
    pub(super) fn of_minutes() -> Self {
        Self { stretch_s: 60, keep: 5, means: VecDeque::new() }
    }

    /// Takes a sample; one of an earlier stretch than the newest is ignored.
    pub(super) fn take(&mut self, at_s: u64, value: f64) {
        let number = at_s / self.stretch_s;
        match self.means.back_mut() {
            Some((newest, sum, n)) if *newest == number => {
                *sum += value;
                *n = n.saturating_add(1);
                return;
            }
            // The clock was ahead: what it said is no past.
            Some((newest, ..)) if *newest > number.saturating_add(self.keep) => self.means.clear(),
            Some((newest, ..)) if *newest > number => return,
            Some(_) | None => {}
        }
        self.means.push_back((number, value, 1));
        // One is still open.
        while self.means.len() as u64 > self.keep + 1 {
            self.means.pop_front();
        }
    }

    /// The greatest mean of those that are over; `None` where there is none.
    pub(super) fn greatest(&self, now_s: u64) -> Option<f64> {
        let now = now_s / self.stretch_s;
        let over = self.means.iter().filter(|(number, ..)| *number < now && now <= *number + self.keep);
        over.map(|(_, sum, n)| sum / f64::from(*n)).max_by(f64::total_cmp)
    }
}

/// A mean that follows slowly, as heat does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Warm {
    at_s: u64,
    mean: f64,
}

impl Warm {
    /// Takes a sample; after a gap it counts for a minute.
    pub(super) fn take(&mut self, at_s: u64, value: f64) {
        let before = std::mem::replace(&mut self.at_s, at_s);
        // Of a minute, hence exact.
        let seconds = at_s.saturating_sub(before).min(60) as f64;
        self.mean += (value - self.mean) * seconds / (seconds + WARM_S);
    }
}

/// Thousandths of I/Os a second.
fn thousandths(io: f64) -> u64 {
    // Saturates; no number is 0.
    (io * 1000.0).round() as u64
}

pub(super) fn is_fresh(sampled_s: Option<u64>, now_s: u64) -> bool {
    sampled_s.is_some_and(|at| now_s.saturating_sub(at) < STALE_S)
}

impl DiskRow {
    /// What the disk will do within an hour at its peak, for others included; `None` where that is not known.
    fn peak(&self, now_s: u64) -> Option<f64> {
        let said = self.load.forecast(1);
        let hour = now_s / 3600;
        let is_new = self.load.newest_hour().is_some_and(|n| n <= hour && hour <= n.saturating_add(OLD_H));
        if is_new && said.confidence >= BELIEVED {
            return Some(said.peak_bound + self.lent_peaks.greatest(now_s).unwrap_or(0.0));
        }
        self.peaks.greatest(now_s)
    }
}

impl VolumeRow {
    /// The I/Os of heat are counted whatever their size: where the load is greater because they are large, that counts. A load that is
    /// new is not in a mean of hours yet, and all of it in its disk's.
    fn rates(&self, now_s: u64) -> VolumeRates<'_> {
        let mean = self.warm.mean.max(self.heat.ios.iter().sum());
        let peak = self.peaks.greatest(now_s).map_or(mean, |p| p.max(mean));
        VolumeRates { part_bytes: self.heat.part_bytes, parts: &self.heat.ios, mean, peak }
    }
}

impl Flow {
    /// Fills in what is known of a disk: what it can do, its load, whether it is well, and, where disks lend by forecast, what
    /// its owner may need until lent space would be back.
    pub fn rate_disk(&self, now_s: u64, by_forecast: bool, extent_size: ExtentSize, fact: &mut DiskFact) {
        let s = self.lock();
        let Some(row) = s.disks.get(&fact.disk).filter(|r| r.node == fact.node) else { return };
        if row.health.is_some_and(|(health, before)| forecast::fault(&health, before).is_some()) {
            fact.serving = false;
            return;
        }
        if !is_fresh(row.sampled_s, now_s) {
            return;
        }
        if by_forecast && let Some(o) = &row.offer {
            // As the offer reckons: what it leaves free is never what a recall wants back.
            fact.need = fact.need.max(extent_size.extents_round_up(Bytes::new(o.ledger.growth)).get());
        }
        if let Some(peak) = row.peak(now_s) {
            fact.usable = thousandths(forecast::USABLE * row.model.capability());
            fact.load = thousandths(peak);
        }
    }

    /// Fills in which of a volume's pieces does how much.
    pub fn rate_volume(&self, now_s: u64, fact: &mut VolumeFact) {
        let s = self.lock();
        if let Some(row) = s.volumes.get(&fact.volume).filter(|r| is_fresh(r.sampled_s, now_s)) {
            planner::spread(&row.rates(now_s), fact);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Heat, *};

    #[test]
    fn a_new_load_counts_in_full_for_disks_and_little_over_hours() {
        let mut r = VolumeRow::new();
        (r.heat, r.warm.mean) = (Heat { part_bytes: 4096, ios: vec![3.0, 1.0] }, 2.0);
        for at in (0..60).step_by(10) {
            r.peaks.take(at, 400.0);
        }
        let of = |r: &VolumeRow, now_s| (r.rates(now_s).mean, r.rates(now_s).peak);
        assert_eq!(of(&r, 30), (4.0, 4.0), "the minute is not over");
        assert_eq!(of(&r, 60), (4.0, 400.0));
        assert_eq!(of(&r, 1000), (4.0, 4.0), "it has passed");
        r.warm.mean = 500.0;
        assert_eq!(of(&r, 60), (500.0, 500.0), "few and large");
    }

    #[test]
    fn the_greatest_closed_mean_counts_and_passes() {
        let mut p = Peaks::of_minutes();
        assert_eq!(p.greatest(0), None);
        for at in (0..120).step_by(10) {
            p.take(at, if at < 60 { 5.0 } else { 50.0 });
        }
        assert_eq!(p.greatest(110), Some(5.0), "the second minute is not over");
        assert_eq!(p.greatest(120), Some(50.0));
        for at in (120..600).step_by(10) {
            p.take(at, 1.0);
        }
        assert_eq!((p.greatest(400), p.greatest(420)), (Some(1.0), Some(1.0)));
        assert_eq!(p.greatest(5000), None);
        assert!(p.means.len() <= 6);
        p.take(0, 7.0);
        assert_eq!(p.greatest(60), Some(7.0), "a clock that was ahead is forgotten");
    }
}
