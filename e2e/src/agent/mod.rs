//! The inside of a node: process 1 of its kernel, and the server that runs what the host asks for.
//!
//! Process 1 ([`boot`]) sets the machine up, starts the server ([`serve`]) as its child, and then only reaps orphans: the
//! server waits for its own children itself, and no exit status can be stolen from it. This knows the lab's shares and
//! names, and nothing of Weir.

mod boot;
mod run;
mod serve;
pub mod verify;

use anyhow::{Context, Result, bail};
use std::collections::HashMap;

pub use boot::boot;
pub use serve::serve;
pub(crate) use serve::splice;

/// The node's folder on the host, read-write: logs, the token, the `ready` file.
pub const HOST_DIR: &str = "/host";
/// A script in that folder that the node runs at each boot, if there is one; its log is `boot`.
pub const BOOT_SCRIPT: &str = "boot.sh";
/// What every command in a node finds in its environment beside what the host asks for.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
    // There is no udev in a node; without this, dmsetup and lvm would wait for it for ever.
    ("DM_DISABLE_UDEV", "1"),
];

/// What the host told this node on the kernel's command line, as `lab.KEY=VALUE`.
#[derive(Debug, Clone)]
struct Settings {
    /// The node's number, from 1.
    number: u8,
    /// How many nodes the lab has.
    nodes: u8,
    machine_id: String,
}

impl Settings {
    fn read() -> Result<Settings> {
        let line = std::fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
        Settings::parse(&line)
    }

    fn parse(line: &str) -> Result<Settings> {
        let words: HashMap<&str, &str> =
            line.split_whitespace().filter_map(|w| w.strip_prefix("lab.")?.split_once('=')).collect();
        let get =
            |key: &str| words.get(key).copied().with_context(|| format!("no lab.{key}= on the command line"));
        let settings = Settings {
            number: get("node")?.parse().context("lab.node")?,
            nodes: get("nodes")?.parse().context("lab.nodes")?,
            machine_id: get("machine_id")?.to_owned(),
        };
        if settings.number == 0 || settings.number > settings.nodes {
            bail!("node {} of {}", settings.number, settings.nodes);
        }
        Ok(settings)
    }

    fn name(&self) -> String {
        crate::lab::names::node(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn settings_come_from_the_command_line() {
        let settings =
            Settings::parse("console=ttyS0 lab.node=2 lab.nodes=3 lab.machine_id=ab quiet").unwrap();
        assert_eq!((settings.number, settings.nodes, settings.name()), (2, 3, "n2".to_owned()));
        assert!(Settings::parse("lab.node=4 lab.nodes=3 lab.machine_id=ab").is_err());
        assert!(Settings::parse("quiet").is_err());
    }
}
