//! The command line: parses, calls the library, prints. `test`, `demo` and `bench` stand beside `lab` as they come.

mod doctor;
mod lab;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    /// What this machine has for labs, and how to get what it lacks.
    Doctor {
        /// Print only the Debian packages that are missing.
        #[arg(long)]
        packages: bool,
    },
    /// The inside of a node; not for people.
    #[command(hide = true)]
    Agent {
        #[command(subcommand)]
        part: AgentPart,
    },
}

#[derive(Debug, Subcommand)]
enum AgentPart {
    /// Process 1.
    Boot,
    /// The server that it starts.
    Serve,
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
        Command::Doctor { packages } => doctor::run(packages),
        Command::Agent { part: AgentPart::Boot } => crate::agent::boot().map(|()| ExitCode::FAILURE),
        Command::Agent { part: AgentPart::Serve } => crate::agent::serve().map(|()| ExitCode::FAILURE),
    }
}
