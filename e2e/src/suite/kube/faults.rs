//! Parts of the cluster that fail or are replaced while pods do verified I/O.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Case, check, delete_claim, delete_pod, find_record,
    io::{Plain, PodIo},
    leader,
    objects::{Claim, Mode, Pod},
    record, wait_gone, wait_pod,
};
use crate::{
    kube::{
        KubeCluster,
        cluster::{PATIENCE, RELEASE, WEIR, chart, items},
    },
    lab::Node,
    suite::verifier::check_slots,
    verify::Report,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "kube/node-killed",
        about: "a node dies: its pods' volumes go on elsewhere, with the out-of-service taint and without, or are deleted",
        run: node_killed,
    },
    Case {
        name: "kube/leader-killed",
        about: "the reigning controller dies while 50 claims are provisioned: all bind, nothing leaks",
        run: leader_killed,
    },
    Case {
        name: "kube/outage",
        about: "API server and etcd are away for two minutes: I/O goes on, and everything converges after",
        run: outage,
    },
    Case {
        name: "kube/rolling",
        about: "node plugins are restarted one by one, and the release is upgraded: I/O goes on",
        run: rolling,
    },
];

const TAINT: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

/// A claim whose extents lie on n1, all of them: a pod there was its first consumer.
fn claim_on_n1(c: &KubeCluster, names: &[&str]) -> Result<()> {
    let claims: Vec<_> = names.iter().map(|n| Claim::of(n, "weir", Mode::Block, "64Mi").object()).collect();
    let pods: Vec<_> = names
        .iter()
        .map(|n| Pod { name: n, node: Some("n1"), claim: n, mode: Mode::Block, script: "exit 0" }.object())
        .collect();
    c.create(&claims)?;
    c.create(&pods)?;
    for name in names {
        wait_pod(c, name)?;
        delete_pod(c, name)?;
    }
    Ok(())
}

fn node_killed(c: &mut KubeCluster) -> Result<()> {
    claim_on_n1(c, &["plain", "tainted", "abandoned"])?;
    let old = [("plain-a", "plain", 21), ("tainted-a", "tainted", 22), ("abandoned-a", "abandoned", 25)]
        .map(|(pod, claim, seed)| PodIo::start(c, 2, pod, claim, Mode::Block, seed));
    let [plain, tainted, abandoned] = old;
    let (plain, tainted, abandoned) = (plain?.begun(c)?, tainted?.begun(c)?, abandoned?.begun(c)?);
    for io in [&plain, &tainted, &abandoned] {
        io.wait_writes(128)?;
    }
    c.node(2).kill()?;
    let killed = Instant::now();
    // As a Deployment does, once its old pod is on its way out: another one is made elsewhere and nothing is waited for.
    let new = PodIo::take_over(c, 3, "plain-b", "plain", 23)?.begun(c)?;
    println!("   without the taint: {:.0} s from the kill to I/O elsewhere", killed.elapsed().as_secs_f64());
    check_slots(&new.found()?, &plain.last_words()?).context("what the dead node's pod had written")?;
    // As a StatefulSet does: the new pod is made when the old one is gone, which the taint brings about.
    c.wait_node(c.node(2), false)?;
    c.plane().kubectl(&["taint", "node", "n2", TAINT])?;
    let tainted_at = Instant::now();
    wait_pod_gone(c, "tainted-a")?;
    let gone = tainted_at.elapsed();
    let other = PodIo::take_over(c, 3, "tainted-b", "tainted", 24)?.begun(c)?;
    println!(
        "   with the taint: {:.0} s to I/O elsewhere, {:.0} s of them until the old pod was gone",
        tainted_at.elapsed().as_secs_f64(),
        gone.as_secs_f64()
    );
    check_slots(&other.found()?, &tainted.last_words()?).context("what the dead node's pod had written")?;
    for pod in ["plain-a", "abandoned-a"] {
        wait_pod_gone(c, pod)?;
    }
    let volume =
        c.get(&["pvc", "abandoned"])?["spec"]["volumeName"].as_str().context("its volume")?.to_owned();
    delete_claim(c, "abandoned")?;
    wait_object_gone(c, "pv", &volume).context("what only the dead node held")?;
    record(c, "abandoned").context("its extents were taken for free while the dead node may use them")?;
    c.node(2).start()?;
    c.wait_node(c.node(2), true)?;
    c.plane().kubectl(&["taint", "node", "n2", &format!("{TAINT}-")])?;
    c.wait("the abandoned volume's record to go, now that its node is back", PATIENCE, || {
        Ok(find_record(c, "abandoned")?.is_none().then_some(()))
    })?;
    check::agree(c).context("once the node is back")?;
    new.finish(c)?;
    other.finish(c)?;
    c.wait_weir()?;
    for name in ["plain", "tainted"] {
        delete_claim(c, name)?;
    }
    wait_gone(c)
}

