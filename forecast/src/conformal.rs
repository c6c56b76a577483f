//! Upper bounds that hold as often as they say: adaptive conformal inference (Gibbs and Candes, NeurIPS 2021) on
//! ratios of what came to what was expected, half of it pooled over the device class.
//!
//! Invariants: a factor is finite, above 0 and grows when the wanted rate falls; state is bounded. Must not know how
//! the expectation came about.

use std::collections::VecDeque;

use crate::number::{Packed, conformal_quantile, ratio, whole};

/// Own scores kept.
pub(crate) const SCORES: usize = 168;
/// Own scores that count as much as the class does.
const TRUSTED: f64 = 48.0;
/// How far one violation moves the aimed-at rate.
const GAIN: f64 = 0.003;
/// How far the aim of a series may go, as parts of the wanted rate. Bounded both ways, so that a quiet month or one bad
/// night is not paid for long after.
const OWN_AIM: (f64, f64) = (0.2, 2.0);
/// How far an hour in which all decisions of a class were violated as often as wanted once more moves the class's aim.
const CLASS_GAIN: f64 = 0.05;
/// How far that aim may go. It rises little above 1: what a quiet week would gain, the next busy one would lose (over
/// parts of a real trace half a day ahead, 1.3 left 4.0 to 5.3 % of violations of 5 % wanted, 2 left 5.2 to 6.4 %).
const CLASS_AIM: (f64, f64) = (0.2, 1.45);
/// What is expected at most of a series and a class of which nothing is known: twice what was seen.
const UNKNOWN: f64 = 2.0;

/// The scores of one series at one horizon, and the rate it aims at to reach the wanted one.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Calibration {
    pub(crate) scores: VecDeque<Packed>,
    pub(crate) aim: f64,
    wanted: f64,
}

impl Calibration {
    pub(crate) fn new(wanted: f64) -> Self {
        let wanted = if wanted.is_finite() { wanted.clamp(0.001, 0.5) } else { 0.05 };
        Self { scores: VecDeque::new(), aim: wanted, wanted }
    }

    /// The rate wanted.
    pub(crate) fn wanted(&self) -> f64 {
        self.wanted
    }

    /// Takes the score of a past decision; `keep` thins out the strongly dependent scores of long horizons.
    pub(crate) fn learn(&mut self, score: f64, violated: bool, keep: bool) {
        if keep {
            if self.scores.len() == SCORES {
                self.scores.pop_front();
            }
            self.scores.push_back(Packed::new(score));
        }
        let step = self.wanted - if violated { 1.0 } else { 0.0 };
        self.aim = (self.aim + GAIN * step).clamp(OWN_AIM.0 * self.wanted, OWN_AIM.1 * self.wanted);
    }

    /// By what to multiply the expectation.
    pub(crate) fn factor(&self, class: &ClassScores, lane: usize) -> f64 {
        let mut own: Vec<f64> = self.scores.iter().map(|s| s.or_zero()).collect();
        own.sort_unstable_by(f64::total_cmp);
        let aim = self.aim * class.lanes.get(lane).map_or(1.0, |lane| lane.aim);
        let pooled = class.quantile(lane, aim);
        match (conformal_quantile(&own, aim), pooled) {
            (None, None) => UNKNOWN,
            (None, Some(pooled)) => pooled,
            (Some(own), pooled) => {
                let share = 0.5 * (whole(self.scores.len()) / TRUSTED).min(1.0);
                share * own + (1.0 - share) * pooled.unwrap_or(own.max(UNKNOWN))
            }
        }
    }
}

/// The scores of all series of one device class: a histogram a horizon that forgets an eighth a day.
#[derive(Clone, PartialEq, Debug)]
pub struct ClassScores {
    pub(crate) lanes: Vec<ClassLane>,
    pub(crate) day: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ClassLane {
    /// By packed code without its 5 lowest bits: steps of 3 %.
    pub(crate) counts: Vec<u64>,
    pub(crate) total: u64,
    /// Decisions scored in the newest hour, and by how many of them their wanted rate was missed.
    pub(crate) hour: u64,
    pub(crate) decisions: f64,
    pub(crate) excess: f64,
    /// By what every series' aim is multiplied, so that the class as a whole keeps its rate.
    pub(crate) aim: f64,
}

const COARSER: u16 = 5;
/// A score counts this much, so that forgetting can be whole-numbered.
const ONE: u64 = 1 << 10;
/// Fewer scores than these say nothing about a tail.
const ENOUGH: u64 = 100;

impl ClassScores {
    /// No scores yet.
    #[must_use]
    pub fn new() -> Self {
        let lane = ClassLane {
            counts: vec![0; usize::from(u16::MAX >> COARSER) + 1],
            total: 0,
            hour: 0,
            decisions: 0.0,
            excess: 0.0,
            aim: 1.0,
        };
        Self { lanes: vec![lane; crate::HORIZONS_H.len()], day: 0 }
    }

    pub(crate) fn add(&mut self, lane: usize, hour: u64, score: f64, violated: bool, wanted: f64) {
        let day = hour / 24;
        if day > self.day {
            self.day = day;
            self.lanes.iter_mut().for_each(ClassLane::forget);
        }
        if let (Some(lane), Some(_)) = (self.lanes.get_mut(lane), Packed::new(score).get()) {
            let bucket = usize::from(Packed::new(score).code() >> COARSER);
            lane.counts[bucket] = lane.counts[bucket].saturating_add(ONE);
            lane.total = lane.total.saturating_add(ONE);
            lane.judge(hour, violated, wanted);
        }
    }

    /// The score that a share `rate` exceeds, `None` while too few are known.
    fn quantile(&self, lane: usize, rate: f64) -> Option<f64> {
        let lane = self.lanes.get(lane)?;
        if lane.total < ENOUGH * ONE {
            return None;
        }
        let mut above = rate * lane.total as f64;
        for (bucket, count) in lane.counts.iter().enumerate().rev().filter(|(_, c)| **c > 0) {
            let count = *count as f64;
            if above < count {
                let code = u16::try_from(bucket).unwrap_or(u16::MAX >> COARSER) << COARSER;
                let low = Packed::from_code(code).or_zero();
                let high = Packed::from_code(code.saturating_add(1 << COARSER).min(u16::MAX - 1)).or_zero();
                return Some(high - (high - low) * ratio(above, count, 0.0));
            }
            above -= count;
        }
        Some(0.0)
    }
}

impl Default for ClassScores {
    fn default() -> Self {
        Self::new()
    }
}

impl ClassLane {
    /// Adaptive conformal inference of the class: a month that changes changes for all, and they notice together
    /// long before each does alone.
    fn judge(&mut self, hour: u64, violated: bool, wanted: f64) {
        if hour > self.hour {
            let missed = ratio(self.excess, self.decisions, 0.0);
            self.aim = (self.aim - CLASS_GAIN * missed).clamp(CLASS_AIM.0, CLASS_AIM.1);
            (self.hour, self.decisions, self.excess) = (hour, 0.0, 0.0);
        }
        self.decisions += 1.0;
        self.excess += if violated { ratio(1.0, wanted, 1.0) } else { 0.0 } - 1.0;
    }

    fn forget(&mut self) {
        for count in &mut self.counts {
            *count -= count.div_ceil(8);
        }
        self.total = self.counts.iter().sum();
    }
}
