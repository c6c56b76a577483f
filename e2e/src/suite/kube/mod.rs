//! What needs Kubernetes: an API server alone, or a whole cluster with Weir on it, which cases share.

mod attach;
mod check;
mod faults;
mod identity;
mod io;
mod kubevirt;
mod limits;
mod objects;
mod pods;
mod release;
mod volumes;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kube::{
    ControlPlane, KubeCluster,
    cluster::{PATIENCE, WEIR, items},
};

/// A test on a Kubernetes cluster, which it leaves as it found it.
#[derive(Clone, Copy)]
pub struct Case {
    /// `kube/name`.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// Runs it.
    pub run: fn(&mut KubeCluster) -> Result<()>,
}

/// All cases, in the order in which they run.
pub fn cases() -> Vec<Case> {
    let all = [
        pods::CASES,
        volumes::CASES,
        limits::CASES,
        kubevirt::CASES,
        faults::CASES,
        identity::CASES,
        release::CASES,
        attach::CASES,
    ];
    all.concat()
}

/// Waits until a pod has done its work; returns what it said at the end.
fn wait_pod(c: &KubeCluster, name: &str) -> Result<String> {
    let pod = c.wait(&format!("pod {name} to end"), PATIENCE, || {
        let pod = c.get(&["pod", name])?;
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        ensure!(phase == "Succeeded" || phase == "Failed", "it is {phase}");
        Ok(Some(pod))
    })?;
    let end =
        &items(&pod["status"]["containerStatuses"]).first().unwrap_or(&Value::Null)["state"]["terminated"];
    let said = end["message"].as_str().unwrap_or_default().trim().to_owned();
    if pod["status"]["phase"] != "Succeeded" {
        bail!("pod {name} failed with {}: {said}", end["exitCode"]);
    }
    Ok(said)
}

/// Waits until a pod is in this phase.
fn wait_phase(c: &KubeCluster, name: &str, phase: &str) -> Result<()> {
    c.wait(&format!("pod {name} to be {phase}"), PATIENCE, || {
        let is = c.get(&["pod", name])?["status"]["phase"].clone();
        ensure!(is == phase, "it is {is}");
        Ok(Some(()))
    })
}

fn delete_pod(c: &KubeCluster, name: &str) -> Result<()> {
    c.plane().kubectl(&["delete", "pod", name, "--wait=true"]).map(drop)
}

fn delete_claim(c: &KubeCluster, name: &str) -> Result<()> {
    c.plane().kubectl(&["delete", "pvc", name, "--wait=true"]).map(drop)
}

/// The reigning controller's pod.
fn leader(c: &KubeCluster) -> Result<String> {
    let lease = c.get(&["lease", "-n", WEIR, "weir-controller"])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    // The pod's name, a dash and a UUID.
    let pod = holder.len().checked_sub(37).map(|end| &holder[..end]);
    pod.map(str::to_owned).with_context(|| format!("nobody reigns: the Lease is held by {holder:?}"))
}

/// The record of a claim's volume.
fn record(c: &KubeCluster, claim: &str) -> Result<Value> {
    find_record(c, claim)?.with_context(|| format!("no record is of claim {claim}"))
}

/// The same, if there is one.
fn find_record(c: &KubeCluster, claim: &str) -> Result<Option<Value>> {
    let list = c.get(&["logicalvolumes"])?;
    Ok(items(&list["items"]).iter().find(|v| v["spec"]["claim"]["pvcName"] == claim).cloned())
}

/// Waits until nothing is left of any volume: no claim, no PersistentVolume, no record, no extent that is not free, and no
/// device of a volume in any kernel.
fn wait_gone(c: &KubeCluster) -> Result<()> {
    c.wait("no volume to be left", PATIENCE, || {
        let left = c.get(&["pvc,pv,logicalvolumes", "-A"])?;
        let left: Vec<_> = items(&left["items"]).iter().map(|i| i["metadata"]["name"].to_string()).collect();
        ensure!(left.is_empty(), "left: {}", left.join(", "));
        let disks = c.get(&["nodedisks"])?;
        for d in items(&disks["items"]) {
            let (size, free) = (&d["status"]["size"], &d["status"]["free"]);
            ensure!(size == free, "disk {} of {size} has {free} free", d["metadata"]["name"]);
        }
        for node in c.lab().nodes() {
            let devices = super::devices(node)?;
            ensure!(devices.is_empty(), "left on {}: {}", node.name(), devices.join(", "));
        }
        Ok(Some(()))
    })
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("weir-kube-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("weir-lab: {} is left: {e}", self.0.display());
        }
    }
}

/// Runs `what` with a control plane that has the chart's CRDs.
///
/// # Errors
/// The control plane's, or those of `what`.
pub fn with_api_server<T>(what: impl FnOnce(&ControlPlane) -> Result<T>) -> Result<T> {
    let dir = Scratch::new()?;
    let plane = ControlPlane::start(&dir.0)?;
    plane.apply_crds()?;
    what(&plane)
}
