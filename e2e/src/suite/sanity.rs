//! csi-sanity against the real pair of binaries, run in a node.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Case, Run};
use crate::{
    cluster::{Cluster, Spec},
    lab::{cache, tools},
};

pub(super) const CASES: &[Case] = &[
    Case { name: "sanity/block", about: "csi-sanity v5.4.0 on raw block volumes", run: Run::On(block) },
    Case { name: "sanity/mount", about: "csi-sanity v5.4.0 on mounted volumes", run: Run::On(mount) },
];

const MODULE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.4.0";

/// Longest time of one run: about 90 specs, a fifth of which reach a device in an emulated node.
const LIMIT: Duration = Duration::from_secs(900);

/// What ginkgo draws between the reports of two specs.
const RULE: &str = "\n------------------------------\n";

/// The same with the records in custom resources of a real API server.
///
/// # Errors
/// The control plane's or the cluster's, or a spec of csi-sanity fails.
pub fn on_kubernetes() -> Result<()> {
    super::kube::with_api_server(|plane| {
        let spec = Spec { kubeconfig: Some(plane.kubeconfig().to_owned()), ..Spec::default() };
        plane.kubectl_with(&["apply", "-f", "-"], &spec.pool().to_string())?;
        let c = Cluster::start(spec)?;
        let done = ["block", "mount"].iter().try_for_each(|kind| {
            sanity(&c, kind)?;
            super::tidy(&c)
        });
        done.with_context(|| c.logs())
    })
}

fn block(c: &Cluster) -> Result<()> {
    sanity(c, "block")
}

fn mount(c: &Cluster) -> Result<()> {
    sanity(c, "mount")
}

/// The csi-sanity binary, built once into the lab's cache.
fn binary() -> Result<std::path::PathBuf> {
    let dir = cache::dir()?.join("go");
    let path = dir.join("csi-sanity");
    if !path.is_file() {
        std::fs::create_dir_all(&dir)?;
        let mut go = std::process::Command::new(tools::find_tool("go")?);
        go.args(["install", "-trimpath", "-ldflags", "-s -w", MODULE])
            .env("GOBIN", &dir)
            .env("CGO_ENABLED", "0");
        tools::run_tool(&mut go).context("build csi-sanity")?;
    }
    Ok(path)
}

fn sanity(c: &Cluster, access: &str) -> Result<()> {
    let node = c.node(1);
    let bytes = std::fs::read(binary()?)?;
    node.write_file("/run/lab/csi-sanity", &bytes)?;
    let script = format!(
        "cd /run/lab && chmod +x csi-sanity && rm -rf sanity && mkdir sanity && \
         ./csi-sanity --csi.endpoint=unix:///run/weir/csi.sock --csi.controllerendpoint=dns:///{} \
         --csi.mountdir=/run/lab/sanity/mount --csi.stagingdir=/run/lab/sanity/stage \
         --csi.testvolumesize=67108864 --csi.testvolumeexpandsize=134217728 \
         --csi.testvolumeaccesstype={access} --ginkgo.no-color --ginkgo.v",
        c.controller_from_node()
    );
    let out = node.exec_within(&script, LIMIT)?;
    let text = out.text();
    let summary =
        text.lines().rev().find(|l| l.contains("Passed") && l.contains("Failed")).unwrap_or_default();
    println!("   {}", summary.trim());
    let skipped: BTreeSet<&str> = text
        .lines()
        .filter_map(|l| l.trim().strip_prefix("[SKIPPED] "))
        .filter(|l| !l.starts_with("in ["))
        .collect();
    for why in skipped {
        println!("   skipped: {}", why.split(" @ ").next().unwrap_or(why));
    }
    ensure!(
        out.ok() && summary.contains(" 0 Failed"),
        "csi-sanity, {access}:\n{}\n{}",
        failures(&text),
        out.errors()
    );
    Ok(())
}

/// What ginkgo said about the specs that failed; all it said if that names none (it died, or found nothing to run).
fn failures(text: &str) -> String {
    let failed: Vec<&str> =
        text.split(RULE).map(str::trim).filter(|report| report.contains("[FAILED]")).collect();
    if failed.is_empty() { text.to_owned() } else { failed.join(RULE) }
}