fn wait_pod_gone(c: &KubeCluster, name: &str) -> Result<()> {
    wait_object_gone(c, "pod", name)
}

fn wait_object_gone(c: &KubeCluster, kind: &str, name: &str) -> Result<()> {
    c.wait(&format!("{kind} {name} to be gone"), PATIENCE, || {
        let left = c.plane().kubectl(&["get", kind, name, "--ignore-not-found", "-o", "name"])?;
        ensure!(left.trim().is_empty(), "it is still there");
        Ok(Some(()))
    })
}

/// The node on which a pod of Weir runs.
fn node_of<'a>(c: &'a KubeCluster, pod: &str) -> Result<&'a Node> {
    let at = c.get(&["pod", "-n", WEIR, pod])?["spec"]["nodeName"].as_str().context("its node")?.to_owned();
    let found = c.lab().nodes().iter().find(|n| n.name() == at);
    found.map(Arc::as_ref).with_context(|| format!("{at} is no node of the lab"))
}

/// Who holds the Lease: a process, not only its pod.
fn holder(c: &KubeCluster) -> Result<String> {
    let lease = c.get(&["lease", "-n", WEIR, "weir-controller"])?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}

fn bound(list: &Value) -> usize {
    items(&list["items"]).iter().filter(|p| p["status"]["phase"] == "Bound").count()
}

fn leader_killed(c: &mut KubeCluster) -> Result<()> {
    const CLAIMS: usize = 50;
    claim_on_n1(c, &["held"])?;
    let io = PodIo::start(c, 2, "held-io", "held", Mode::Block, 31)?.begun(c)?;
    let names: Vec<_> = (0..CLAIMS).map(|i| format!("many-{i}")).collect();
    let claims: Vec<_> = names
        .iter()
        .map(|n| {
            let mut claim = Claim::of(n, "weir-immediate", Mode::Block, "16Mi").object();
            claim["metadata"]["labels"] = json!({"many": "yes"});
            claim
        })
        .collect();
    let (old, process) = (leader(c)?, holder(c)?);
    let node = node_of(c, &old)?;
    let many = ["pvc", "-l", "many=yes"];
    c.create(&claims)?;
    // As the kernel would for want of memory. Replicas are never on one node while there are three.
    node.run_ok("pkill -KILL -x weir-controller")?;
    let killed = Instant::now();
    let before = bound(&c.get(&many)?);
    c.wait("all claims to be bound", PATIENCE, || {
        let n = bound(&c.get(&many)?);
        ensure!(n == CLAIMS, "{n} are");
        Ok(Some(()))
    })?;
    println!(
        "   {before} of {CLAIMS} were bound when {old} was killed, all {:.0} s later",
        killed.elapsed().as_secs_f64()
    );
    let volumes = c.get(&["logicalvolumes"])?;
    let found = items(&volumes["items"]).len();
    ensure!(found == CLAIMS + 1, "{found} records for {} claims", CLAIMS + 1);
    let of_claims: std::collections::BTreeSet<_> =
        items(&volumes["items"]).iter().filter_map(|v| v["spec"]["claim"]["pvcName"].as_str()).collect();
    ensure!(of_claims.len() == found, "two records are of one claim: {of_claims:?}");
    let new = c.wait("another to reign", PATIENCE, || {
        let now = holder(c)?;
        Ok((!now.is_empty() && now != process).then_some(now))
    })?;
    println!("   {new} reigns {:.0} s after the kill", killed.elapsed().as_secs_f64());
    println!("   {} devices stand as the records say", check::agree(c)?);
    io.wait_writes(16)?;
    io.finish(c)?;
    c.plane().kubectl(&["delete", "pvc", "-l", "many=yes", "--wait=true"])?;
    delete_claim(c, "held")?;
    wait_gone(c)
}

