//! A release with `attachRequired`: Kubernetes records who has a volume, and csi-attacher carries that to Weir's controller.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Case, delete_claim,
    io::PodIo,
    objects::{Claim, Mode},
    release::wait_removed,
    wait_gone,
};
use crate::{
    kube::{
        ATTACHER, KubeCluster, Program,
        cluster::{PATIENCE, RELEASE, WEIR, items},
    },
    suite::verifier::check_slots,
};

pub(super) const CASES: &[Case] = &[Case {
    name: "kube/attach",
    about: "helm uninstall without volumes; with attachRequired attachments are recorded, and a volume goes from node to node",
    run: attach,
}];

/// The release goes and comes back with these values: whether attachments are recorded cannot be changed in place.
fn replace(c: &KubeCluster, set: &[&str]) -> Result<()> {
    c.helm(&["uninstall", RELEASE, "--namespace", WEIR, "--timeout", "900s"])?;
    wait_removed(c)?;
    c.install_with(set)
}

/// Waits until Kubernetes has attached the only volume to these nodes and to no other.
fn wait_attached(c: &KubeCluster, nodes: &[&str]) -> Result<()> {
    c.wait(&format!("the volume to be attached to {nodes:?}"), PATIENCE, || {
        let list = c.get(&["volumeattachments"])?;
        let attached =
            |a: &&Value| a["status"]["attached"] == true && a["spec"]["attacher"] == "csi.weir.storage";
        let at: Vec<_> =
            items(&list["items"]).iter().filter(attached).map(|a| a["spec"]["nodeName"].clone()).collect();
        ensure!(at == nodes && items(&list["items"]).len() == nodes.len(), "it is attached to {at:?}");
        Ok(Some(()))
    })
}

fn attach(c: &mut KubeCluster) -> Result<()> {
    // One after the other: the first makes the image.
    for node in c.lab().nodes() {
        c.import(node, Program::ATTACHER, ATTACHER).context("give the nodes csi-attacher")?;
    }
    replace(c, &["attachRequired=true", "sidecars.attacher.image.pullPolicy=Never"])?;
    c.create(&[Claim::of("moved", "weir", Mode::Block, "64Mi").object()])?;
    let first = PodIo::start(c, 1, "moved-a", "moved", Mode::Block, 71)?.begun(c)?;
    first.wait_writes(64)?;
    wait_attached(c, &["n1"])?;
    let wrote = first.finish(c)?;
    let second = PodIo::take_over(c, 2, "moved-b", "moved", 72)?.begun(c)?;
    check_slots(&second.found()?, &wrote).context("what the pod on the other node had written")?;
    wait_attached(c, &["n2"])?;
    second.finish(c)?;
    delete_claim(c, "moved")?;
    wait_attached(c, &[])?;
    wait_gone(c)?;
    replace(c, &[])
}
