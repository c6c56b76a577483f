//! The drivers side by side: Weir as the chart installs it, and one that does nothing (e2e/kube/floor), with the provisioner
//! and the settings that the chart gives Weir's.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kube::{
    KubeCluster, Program,
    cluster::{PATIENCE, WEIR, items},
};

/// The node on which all pods run: that of the driver that does nothing.
pub(super) const NODE: u8 = 1;
/// Its driver's name, and that of all that belongs to it.
const FLOOR: &str = "floor.weir.storage";
const SPACE: &str = "weir-bench";
const IMAGE: &str = "lab.local/csi-floor:1";
/// Weir's class for the measurement: extents on the node of the pods, bound at once.
const CLASS: &str = "weir-bench";
/// The other driver's.
const FLOOR_CLASS: &str = "floor-bench";
/// Fifty of them fit on the smallest lab disk.
const SIZE: &str = "32Mi";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flavour {
    /// A Block volume of Weir.
    Weir,
    /// One with an ext4.
    WeirFile,
    /// The driver that does nothing: an empty folder.
    Floor,
}

impl Flavour {
    pub(super) const ALL: [Flavour; 3] = [Flavour::Weir, Flavour::WeirFile, Flavour::Floor];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Flavour::Weir => "weir",
            Flavour::WeirFile => "weir-ext4",
            Flavour::Floor => "floor",
        }
    }

    pub(super) fn claim(self, name: &str) -> Value {
        let (class, mode) = match self {
            Flavour::Weir => (CLASS, "Block"),
            Flavour::WeirFile => (CLASS, "Filesystem"),
            Flavour::Floor => (FLOOR_CLASS, "Filesystem"),
        };
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "volumeMode": mode,
                     "resources": {"requests": {"storage": SIZE}}},
        })
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of that node.
pub(super) fn node_name() -> String {
    crate::lab::names::node(NODE)
}

/// Installs the driver that does nothing, and the classes.
pub(super) fn install(c: &KubeCluster) -> Result<()> {
    remove(c)?;
    c.import(c.node(NODE), Program::FLOOR, IMAGE).context("give the node the driver that does nothing")?;
    c.apply(&objects(provisioner(c)?))?;
    c.wait("the driver that does nothing", PATIENCE, || {
        let node = c.get(&["csinode", &node_name()])?;
        let there = items(&node["spec"]["drivers"]).iter().any(|d| d["name"] == FLOOR);
        let pod = c.get(&["pod", "-n", SPACE, "floor"])?;
        let states = items(&pod["status"]["containerStatuses"]);
        let runs = states.len() == 2 && states.iter().all(|s| s["ready"] == true);
        ensure!(there && runs, "registered: {there}, containers run: {runs}");
        Ok(Some(()))
    })
    .with_context(|| c.pods_at_a_glance())
}

/// Removes what [`install`] made; nothing where there is nothing.
pub(super) fn remove(c: &KubeCluster) -> Result<()> {
    let kinds = [
        format!("namespace/{SPACE}"),
        format!("clusterrolebinding/{SPACE}"),
        format!("csidriver/{FLOOR}"),
        format!("storageclass/{FLOOR_CLASS}"),
        format!("storageclass/{CLASS}"),
    ];
    let mut args = vec!["delete", "--ignore-not-found", "--wait=true"];
    args.extend(kinds.iter().map(String::as_str));
    c.plane().kubectl(&args).map(drop)
}

fn objects(provisioner: Value) -> Vec<Value> {
    let class = |name: &str, driver: &str| {
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": driver, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
        })
    };
    let mut weir = class(CLASS, "csi.weir.storage");
    weir["allowedTopologies"] = json!([{"matchLabelExpressions": [
        {"key": "topology.weir.storage/node", "values": [node_name()]}]}]);
    let named =
        |kind: &str, version: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": SPACE}});
    let mut binding = named("ClusterRoleBinding", "rbac.authorization.k8s.io/v1");
    binding["roleRef"] =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
    binding["subjects"] = json!([{"kind": "ServiceAccount", "name": "default", "namespace": SPACE}]);
    vec![
        named("Namespace", "v1"),
        binding,
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": FLOOR},
            "spec": {"attachRequired": false, "podInfoOnMount": true, "fsGroupPolicy": "File"},
        }),
        class(FLOOR_CLASS, FLOOR),
        weir,
        pod(provisioner),
    ]
}

fn socket() -> String {
    format!("/var/lib/kubelet/plugins/{FLOOR}/csi.sock")
}

/// Weir's provisioner as the chart has it, led to the other driver; without topology and capacity, which the mock does not
/// know.
fn provisioner(c: &KubeCluster) -> Result<Value> {
    const KEPT: [&str; 6] = [
        "--extra-create-metadata",
        "--default-fstype",
        "--worker-threads",
        "--timeout",
        "--kube-api-qps",
        "--kube-api-burst",
    ];
    let deployment = c.get(&["deployment", "-n", WEIR, "weir-controller"])?;
    let containers = items(&deployment["spec"]["template"]["spec"]["containers"]);
    let own = containers.iter().find(|c| c["name"] == "csi-provisioner");
    let own = own.context("Weir's controller has no csi-provisioner")?;
    let kept = |a: &&Value| a.as_str().is_some_and(|a| KEPT.iter().any(|k| a.starts_with(k)));
    let mut args: Vec<Value> = items(&own["args"]).iter().filter(kept).cloned().collect();
    ensure!(args.len() == KEPT.len(), "of {KEPT:?} Weir's provisioner has {args:?}");
    args.push(json!(format!("--csi-address={}", socket())));
    Ok(json!({"name": "csi-provisioner", "image": own["image"], "imagePullPolicy": "Never", "args": args}))
}

/// One process is controller and node, since the mock keeps its volumes in memory.
fn pod(mut provisioner: Value) -> Value {
    let socket = socket();
    provisioner["volumeMounts"] = json!([{"name": "kubelet", "mountPath": "/var/lib/kubelet"}]);
    let kubelet =
        json!({"name": "kubelet", "mountPath": "/var/lib/kubelet", "mountPropagation": "Bidirectional"});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "floor", "namespace": SPACE},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node_name()},
            "terminationGracePeriodSeconds": 1,
            "initContainers": [{
                "name": "folder", "image": crate::kube::BUSYBOX, "imagePullPolicy": "Never",
                "command": ["mkdir", "-p", format!("/var/lib/kubelet/plugins/{FLOOR}")],
                "volumeMounts": [{"name": "kubelet", "mountPath": "/var/lib/kubelet"}],
            }],
            "containers": [
                {
                    "name": "driver", "image": IMAGE, "imagePullPolicy": "Never",
                    "args": [format!("--name={FLOOR}"), format!("--endpoint={socket}"),
                             format!("--registration=/var/lib/kubelet/plugins_registry/{FLOOR}-reg.sock")],
                    "securityContext": {"privileged": true},
                    "volumeMounts": [kubelet],
                },
                provisioner,
            ],
            "volumes": [{"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet", "type": "Directory"}}],
        },
    })
}
