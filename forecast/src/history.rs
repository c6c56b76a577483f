//! Bounded histories: samples every 10 s in, rolled up to 1 minute, 5 minutes and 1 hour.
//!
//! Invariants: a series never grows beyond its shape; an interval of which less than half was seen is missing, not 0;
//! time only moves forward, a late sample changes nothing, one that is an hour late says that the clock was wrong and begins
//! the series anew; what is encoded decodes to an equal series. The peak of an
//! interval is the greatest mean of the next finer intervals in it. Must not know clocks, disks or units.

use crate::codec::{DecodeError, Kind, Reader, Writer};
use crate::number::{Packed, ratio, sane, whole};

const KIND: Kind = Kind { name: "history", tag: b'H', version: 1 };

/// Seconds between samples.
pub const SAMPLE_S: u64 = 10;

/// A length of interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// 60 s.
    Minute,
    /// 300 s.
    FiveMinutes,
    /// 3600 s.
    Hour,
}

impl Resolution {
    /// From fine to coarse.
    pub const ALL: [Self; 3] = [Self::Minute, Self::FiveMinutes, Self::Hour];

    /// Its length.
    #[must_use]
    pub fn seconds(self) -> u64 {
        match self {
            Self::Minute => 60,
            Self::FiveMinutes => 300,
            Self::Hour => 3600,
        }
    }

    fn slot(self) -> usize {
        match self {
            Self::Minute => 0,
            Self::FiveMinutes => 1,
            Self::Hour => 2,
        }
    }
}

/// How many intervals a series keeps of each length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// 1-minute intervals.
    pub minutes: u16,
    /// 5-minute intervals.
    pub fives: u16,
    /// 1-hour intervals.
    pub hours: u16,
}

impl Shape {
    /// For a disk: an hour, a day, a week; 2 KB.
    pub const DISK: Self = Self { minutes: 60, fives: 288, hours: 168 };
    /// For a volume, of which there may be a million: a quarter, an hour, a week; 0.8 KB.
    pub const VOLUME: Self = Self { minutes: 15, fives: 12, hours: 168 };

    const LONGEST: u16 = 1024;

    fn kept(self, resolution: Resolution) -> u16 {
        let kept = match resolution {
            Resolution::Minute => self.minutes,
            Resolution::FiveMinutes => self.fives,
            Resolution::Hour => self.hours,
        };
        kept.clamp(1, Self::LONGEST)
    }
}

/// What was seen in one interval.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// The greatest mean of the next finer intervals in it.
    pub peak: f64,
}

/// What became of a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It counts.
    Yes,
    /// It is older than the newest one; nothing changed.
    Late,
    /// It is no number; nothing changed.
    NoNumber,
    /// It is far older than the newest one: the clock was ahead and what was recorded lies at wrong times. The series
    /// begins anew with this sample.
    Restarted,
}

/// Seconds by which a sample is not late but proves that the clock was wrong.
const CLOCK_WRONG_S: u64 = 3600;

/// One resolution: the closed intervals up to `next`, and what was seen of interval `next` itself.
#[derive(Clone, PartialEq, Debug)]
struct Level {
    /// (mean, peak) by interval number modulo the length.
    ring: Vec<(Packed, Packed)>,
    /// The interval that is open; those before it are closed. 0 before the first sample.
    next: u64,
    sum: f64,
    seen: u16,
    peak: f64,
}

impl Level {
    fn new(kept: u16) -> Self {
        let ring = vec![(Packed::MISSING, Packed::MISSING); usize::from(kept)];
        Self { ring, next: 0, sum: 0.0, seen: 0, peak: 0.0 }
    }

    fn place(&self, number: u64) -> usize {
        usize::try_from(number % self.ring.len() as u64).unwrap_or(0)
    }

    fn add(&mut self, value: f64) {
        self.sum += value;
        self.seen = self.seen.saturating_add(1);
        self.peak = self.peak.max(value);
    }

