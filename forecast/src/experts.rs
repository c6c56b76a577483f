//! Simple forecasts of one series from its last week, to be weighed against each other.
//!
//! Invariants: every expert answers from the first hour on, with a finite value of at least 0; it sees nothing later
//! than the newest hour. Must not know which of them is right: that is `skill`.
//!
//! The set is that of the reference (last value, EWMA, seasonal, 7-day median, Holt-Winters) with medians across these
//! added: what is scored is absolute error, and medians are what minimises it under bursts.

use crate::number::{median, whole};

/// Hours kept: a week.
pub(crate) const WEEK: usize = 168;
/// Experts of the mean load.
pub(crate) const MEANS: usize = 14;
/// Experts of the peak.
pub(crate) const PEAKS: usize = 10;

const DAY: usize = 24;
const DAYS: usize = WEEK / DAY;

/// One closed hour of a series.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Hour {
    /// Its number: seconds since 1970 / 3600.
    pub number: u64,
    /// The mean of the hour.
    pub mean: f64,
    /// The greatest 5-minute mean in it.
    pub peak: f64,
    /// The mean of its last quarter.
    pub late: f64,
}

/// The newest hours of a series, oldest first.
pub(crate) struct Past<'a> {
    pub(crate) means: &'a [f64],
    pub(crate) peaks: &'a [f64],
    /// Mean of the newest quarter of an hour.
    pub(crate) late: f64,
    /// The newest hour's number.
    pub(crate) number: u64,
}

/// `values[len - 1 - hours]`, if there is one.
fn ago(values: &[f64], hours: usize) -> Option<f64> {
    values.len().checked_sub(1 + hours).map(|i| values[i])
}

/// The values at the hour that comes `ahead` hours after the newest, on each of the last 7 days, newest first, and how
/// many of those days are kept.
fn same_hour(values: &[f64], ahead: usize) -> ([f64; DAYS], usize) {
    let (mut found, mut count) = ([0.0; DAYS], 0);
    for (slot, day) in found.iter_mut().zip(1..) {
        let Some(value) = ago(values, DAY * day - ahead) else { break };
        (*slot, count) = (value, count + 1);
    }
    (found, count)
}

/// What cannot be read off the last week: exponentially smoothed levels.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Smooth {
    /// Means that forget half in 1, 4 and 17 hours.
    pub(crate) level: [f64; 3],
    /// Holt-Winters without trend (a trend made every horizon worse): level and additive seasons by hour of day.
    pub(crate) base: f64,
    pub(crate) season: [f64; DAY],
    pub(crate) hours: u64,
}

impl Smooth {
    const GAINS: [f64; 3] = [0.5, 0.16, 0.04];
    const BASE_GAIN: f64 = 0.25;
    const SEASON_GAIN: f64 = 0.1;

    pub(crate) fn new() -> Self {
        Self { level: [0.0; 3], base: 0.0, season: [0.0; DAY], hours: 0 }
    }

    /// Takes the newest of `past`.
    pub(crate) fn learn(&mut self, past: &Past<'_>) {
        let Some(value) = ago(past.means, 0) else { return };
        self.hours = self.hours.saturating_add(1);
        for (level, gain) in self.level.iter_mut().zip(Self::GAINS) {
            *level += (value - *level) * if self.hours == 1 { 1.0 } else { gain };
        }
        if self.hours < DAY as u64 {
            self.base += (value - self.base) / whole(past.means.len());
        } else if self.hours == DAY as u64 {
            self.base = past.means.iter().rev().take(DAY).sum::<f64>() / whole(past.means.len().min(DAY));
            for (back, mean) in past.means.iter().rev().take(DAY).enumerate() {
                self.season[Self::hour_of_day(past.number.wrapping_sub(back as u64))] = mean - self.base;
            }
        } else {
            let season = &mut self.season[Self::hour_of_day(past.number)];
            self.base += (value - *season - self.base) * Self::BASE_GAIN;
            *season += (value - self.base - *season) * Self::SEASON_GAIN;
        }
    }

