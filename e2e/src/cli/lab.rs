//! `weir-lab lab ...`

use crate::lab::client::pass_through;
use crate::lab::{Lab, Link, Node, Stdin, shell};
use crate::proto::Cmd;
use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a command typed by a person may run.
const EXEC_LIMIT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The lab's name.
    #[arg(long, global = true, env = "WEIR_LAB", default_value = "default")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a lab and boot its nodes.
    Up {
        /// Number of nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// Pool disks a node.
        #[arg(long, default_value_t = 1)]
        disks: u8,
        /// Size of each pool disk.
        #[arg(long, default_value = "4G", value_parser = parse_size)]
        disk_size: u64,
        /// Their logical block size: 512 or 4096.
        #[arg(long, default_value_t = 512)]
        block_size: u32,
        /// MiB of memory a node.
        #[arg(long, default_value_t = 640)]
        memory: u32,
        /// Processors a node.
        #[arg(long, default_value_t = 1)]
        cpus: u8,
    },
    /// Kill the nodes and remove all they had.
    Down {
        /// Every lab, not just one.
        #[arg(long)]
        all: bool,
    },
    /// Show labs and nodes.
    Status,
    /// Run a command in a node: one word is a shell script, several are a program and its arguments.
    Exec {
        /// n1, n2, ...
        node: String,
        /// Pass this terminal's input on.
        #[arg(short, long)]
        interactive: bool,
        /// What to run.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Kill a node, as a power cut would.
    Kill {
        /// n1, n2, ...
        node: String,
    },
    /// Boot a node that is down.
    Start {
        /// n1, n2, ...
        node: String,
    },
    /// Kill a node and boot it again; its disks stay.
    Reboot {
        /// n1, n2, ...
        node: String,
    },
    /// Cut a node's network.
    Cut {
        /// n1, n2, ...
        node: String,
        /// Which.
        #[arg(default_value = "both")]
        link: LinkName,
    },
    /// Mend what was cut.
    Heal {
        /// n1, n2, ...
        node: String,
        /// Which.
        #[arg(default_value = "both")]
        link: LinkName,
    },
    /// Stop a node's processors.
    Pause {
        /// n1, n2, ...
        node: String,
    },
    /// Let a paused node go on.
    Resume {
        /// n1, n2, ...
        node: String,
    },
    /// Copy the programs that were built since into the lab.
    Install {
        /// Programs; those of Weir if none is given.
        programs: Vec<std::path::PathBuf>,
    },
    /// Print a node's console, or a log of a command that was started in it.
    Logs {
        /// n1, n2, ...
        node: String,
        /// The log's name; without it the console is printed and the logs are listed.
        log: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LinkName {
    Storage,
    Control,
    Both,
}

impl From<LinkName> for Link {
    fn from(name: LinkName) -> Link {
        match name {
            LinkName::Storage => Link::Storage,
            LinkName::Control => Link::Control,
            LinkName::Both => Link::Both,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let name = &args.name;
    let on = |node: &str, act: fn(&Node) -> Result<()>| act(Lab::open(name)?.find(node)?);
    match args.command {
        Command::Up { nodes, disks, disk_size, block_size, memory, cpus } => {
            let builder =
                Lab::builder().name(name).nodes(nodes).disks(disks).disk_size(disk_size).persistent();
            let start = Instant::now();
            let lab = builder.logical_block_size(block_size).memory(memory).cpus(cpus).start()?;
            println!("{nodes} nodes of lab {name} are up after {:.1} s", start.elapsed().as_secs_f64());
            print_status(&lab)?;
        }
        Command::Down { all } => down(name, all)?,
        Command::Status => status()?,
        Command::Exec { node, interactive, command } => return exec(name, &node, interactive, command),
        Command::Kill { node } => on(&node, Node::kill)?,
        Command::Start { node } => on(&node, Node::start)?,
        Command::Reboot { node } => on(&node, Node::reboot)?,
        Command::Pause { node } => on(&node, Node::pause)?,
        Command::Resume { node } => on(&node, Node::resume)?,
        Command::Cut { node, link } => Lab::open(name)?.find(&node)?.cut(link.into())?,
        Command::Heal { node, link } => Lab::open(name)?.find(&node)?.heal(link.into())?,
        Command::Install { programs } => install(name, programs)?,
        Command::Logs { node, log } => logs(&Lab::open(name)?, &node, log.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn down(name: &str, all: bool) -> Result<()> {
    let names = if all { Lab::all()? } else { vec![name.to_owned()] };
    for name in names {
        Lab::open(&name)?.down().with_context(|| format!("end lab {name}"))?;
        println!("lab {name} is gone");
    }
    Ok(())
}

fn status() -> Result<()> {
    let names = Lab::all()?;
    if names.is_empty() {
        println!("there is no lab in {}: `./dev lab up` makes one", crate::lab::state::root().display());
    }
    names.iter().try_for_each(|name| print_status(&Lab::open(name)?))
}

fn print_status(lab: &Lab) -> Result<()> {
    let config = lab.config();
    let (group, port) = config.storage_net;
    println!(
        "lab {} (kernel {}, {}, eth1 at {group}:{port})",
        config.name,
        lab.kernel(),
        config.accel.as_str()
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "node",
        "state",
        "qemu",
        "relay",
        "eth1",
        "pool disks",
        "boot id",
    ]);
    for node in lab.nodes() {
        let disks = format!("{} x {}", config.disks, render_size(config.disk_size));
        let row = match node.running()? {
            None => [
                node.name(),
                "down".into(),
                String::new(),
                String::new(),
                node.storage_ip().to_string(),
                disks,
                String::new(),
            ],
            Some(running) => {
                let state = match (running.boot_id.is_empty(), running.cut.is_empty()) {
                    (true, _) => "booting".to_owned(),
                    (false, true) => "up".to_owned(),
                    (false, false) => format!("up, cut: {}", running.cut.join(", ")),
                };
                let short = running.boot_id.split('-').next().unwrap_or_default().to_owned();
                let relay = running.relay.pid.to_string();
                [
                    node.name(),
                    state,
                    running.qemu.pid.to_string(),
                    relay,
                    node.storage_ip().to_string(),
                    disks,
                    short,
                ]
            }
        };
        table.add_row(row);
    }
    println!("{table}");
    Ok(())
}

fn exec(name: &str, node: &str, interactive: bool, command: Vec<String>) -> Result<ExitCode> {
    let lab = Lab::open(name)?;
    let cmd = match command.as_slice() {
        [script] => shell(script),
        _ => Cmd { argv: command, env: Vec::new() },
    };
    let stdin = if interactive { Stdin::From(Box::new(io::stdin())) } else { Stdin::Empty };
    let mut broken = Ok(());
    let exit = lab.find(node)?.stream(cmd, stdin, EXEC_LIMIT, |chunk| {
        if broken.is_ok() {
            broken = pass_through(chunk);
        }
    })?;
    broken.context("pass output on")?;
    Ok(ExitCode::from(u8::try_from(exit.code()).unwrap_or(255)))
}

fn install(name: &str, programs: Vec<std::path::PathBuf>) -> Result<()> {
    let lab = Lab::open(name)?;
    let programs = if programs.is_empty() { crate::lab::built_programs() } else { programs };
    for program in programs {
        lab.install(&program)?;
        println!("{}", program.display());
    }
    Ok(())
}

fn logs(lab: &Lab, node: &str, log: Option<&str>) -> Result<()> {
    let node = lab.find(node)?;
    let path = match log {
        Some(log) => node.log(log),
        None => node.dir().join("console.log"),
    };
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    io::stdout().write_all(&bytes).context("print the log")?;
    if log.is_none() {
        for entry in fs::read_dir(node.dir().join("log")).context("list the logs")? {
            println!("log: {}", entry?.file_name().to_string_lossy().trim_end_matches(".log"));
        }
    }
    Ok(())
}

/// Bytes with an optional binary unit: 512M, 4G, 4GiB.
fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim_end_matches("iB") {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => bail!("unknown unit {unit}"),
    };
    let count: u64 = digits.parse().with_context(|| format!("{text} is no size"))?;
    count
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == count)
        .with_context(|| format!("{text} is too much"))
}

fn render_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fit = units.iter().find(|(shift, _)| bytes >> shift > 0 && bytes.is_multiple_of(1 << shift));
    fit.map_or_else(|| format!("{bytes} B"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4G").unwrap(), 4 << 30);
        assert_eq!(parse_size("512MiB").unwrap(), 512 << 20);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert!(parse_size("4X").is_err() && parse_size("G").is_err() && parse_size("99999999999T").is_err());
        assert_eq!(render_size(4 << 30), "4 GiB");
        assert_eq!(render_size(1536 << 20), "1536 MiB");
    }
}
