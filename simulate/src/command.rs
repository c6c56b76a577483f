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
use crate::trace::Trace;

/// Generated load is the same each time; what varies are the clusters.
const GENERATED_SEED: u64 = 1;

/// What to simulate.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Traces: CSV of timestamp_s,device,read_kb_s,write_kb_s, plain or zstd; several files are one trace
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "generate")]
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
    /// Devices of the trace that make one node's load in the evaluation of forecasts
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub group: usize,
}

/// The same as a program's arguments.
#[derive(Clone, Debug, clap::Parser)]
#[command(version, about = "Forecasts and policies over traces")]
pub struct Options {
    /// What to simulate.
    #[command(flatten)]
    pub settings: Settings,
}

/// All results, as `--json` writes them.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// By horizon.
    pub forecast: Vec<HorizonError>,
    /// By policy.
    pub policies: Vec<PolicyResult>,
}

/// Runs what the options say and prints tables.
///
/// # Errors
/// If a trace cannot be read or a result cannot be written.
pub fn run(options: &Options, out: &mut dyn Write) -> anyhow::Result<()> {
    let settings = &options.settings;
    let trace = match settings.generate {
        Some(devices) => generate(devices, settings.days, GENERATED_SEED),
        None => Trace::read(&settings.trace)?,
    };
    let hours = trace.steps / trace.steps_per_hour();
    writeln!(out, "{} devices, {} hours, every {} s", trace.devices.len(), hours, trace.step_s)?;
    let groups = nodes::group(trace.devices.len(), settings.group, None);
    let nodes: Vec<_> = groups.iter().map(|devices| nodes::hours(&trace, devices)).collect();
    let forecast = evaluate(&nodes, hours / 2, hours);
    print_forecast(&forecast, out)?;
    let policies = if settings.seeds > 0 {
        compare(&Loads::new(&trace), Shape::REFERENCE, settings.seeds)
    } else {
        Vec::new()
    };
    print_policies(&policies, out)?;
    if let Some(path) = &settings.plot {
        plot::draw(&forecast, &policies, path)?;
    }
    let results = Results {
        forecast: forecast.iter().map(|e| e.error).collect(),
        policies: policies.iter().map(|p| p.result).collect(),
    };
    if let Some(path) = &settings.json {
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
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
