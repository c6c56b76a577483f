//! The data path: every case on every target, in turn, round after round.
//!
//! Measurements are short and many. In a round a case visits all targets one after the other within seconds, so that a
//! machine that slows down or a neighbour that wakes up hits all of them; ratios are formed within the round. The order is
//! turned from round to round, so that none always comes after the same one. A few rounds of a case share one
//! fio; then comes the next case, and later all of them again.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};

use super::{
    Effort, fio,
    host::{Patience, Sample},
    report::{CaseReport, Latency},
    stats::spread,
    targets::{self, Target},
};
use crate::cluster::Cluster;

/// Rounds of one fio.
const TOGETHER: u32 = 5;
/// How long to wait in all for a machine on which others work.
const PATIENCE: Duration = Duration::from_secs(180);
/// Long enough for the queue to fill.
const RAMP_MS: u32 = 100;

pub(super) fn run(c: &Cluster, effort: Effort) -> Result<Vec<CaseReport>> {
    println!("path: setting up {} devices and writing them once", Target::ALL.len());
    let regions = targets::set_up(c, effort.region)?;
    let times = fio::Times { ramp: RAMP_MS, run: effort.slice_ms };
    let mut out: Vec<CaseReport> = fio::CASES.iter().map(|case| CaseReport::new(*case)).collect();
    let mut patience = Patience(PATIENCE);
    for begin in (0..effort.rounds).step_by(TOGETHER as usize) {
        let end = (begin + TOGETHER).min(effort.rounds);
        let orders: Vec<_> = (begin..end).map(|round| turned(&regions, round)).collect();
        for (case, report) in fio::CASES.iter().zip(&mut out) {
            patience.wait(c)?;
            let sample = Sample::now(c)?;
            let rounds = fio::measure(c.node(1), *case, &orders, times).context(case.name)?;
            let others = sample.others_since(c)?;
            for outcomes in &rounds {
                add(report, case.unit, outcomes)?;
                report.others_cpu.push(others);
            }
            let median = |t| spread(&report.ratios(t)).map_or(f64::NAN, |s| s.median);
            println!(
                "path: rounds {} to {end} of {}, {}: local {:.3} of raw, remote {:.3} of nvme-tcp so far; others \
                 used {:.0} % of the processors",
                begin + 1,
                effort.rounds,
                case.name,
                median(Target::WeirLocal),
                median(Target::WeirRemote),
                others * 100.0
            );
        }
    }
    Ok(out)
}

fn turned(regions: &[fio::Region], round: u32) -> Vec<fio::Region> {
    let mut out = regions.to_vec();
    // 3 and the number of targets have no common divisor: each begins in its turn.
    out.rotate_left(round as usize * 3 % regions.len());
    out
}

fn add(report: &mut CaseReport, unit: fio::Unit, outcomes: &BTreeMap<String, fio::Outcome>) -> Result<()> {
    for target in Target::ALL {
        let o = outcomes.get(target.as_str()).with_context(|| format!("no result of {}", target.as_str()))?;
        report.add(target, o.in_unit(unit), Latency { p50_us: o.median_us, p99_us: o.p99_us });
    }
    Ok(())
}
