//! `weir-lab kube ...`

use std::{os::unix::process::CommandExt, process::ExitCode, time::Instant};

use anyhow::Result;
use clap::Subcommand;

use crate::{
    kube::{
        KubeCluster,
        cluster::{Spec, items},
        ensure_all,
    },
    lab::process,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The lab's name: its nodes are those of `./dev lab --name NAME`.
    #[arg(long, global = true, env = "WEIR_KUBE_LAB", default_value = "kube")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster and install Weir on it.
    Up {
        /// Number of nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// Pool disks a node.
        #[arg(long, default_value_t = 1)]
        disks: u8,
        /// MiB of memory a node.
        #[arg(long, default_value_t = 1024)]
        memory: u32,
        /// Processors a node.
        #[arg(long, default_value_t = 1)]
        cpus: u8,
        /// Leave the cluster without Weir.
        #[arg(long)]
        bare: bool,
    },
    /// Build the programs of a cluster that are missing, and nothing else.
    Build {
        /// Take only what nobody else wants of the machine.
        #[arg(long)]
        yielding: bool,
    },
    /// Install Weir on a cluster that has none.
    Install,
    /// End the cluster and remove all it had.
    Down,
    /// Show its parts.
    Status,
    /// Run kubectl on it.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let name = &args.name;
    match args.command {
        Command::Up { nodes, disks, memory, cpus, bare } => {
            let start = Instant::now();
            let spec = Spec { persistent: Some(name.clone()), nodes, disks, memory, cpus, ..Spec::default() };
            let cluster = KubeCluster::up(&spec)?;
            println!("{nodes} nodes are ready after {:.0} s", start.elapsed().as_secs_f64());
            println!("export KUBECONFIG={}", cluster.plane().kubeconfig().display());
            if !bare {
                cluster.install()?;
                println!("Weir is there after {:.0} s", start.elapsed().as_secs_f64());
            }
        }
        Command::Build { yielding } => {
            if yielding {
                process::yield_always()?;
            }
            ensure_all()?;
        }
        Command::Install => KubeCluster::open(name)?.install()?,
        Command::Down => {
            KubeCluster::open(name)?.down()?;
            println!("cluster {name} is gone");
        }
        Command::Status => status(&KubeCluster::open(name)?)?,
        Command::Kubectl { args } => {
            // Only returns if it could not be run.
            let failed = KubeCluster::open(name)?.plane().kubectl_command().args(args).exec();
            return Err(failed.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(cluster: &KubeCluster) -> Result<()> {
    println!("export KUBECONFIG={}", cluster.plane().kubeconfig().display());
    for (name, pid) in cluster.plane().companions().list() {
        println!("{name:<26}{pid}");
    }
    for node in cluster.lab().nodes() {
        let state = match node.running()? {
            Some(running) if running.cut.is_empty() => format!("QEMU {}", running.qemu.pid),
            Some(running) => format!("QEMU {}, cut: {}", running.qemu.pid, running.cut.join(", ")),
            None => "down".to_owned(),
        };
        println!("{:<26}{state}", node.name());
    }
    print!("{}", cluster.plane().kubectl(&["get", "nodes,pods", "-A", "-o", "wide"])?);
    let disks = cluster.get(&["crds"])?;
    if items(&disks["items"]).iter().any(|c| c["metadata"]["name"] == "nodedisks.weir.storage") {
        print!("{}", cluster.plane().kubectl(&["get", "nodedisks,logicalvolumes"])?);
    }
    Ok(())
}
