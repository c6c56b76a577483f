//! What histories say to planners of moves: what disks can do and are about to do, where a volume's I/O goes.
//!
//! Invariants: what was not heard of for a minute, or is not known yet, is nothing that a plan may rest on: a disk can then do
//! 0, a volume's pieces do 0. Must not know: the core, what is worth moving.

use std::collections::VecDeque;

use forecast::STALE_S;
use pool::{
    planner::{DiskFact, PieceFact, VolumeFact},
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

fn is_fresh(sampled_s: Option<u64>, now_s: u64) -> bool {
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
            spread(row, now_s, fact);
        }
    }
}

/// Logical extents that a piece is part of: a stripe's are shared by its legs.
fn span(p: &PieceFact) -> (u64, u64, u64) {
    let legs = p.whole.as_ref().map_or(1, |w| w.len().max(1) as u64);
    (p.start.get(), p.start.get().saturating_add(p.count.saturating_mul(legs)), legs)
}

/// Gives each piece its share of what the volume does: by heat, evenly where there is none. The I/Os of heat are counted
/// whatever their size; where the load is greater because they are large, that counts.
fn spread(row: &VolumeRow, now_s: u64, fact: &mut VolumeFact) {
    let extent = fact.extent_size.bytes().get() as f64;
    let size = fact.pieces.iter().map(|p| span(p).1).max().unwrap_or(0) as f64 * extent;
    let sum: f64 = row.heat.ios.iter().sum();
    let (part, ios, sum) = if row.heat.part_bytes > 0 && sum > 0.0 {
        (row.heat.part_bytes as f64, row.heat.ios.as_slice(), sum)
    } else {
        (size, &[1.0][..], 1.0)
    };
    let mean = row.warm.mean.max(row.heat.ios.iter().sum());
    // A load that is new is not in a mean of hours yet, and all of it in its disk's.
    let peak = row.peaks.greatest(now_s).map_or(mean, |p| p.max(mean));
    for p in &mut fact.pieces {
        let (from, to, legs) = span(p);
        let (from, to) = (from as f64 * extent, to as f64 * extent);
        let share = |(i, io): (usize, &f64)| {
            let (begin, end) = (i as f64 * part, ((i + 1) as f64 * part).min(size));
            let common = to.min(end) - from.max(begin);
            if common > 0.0 { io * common / (end - begin) } else { 0.0 }
        };
        let of_all = ios.iter().enumerate().map(share).sum::<f64>() / sum / legs as f64;
        p.io = thousandths(mean * of_all);
        p.peak = thousandths(peak * of_all);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use forecast::{Series, Shape};
    use pool::{
        ids::{DiskId, Epoch, VolumeId},
        units::Extents,
    };

    use super::{super::Heat, *};

    fn piece(start: u64, count: u64, legs: &[u128], leg: u32) -> PieceFact {
        let all: BTreeSet<DiskId> = legs.iter().map(|d| DiskId::from_u128(*d)).collect();
        PieceFact {
            start: Extents::new(start),
            count,
            leg,
            disk: DiskId::from_u128(legs[leg as usize]),
            io: 0,
            peak: 0,
            whole: (legs.len() > 1).then_some(all),
        }
    }

    fn volume(pieces: Vec<PieceFact>) -> VolumeFact {
        VolumeFact {
            volume: VolumeId::from_u128(1),
            epoch: Epoch::ZERO,
            home: "n1".parse().expect("a name"),
            extent_size: ExtentSize::MIN,
            still_s: 0,
            moved_s: None,
            coming_home: false,
            bound: false,
            block: 512,
            not: BTreeSet::new(),
            pieces,
            max_lenders: 8,
        }
    }

    fn row(part_extents: u64, ios: &[f64], warm: f64) -> VolumeRow {
        VolumeRow {
            series: Series::new(Shape::VOLUME),
            heat: Heat { part_bytes: ExtentSize::MIN.bytes().get() * part_extents, ios: ios.to_vec() },
            bytes_s: 0.0,
            warm: Warm { at_s: 0, mean: warm },
            peaks: Peaks::of_minutes(),
            sampled_s: None,
        }
    }

    fn ios(row: &VolumeRow, pieces: Vec<PieceFact>) -> Vec<u64> {
        let mut v = volume(pieces);
        spread(row, 0, &mut v);
        v.pieces.iter().map(|p| p.io).collect()
    }

    #[test]
    fn heat_goes_to_the_pieces_that_have_it() {
        let linear = || vec![piece(0, 3, &[1], 0), piece(3, 5, &[2], 0)];
        // Parts of two extents, eight extents in all.
        assert_eq!(ios(&row(2, &[10.0, 20.0, 0.0, 4.0], 0.0), linear()), [20_000, 14_000]);
        // Large I/Os: the load is twice what their number says.
        assert_eq!(ios(&row(2, &[10.0, 20.0, 0.0, 4.0], 68.0), linear()), [40_000, 28_000]);
        // Nothing is known of where, or of anything.
        assert_eq!(ios(&row(0, &[], 16.0), linear()), [6000, 10_000]);
        assert_eq!(ios(&row(0, &[], 0.0), linear()), [0, 0]);
        // The last part is a short one.
        assert_eq!(ios(&row(3, &[0.0, 0.0, 6.0], 0.0), linear()), [0, 6000]);
        let stripes = vec![piece(0, 4, &[1, 2], 0), piece(0, 4, &[1, 2], 1)];
        assert_eq!(ios(&row(4, &[10.0, 4.0], 0.0), stripes), [7000, 7000]);
    }

    #[test]
    fn a_new_load_counts_in_full_for_disks_and_little_over_hours() {
        let mut r = row(2, &[3.0, 1.0], 4.0);
        for at in (0..60).step_by(10) {
            r.peaks.take(at, 400.0);
        }
        let mut v = volume(vec![piece(0, 2, &[1], 0), piece(2, 2, &[2], 0)]);
        spread(&r, 30, &mut v);
        let of = |v: &VolumeFact| v.pieces.iter().map(|p| (p.io, p.peak)).collect::<Vec<_>>();
        assert_eq!(of(&v), [(3000, 3000), (1000, 1000)], "the minute is not over");
        spread(&r, 60, &mut v);
        assert_eq!(of(&v), [(3000, 300_000), (1000, 100_000)]);
        spread(&r, 1000, &mut v);
        assert_eq!(of(&v), [(3000, 3000), (1000, 1000)], "it has passed");
        (r.heat, r.warm.mean) = (Heat::default(), 0.0);
        spread(&r, 60, &mut v);
        assert_eq!(of(&v), [(0, 200_000), (0, 200_000)], "nothing is known of where");
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
