//! The command line: parses, calls the library, prints. `demo` comes beside `lab`, `test` and `bench`.

mod doctor;
mod kube;
mod lab;

use crate::{bench, runner};
use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(
    name = "weir-lab",
    about = "Whole Weir clusters on this machine, from QEMU nodes that run a stock kernel"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start, stop and command labs.
    Lab(lab::Args),
    /// A Kubernetes cluster with Weir on it, in a lab.
    Kube(kube::Args),
    /// What this machine has for labs, and how to get what it lacks.
    Doctor {
        /// Print only the Debian packages that are missing.
        #[arg(long)]
        packages: bool,
    },
    /// Run the tests: all, or those whose names begin with a word given.
    Test {
        /// `format`, `unit`, `basic/local`, `migrate`, ...
        names: Vec<String>,
        /// Only list them.
        #[arg(long)]
        list: bool,
        /// Run those on Kubernetes on a cluster that `kube up` started, and leave it running.
        #[arg(long, value_name = "NAME")]
        on: Option<String>,
        /// Without names: after so many minutes nothing more begins that need not run each time.
        #[arg(long, value_name = "N", default_value_t = 45)]
        minutes: u64,
    },
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Show Weir at work: a pool, a volume larger than any node, a VM on it, and a migration that copies nothing.
    Demo {
        /// Write the figures to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<std::path::PathBuf>,
        /// What the VM runs; unless said, Linux where nodes have KVM themselves.
        #[arg(long)]
        guest: Option<crate::demo::Kind>,
        /// Leave the cluster running, as lab `demo`.
        #[arg(long)]
        keep: bool,
    },
    /// Names of a cluster's services; not for people.
    #[command(hide = true)]
    Dns(crate::kube::dns::Args),
    /// What leads into a node; not for people.
    #[command(hide = true)]
    Relay,
    /// The inside of a node; not for people.
    #[command(hide = true)]
    Agent {
        #[command(subcommand)]
        part: AgentPart,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The data path beside bare devices, the pause of a cut-over, many volumes on a node: about 20 minutes under
    /// emulation.
    Path(bench::Options),
    /// What a volume's life takes in Kubernetes, beside a driver that does nothing: about 40 minutes under emulation.
    Kube(bench::kube::Options),
}

#[derive(Debug, Subcommand)]
enum AgentPart {
    /// Process 1.
    Boot,
    /// The server that it starts.
    Serve,
    /// What writes to a device when pauses are measured.
    Writer {
        /// The device.
        device: String,
    },
    /// Verified I/O on a device, for tests.
    Verify(crate::agent::verify::Args),
    /// What the verifier's slots on a device hold, as JSON.
    Slots(crate::agent::verify::ReadArgs),
}

/// Runs what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("weir-lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Lab(args) => lab::run(args),
        Command::Kube(args) => kube::run(args),
        Command::Dns(args) => crate::kube::dns::serve(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor { packages } => doctor::run(packages),
        Command::Test { list: true, .. } => {
            for (name, about) in runner::list() {
                println!("{name:<24}{about}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { names, list: false, on, minutes } => {
            let tally = runner::run(&names, on.as_deref(), Duration::from_secs(60 * minutes))?;
            Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Bench { what: Bench::Path(options) } => bench::path(&options).map(|()| ExitCode::SUCCESS),
        Command::Bench { what: Bench::Kube(options) } => {
            bench::kube::run(&options).map(|()| ExitCode::SUCCESS)
        }
        Command::Agent { part: AgentPart::Writer { device } } => {
            bench::serve_writer(&device).map(|()| ExitCode::SUCCESS)
        }
        Command::Demo { json, guest, keep } => {
            crate::demo::run(&crate::demo::Options { json, guest, keep })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Relay => crate::lab::relay::relay().map(|()| ExitCode::SUCCESS),
        Command::Agent { part: AgentPart::Boot } => crate::agent::boot().map(|()| ExitCode::FAILURE),
        Command::Agent { part: AgentPart::Serve } => crate::agent::serve().map(|()| ExitCode::FAILURE),
        Command::Agent { part: AgentPart::Verify(args) } => {
            Ok(if crate::agent::verify::verify(&args)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Agent { part: AgentPart::Slots(args) } => {
            println!("{}", serde_json::to_string(&crate::agent::verify::read(&args)?)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}