    fn hour_of_day(number: u64) -> usize {
        usize::try_from(number % DAY as u64).unwrap_or(0)
    }

    fn seasonal(&self, number: u64) -> f64 {
        (self.base + self.season[Self::hour_of_day(number)]).max(0.0)
    }
}

/// What each expert says of the mean over each of the horizons, which go up.
pub(crate) fn means<const N: usize>(
    past: &Past<'_>,
    smooth: &Smooth,
    horizons: [u32; N],
) -> [[f64; MEANS]; N] {
    let last = ago(past.means, 0).unwrap_or(0.0);
    let usual_now = usual(past.means, 0).unwrap_or(last);
    let (mut fade_fast, mut fade_slow) = (1.0, 1.0);
    let (mut sums, mut ahead) = ([0.0; MEANS], 0);
    horizons.map(|horizon| {
        while ahead < horizon as usize {
            ahead += 1;
            fade_fast *= 0.5;
            fade_slow *= 0.8;
            let above = [fade_fast, fade_slow].map(|fade| fade * (last - usual_now));
            let hour = one_hour(past, smooth, ahead, above);
            sums.iter_mut().zip(hour).for_each(|(sum, value)| *sum += value);
        }
        sums.map(|sum| sum / whole(ahead.max(1)))
    })
}

/// The median of the same hour on the last 7 days.
fn usual(values: &[f64], ahead: usize) -> Option<f64> {
    // The newest hour itself is "0 ahead": it is compared with the days before it.
    let (mut days, count) = same_hour(values, ahead);
    (count > 0).then(|| median(&mut days[..count]))
}

fn one_hour(past: &Past<'_>, smooth: &Smooth, ahead: usize, above: [f64; 2]) -> [f64; MEANS] {
    let last = ago(past.means, 0).unwrap_or(0.0);
    let [fast, middle, slow] = smooth.level;
    let (mut days, count) = same_hour(past.means, ahead);
    let days = &mut days[..count];
    let yesterday = days.first().copied().unwrap_or(middle);
    let before = days.get(1).copied().unwrap_or(yesterday);
    let week = days.get(6).copied().unwrap_or(yesterday);
    let usual = if days.is_empty() { middle } else { median(days) };
    let low = days.get(2.min(days.len().saturating_sub(1))).copied().unwrap_or(usual);
    [
        last,
        past.late,
        yesterday,
        fast,
        middle,
        slow,
        usual,
        week,
        smooth.seasonal(past.number.saturating_add(ahead as u64)),
        (usual + above[0]).max(0.0),
        (usual + above[1]).max(0.0),
        median(&mut [past.late, yesterday, usual, week, middle]),
        median(&mut [usual, yesterday, week, slow, middle, last, before]),
        low,
    ]
}

/// What each expert says of the peak within the next `horizon` hours.
pub(crate) fn peaks(past: &Past<'_>, horizon: usize) -> [f64; PEAKS] {
    let last = ago(past.peaks, 0).unwrap_or(0.0);
    let greatest = |hours: usize| past.peaks.iter().rev().take(hours).copied().fold(0.0, f64::max);
    // The peaks of the same hours on each of the last days. A day of which less is kept does not count.
    let days: Vec<f64> = (1..=7)
        .map_while(|day| {
            ago(past.peaks, DAY * day - 1)?;
            Some((1..=horizon).filter_map(|ahead| ago(past.peaks, DAY * day - ahead)).fold(0.0, f64::max))
        })
        .collect();
    let day = greatest(DAY);
    let yesterday = days.first().copied().unwrap_or(day);
    let three = days.iter().take(3).copied().fold(0.0, f64::max).max(if days.is_empty() { day } else { 0.0 });
    let mut sorted = days.clone();
    let middle = if sorted.is_empty() { day } else { median(&mut sorted) };
    let most = sorted.last().copied().unwrap_or(day);
    let second = sorted.len().checked_sub(2).map_or(most, |i| sorted[i]);
    [last, day, yesterday, most, second, 2.0 * middle, three, day.max(most), greatest(WEEK), last.max(middle)]
}
