//! The data path: every case on every target, in turn, round after round.
//!
//! Within a round a case visits all targets one after the other within seconds, so that a machine that slows down or a
//! neighbour that wakes up hits all of them; ratios are formed within the round. The order is turned from round to
//! round, so that none always comes after the same one.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{
    Effort, fio,
    report::{CaseReport, Latency},
    targets::{self, Target},
};
use crate::cluster::Cluster;

pub(super) fn run(c: &Cluster, effort: Effort) -> Result<Vec<CaseReport>> {
    println!("path: setting up {} devices and writing them once", Target::ALL.len());
    let regions = targets::set_up(c, effort.region)?;
    let mut out: Vec<CaseReport> = fio::CASES.iter().map(|case| CaseReport::new(*case)).collect();
    for round in 0..effort.rounds {
        let mut order = regions.clone();
        order.rotate_left(round as usize * 3 % regions.len());
        for (case, report) in fio::CASES.iter().zip(&mut out) {
            let outcomes = fio::measure(c.node(1), *case, &order, effort.seconds)
                .with_context(|| format!("round {}, {}", round + 1, case.name))?;
            add(report, case.unit, &outcomes)?;
            println!(
                "path: round {}/{}, {}: local {:.3} of raw, remote {:.3} of nvme-tcp",
                round + 1,
                effort.rounds,
                case.name,
                report.last_ratio(Target::WeirLocal),
                report.last_ratio(Target::WeirRemote)
            );
        }
    }
    Ok(out)
}

fn add(report: &mut CaseReport, unit: fio::Unit, outcomes: &BTreeMap<String, fio::Outcome>) -> Result<()> {
    for target in Target::ALL {
        let o = outcomes.get(target.as_str()).with_context(|| format!("no result of {}", target.as_str()))?;
        report.add(target, o.in_unit(unit), Latency { p50_us: o.median_us, p99_us: o.p99_us });
    }
    Ok(())
}
