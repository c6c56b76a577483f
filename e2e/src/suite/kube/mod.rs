//! What needs Kubernetes: an API server alone, or a whole cluster with Weir on it, which cases share.

mod objects;
mod pods;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kube::{
    ControlPlane, KubeCluster,
    cluster::{PATIENCE, items},
};

/// A test on a Kubernetes cluster, which it leaves as it found it.
#[derive(Clone, Copy)]
pub struct Case {
    /// `kube/name`.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// Runs it.
    pub run: fn(&KubeCluster) -> Result<()>,
}

/// All cases, in the order in which they run.
pub fn cases() -> Vec<Case> {
    pods::CASES.to_vec()
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

/// Waits until nothing is left of any volume: no claim, no PersistentVolume, no record.
fn wait_gone(c: &KubeCluster) -> Result<()> {
    c.wait("no volume to be left", PATIENCE, || {
        let left = c.get(&["pvc,pv,logicalvolumes", "-A"])?;
        let left: Vec<_> = items(&left["items"]).iter().map(|i| i["metadata"]["name"].to_string()).collect();
        ensure!(left.is_empty(), "left: {}", left.join(", "));
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

/// Runs `what` with the kubeconfig of a control plane that has the chart's CRDs.
///
/// # Errors
/// The control plane's, or those of `what`.
pub fn with_api_server<T>(what: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = Scratch::new()?;
    let plane = ControlPlane::start(&dir.0)?;
    plane.apply_crds()?;
    what(plane.kubeconfig())
}
