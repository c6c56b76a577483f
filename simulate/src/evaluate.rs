//! How good the forecasts are: each node's hours are fed in order, every decision is scored against what came.
//!
//! Invariants: causal (a decision sees nothing of its horizon); scored on the second half of the trace only, what was
//! tuned was tuned on the first; a horizon with an unknown hour in it is not scored. Must not know policies.

use forecast::{ClassScores, Forecaster, HORIZONS_H, Hour};
use serde::Serialize;

/// The rate at which bounds are to be violated.
pub const WANTED_VIOLATIONS: f64 = 0.05;

/// The forecasts' error at one horizon.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct HorizonError {
    /// The horizon.
    pub horizon_h: u32,
    /// Sum of absolute errors of the mean load / sum of the mean load.
    pub wape: f64,
    /// Share of decisions whose peak bound was exceeded.
    pub violations: f64,
}

/// The same, with what makes it comparable.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Evaluation {
    /// The forecasts' error.
    pub error: HorizonError,
    /// WAPE of "as in the last hour".
    pub last_hour: f64,
    /// WAPE of "as at these hours yesterday".
    pub yesterday: f64,
    /// Of what lay between peaks and each node's greatest peak, the share that stayed between bound and greatest peak.
    pub headroom: f64,
    /// Decisions scored.
    pub decisions: u64,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    load: f64,
    error: f64,
    last: f64,
    yesterday: f64,
    violated: u64,
    decisions: u64,
    room: f64,
    kept: f64,
}

/// Scores the decisions of all nodes from hour `from` on.
#[must_use]
pub fn evaluate(nodes: &[Vec<Option<Hour>>], from: usize, until: usize) -> Vec<Evaluation> {
    let mut class = ClassScores::new();
    let mut forecasters: Vec<Forecaster> = nodes.iter().map(|_| Forecaster::new(WANTED_VIOLATIONS)).collect();
    let greatest: Vec<f64> =
        nodes.iter().map(|n| n.iter().flatten().map(|h| h.peak).fold(0.0, f64::max)).collect();
    let mut sums = [Sums::default(); HORIZONS_H.len()];
    for now in 0..until {
        for ((hours, forecaster), greatest) in nodes.iter().zip(&mut forecasters).zip(&greatest) {
            let Some(Some(hour)) = hours.get(now) else { continue };
            forecaster.observe(*hour, &mut class);
            if now < from {
                continue;
            }
            for (horizon, sums) in HORIZONS_H.iter().zip(&mut sums) {
                score(&hours[..until.min(hours.len())], now, *horizon, forecaster, *greatest, sums);
            }
        }
    }
    HORIZONS_H.iter().zip(sums).map(|(horizon, sums)| sums.finish(*horizon)).collect()
}

fn mean(hours: &[Hour]) -> f64 {
    hours.iter().map(|h| h.mean).sum::<f64>() / hours.len().max(1) as f64
}

fn score(
    hours: &[Option<Hour>],
    now: usize,
    horizon: u32,
    forecaster: &Forecaster,
    greatest: f64,
    sums: &mut Sums,
) {
    let length = horizon as usize;
    let seen =
        |from: usize| -> Option<Vec<Hour>> { hours.get(from..from + length)?.iter().copied().collect() };
    let Some(came) = seen(now + 1) else { return };
    let Some(Some(last)) = hours.get(now) else { return };
    let load = mean(&came);
    let peak = came.iter().map(|h| h.peak).fold(0.0, f64::max);
    let said = forecaster.forecast(horizon);
    let yesterday = (now + 1).checked_sub(24).and_then(seen).map_or(last.mean, |day| mean(&day));
    sums.load += load;
    sums.error += (said.mean - load).abs();
    sums.last += (last.mean - load).abs();
    sums.yesterday += (yesterday - load).abs();
    sums.decisions += 1;
    sums.room += greatest - peak;
    if peak > said.peak_bound {
        sums.violated += 1;
    } else {
        sums.kept += (greatest - said.peak_bound).max(0.0);
    }
}

impl Sums {
    fn finish(self, horizon_h: u32) -> Evaluation {
        let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        Evaluation {
            error: HorizonError {
                horizon_h,
                wape: share(self.error, self.load),
                violations: share(self.violated as f64, self.decisions as f64),
            },
            last_hour: share(self.last, self.load),
            yesterday: share(self.yesterday, self.load),
            headroom: share(self.kept, self.room),
            decisions: self.decisions,
        }
    }
}
