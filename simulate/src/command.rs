//! The command `simulate`: traces in, tables and JSON out.
//!
//! Must not know how anything is computed.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::cluster::{Loads, Shape};
use crate::compare::{Compared, PolicyResult, compare};
use crate::evaluate::{Evaluation, HorizonError, evaluate};
use crate::generate::generate;
use crate::nodes;
use crate::plot;
use crate::scale::{self, Scale, Size};
use crate::trace::Trace;

/// Generated load is the same each time; what varies are the clusters.
const GENERATED_SEED: u64 = 1;

/// What to simulate.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Traces: CSV of timestamp_s,device,read_kb_s,write_kb_s, plain or zstd; several files are one trace
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present_any = ["generate", "scale"])]
    pub trace: Vec<PathBuf>,
    /// Where to write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where to draw the results as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Instead of a trace, generated load of so many devices
    #[arg(long, value_name = "DEVICES", conflicts_with = "trace")]
    pub generate: Option<usize>,
    /// Days of generated load
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub days: usize,
    /// Clusters, made of different seeds, on which policies are compared; 0 leaves the comparison out
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub seeds: u64,
    /// How long planning takes in a pool of so many nodes, of ten disks and a hundred volumes each: 10,000 if none is given
    #[arg(long, value_name = "NODES", num_args = 0..=1, default_missing_value = "10000")]
    pub scale: Option<usize>,
    /// Devices of the trace that make one node's load in the evaluation of forecasts
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub group: usize,
}

/// All results, as `--json` writes them.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// By horizon.
    pub forecast: Vec<HorizonError>,
    /// By policy.
    pub policies: Vec<PolicyResult>,
    /// At full size, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
}

/// Runs what the settings say and prints tables.
///
/// # Errors
/// If a trace cannot be read or a result cannot be written.
pub fn run(settings: &Settings, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut results = match (settings.generate, settings.trace.is_empty()) {
        (Some(devices), _) => replay(&generate(devices, settings.days, GENERATED_SEED), settings, out)?,
        (None, false) => replay(&Trace::read(&settings.trace)?, settings, out)?,
        (None, true) => Results { forecast: vec![], policies: vec![], scale: None },
    };
    if let Some(nodes) = settings.scale {
        let scale = scale::measure(Size::of_nodes(nodes), GENERATED_SEED)?;
        print_scale(&scale, out)?;
        results.scale = Some(scale);
    }
    if let Some(path) = &settings.json {
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Forecasts and policies over a trace.
fn replay(trace: &Trace, settings: &Settings, out: &mut dyn Write) -> anyhow::Result<Results> {
    let hours = trace.steps / trace.steps_per_hour();
    writeln!(out, "{} devices, {} hours, every {} s", trace.devices.len(), hours, trace.step_s)?;
    let groups = nodes::group(trace.devices.len(), settings.group, None);
    let nodes: Vec<_> = groups.iter().map(|devices| nodes::hours(trace, devices)).collect();
    let forecast = evaluate(&nodes, hours / 2, hours);
    print_forecast(&forecast, out)?;
    let policies = if settings.seeds > 0 {
        compare(&Loads::new(trace), Shape::REFERENCE, settings.seeds)
    } else {
        Vec::new()
    };
    print_policies(&policies, out)?;
    if let Some(path) = &settings.plot {
        plot::draw(&forecast, &policies, path)?;
    }
    Ok(Results {
        forecast: forecast.iter().map(|e| e.error).collect(),
        policies: policies.iter().map(|p| p.result).collect(),
        scale: None,
    })
}

fn print_scale(s: &Scale, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "\n{} nodes, {} disks, {} volumes", s.nodes, s.disks, s.volumes)?;
    writeln!(
        out,
        "planning of a volume   {:.3} ms (p50), {:.3} ms (p99), {:.1} ms at most",
        s.create_p50_ms, s.create_ms, s.create_max_ms
    )?;
    writeln!(out, "all moves              {:.1} s, {} of them", s.full_plan_s, s.full_plan_moves)?;
    writeln!(out, "after one disk changed {:.2} s, {} of them", s.incremental_s, s.incremental_moves)?;
    writeln!(out, "memory                 {:.2} GiB", s.rss_bytes as f64 / f64::from(1 << 30))
}

fn print_forecast(forecast: &[Evaluation], out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "\nForecasts, decided hourly, on the second half of the trace")?;
    writeln!(out, "horizon     wape  last hour  yesterday  violations  headroom kept  decisions")?;
    for e in forecast {
        writeln!(
            out,
            "{:>5} h  {:>7.3}  {:>9.3}  {:>9.3}  {:>8.2} %  {:>13.3}  {:>9}",
            e.error.horizon_h,
            e.error.wape,
            e.last_hour,
            e.yesterday,
            100.0 * e.error.violations,
            e.headroom,
            e.decisions
        )?;
    }
    Ok(())
}

fn print_policies(policies: &[Compared], out: &mut dyn Write) -> std::io::Result<()> {
    let Some(first) = policies.first() else { return Ok(()) };
    writeln!(
        out,
        "\nPolicies, placed at half of the trace and scored after it: mean of {} seeds, +- 95 % interval",
        first.result.seeds
    )?;
    writeln!(
        out,
        "policy          overloaded %      above cap %        local %    moved a day %  fullness spread %"
    )?;
    for Compared { result, within, fullness_spread } in policies {
        write!(out, "{:<12}", result.policy)?;
        let means = [result.overloaded, result.above_cap, result.local, result.moved_per_day];
        for (mean, within) in means.iter().zip(within) {
            write!(out, "  {:>7.3} +- {:<5.3}", 100.0 * mean, 100.0 * within)?;
        }
        writeln!(out, "  {:>8.2}", 100.0 * fullness_spread)?;
    }
    Ok(())
}
