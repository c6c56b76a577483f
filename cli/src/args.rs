//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::figures::{parse_size, parse_time};

/// What a Weir pool has, does, lends and why; and volumes by hand where there is no Kubernetes.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Which controller.
    #[command(flatten)]
    pub(crate) to: To,
    /// How answers are written.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which controller, and how it is reached: the first that is given, else the configuration file, else the cluster of
/// the kubeconfig.
#[derive(Debug, ClapArgs)]
pub(crate) struct To {
    /// The operator's endpoint: https://HOST:PORT, http://127.0.0.1:PORT or unix:///PATH.
    #[arg(long, global = true, env = "WEIR_ENDPOINT", value_name = "URI", conflicts_with = "lab")]
    pub(crate) endpoint: Option<String>,
    /// Certificates that the controller's is checked with, PEM.
    #[arg(long, global = true, env = "WEIR_CA", value_name = "FILE", requires = "endpoint")]
    pub(crate) ca: Option<PathBuf>,
    /// The operator's certificate, PEM.
    #[arg(long, global = true, env = "WEIR_CERT", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, global = true, env = "WEIR_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// The cluster of a lab on this machine.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) lab: Option<String>,
    /// A file with `endpoint`, `ca`, `cert` and `key`.
    #[arg(long, global = true, env = "WEIR_CLI_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// In Kubernetes: the kubeconfig's context.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// In Kubernetes: the namespace that Weir is installed in.
    #[arg(short, long, global = true, default_value = "weir-system", value_name = "NAME")]
    pub(crate) namespace: String,
    /// In Kubernetes: the Lease whose holder reigns; RELEASE-weir-controller for a release that is not named weir.
    #[arg(long, global = true, env = "WEIR_LEASE", default_value = "weir-controller", value_name = "NAME")]
    pub(crate) lease: String,
}

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pools, nodes, and what is not well.
    Status,
    /// Disks: room, load, what they lend and why no more.
    Disks,
    /// Volumes: who holds them, and who lends to them.
    Volumes,
    /// Who lends what to whom.
    Loans,
    /// Why a volume lies where it lies.
    Explain {
        /// Its name, its id, or how that begins.
        volume: String,
    },
    /// What a disk did, will do, and can lend.
    Forecast {
        /// Its id, how that begins, or NODE:PATH.
        disk: String,
    },
    /// Empty a disk, or every disk of a node, while its volumes are in use.
    ///
    /// It takes nothing new until `undrain`. Waits until nothing is left on it; Ctrl-C ends the waiting, not the drain. With
    /// `-o json` a line of JSON is written at each look.
    Drain(Drain),
    /// End a drain: the disks take new extents again, and what has moved stays where it is.
    Undrain {
        /// A node's name, or a disk: its id, how that begins, or NODE:PATH.
        target: String,
    },
    /// Take an empty disk out of its pool: its label is erased.
    ///
    /// It has been drained before, and no pool selects its device any more.
    Release(Part),
    /// Take a node or a disk off the record that never comes back.
    ///
    /// Refused while a volume that is not being deleted has parts on it. A node must have been silent for its lease. Waits until
    /// nothing names it any more.
    Forget(Part),
    /// The busiest disks and volumes, again and again.
    Top {
        /// How many of each.
        #[arg(short = 'c', long, default_value_t = 10)]
        count: usize,
        /// Seconds between two looks.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        every: u64,
        /// Look once and end, as where the output is no terminal.
        #[arg(long)]
        once: bool,
    },
    /// Forecasts, policies side by side, and the planners at full size, over traces or generated load: without a cluster.
    Simulate(simulate::command::Settings),
    /// Volumes by hand, where there is no Kubernetes.
    #[command(subcommand)]
    Volume(Volume),
    /// The completion of a shell.
    Completion {
        /// Which.
        shell: Shell,
    },
}

/// A drain.
#[derive(Debug, ClapArgs)]
pub(crate) struct Drain {
    /// A node's name, or a disk: its id, how that begins, or NODE:PATH.
    pub(crate) target: String,
    /// Change nothing: say what would go where, how long it would take, and what would stay.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until nothing is left on it. So it is unless said otherwise.
    #[arg(long, overrides_with = "no_wait")]
    pub(crate) wait: bool,
    /// Return as soon as the drain is on record.
    #[arg(long, overrides_with = "wait")]
    pub(crate) no_wait: bool,
    /// Wait no longer than this: 90s, 10m, 2h. The drain goes on.
    #[arg(long, value_parser = parse_time, value_name = "TIME")]
    pub(crate) timeout: Option<Duration>,
    /// Seconds between two lines, where the output is no terminal.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..), value_name = "SECONDS")]
    pub(crate) every: u64,
}

/// What leaves.
#[derive(Debug, ClapArgs)]
pub(crate) struct Part {
    /// A disk: its id, how that begins, or NODE:PATH; what is forgotten may be a node: its name.
    pub(crate) target: String,
    /// Wait no longer than this for what is left: 90s, 10m, 2h.
    #[arg(long, value_parser = parse_time, value_name = "TIME", default_value = "60s")]
    pub(crate) timeout: Duration,
}

/// Volumes by hand.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Make one. Making it again with the same parameters changes nothing.
    Create {
        /// Its name.
        name: String,
        /// Its size: 10G, 512M.
        #[arg(value_parser = parse_size)]
        size: u64,
        /// A parameter as a StorageClass has it: layout=striped.
        #[arg(short, long = "parameter", value_parser = parse_pair, value_name = "KEY=VALUE")]
        parameters: Vec<(String, String)>,
        /// Beside this node, where it has room.
        #[arg(long, value_name = "NODE")]
        beside: Option<String>,
    },
    /// Grow one, in use or not.
    Resize {
        /// Its name, its id, or how that begins.
        volume: String,
        /// Its new size.
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Delete one that nobody holds. Its data is wiped.
    Delete {
        /// Its name, its id, or how that begins.
        volume: String,
    },
    /// Give one to a node; prints the device there.
    Attach {
        /// Its name, its id, or how that begins.
        volume: String,
        /// The node.
        node: String,
        /// Only to read.
        #[arg(long)]
        read_only: bool,
        /// Beside another holder: for a live migration, or as `sharing` says.
        #[arg(long)]
        shared: bool,
    },
    /// Take one from a node, or from all.
    Detach {
        /// Its name, its id, or how that begins.
        volume: String,
        /// The node; all holders when left out.
        node: Option<String>,
    },
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(k, _)| !k.is_empty());
    pair.map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| format!("{text:?} is not KEY=VALUE"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        assert_eq!(parse_pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_pair("a").is_err() && parse_pair("=b").is_err());
    }
}
