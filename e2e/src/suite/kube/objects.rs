//! Claims and pods of tests, as the API server takes them.

use serde_json::{Value, json};

use crate::kube::{BUSYBOX, TOOLBOX};

/// Where a pod finds a Block volume.
pub(super) const DEVICE: &str = "/dev/volume";
/// Where it finds a file system.
pub(super) const FOLDER: &str = "/volume";

/// How a claim is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Raw.
    Block,
    /// With the file system of its class.
    Filesystem,
}

/// A claim.
pub(super) struct Claim<'a> {
    pub(super) name: &'a str,
    pub(super) class: &'a str,
    pub(super) mode: Mode,
    /// ReadWriteOnce, ReadWriteMany, ReadWriteOncePod.
    pub(super) access: &'a str,
    pub(super) size: &'a str,
}

impl Claim<'_> {
    /// A claim for one node at a time.
    pub(super) fn of<'a>(name: &'a str, class: &'a str, mode: Mode, size: &'a str) -> Claim<'a> {
        Claim { name, class, mode, access: "ReadWriteOnce", size }
    }

    pub(super) fn object(&self) -> Value {
        let mode = match self.mode {
            Mode::Block => "Block",
            Mode::Filesystem => "Filesystem",
        };
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": self.name},
            "spec": {
                "accessModes": [self.access],
                "storageClassName": self.class,
                "volumeMode": mode,
                "resources": {"requests": {"storage": self.size}},
            },
        })
    }
}

/// A pod that runs a shell script on a claim.
pub(super) struct Pod<'a> {
    pub(super) name: &'a str,
    /// The node that it must run on, if any.
    pub(super) node: Option<&'a str>,
    pub(super) claim: &'a str,
    pub(super) mode: Mode,
    /// What it says at the end goes to [`SAY`].
    pub(super) script: &'a str,
}

/// Where a script puts its last words: they stand in the pod's status.
pub(super) const SAY: &str = "/dev/termination-log";

impl Pod<'_> {
    pub(super) fn object(&self) -> Value {
        let mut container = json!({
            "name": "c",
            "image": BUSYBOX,
            "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", self.script],
        });
        match self.mode {
            Mode::Block => container["volumeDevices"] = json!([{"name": "v", "devicePath": DEVICE}]),
            Mode::Filesystem => container["volumeMounts"] = json!([{"name": "v", "mountPath": FOLDER}]),
        }
        let mut spec = json!({
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "containers": [container],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": self.claim}}],
        });
        if let Some(node) = self.node {
            // Not nodeName: that would pass by the scheduler, which binds claims.
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec})
    }
}

/// The same pod with its node's programs, the lab's among them, and with the node's folder on this host as /host.
pub(super) fn with_tools(mut pod: Value) -> Value {
    const FOLDERS: [(&str, &str); 3] = [("usr", "/usr"), ("lab", "/lab"), ("host", "/host")];
    let spec = &mut pod["spec"];
    let container = &mut spec["containers"][0];
    container["image"] = json!(TOOLBOX);
    container["env"] = json!([{"name": "PATH", "value": "/lab/bin:/usr/sbin:/usr/bin"}]);
    let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    for (name, path) in FOLDERS {
        mounts.push(json!({"name": name, "mountPath": path, "readOnly": name != "host"}));
        volumes.push(json!({"name": name, "hostPath": {"path": path, "type": "Directory"}}));
    }
    spec["containers"][0]["volumeMounts"] = json!(mounts);
    spec["volumes"] = json!(volumes);
    pod
}
