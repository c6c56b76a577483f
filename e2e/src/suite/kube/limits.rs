//! Limits as a VolumeAttributesClass gives them: for a volume that is made with one, and changed while its pod writes.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Case, delete_claim, delete_pod,
    objects::{Claim, DEVICE, Mode, Pod, with_tools},
    wait_gone, wait_phase,
};
use crate::{
    kube::{KubeCluster, cluster::PATIENCE},
    wait,
};

pub(super) const CASES: &[Case] = &[Case {
    name: "kube/limits",
    about: "iops of a VolumeAttributesClass hold within 5 % as fio in the pod sees them, and change with the claim's class",
    run: limits,
}];

const MARGIN: f64 = 1.05;

fn class(name: &str, iops: u32) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": name},
        "driverName": "csi.weir.storage", "parameters": {"iops": iops.to_string()},
    })
}

/// What a pod's fio did: writes a second. It writes whenever a file `go-N` is there.
fn fio(c: &KubeCluster, n: u32) -> Result<f64> {
    let dir = c.node(1).dir().join("log");
    let (go, answer) = (dir.join(format!("go-{n}")), dir.join(format!("fio-{n}.json")));
    fs::write(&go, "").with_context(|| format!("write {}", go.display()))?;
    let text = wait::until("fio's answer", PATIENCE, || {
        let text = fs::read_to_string(&answer).unwrap_or_default();
        Ok(text.trim_end().ends_with('}').then_some(text))
    })?;
    let start = text.find('{').context("fio printed no JSON")?;
    let answer: Value = serde_json::from_str(&text[start..]).context("parse fio's answer")?;
    let job = &answer["jobs"][0];
    ensure!(job["error"] == 0, "fio failed: {job}");
    job["write"]["iops"].as_f64().context("fio says no iops")
}

fn limits(c: &mut KubeCluster) -> Result<()> {
    const ROUNDS: u32 = 3;
    let dir = c.node(1).dir().join("log");
    for n in 1..=ROUNDS {
        for name in [format!("go-{n}"), format!("fio-{n}.json"), format!("fio-{n}.new")] {
            crate::lab::state::remove_if_there(&dir.join(name))?;
        }
    }
    c.create(&[class("slow", 100), class("fast", 300)])?;
    let mut claim = Claim::of("limited", "weir", Mode::Block, "64Mi").object();
    claim["spec"]["volumeAttributesClassName"] = json!("slow");
    let script = format!(
        "for n in 1 2 3; do until [ -e /host/log/go-$n ]; do sleep 0.2; done; \
         fio --name=w --filename={DEVICE} --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=8 --time_based \
         --runtime=8 --ramp_time=1 --output-format=json >/host/log/fio-$n.new; mv /host/log/fio-$n.new /host/log/fio-$n.json; done"
    );
    let pod = Pod { name: "writer", node: Some("n1"), claim: "limited", mode: Mode::Block, script: &script };
    c.create(&[claim, with_tools(pod.object())])?;
    wait_phase(c, "writer", "Running")?;
    let slow = fio(c, 1)?;
    println!("   class slow: {slow:.1} of 100 writes a second");
    ensure!(slow <= 100.0 * MARGIN, "{slow:.1} writes a second with a limit of 100");
    let patch = |class: &str| {
        let patch = json!({"spec": {"volumeAttributesClassName": class}}).to_string();
        c.plane().kubectl(&["patch", "pvc", "limited", "-p", &patch])?;
        c.wait(&format!("the claim to be of class {class}"), PATIENCE, || {
            let is = c.get(&["pvc", "limited"])?["status"]["currentVolumeAttributesClassName"].clone();
            ensure!(is == class, "it is of {is}");
            Ok(Some(()))
        })
    };
    patch("fast")?;
    let fast = fio(c, 2)?;
    println!("   class fast: {fast:.1} of 300 writes a second");
    ensure!(fast <= 300.0 * MARGIN, "{fast:.1} writes a second with a limit of 300");
    ensure!(fast > 100.0 * MARGIN, "{fast:.1} writes a second: the former limit is still in force");
    patch("slow")?;
    let again = fio(c, ROUNDS)?;
    ensure!(again <= 100.0 * MARGIN, "{again:.1} writes a second, back at a limit of 100");
    delete_pod(c, "writer")?;
    delete_claim(c, "limited")?;
    c.plane().kubectl(&["delete", "volumeattributesclass", "slow", "fast"])?;
    wait_gone(c)
}
