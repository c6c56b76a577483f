//! The benchmarks. Of the data path: what a volume costs beside the bare device, how long a cut-over holds a writer,
//! how a node fares with 300 volumes, what a copy costs its volume's user. Of a cluster ([`kube`]): what a volume's life takes there. All in one lab and one run
//! each, so that what is compared met the same machine.
//!
//! Numbers are reported as ratios between devices that were measured in turn; under emulation nothing else means
//! anything. Must not know: how Weir does what it does. It asks CSI, and reads what the kernel says.

mod copies;
mod cutover;
mod density;
mod fio;
mod host;
pub mod kube;
mod machine;
mod path;
mod plot;
mod report;
mod stats;
mod targets;
mod writer;

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result};

use crate::cluster::{Cluster, Spec};

pub use writer::serve as serve_writer;

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// fio on seven kinds of device.
    Path,
    /// The pause of a migration.
    Cutover,
    /// Many volumes on one node.
    Density,
    /// What a copy costs who uses the volume.
    Copies,
}

/// What to run, and where the results go.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Times that each device is measured in each case.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Write the results there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw them there.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Few and short rounds, few migrations, few volumes: to see that all works, not for numbers.
    #[arg(long)]
    quick: bool,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

/// How much of everything is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: u32,
    /// Milliseconds of each measurement.
    slice_ms: u32,
    /// Bytes of each device that are written once and then measured.
    region: u64,
    migrations: u32,
    volumes: u32,
    copies: u32,
}

impl Options {
    fn effort(&self) -> Effort {
        if self.quick {
            Effort {
                rounds: self.rounds.min(3),
                slice_ms: 500,
                region: 128 << 20,
                migrations: 4,
                volumes: 20,
                copies: 1,
            }
        } else {
            Effort {
                rounds: self.rounds,
                slice_ms: 500,
                region: 512 << 20,
                migrations: 20,
                volumes: 300,
                copies: 6,
            }
        }
    }

    fn parts(&self) -> BTreeSet<Part> {
        let all = [Part::Path, Part::Cutover, Part::Density, Part::Copies];
        if self.only.is_empty() { all.into() } else { self.only.iter().copied().collect() }
    }
}

/// Two nodes, each with disks that are alike: one for the pool, one to compare with, one for a file system.
fn spec() -> Spec {
    Spec {
        nodes: 2,
        disks: 3,
        pool_disks: Some(1),
        disk_size: 128 << 30,
        trust_fresh_disks: true,
        ..Spec::default()
    }
}

/// Runs what is asked for and reports it.
///
/// # Errors
/// A part could not be measured.
pub fn path(options: &Options) -> Result<()> {
    anyhow::ensure!(options.rounds > 0, "--rounds is at least 1");
    let (effort, parts) = (options.effort(), options.parts());
    println!("starting a cluster of two nodes");
    let cluster = Cluster::start(spec())?;
    let result = measure(&cluster, effort, &parts).map_err(|e| e.context(cluster.logs()))?;
    print!("{}", report::render(&result));
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&result)?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    if let Some(file) = &options.plot {
        plot::draw(&result, file)?;
    }
    Ok(())
}

fn measure(c: &Cluster, effort: Effort, parts: &BTreeSet<Part>) -> Result<report::Report> {
    let mut out = report::Report::of(c, effort)?;
    if parts.contains(&Part::Path) {
        out.cases = path::run(c, effort).context("measure the data path")?;
    }
    if parts.contains(&Part::Cutover) {
        for (name, bytes) in [("1GiB", 1 << 30), ("100GiB", 100 << 30)] {
            let measured = cutover::run(c, name, bytes, effort.migrations)
                .with_context(|| format!("measure the cut-over of {name}"))?;
            out.cutover_ms.insert(name.to_owned(), measured.hold_ms.clone());
            out.cutover_more.insert(name.to_owned(), measured);
        }
    }
    if parts.contains(&Part::Density) {
        let measured = density::run(c, effort.volumes).context("measure many volumes")?;
        out.stage_ms.clone_from(&measured.stage_ms);
        out.density = Some(measured);
    }
    if parts.contains(&Part::Copies) {
        out.copies = Some(copies::run(c, effort.copies).context("measure beside copies")?);
    }
    Ok(out)
}
