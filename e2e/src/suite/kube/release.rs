//! The release itself: that helm finds it in order, and what becomes of volumes when it goes and comes back.

use anyhow::{Context, Result, bail, ensure};

use super::{
    Case, check, delete_claim,
    io::PodIo,
    objects::{Claim, Mode},
    wait_gone,
};
use crate::kube::{
    KubeCluster,
    cluster::{PATIENCE, RELEASE, WEIR},
};

pub(super) const CASES: &[Case] = &[Case {
    name: "kube/uninstall",
    about: "helm test; helm uninstall refuses while there are volumes; gone and back, all is found, and I/O went on",
    run: uninstall,
}];

fn uninstall(c: &mut KubeCluster) -> Result<()> {
    let tested =
        c.wait("helm test to pass", PATIENCE, || c.helm(&["test", RELEASE, "--namespace", WEIR]).map(Some))?;
    println!("   {}", last_line(&tested));
    let claims = [
        Claim::of("kept", "weir", Mode::Block, "64Mi"),
        Claim::of("idle", "weir-immediate", Mode::Block, "32Mi"),
    ];
    c.create(&claims.map(|claim| claim.object()))?;
    let io = PodIo::start(c, 1, "kept-io", "kept", Mode::Block, 61)?.begun(c)?;
    let Err(refusal) = c.helm(&["uninstall", RELEASE, "--namespace", WEIR, "--timeout", "900s"]) else {
        bail!("helm uninstall was not refused")
    };
    let said = format!("{refusal:#}");
    for words in ["2 volumes are left", "claim default/kept", "claim default/idle", "--no-hooks"] {
        ensure!(said.contains(words), "the refusal does not say {words:?}: {said}");
    }
    println!("   {}", said.lines().find(|l| l.contains("are left")).unwrap_or_default().trim());
    c.plane().kubectl(&["get", "daemonset/weir-node", "deployment/weir-controller", "-n", WEIR])?;
    // Nothing is lost when a person insists.
    c.helm(&["uninstall", RELEASE, "--namespace", WEIR, "--no-hooks"])?;
    wait_removed(c)?;
    let r = io.wait_writes(64).context("I/O without Weir")?;
    println!("   without Weir: {} writes so far, longest stall {} ms", r.writes, r.max_stall_ms);
    c.install().context("install it again")?;
    check::agree(c).context("after the second install")?;
    io.finish(c)?;
    let again = PodIo::start(c, 3, "idle-io", "idle", Mode::Block, 62)?.begun(c)?;
    again.finish(c)?;
    for claim in ["kept", "idle"] {
        delete_claim(c, claim)?;
    }
    wait_gone(c)
}

/// Waits until nothing of a release runs any more.
pub(super) fn wait_removed(c: &KubeCluster) -> Result<()> {
    c.wait("the plugin's pods to be gone", PATIENCE, || {
        let left = c.plane().kubectl(&[
            "get",
            "pods",
            "-n",
            WEIR,
            "-o",
            "name",
            "-l",
            "app.kubernetes.io/name=weir",
        ])?;
        ensure!(left.trim().is_empty(), "left: {left}");
        Ok(Some(()))
    })
}

fn last_line(text: &str) -> &str {
    text.lines()
        .rev()
        .map(str::trim)
        .find(|l| l.starts_with("Phase") || l.contains("Succeeded"))
        .unwrap_or_default()
}
