//! Pods that do verified I/O on a claim.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    delete_pod,
    objects::{DEVICE, FOLDER, Mode, Pod, with_tools},
    wait_pod,
};
use crate::{
    kube::KubeCluster,
    lab::{Node, state::remove_if_there},
    nvmet,
    suite::{verifier::Verifier, watch::Watch},
    verify::{Content, Report},
};

/// Verified I/O of one node on a disk of another by plain NVMe over TCP, without Weir, and with as much of the processor as a pod
/// beside it: what the nodes and their network do to that pod's I/O meanwhile.
pub(super) struct Plain {
    lender: Arc<Node>,
    consumer: Arc<Node>,
    verifier: Verifier,
}

impl Plain {
    /// On the disk of node `lender` that Weir does not know, beside this pod.
    pub(super) fn start(c: &KubeCluster, lender: u8, pod: &PodIo, seed: u64) -> Result<Self> {
        let (lender, consumer) = (Arc::clone(c.node(lender)), Arc::clone(&pod.node));
        let found = c.get(&["pod", &pod.pod])?;
        let uid = found["metadata"]["uid"].as_str().context("the pod's uid")?;
        // What an earlier one wrote would be taken for this one's.
        lender.run_ok(&format!("blkdiscard -z {}", lender.disk(c.pool_disks())))?;
        let devices = nvmet::share(&lender, &consumer, &[lender.disk(c.pool_disks())])?;
        let device = devices.first().context("one device")?;
        let verifier = Verifier::beside(Arc::clone(&consumer), uid, "plain", device, seed)?;
        Ok(Self { lender, consumer, verifier })
    }

    /// The longest that a write took so far, in milliseconds.
    pub(super) fn longest_ms(&self) -> u64 {
        self.verifier.seen().max_stall_ms
    }

    /// Ends it: nothing may have gone wrong.
    pub(super) fn finish(self) -> Result<()> {
        self.verifier.finish()?;
        nvmet::end(&self.lender, &self.consumer)
    }
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
        let mut pod = with_tools(pod.object());
        // What KubeVirt asks for in the name of a virtual machine of one processor.
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
        c.create(&[pod])?;
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
