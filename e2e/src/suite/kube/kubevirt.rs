//! A virtual machine as KubeVirt runs it: launcher pods of one VirtualMachineInstance with a real QEMU each, on a raw claim
//! that several nodes may use, and QEMU's own live migration between them.
//!
//! Names, labels and owners are those of kubevirt.io/api v1.9 (core/v1: AppLabel, CreatedByLabel, MigrationJobLabel,
//! VirtualMachineNameLabel; the launcher's container is `compute`). KubeVirt itself is not there: what it would do to pods, the
//! test does.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Case, delete_claim, delete_pod,
    objects::{Claim, Mode, Pod, with_tools},
    record, wait_gone, wait_phase,
};
use crate::{
    kube::{
        KubeCluster,
        cluster::{PATIENCE, items},
    },
    lab::Node,
    vm::{self, Guest, OutOfStep, Settings, Vm, guest::Window},
};

pub(super) const CASES: &[Case] = &[Case {
    name: "kube/kubevirt",
    about: "launcher pods of one VM live-migrate it under verified I/O; a pod of another VM is refused meanwhile",
    run: migrate,
}];

const MIB: u64 = 1 << 20;
const CLAIM: &str = "root-disk";
const SIZE: u64 = 2304 * MIB;
/// Steps of the guest that show it goes on.
const STEPS: usize = 100;
const LIMIT: Duration = Duration::from_secs(480);
/// The node's folder for VMs, in a launcher under the same path.
const RUN: &str = "/run/lab/vm";

/// The least of the resource that launchers are owned by: the garbage collector takes pods whose owner is not there.
fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "virtualmachineinstances.kubevirt.io"},
        "spec": {
            "group": "kubevirt.io",
            "names": {"kind": "VirtualMachineInstance", "plural": "virtualmachineinstances",
                      "singular": "virtualmachineinstance", "shortNames": ["vmi"]},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

/// Makes a virtual machine instance; returns its UID.
fn instance(c: &KubeCluster, name: &str) -> Result<String> {
    let object =
        json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": name}});
    c.wait("virtual machine instances to be served", PATIENCE, || {
        c.apply(std::slice::from_ref(&object))?;
        Ok(Some(()))
    })?;
    let uid = c.get(&["virtualmachineinstances.kubevirt.io", name])?["metadata"]["uid"].clone();
    Ok(uid.as_str().context("its UID")?.to_owned())
}

/// A launcher pod as virt-controller makes them; `migration` is the UID of the migration whose target it is.
fn launcher(name: &str, node: &Node, vmi: (&str, &str), migration: Option<&str>, script: &str) -> Value {
    let at = node.name();
    let pod = Pod { name, node: Some(&at), claim: CLAIM, mode: Mode::Block, script };
    let mut pod = with_tools(pod.object());
    let mut labels = json!({
        "kubevirt.io": "virt-launcher",
        "kubevirt.io/created-by": vmi.1,
        "kubevirt.io/nodeName": at,
        "vm.kubevirt.io/name": vmi.0,
    });
    if let Some(uid) = migration {
        labels["kubevirt.io/migrationJobUID"] = json!(uid);
    }
    pod["metadata"]["labels"] = labels;
    pod["metadata"]["annotations"] = json!({"kubevirt.io/domain": vmi.0});
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": vmi.0, "uid": vmi.1,
        "controller": true, "blockOwnerDeletion": true,
    }]);
    // virt-handler carries a migration between the nodes' own addresses.
    pod["spec"]["hostNetwork"] = json!(true);
    let container = &mut pod["spec"]["containers"][0];
    container["name"] = json!("compute");
    // An emulated guest in an emulated node would leave nothing to the others on it.
    container["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "400m"}});
    if let Some(mounts) = container["volumeMounts"].as_array_mut() {
        mounts.push(json!({"name": "run", "mountPath": RUN}));
    }
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.push(json!({"name": "run", "hostPath": {"path": RUN, "type": "DirectoryOrCreate"}}));
    }
    pod
}

/// A launcher pod with a QEMU in it.
fn launch(
    c: &KubeCluster,
    pod: &str,
    node: &Arc<Node>,
    vmi: (&str, &str),
    migration: Option<&str>,
    guest: &Guest,
) -> Result<Vm> {
    let settings =
        Settings { name: vmi.0, device: super::objects::DEVICE, guest, incoming: migration.is_some() };
    let line = Vm::prepare(node, settings)?;
    let script = format!("exec {line} >>/host/log/vm-{}.log 2>&1", vmi.0);
    c.create(&[launcher(pod, node, vmi, migration, &script)])?;
    wait_phase(c, pod, "Running")?;
    debug_assert!(vm::folder(vmi.0).starts_with(RUN));
    Vm::adopt(node, settings)
}

