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
    pub const ETCD: Program =
        Program { name: "etcd", module: "etcd", package: "go.etcd.io/etcd/server/v3", stamp: "" };
    /// The API server.
    pub const API_SERVER: Program = Program {
        name: "kube-apiserver",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        stamp: STAMP,
    };
    /// The command line.
    pub const KUBECTL: Program = Program {
        name: "kubectl",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kubectl",
        stamp: STAMP,
    };

    fn wrapper(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("kube").join(self.module)
    }
}

/// The program's file, built now if the cache has none for this wrapper module and this Go.
///
/// # Errors
/// Go is missing, or the build fails.
pub fn ensure(program: Program) -> Result<PathBuf> {
    let go = find_tool("go").context("Kubernetes is built with Go (1.26 or newer)")?;
    let dir = cache::dir()?.join("kube").join(key(&go, program)?);
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
    h.write(run_tool(Command::new(go).arg("version"))?.as_bytes());
    h.write(program.stamp.as_bytes());
    Ok(format!("{}-{:016x}", program.module, h.finish()))
}
