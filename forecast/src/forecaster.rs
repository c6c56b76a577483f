//! The forecast of one series, kept up hour by hour.
//!
//! Invariants: state is bounded (about 6 KB); an hour is taken once, in order; a decision is scored only against
//! hours that were seen, so an outage neither looks like idleness nor counts as a violation; every forecast is finite,
//! at least 0, and its bound at least its mean. Must not know clocks, disks or units.

use std::collections::VecDeque;

use crate::HORIZONS_H;
use crate::conformal::{Calibration, ClassScores};
use crate::experts::{self, Hour, MEANS, PEAKS, Past, Smooth, WEEK};
use crate::history::{Resolution, Series};
use crate::number::{Packed, or_zero, ratio, whole};
use crate::skill::{Skill, blend, consensus};

/// A gap longer than this many hours begins the series anew; only what was learned about errors stays.
const LONGEST_GAP: u64 = WEEK as u64;
/// An hour that is older than the newest by this many proves that the clock was ahead: the series begins anew as well.
const CLOCK_WRONG_H: u64 = 24;
/// Every how many decisions a score is kept, by horizon: windows that overlap say the same thing twice.
const KEEP_EVERY: [u64; 4] = [1, 2, 3, 4];
/// The horizon whose errors are also told apart by hour of day: a backup at night is all there is to know an hour
/// ahead, and averages out over longer ones.
const BY_HOUR_LANE: usize = 0;

/// A peak this many times what was expected is as bad as any: what an idle series does first must not set bounds
/// for ever.
const GREATEST_SCORE: f64 = 100.0;

/// What is expected of one series over a horizon.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Forecast {
    /// The horizon.
    pub horizon_h: u32,
    /// The mean load over it.
    pub mean: f64,
    /// What the greatest 5-minute mean within it stays under, but for the stated rate of violations.
    pub peak_bound: f64,
    /// How much it rests on: 0 for nothing, 1 for a week of the series and two days of decisions that were scored.
    pub confidence: f64,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Decision {
    pub(crate) hour: u64,
    pub(crate) means: [Packed; MEANS],
    pub(crate) peaks: [Packed; PEAKS],
    pub(crate) expected: Packed,
    pub(crate) bound: Packed,
    pub(crate) offset: Packed,
}

/// All of one horizon.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Lane {
    pub(crate) mean_skill: Skill<MEANS>,
    pub(crate) by_hour: Vec<Skill<MEANS>>,
    pub(crate) peak_skill: Skill<PEAKS>,
    pub(crate) calibration: Calibration,
    pub(crate) pending: VecDeque<Decision>,
    pub(crate) current: Forecast,
}

/// The forecaster of one series.
#[derive(Clone, PartialEq, Debug)]
pub struct Forecaster {
    /// Newest last: mean, peak, and whether the hour was seen or is filled in.
    pub(crate) week: VecDeque<(Packed, Packed, bool)>,
    /// The newest hour's number.
    pub(crate) newest: Option<u64>,
    pub(crate) smooth: Smooth,
    pub(crate) lanes: [Lane; 4],
}

impl Lane {
    fn new(index: usize, wanted: f64) -> Self {
        Self {
            mean_skill: Skill::new(),
            by_hour: if index == BY_HOUR_LANE { vec![Skill::new(); 24] } else { Vec::new() },
            peak_skill: Skill::new(),
            calibration: Calibration::new(wanted),
            pending: VecDeque::new(),
            current: Forecast { horizon_h: HORIZONS_H[index], mean: 0.0, peak_bound: 0.0, confidence: 0.0 },
        }
    }

    /// Errors of the mean's experts for a decision at this hour.
    fn errors_at(&self, hour: u64) -> [f64; MEANS] {
        let all = self.mean_skill.mean_errors();
        if self.by_hour.is_empty() {
            return all;
        }
        let at = |h: u64| &self.by_hour[usize::try_from(h % 24).unwrap_or(0)];
        let near = [(at(hour), 1.0), (at(hour.wrapping_add(1)), 0.5), (at(hour.wrapping_add(23)), 0.5)];
        let weight: f64 = near.iter().filter(|(s, _)| s.seen > 0).map(|(_, w)| w).sum();
        if weight == 0.0 {
            return all;
        }
        let mut errors = all;
        for (i, error) in errors.iter_mut().enumerate() {
            let local: f64 = near.iter().map(|(s, w)| f64::from(s.errors[i]) * w).sum();
            *error = 0.5 * *error + 0.5 * local / weight;
        }
        errors
    }
}