/// Waits until the claim's volume is held by these nodes and by no other.
fn wait_held(c: &KubeCluster, phase: &str, nodes: &[&str]) -> Result<()> {
    c.wait(&format!("the volume to be {phase} on {nodes:?}"), PATIENCE, || {
        let v = record(c, CLAIM)?;
        let is = &v["status"];
        let held: Vec<_> = is["nodes"].as_str().unwrap_or_default().split(", ").collect();
        ensure!(is["state"] == phase && held == nodes, "it is {} on {held:?}", is["state"]);
        Ok(Some(()))
    })
}

/// The launcher of another virtual machine gets no volume, and its events say who has it.
fn is_refused(c: &KubeCluster, pod: &str, holder: &str) -> Result<()> {
    let said = c.wait("the other VM's pod to be refused", PATIENCE, || {
        let list = c.get(&["events", "--field-selector", &format!("involvedObject.name={pod}")])?;
        let messages = items(&list["items"]).iter().filter_map(|e| e["message"].as_str());
        Ok(messages.into_iter().find(|m| m.contains("held by")).map(str::to_owned))
    })?;
    println!("   {said}");
    ensure!(said.contains(&format!("virtual machine {holder}")), "it does not say which VM has it: {said}");
    let phase = c.get(&["pod", pod])?["status"]["phase"].clone();
    ensure!(phase == "Pending", "the pod of another VM is {phase}");
    delete_pod(c, pod)
}

/// Twice, if the emulator has spoilt the first time.
fn migrate(c: &mut KubeCluster) -> Result<()> {
    c.apply(&[definition()])?;
    match there_and_back(c) {
        Err(e) if e.chain().any(|cause| cause.is::<OutOfStep>()) => {
            println!("   once more: {e:#}");
            clear(c)?;
            there_and_back(c)
        }
        done => done,
    }
}

fn there_and_back(c: &KubeCluster) -> Result<()> {
    let (ours, theirs) = (instance(c, "vm-a")?, instance(c, "vm-b")?);
    let size = SIZE.to_string();
    let claim = Claim { access: "ReadWriteMany", ..Claim::of(CLAIM, "weir", Mode::Block, &size) };
    c.create(&[claim.object()])?;
    let guest = Guest::Small(Window { start: 0, end: SIZE });
    let (n1, n2, n3) = (Arc::clone(c.node(1)), Arc::clone(c.node(2)), Arc::clone(c.node(3)));
    let vmi = ("vm-a", ours.as_str());
    let mut vm = launch(c, "virt-launcher-vm-a-aaaaa", &n1, vmi, None, &guest)?;
    vm.wait_progress(2 * STEPS, LIMIT).context("the VM before any migration")?;
    let moves = [(&n1, "aaaaa", &n2, "bbbbb"), (&n2, "bbbbb", &n1, "ccccc")];
    for (i, (from, old, to, new)) in moves.into_iter().enumerate() {
        let target = launch(c, &format!("virt-launcher-vm-a-{new}"), to, vmi, Some("m"), &guest)?;
        if i == 0 {
            let pod = "virt-launcher-vm-b-aaaaa";
            c.create(&[launcher(pod, &n3, ("vm-b", &theirs), None, "sleep 3600")])?;
            is_refused(c, pod, "vm-a")?;
        }
        let moved = vm.migrate_to(&target)?;
        target
            .wait_progress(STEPS, LIMIT)
            .with_context(|| format!("the VM after moving to {}", to.name()))?;
        ensure!(vm.status()? == "postmigrate", "the source is {}", vm.status()?);
        delete_pod(c, &format!("virt-launcher-vm-a-{old}"))?;
        wait_held(c, "Attached", &[&to.name()])?;
        let counters = target.wait_progress(STEPS, LIMIT).context("the VM once the source is gone")?;
        let (from, to) = (from.name(), to.name());
        println!(
            "   {from} to {to}: {} ms of downtime, {} verified I/Os, 0 errors",
            moved.downtime_ms, counters.ios
        );
        vm = target;
    }
    ensure!(vm.counters().clean(), "{:?}", vm.counters());
    clear(c)
}

/// Takes away whatever of launchers, instances and their claim is there.
fn clear(c: &KubeCluster) -> Result<()> {
    c.plane().kubectl(&["delete", "pods", "--selector=kubevirt.io=virt-launcher", "--wait=true"])?;
    delete_claim(c, CLAIM)?;
    c.plane().kubectl(&["delete", "virtualmachineinstances.kubevirt.io", "--all"])?;
    wait_gone(c)
}
