//! etcd and the API server.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    binaries::{Program, ensure},
    pki::Pki,
};
use crate::{
    lab::{
        process::{Identity, Lifetime, start},
        tools::run_tool,
    },
    wait,
};

/// How long the API server may take until it is ready: 3 s on an idle machine, and machines are not idle.
const READY: Duration = Duration::from_secs(180);

/// A control plane: its processes end with it.
pub struct ControlPlane {
    dir: PathBuf,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    ports: Ports,
    etcd: Option<Process>,
    api: Option<Process>,
}

#[derive(Clone, Copy)]
struct Ports {
    etcd: u16,
    peer: u16,
    api: u16,
}

struct Process {
    name: &'static str,
    child: Child,
    identity: Identity,
}

impl Process {
    fn spawn(name: &'static str, mut command: Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log).context("open a log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = start(command, Lifetime::Owned)?;
        let identity = Identity::of(child.id()).with_context(|| format!("{name} ended at once"))?;
        Ok(Self { name, child, identity })
    }

    /// With SIGKILL: the API server takes a minute to end otherwise, and what etcd holds is a test's.
    fn kill(mut self) -> Result<()> {
        self.identity.kill()?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }
}

impl Ports {
    /// Free now; whoever loses a race for one says so in its log.
    fn pick() -> Result<Self> {
        let all = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
        let [etcd, peer, api] = all.map(|l| l.and_then(|l| l.local_addr()).map(|a| a.port()));
        Ok(Self { etcd: etcd?, peer: peer?, api: api? })
    }
}

impl ControlPlane {
    /// Starts one with its data, logs and certificates in `dir`, and waits until it is ready.
    ///
    /// # Errors
    /// A program cannot be built or started, or does not become ready; the logs' ends are in the message.
    pub fn start(dir: &Path) -> Result<Self> {
        let kubectl = ensure(Program::KUBECTL)?;
        let ports = Ports::pick()?;
        fs::create_dir_all(dir.join("log")).with_context(|| format!("create {}", dir.display()))?;
        let pki_dir = dir.join("pki");
        let pki = Pki::make(&pki_dir)?;
        let kubeconfig = pki.kubeconfig("admin", &format!("https://127.0.0.1:{}", ports.api))?;
        let mut plane = Self { dir: dir.to_owned(), kubeconfig, kubectl, ports, etcd: None, api: None };
        plane.start_etcd()?;
        plane.start_api()?;
        Ok(plane)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// Starts etcd, if it does not run.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_etcd(&mut self) -> Result<()> {
        if self.etcd.is_some() {
            return Ok(());
        }
        let (client, peer) = (
            format!("http://127.0.0.1:{}", self.ports.etcd),
            format!("http://127.0.0.1:{}", self.ports.peer),
        );
        let mut c = Command::new(ensure(Program::ETCD)?);
        c.args(["--name", "lab", "--unsafe-no-fsync", "--log-level", "warn", "--data-dir"])
            .arg(self.dir.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("lab={peer}")]);
        self.etcd = Some(Process::spawn("etcd", c, &self.log("etcd"))?);
        Ok(())
    }

    /// Starts the API server, if it does not run, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or does not become ready.
    pub fn start_api(&mut self) -> Result<()> {
        if self.api.is_none() {
            let mut c = Command::new(ensure(Program::API_SERVER)?);
            let pki = self.dir.join("pki");
            let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
            c.arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd))
                .arg(format!("--secure-port={}", self.ports.api))
                .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
                .args(["--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16"])
                .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
                .args(["--allow-privileged=true", "--profiling=false"])
                .arg(file("tls-cert-file", "apiserver.crt"))
                .arg(file("tls-private-key-file", "apiserver.key"))
                .arg(file("client-ca-file", "ca.crt"))
                .arg(file("service-account-key-file", "sa.pub"))
                .arg(file("service-account-signing-key-file", "sa.key"))
                .arg("--service-account-issuer=https://kubernetes.default.svc");
            self.api = Some(Process::spawn("kube-apiserver", c, &self.log("kube-apiserver"))?);
        }
        let ready = wait::until_ok("the API server to be ready", READY, || {
            if !self.api.as_ref().is_some_and(|p| p.identity.alive()) {
                return Ok(false);
            }
            self.kubectl(&["get", "--raw", "/readyz"]).map(|_| true)
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the API server ended: {}", self.tails()),
            Err(e) => Err(e.context(self.tails())),
        }
    }

    /// Kills the API server; etcd goes on.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop_api(&mut self) -> Result<()> {
        self.api.take().map_or(Ok(()), Process::kill)
    }

    /// Kills etcd; what it holds stays.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop_etcd(&mut self) -> Result<()> {
        self.etcd.take().map_or(Ok(()), Process::kill)
    }

    /// Runs kubectl as the administrator.
    ///
    /// # Errors
    /// It fails: with all it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run_tool(Command::new(&self.kubectl).arg("--kubeconfig").arg(&self.kubeconfig).args(args))
    }

    /// Gives the cluster the chart's CRDs and waits until they are served.
    ///
    /// # Errors
    /// They are refused.
    pub fn apply_crds(&self) -> Result<()> {
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir/crds");
        let crds = crds.display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &crds])?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", &crds]).map(drop)
    }

    fn tails(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read_to_string(self.log(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(12).collect();
            format!("{name}:\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        ["etcd", "kube-apiserver"].map(tail).concat()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for done in [self.stop_api(), self.stop_etcd()] {
            if let Err(e) = done {
                eprintln!("weir-lab: {e:#}");
            }
        }
    }
}