impl Forecaster {
    /// A forecaster of a series of which nothing is known, whose bounds are to be violated at the rate `wanted`.
    #[must_use]
    pub fn new(wanted: f64) -> Self {
        Self {
            week: VecDeque::new(),
            newest: None,
            smooth: Smooth::new(),
            lanes: std::array::from_fn(|index| Lane::new(index, wanted)),
        }
    }

    /// The rate at which its bounds are to be violated.
    #[must_use]
    pub fn wanted_violations(&self) -> f64 {
        self.lanes[0].calibration.wanted()
    }

    /// The number of the newest hour it has taken.
    #[must_use]
    pub fn newest_hour(&self) -> Option<u64> {
        self.newest
    }

    /// A forecaster made of a history alone, for what is asked for rarely: a volume's history is a tenth of the state
    /// kept here, and reading it again takes milliseconds. The class is read, not changed.
    #[must_use]
    pub fn replayed(series: &Series, class: &ClassScores, wanted: f64) -> Self {
        let mut this = Self::new(wanted);
        this.catch_up(series, &mut class.clone());
        this
    }

    /// Takes every closed hour of a history that it has not taken yet.
    pub fn catch_up(&mut self, series: &Series, class: &mut ClassScores) {
        let kept = series.kept(Resolution::Hour);
        if self.newest.is_some_and(|newest| newest >= kept.end.saturating_add(CLOCK_WRONG_H)) {
            self.restart();
        }
        for number in kept {
            if self.newest.is_some_and(|newest| number <= newest) {
                continue;
            }
            let Some(hour) = series.interval(Resolution::Hour, number) else { continue };
            let fives = Resolution::Hour.seconds() / Resolution::FiveMinutes.seconds();
            let quarter: Vec<f64> = ((number + 1) * fives - 3..(number + 1) * fives)
                .filter_map(|five| series.interval(Resolution::FiveMinutes, five))
                .map(|five| five.mean)
                .collect();
            let late = ratio(quarter.iter().sum(), whole(quarter.len()), hour.mean);
            self.observe(Hour { number, mean: hour.mean, peak: hour.peak, late }, class);
        }
    }

    /// Takes one hour: scores the decisions that it decides, learns, and decides anew. An hour that is not newer than
    /// the newest is ignored (a day older: the clock was wrong, the series begins anew); hours left out were not seen.
    pub fn observe(&mut self, hour: Hour, class: &mut ClassScores) {
        match self.newest {
            Some(newest) if newest >= hour.number.saturating_add(CLOCK_WRONG_H) => self.restart(),
            Some(newest) if newest >= hour.number => return,
            _ => {}
        }
        self.fill_gap(hour.number);
        self.push(Packed::new(or_zero(hour.mean)), Packed::new(or_zero(hour.peak.max(hour.mean))), true);
        self.newest = Some(hour.number);
        let means: Vec<f64> = self.week.iter().map(|h| h.0.or_zero()).collect();
        let peaks: Vec<f64> = self.week.iter().map(|h| h.1.or_zero()).collect();
        let late = Packed::new(or_zero(hour.late)).or_zero();
        let past = Past { means: &means, peaks: &peaks, late, number: hour.number };
        self.smooth.learn(&past);
        for (lane, said) in experts::means(&past, &self.smooth, HORIZONS_H).into_iter().enumerate() {
            self.score(lane, &past, class);
            self.decide(lane, said, &past, class);
        }
    }

    /// What is expected over the next `horizon_h` hours, counted from the end of the newest hour; of horizons in
    /// between, the next longer one, of longer ones the longest. Zeros before the first hour.
    #[must_use]
    pub fn forecast(&self, horizon_h: u32) -> Forecast {
        let lane = HORIZONS_H.iter().position(|h| *h >= horizon_h).unwrap_or(HORIZONS_H.len() - 1);
        self.lanes[lane].current
    }

    fn push(&mut self, mean: Packed, peak: Packed, seen: bool) {
        if self.week.len() == WEEK {
            self.week.pop_front();
        }
        self.week.push_back((mean, peak, seen));
    }

