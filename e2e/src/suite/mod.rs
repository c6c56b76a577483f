//! What is tested on a real cluster: each case is a function that gets a running cluster and leaves it as it found it, or has one of
//! its own.

mod basic;
mod crash;
mod disks;
mod drain;
mod errors;
mod faults;
mod flow;
pub mod kube;
mod limits;
mod migrate;
pub(crate) mod moves;
mod restart;
pub mod sanity;
mod verifier;
mod vm;
mod watch;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

/// A test on a cluster.
#[derive(Clone, Copy)]
pub struct Case {
    /// `part/name`.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// Runs it.
    pub run: Run,
}

/// How a test runs.
#[derive(Clone, Copy)]
pub enum Run {
    /// On a cluster that others use before and after it.
    On(fn(&Cluster) -> Result<()>),
    /// On one of its own, while no other is there: an idle one costs half a processor.
    Alone(fn() -> Result<()>),
}

/// When a test runs that nobody has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Each time.
    Always,
    /// While the run has taken less than it may; the less, the earlier.
    IfTime(usize),
    /// Never.
    ByName,
}

/// What takes long, or shows in parts what others show as a whole: the most telling first.
pub(crate) const IF_TIME: [&str; 14] = [
    "kube/sanity",
    "kube/store",
    "kube/chart",
    "kube/node-killed",
    "kube/kubevirt",
    "kube/access",
    "kube/expand",
    "kube/leader-killed",
    "kube/limits",
    "kube/cli",
    "kube/uninstall",
    "kube/rolling",
    "kube/outage",
    "kube/attach",
];
/// What takes longer than anybody waits for a check.
pub(crate) const BY_NAME: [&str; 3] = ["moves/drain-vm", "moves/spill-home", "kube/scale"];

/// When the test of this name runs.
pub fn when(name: &str) -> When {
    match IF_TIME.iter().position(|n| *n == name) {
        Some(at) => When::IfTime(at),
        None if BY_NAME.contains(&name) => When::ByName,
        None => When::Always,
    }
}

/// All cases, in the order in which they run: those that share a cluster first.
pub fn cases() -> Vec<Case> {
    let mut all = vec![];
    all.extend_from_slice(basic::CASES);
    all.extend_from_slice(migrate::CASES);
    all.extend_from_slice(moves::CASES);
    all.extend_from_slice(drain::CASES);
    all.extend_from_slice(flow::CASES);
    all.extend_from_slice(limits::CASES);
    for more in
        [vm::CASES, errors::CASES, restart::CASES, faults::CASES, crash::CASES, disks::CASES, sanity::CASES]
    {
        all.extend_from_slice(more);
    }
    all.sort_by_key(|c| matches!(c.run, Run::Alone(_)));
    all
}

/// Holds a cluster against what a case must leave behind: no volume, every extent free, every node alive, and no
/// device of ours in any kernel.
///
/// # Errors
/// What is left.
pub fn tidy(c: &Cluster) -> Result<()> {
    c.wait_survey("no volume, and all extents free", |s| {
        let empty = s["volumes"].as_array().is_some_and(Vec::is_empty);
        let disks = s["disks"].as_array().map_or(&[][..], Vec::as_slice);
        let alive = s["nodes"].as_array().is_some_and(|n| n.iter().all(|n| n["alive"] == true));
        empty
            && alive
            && !disks.is_empty()
            && disks.iter().all(|d| d["state"] == "serving" && d["free"] == d["size"])
    })?;
    for node in c.lab().nodes() {
        crate::wait::until(
            &format!("no device of ours on {}", node.name()),
            crate::cluster::PATIENCE,
            || Ok(devices(node)?.is_empty().then_some(())),
        )
        .map_err(|e| e.context(devices(node).unwrap_or_default().join(", ")))?;
    }
    Ok(())
}

/// Names of the device-mapper devices of ours in a node's kernel that belong to volumes: the holds of served disks
/// stay for as long as these serve.
///
/// # Errors
/// The node cannot be reached.
pub fn devices(node: &crate::lab::Node) -> Result<Vec<String>> {
    let out = node.run_ok("cat /sys/block/dm-*/dm/name 2>/dev/null; true")?;
    Ok(out
        .lines()
        .filter(|l| l.starts_with("weir-") && !l.starts_with("weir-hold-"))
        .map(str::to_owned)
        .collect())
}

/// Fills `device` on a node with a pattern that `seed` determines, and makes it durable.
///
/// # Errors
/// The node cannot be reached, or the write failed.
pub fn write_pattern(node: &crate::lab::Node, device: &str, mib: u64, seed: u32) -> Result<()> {
    node.run_ok(&format!(
        "set -e; {} | dd of={device} bs=1M oflag=direct iflag=fullblock conv=notrunc,fsync status=none",
        pattern(mib, seed)
    ))
    .map(drop)
}

/// Checks that `device` on a node holds what [`write_pattern`] wrote.
///
/// # Errors
/// It does not.
pub fn check_pattern(node: &crate::lab::Node, device: &str, mib: u64, seed: u32) -> Result<()> {
    let sum = |input: &str| node.run_ok(&format!("{input} | sha256sum"));
    let want = sum(&pattern(mib, seed))?;
    let got = sum(&format!("dd if={device} bs=1M count={mib} iflag=direct,fullblock status=none"))?;
    ensure!(want == got, "{device} on {} does not hold pattern {seed}", node.name());
    Ok(())
}

/// A shell command that prints the pattern: AES-CTR of zeros, so that every block differs.
fn pattern(mib: u64, seed: u32) -> String {
    format!(
        "dd if=/dev/zero bs=1M count={mib} status=none | openssl enc -aes-128-ctr -nosalt -K {seed:032x} -iv {seed:032x}"
    )
}
