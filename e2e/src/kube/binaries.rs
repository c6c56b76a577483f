//! The programs of a control plane: built with Go from pinned modules, once. A program under its final name is complete
//! (it is renamed last).

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use crate::lab::{
    cache,
    tools::{find_tool, run_tool},
};

/// A program that is built from a wrapper module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file name.
    name: &'static str,
    /// The folder of its wrapper module in e2e/kube.
    module: &'static str,
    /// Its main package.
    package: &'static str,
    /// What it is told at the link about its version.
    stamp: &'static str,
}

/// The module says which Kubernetes it is only by what is linked in.
const STAMP: &str = "-X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 \
                     -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3";

impl Program {
    /// The store of the API server.
    pub const ETCD: Program = Program::plain("etcd", "etcd", "go.etcd.io/etcd/server/v3");
    /// The API server.
    pub const API_SERVER: Program =
        Program::kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver");
    /// The command line.
    pub const KUBECTL: Program = Program::kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl");
    /// Makes the API's promises come true: service accounts, deployments, volumes.
    pub const CONTROLLER_MANAGER: Program =
        Program::kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager");
    /// Gives pods to nodes.
    pub const SCHEDULER: Program =
        Program::kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler");
    /// Runs pods on a node.
    pub const KUBELET: Program = Program::kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet");
    /// Leads a service's address to its pods.
    pub const PROXY: Program = Program::kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy");
    /// Runs containers.
    pub const CONTAINERD: Program =
        Program::plain("containerd", "containerd", "github.com/containerd/containerd/v2/cmd/containerd");
    /// Stands between it and a pod's processes.
    pub const SHIM: Program = Program::plain(
        "containerd-shim-runc-v2",
        "containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    );
    /// Puts images into it.
    pub const CTR: Program =
        Program::plain("ctr", "containerd", "github.com/containerd/containerd/v2/cmd/ctr");
    /// A pod's own loopback.
    pub const CNI_LOOPBACK: Program =
        Program::plain("loopback", "cni", "github.com/containernetworking/plugins/plugins/main/loopback");
    /// A pod's way out.
    pub const CNI_BRIDGE: Program =
        Program::plain("bridge", "cni", "github.com/containernetworking/plugins/plugins/main/bridge");
    /// A pod's address.
    pub const CNI_HOST_LOCAL: Program =
        Program::plain("host-local", "cni", "github.com/containernetworking/plugins/plugins/ipam/host-local");
    /// Installs charts.
    pub const HELM: Program = Program::plain("helm", "helm", "helm.sh/helm/v3/cmd/helm");
    /// Makes volumes of claims.
    pub const PROVISIONER: Program = Program::plain(
        "csi-provisioner",
        "csi",
        "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
    );
    /// Grows volumes with their claims.
    pub const RESIZER: Program =
        Program::plain("csi-resizer", "csi", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer");
    /// Tells Weir's controller what the API server has attached where, if a release wants that.
    pub const ATTACHER: Program = Program::plain(
        "csi-attacher",
        "csi",
        "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
    );

    /// A driver that does nothing, to measure beside.
    pub const FLOOR: Program = Program::plain("csi-floor", "floor", ".");

    /// All that a cluster needs.
    const ALL: [Program; 16] = [
        Program::ETCD,
        Program::API_SERVER,
        Program::KUBECTL,
        Program::CONTROLLER_MANAGER,
        Program::SCHEDULER,
        Program::KUBELET,
        Program::PROXY,
        Program::CONTAINERD,
        Program::SHIM,
        Program::CTR,
        Program::CNI_LOOPBACK,
        Program::CNI_BRIDGE,
        Program::CNI_HOST_LOCAL,
        Program::HELM,
        Program::PROVISIONER,
        Program::RESIZER,
    ];

    const fn plain(name: &'static str, module: &'static str, package: &'static str) -> Self {
        Program { name, module, package, stamp: "" }
    }

    const fn kubernetes(name: &'static str, package: &'static str) -> Self {
        Program { name, module: "kubernetes", package, stamp: STAMP }
    }

    /// Its file name.
    pub fn name(self) -> &'static str {
        self.name
    }

    fn wrapper(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("kube").join(self.module)
    }
}

/// The folder of all programs and images, which nodes see as well.
///
/// # Errors
/// It cannot be created.
pub(super) fn dir() -> Result<PathBuf> {
    let dir = cache::dir()?.join("kube");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Builds whatever of a cluster's programs is missing.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_all() -> Result<()> {
    Program::ALL.into_iter().try_for_each(|p| ensure(p).map(drop))
}

/// The program's file, built now if the cache has none for this wrapper module and this Go.
///
/// # Errors
/// Go is missing, or the build fails.
pub fn ensure(program: Program) -> Result<PathBuf> {
    let go = find_tool("go").context("Kubernetes is built with Go (1.26 or newer)")?;
    let dir = dir()?.join(key(&go, program)?);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let file = dir.join(program.name);
    let lock = File::create(dir.join("lock")).context("create the cache's lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("lock the cache")?;
    if file.is_file() {
        return Ok(file);
    }
    eprintln!("weir-lab: building {} (once, minutes)", program.name);
    let tmp = dir.join(format!("tmp-{}", program.name));
    let mut build = Command::new(go);
    build
        .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags"])
        .arg(format!("-s -w {}", program.stamp))
        .arg("-o")
        .arg(&tmp)
        .arg(program.package)
        .current_dir(program.wrapper())
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "");
    run_tool(&mut build)?;
    fs::rename(&tmp, &file).with_context(|| format!("rename to {}", file.display()))?;
    Ok(file)
}

/// Names what a program is built from and with.
fn key(go: &Path, program: Program) -> Result<String> {
    let mut h = DefaultHasher::new();
    for name in ["go.mod", "go.sum"] {
        let path = program.wrapper().join(name);
        h.write(&fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    // A wrapper with a program of its own.
    let source = program.wrapper().join("main.go");
    match fs::read(&source) {
        Ok(text) => h.write(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("read {}", source.display())),
    }
    h.write(run_tool(Command::new(go).arg("version"))?.as_bytes());
    h.write(program.stamp.as_bytes());
    Ok(format!("{}-{:016x}", program.module, h.finish()))
}