    /// Closes the open interval and all before `number`; returns the mean of the one that was open, if it counts.
    fn close_before(&mut self, number: u64, full: u64) -> Option<f64> {
        if number <= self.next {
            return None;
        }
        let counts = u64::from(self.seen) * 2 >= full;
        let mean = counts.then(|| self.sum / f64::from(self.seen.max(1)));
        let closed = match mean {
            Some(mean) => (Packed::new(mean), Packed::new(self.peak)),
            None => (Packed::MISSING, Packed::MISSING),
        };
        let place = self.place(self.next);
        self.ring[place] = closed;
        let skipped = (number - self.next - 1).min(self.ring.len() as u64);
        for missing in number - skipped..number {
            let place = self.place(missing);
            self.ring[place] = (Packed::MISSING, Packed::MISSING);
        }
        *self = Self { ring: std::mem::take(&mut self.ring), next: number, sum: 0.0, seen: 0, peak: 0.0 };
        mean
    }

    fn at(&self, number: u64) -> Option<Interval> {
        if number >= self.next || self.next - number > self.ring.len() as u64 {
            return None;
        }
        let (mean, peak) = self.ring[self.place(number)];
        Some(Interval { mean: mean.get()?, peak: peak.get()? })
    }
}

/// The history of one quantity of one disk or volume.
#[derive(Clone, PartialEq, Debug)]
pub struct Series {
    levels: [Level; 3],
    /// Time and value of the newest sample.
    latest: Option<(u64, f64)>,
}

impl Series {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self { levels: Resolution::ALL.map(|r| Level::new(shape.kept(r))), latest: None }
    }

    /// Takes one sample of time `at_s` (seconds since 1970).
    pub fn record(&mut self, at_s: u64, value: f64) -> Taken {
        let Some(value) = sane(value) else { return Taken::NoNumber };
        let late_s = self.latest.map_or(0, |(newest, _)| newest.saturating_sub(at_s));
        if late_s > CLOCK_WRONG_S {
            let kept =
                |r: Resolution| u16::try_from(self.levels[r.slot()].ring.len()).unwrap_or(Shape::LONGEST);
            *self = Self { levels: Resolution::ALL.map(|r| Level::new(kept(r))), latest: None };
        } else if self.latest.is_some_and(|(newest, _)| at_s <= newest) {
            return Taken::Late;
        }
        if self.latest.is_none() {
            for resolution in Resolution::ALL {
                self.levels[resolution.slot()].next = at_s / resolution.seconds();
            }
        }
        self.close_before(at_s);
        self.levels[0].add(value);
        self.latest = Some((at_s, value));
        if late_s > 0 { Taken::Restarted } else { Taken::Yes }
    }

    /// Closes every interval that ends at or before `at_s`.
    fn close_before(&mut self, at_s: u64) {
        let mut finer = SAMPLE_S;
        for resolution in Resolution::ALL {
            let slot = resolution.slot();
            let mean =
                self.levels[slot].close_before(at_s / resolution.seconds(), resolution.seconds() / finer);
            if let (Some(mean), Some(coarser)) = (mean, self.levels.get_mut(slot + 1)) {
                coarser.add(mean);
            }
            finer = resolution.seconds();
        }
    }

    /// Takes in what another history of the same quantity has and this one lacks: of a volume that was on another node for a
    /// while, say. What both have seen, the newer one knows.
    pub fn absorb(&mut self, other: &Self) {
        let newest = |s: &Self| s.latest.map(|(at_s, _)| at_s);
        let mut older = other.clone();
        if newest(other) > newest(self) {
            let same_shape = self.levels.iter().zip(&other.levels).all(|(a, b)| a.ring.len() == b.ring.len());
            if !same_shape {
                return;
            }
            older = std::mem::replace(self, older);
        }
        // What the older one had open is over.
        older.close_before(newest(self).unwrap_or_default());
        for (level, from) in self.levels.iter_mut().zip(&older.levels) {
            for number in level.next.saturating_sub(level.ring.len() as u64)..level.next {
                if let (None, Some(seen)) = (level.at(number), from.at(number)) {
                    let place = level.place(number);
                    level.ring[place] = (Packed::new(seen.mean), Packed::new(seen.peak));
                }
            }
        }
    }

    /// The newest sample: seconds since 1970, and value.
    #[must_use]
    pub fn latest(&self) -> Option<(u64, f64)> {
        self.latest
    }

    /// The closed interval with this number (seconds since 1970 / length), if it is kept and was seen.
    #[must_use]
    pub fn interval(&self, resolution: Resolution, number: u64) -> Option<Interval> {
        self.levels[resolution.slot()].at(number)
    }

    /// The numbers of the closed intervals that may still be kept, oldest first.
    #[must_use]
    pub fn kept(&self, resolution: Resolution) -> std::ops::Range<u64> {
        let level = &self.levels[resolution.slot()];
        level.next.saturating_sub(level.ring.len() as u64)..level.next
    }

    /// The mean of the newest `count` closed intervals that were seen; `None` if there is none.
    #[must_use]
    pub fn recent_mean(&self, resolution: Resolution, count: u64) -> Option<f64> {
        let kept = self.kept(resolution);
        let from = kept.start.max(kept.end.saturating_sub(count));
        let means: Vec<f64> =
            (from..kept.end).filter_map(|n| self.interval(resolution, n)).map(|i| i.mean).collect();
        (!means.is_empty()).then(|| ratio(means.iter().sum(), whole(means.len()), 0.0))
    }

    /// The persistent form: at most 4 bytes an interval and 100 more.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(KIND);
        out.u8(u8::from(self.latest.is_some()));
        let (at_s, value) = self.latest.unwrap_or_default();
        out.u64(at_s);
        out.f64(value);
        for level in &self.levels {
            out.u16(u16::try_from(level.ring.len()).unwrap_or(Shape::LONGEST));
            out.u64(level.next);
            out.f64(level.sum);
            out.u16(level.seen);
            out.f64(level.peak);
            encode_ring(&mut out, &level.ring);
        }
        out.finish()
    }

    /// Reads what [`Series::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are damaged, cut, or of another version: the caller begins a new series.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(KIND, bytes)?;
        let any = from.u8()? != 0;
        let latest = (from.u64()?, from.f64()?);
        let mut levels = [Level::new(1), Level::new(1), Level::new(1)];
        for level in &mut levels {
            let kept = from.u16()?;
            if !(1..=Shape::LONGEST).contains(&kept) {
                return Err(from.wrong("the length of a ring"));
            }
            level.next = from.u64()?;
            level.sum = from.f64()?;
            level.seen = from.u16()?;
            level.peak = from.f64()?;
            level.ring = decode_ring(&mut from, usize::from(kept))?;
        }
        from.end()?;
        Ok(Self { levels, latest: any.then_some(latest) })
    }
}

