//! csi-sanity against the real pair of binaries, run in a node.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail};

use super::{Case, Run};
use crate::{
    cluster::{Cluster, PATIENCE, Spec},
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
        // kubectl may not have heard of the kind yet.
        crate::wait::until_ok("the pool to be applied", PATIENCE, || {
            plane.kubectl_with(&["apply", "-f", "-"], &spec.pool().to_string())
        })?;
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

/// Twice at most: an orchestrator repeats what came to one of [`PASSING`], csi-sanity does not, and an emulated node may be that slow.
fn sanity(c: &Cluster, access: &str) -> Result<()> {
    match specs(c, access)? {
        Outcome::Passed => Ok(()),
        Outcome::Failed { passing: true, said } => {
            println!("   once more, for an orchestrator would have asked again:\n{said}");
            super::tidy(c)?;
            match specs(c, access)? {
                Outcome::Passed => Ok(()),
                Outcome::Failed { said, .. } => bail!("{said}"),
            }
        }
        Outcome::Failed { passing: false, said } => bail!("{said}"),
    }
}

/// How a run of csi-sanity ended.
enum Outcome {
    Passed,
    /// `passing`: each spec that failed did so because of an answer that asks for patience.
    Failed {
        passing: bool,
        said: String,
    },
}

/// What an orchestrator asks again after.
const PASSING: [&str; 3] = ["code = Unavailable", "code = DeadlineExceeded", "code = Aborted"];

fn specs(c: &Cluster, access: &str) -> Result<Outcome> {
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
    if out.ok() && summary.contains(" 0 Failed") {
        return Ok(Outcome::Passed);
    }
    let failed = failed(&text);
    let passes = |report: &&str| PASSING.iter().any(|code| report.contains(code));
    let passing = !failed.is_empty() && failed.iter().all(passes);
    // It names none if it died, or found nothing to run.
    let said = if failed.is_empty() { text.clone() } else { failed.join(RULE) };
    Ok(Outcome::Failed { passing, said: format!("csi-sanity, {access}:\n{said}\n{}", out.errors()) })
}

/// What ginkgo said about each spec that failed.
fn failed(text: &str) -> Vec<&str> {
    let reports = text.split(RULE).map(str::trim);
    reports.filter(|report| report.contains("[FAILED]") && !report.contains("Summarizing")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reports_of_specs_that_failed_are_shown() {
        let failing =
            "Node Service should work\n  [FAILED] in [It] - node.go:1\n  rpc error: code = Aborted desc = x";
        let text = ["Identity ok", failing, "Controller ok", "Summarizing 1 Failure:\n  [FAIL] Node Service"]
            .join(RULE);
        assert_eq!(failed(&text), [failing]);
        assert_eq!(failed("it died").len(), 0);
    }
}
