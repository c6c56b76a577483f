//! What needs a real API server and no nodes. Each starts a control plane of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::kube::ControlPlane;

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
