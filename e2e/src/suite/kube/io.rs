//! Pods that do verified I/O on a claim.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};

use super::{
    delete_pod,
    objects::{DEVICE, FOLDER, Mode, Pod, with_tools},
    wait_pod,
};
use crate::{
    kube::KubeCluster,
    lab::{Node, state::remove_if_there},
    suite::{verifier::Verifier, watch::Watch},
    verify::{Content, Report},
};

/// Verified I/O on the disk of node `n` that Weir does not know, without a pod: what the node itself does to I/O meanwhile.
pub(super) fn beside(c: &KubeCluster, n: u8, name: &str, seed: u64) -> Result<Verifier> {
    let node = Arc::clone(c.node(n));
    let device = node.disk(c.pool_disks());
    Verifier::rare(node, name, &device, seed)
}

/// Verified I/O in a pod.
pub(super) struct PodIo {
    node: Arc<Node>,
    pod: String,
    watch: Watch,
}

impl std::ops::Deref for PodIo {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl PodIo {
    /// Starts a pod of this name on node `n` that first says what the volume holds, see [`Self::found`], and then writes.
    pub(super) fn take_over(c: &KubeCluster, n: u8, name: &str, claim: &str, seed: u64) -> Result<Self> {
        let first = format!("weir-lab agent slots --device {DEVICE} >/host/log/slots-{name}.json && ");
        Self::start_after(c, n, name, claim, Mode::Block, seed, &first)
    }

    /// Starts a pod of this name on node `n`; it waits for its claim's volume. [`Self::begun`] waits for its first I/O.
    pub(super) fn start(
        c: &KubeCluster,
        n: u8,
        name: &str,
        claim: &str,
        mode: Mode,
        seed: u64,
    ) -> Result<Self> {
        Self::start_after(c, n, name, claim, mode, seed, "")
    }

    fn start_after(
        c: &KubeCluster,
        n: u8,
        name: &str,
        claim: &str,
        mode: Mode,
        seed: u64,
        first: &str,
    ) -> Result<Self> {
        let node = Arc::clone(c.node(n));
        let io = Self { watch: Watch::new(&node, name)?, node, pod: name.to_owned() };
        remove_if_there(&io.stop_file())?;
        let stop = format!("/host/log/{}.stop", io.watch.name());
        let script = match mode {
            Mode::Block => format!("{first}exec {}", io.watch.command(DEVICE, seed, &stop)),
            Mode::Filesystem => {
                let file = format!("{FOLDER}/verified");
                format!("{first}truncate -s 16M {file} && exec {}", io.watch.command(&file, seed, &stop))
            }
        };
        let node = io.node.name();
        let pod = Pod { name, node: Some(&node), claim, mode, script: &script };
        c.create(&[with_tools(pod.object())])?;
        Ok(io)
    }

    /// Waits until I/O goes on.
    pub(super) fn begun(self, c: &KubeCluster) -> Result<Self> {
        c.wait(&format!("pod {} to run", self.pod), crate::kube::cluster::PATIENCE, || {
            let pod = c.get(&["pod", &self.pod])?;
            anyhow::ensure!(pod["status"]["phase"] == "Running", "it is {}", pod["status"]["phase"]);
            Ok(Some(()))
        })
        .and_then(|()| self.watch.wait_writes(16))?;
        Ok(self)
    }

    /// What a pod that takes over found before it wrote.
    pub(super) fn found(&self) -> Result<Vec<Content>> {
        let path = self.node.dir().join("log").join(format!("slots-{}.json", self.pod));
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).context("parse what the slots hold")
    }

    fn stop_file(&self) -> PathBuf {
        self.node.log(self.watch.name()).with_extension("stop")
    }

    /// Ends it: everything is read back, and nothing may have gone wrong. The pod is deleted.
    pub(super) fn finish(self, c: &KubeCluster) -> Result<Report> {
        let stop = self.stop_file();
        fs::write(&stop, "").with_context(|| format!("write {}", stop.display()))?;
        let ended = wait_pod(c, &self.pod);
        let r = self.report().context("the report")?;
        self.check_end(&r)?;
        ended?;
        delete_pod(c, &self.pod)?;
        Ok(r)
    }
}