    /// Puts into hours that were not seen what the day before had, marked as not seen.
    fn fill_gap(&mut self, number: u64) {
        let Some(newest) = self.newest else { return };
        let gap = number - newest - 1;
        if gap > LONGEST_GAP {
            self.restart();
            return;
        }
        for _ in 0..gap {
            let back = self.week.len().saturating_sub(24).min(self.week.len() - 1);
            let (mean, peak, _) = self.week[back];
            self.push(mean, peak, false);
        }
    }

    /// Forgets the series, not what was learned about errors.
    fn restart(&mut self) {
        self.week.clear();
        self.newest = None;
        self.smooth = Smooth::new();
        self.lanes.iter_mut().for_each(|lane| lane.pending.clear());
    }

    /// Scores the decisions whose hours are over.
    fn score(&mut self, index: usize, past: &Past<'_>, class: &mut ClassScores) {
        let horizon = u64::from(HORIZONS_H[index]);
        let lane = &mut self.lanes[index];
        while let Some(decision) = lane.pending.pop_front_if(|d| d.hour + horizon <= past.number) {
            let back = |hour: u64| usize::try_from(past.number - hour).ok();
            let seen = (decision.hour + 1..=decision.hour + horizon).map(|hour| {
                let place = past.means.len().checked_sub(1 + back(hour)?)?;
                self.week[place].2.then(|| (past.means[place], past.peaks[place]))
            });
            let Some(seen) = seen.collect::<Option<Vec<(f64, f64)>>>() else { continue };
            let mean = seen.iter().map(|h| h.0).sum::<f64>() / whole(seen.len());
            let peak = seen.iter().map(|h| h.1).fold(0.0, f64::max);
            let costs = decision.means.map(|said| (said.or_zero() - mean).abs());
            lane.mean_skill.learn(costs, 0.01);
            if let Some(skill) = lane.by_hour.get_mut(usize::try_from(decision.hour % 24).unwrap_or(0)) {
                skill.learn(costs, 0.2);
            }
            let wanted = lane.calibration.wanted();
            lane.peak_skill.learn(decision.peaks.map(|said| pinball(peak - said.or_zero(), wanted)), 0.01);
            let offset = decision.offset.or_zero();
            let all = if peak > 0.0 { GREATEST_SCORE } else { 1.0 };
            let score = ratio(peak + offset, decision.expected.or_zero() + offset, all).min(GREATEST_SCORE);
            let violated = peak > decision.bound.or_zero();
            lane.calibration.learn(score, violated, decision.hour % KEEP_EVERY[index] == 0);
            class.add(index, past.number, score, violated, wanted);
        }
    }

    fn decide(&mut self, index: usize, said: [f64; MEANS], past: &Past<'_>, class: &ClassScores) {
        let horizon = usize::try_from(HORIZONS_H[index]).unwrap_or(1);
        let lane = &mut self.lanes[index];
        let mean = consensus(&said, &lane.errors_at(past.number));
        let peaks = experts::peaks(past, horizon);
        let expected = blend(&peaks, &lane.peak_skill.mean_errors(), 3);
        // A fiftieth of the usual peak: so that an idle series does not make ratios of nothing.
        let offset = 0.02 * past.peaks.iter().sum::<f64>() / whole(past.peaks.len().max(1));
        let bound = ((expected + offset) * lane.calibration.factor(class, index) - offset).max(mean);
        let known = (whole(past.means.len()) / whole(WEEK)).min(1.0);
        let scored = (f64::from(lane.mean_skill.seen) / 48.0).min(1.0);
        lane.current = Forecast {
            horizon_h: HORIZONS_H[index],
            mean: or_zero(mean),
            peak_bound: or_zero(bound),
            confidence: known * scored,
        };
        lane.pending.push_back(Decision {
            hour: past.number,
            means: said.map(Packed::new),
            peaks: peaks.map(Packed::new),
            expected: Packed::new(expected),
            bound: Packed::new(bound),
            offset: Packed::new(offset),
        });
    }
}

/// What a bound costs that is to be exceeded at `rate`, when the truth lies `above` it.
fn pinball(above: f64, rate: f64) -> f64 {
    if above > 0.0 { (1.0 - rate) * above } else { -rate * above }
}