fn outage(c: &mut KubeCluster) -> Result<()> {
    const AWAY: Duration = Duration::from_secs(120);
    claim_on_n1(c, &["held"])?;
    let io = PodIo::start(c, 2, "held-io", "held", Mode::Block, 41)?.begun(c)?;
    let gone = Claim::of("late", "weir-immediate", Mode::Block, "16Mi");
    c.plane_mut().stop_api()?;
    c.plane_mut().stop_etcd()?;
    let r = io.goes_on_for(AWAY)?;
    println!("   {} writes so far, longest stall {} ms", r.writes, r.max_stall_ms);
    c.plane_mut().start_etcd()?;
    c.plane_mut().start_api()?;
    c.create(&[gone.object()])?;
    c.wait("a new claim to be bound", PATIENCE, || {
        ensure!(bound(&c.get(&["pvc", "-l", "many!=yes"])?) == 2, "it is not");
        Ok(Some(()))
    })?;
    for node in c.lab().nodes() {
        c.wait_node(node, true)?;
    }
    check::agree(c)?;
    io.finish(c)?;
    delete_claim(c, "late")?;
    delete_claim(c, "held")?;
    wait_gone(c)
}

/// Waits until a rollout is complete.
fn rolled(c: &KubeCluster, what: &str) -> Result<()> {
    c.plane()
        .kubectl(&["rollout", "status", "-n", WEIR, what, &format!("--timeout={}s", PATIENCE.as_secs())])
        .map(drop)
}

/// The mark of the configuration that node plugins run with.
fn config(c: &KubeCluster) -> Result<String> {
    let set = c.get(&["daemonset", "-n", WEIR, "weir-node"])?;
    let mark = set["spec"]["template"]["metadata"]["annotations"]["weir.storage/config"].as_str();
    mark.map(str::to_owned).context("the mark of the node plugins' configuration")
}

fn rolling(c: &mut KubeCluster) -> Result<()> {
    claim_on_n1(c, &["held"])?;
    let io = PodIo::start(c, 2, "held-io", "held", Mode::Block, 51)?.begun(c)?;
    // The volume lies on n1 and is used on n2.
    let plain = Plain::start(c, 1, &io, 52)?;
    c.plane().kubectl(&["rollout", "restart", "-n", WEIR, "daemonset/weir-node"])?;
    rolled(c, "daemonset/weir-node")?;
    let r = io.wait_writes(16)?;
    say_stalls("node plugins restarted", &r, &plain);
    let before = config(c)?;
    // What is not so yet, however often this runs on a cluster.
    let known = c.helm(&["get", "values", RELEASE, "--namespace", WEIR])?;
    let level = if known.contains("debug") { "log.level=info" } else { "log.level=debug" };
    let values = c.lab().dir().join("values.yaml");
    let (values, chart) = (values.display().to_string(), chart().display().to_string());
    c.helm(&["upgrade", RELEASE, &chart, "--namespace", WEIR, "--values", &values, "--set", level])?;
    rolled(c, "daemonset/weir-node")?;
    rolled(c, "deployment/weir-controller")?;
    let r = io.wait_writes(16)?;
    say_stalls("release upgraded", &r, &plain);
    ensure!(config(c)? != before, "the upgrade left the node plugins as they were: {before}");
    c.wait_weir()?;
    check::agree(c)?;
    io.finish(c)?;
    plain.finish()?;
    delete_claim(c, "held")?;
    wait_gone(c)
}

/// How long I/O stood still so far, on the volume and by plain NVMe over TCP between its nodes: one of a single emulated processor
/// that starts pods lets others wait, those that do no I/O as well.
fn say_stalls(what: &str, r: &Report, plain: &Plain) {
    let (writes, stall, plain) = (r.writes, r.max_stall_ms, plain.longest_ms());
    println!(
        "   {what}: {writes} writes, longest stall {stall} ms; by plain NVMe over TCP between its nodes {plain} ms"
    );
}
