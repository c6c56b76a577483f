//! The verifier of a node, as a test holds it, and small helpers that the fault cases share.

use std::{ops::Deref, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::watch::Watch;
use crate::{
    cluster::{Cluster, PATIENCE},
    lab::{Background, Node},
    verify::{Content, Report},
    wait,
};

/// Verified I/O that runs in a node.
pub(super) struct Verifier {
    node: Arc<Node>,
    running: Background,
    watch: Watch,
}

impl Deref for Verifier {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Verifier {
    /// Starts one on a device of node `n`. Names must differ within a lab.
    pub(super) fn start(c: &Cluster, n: u8, name: &str, device: &str, seed: u64) -> Result<Self> {
        Self::on(Arc::clone(c.node(n)), name, |w, stop| w.command(device, seed, stop))
    }

    /// One that looks now and then, on any lab's node, in a control group with as much of the processor as this pod of the node's has
    /// that asks for some.
    pub(super) fn beside(node: Arc<Node>, pod: &str, name: &str, device: &str, seed: u64) -> Result<Self> {
        const PODS: &str = "/sys/fs/cgroup/kubepods/burstable";
        Self::on(node, name, |w, stop| {
            let command = w.rare(device, seed, stop);
            format!(
                "sh -c 'mkdir -p {PODS}/lab && cat {PODS}/pod{pod}/cpu.weight >{PODS}/lab/cpu.weight && \
                 echo $$ >{PODS}/lab/cgroup.procs && exec {command}'"
            )
        })
    }

    fn on(node: Arc<Node>, name: &str, command: impl Fn(&Watch, &str) -> String) -> Result<Self> {
        let watch = Watch::new(&node, name)?;
        let stop = stop_file(watch.name());
        node.run_ok(&format!("mkdir -p /run/lab && rm -f {stop}"))?;
        let running = node.spawn(watch.name(), &command(&watch, &stop))?;
        let v = Self { node, running, watch };
        v.wait_writes(16)?;
        Ok(v)
    }

    /// Ends it: everything is read back, and nothing may have gone wrong.
    pub(super) fn finish(self) -> Result<Report> {
        let r = self.end()?;
        self.check_end(&r)?;
        Ok(r)
    }

    /// Ends it, whatever became of its I/O: it was evicted, say.
    pub(super) fn end(&self) -> Result<Report> {
        self.node.run_ok(&format!("touch {}", stop_file(self.name())))?;
        wait::until(&format!("{} to end", self.name()), PATIENCE, || self.node.ended(&self.running))
            .with_context(|| format!("last report: {:?}", self.seen()))?;
        self.report()
    }
}

fn stop_file(name: &str) -> String {
    format!("/run/lab/{name}.stop")
}

/// What the slots of a device of node `n` hold.
pub(super) fn slots(c: &Cluster, n: u8, device: &str) -> Result<Vec<Content>> {
    let text = c.node(n).run_ok(&format!("weir-lab agent slots --device {device}"))?;
    serde_json::from_str(&text).context("parse what the slots hold")
}

/// Holds what the slots contain against the report of who wrote there.
pub(super) fn check_slots(found: &[Content], report: &Report) -> Result<()> {
    ensure!(found.len() as u64 == report.slots, "{} slots, {} were written", found.len(), report.slots);
    let wrong: Vec<_> = (0..).zip(found).filter_map(|(slot, c)| report.allows(slot, c).err()).collect();
    ensure!(wrong.is_empty(), "{} slots are wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(8)]);
    Ok(())
}

/// The nodes on which a volume has extents.
pub(super) fn hosts(c: &Cluster, id: &str) -> Result<Vec<u8>> {
    let s = c.survey()?;
    let row = crate::cluster::find_volume(&s, id).context("the volume's row")?;
    let rows = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let mut out = Vec::new();
    for seg in rows(&row["segments"]) {
        let disk =
            rows(&s["disks"]).into_iter().find(|d| d["disk"] == seg[2]).context("the segment's disk")?;
        out.push(number(disk["node"].as_str().unwrap_or_default())?);
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// The first node but `home` on which a volume has extents.
pub(super) fn lender(c: &Cluster, id: &str, home: u8) -> Result<u8> {
    let all = hosts(c, id)?;
    all.iter()
        .copied()
        .find(|n| *n != home)
        .with_context(|| format!("volume {id} borrows from nobody: {all:?}"))
}

/// A node of the three that is none of these.
pub(super) fn third(a: u8, b: u8) -> u8 {
    (1..=3).find(|n| *n != a && *n != b).unwrap_or(1)
}

fn number(node: &str) -> Result<u8> {
    node.strip_prefix('n')
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("{node:?} is no node of a lab"))
}

/// Waits until the controller takes a node for alive, or for dead.
pub(super) fn wait_alive(c: &Cluster, n: u8, alive: bool) -> Result<()> {
    let name = c.node(n).name();
    let what = format!("{name} to be {}", if alive { "alive" } else { "taken for dead" });
    c.wait_survey(&what, |s| is_alive(s, &name) == Some(alive)).map(drop)
}

/// Whether the controller takes a node for alive, if it knows it.
pub(super) fn is_alive(survey: &Value, name: &str) -> Option<bool> {
    let mut nodes = survey["nodes"].as_array().into_iter().flatten();
    nodes.find(|n| n["node"] == name)?["alive"].as_bool()
}

/// Waits until a volume has this phase and these holders.
pub(super) fn wait_held(c: &Cluster, id: &str, phase: &str, holders: &[u8]) -> Result<()> {
    let names: Vec<_> = holders.iter().map(|n| c.node(*n).name()).collect();
    c.wait_volume(id, &format!("phase {phase}, held by {}", names.join(", ")), |v| {
        v.is_some_and(|v| v["phase"] == phase && v["holders"] == serde_json::json!(names))
    })
}

/// Waits until nobody's former access to a volume is left.
pub(super) fn wait_nobody_leaves(c: &Cluster, id: &str) -> Result<()> {
    c.wait_volume(id, "former holders to be gone", |v| {
        v.is_some_and(|v| v["leaving"].as_array().is_some_and(Vec::is_empty))
    })
}

/// Calls `act` as an orchestrator would, again and again until it succeeds; fails at once on an error that is not
/// one of `codes`.
pub(super) fn retry<T>(
    what: &str,
    codes: &[tonic::Code],
    mut act: impl FnMut() -> Result<T, tonic::Status>,
) -> Result<T> {
    let mut last = None;
    let done = wait::until(what, PATIENCE, || match act() {
        Ok(v) => Ok(Some(v)),
        Err(e) if codes.contains(&e.code()) => {
            last = Some(e);
            Ok(None)
        }
        Err(e) => bail!("{what}: {:?}: {}", e.code(), e.message()),
    });
    done.with_context(|| {
        last.map_or_else(String::new, |e| format!("{what}: {:?}: {}", e.code(), e.message()))
    })
}

/// Demands that a call fails with a code and a message that has all of these words.
pub(super) fn refused<T>(
    what: &str,
    answer: Result<T, tonic::Status>,
    code: tonic::Code,
    words: &[&str],
) -> Result<()> {
    let Err(e) = answer else { bail!("{what} was not refused") };
    ensure!(e.code() == code, "{what}: {:?} instead of {code:?}: {}", e.code(), e.message());
    let missing: Vec<_> = words.iter().filter(|w| !e.message().contains(**w)).collect();
    ensure!(missing.is_empty(), "{what}: the message lacks {missing:?}: {}", e.message());
    Ok(())
}