/// A ring as runs: how many intervals are missing, how many follow that are not, those, and so on.
fn encode_ring(out: &mut Writer, ring: &[(Packed, Packed)]) {
    let mut rest = ring;
    while !rest.is_empty() {
        let missing = rest.iter().take_while(|i| i.0 == Packed::MISSING).count();
        let (_, after) = rest.split_at(missing);
        let (seen, after) = after.split_at(after.iter().take_while(|i| i.0 != Packed::MISSING).count());
        out.u16(u16::try_from(missing).unwrap_or(Shape::LONGEST));
        out.u16(u16::try_from(seen.len()).unwrap_or(Shape::LONGEST));
        for (mean, peak) in seen {
            out.packed(*mean);
            out.packed(*peak);
        }
        rest = after;
    }
}

fn decode_ring(from: &mut Reader<'_>, length: usize) -> Result<Vec<(Packed, Packed)>, DecodeError> {
    let mut ring = Vec::with_capacity(length);
    while ring.len() < length {
        let (missing, seen) = (usize::from(from.u16()?), usize::from(from.u16()?));
        if missing + seen == 0 || ring.len() + missing + seen > length {
            return Err(from.wrong("a run of intervals"));
        }
        ring.resize(ring.len() + missing, (Packed::MISSING, Packed::MISSING));
        for _ in 0..seen {
            ring.push((from.packed()?, from.packed()?));
        }
    }
    Ok(ring)
}
