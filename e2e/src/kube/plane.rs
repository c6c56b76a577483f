//! The control plane: etcd, the API server and what acts for it, each a companion of a lab or of a test.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure as check};
use serde::{Deserialize, Serialize};

use super::{
    binaries::{Program, ensure},
    dns,
    pki::Pki,
};
use crate::{
    lab::{
        companions::Companions,
        names::HOST_IP,
        process::Lifetime,
        state,
        tools::{own_mounts, run_tool},
    },
    wait,
};

/// How long the API server may take until it is ready: 3 s on an idle machine, and machines are not idle.
const READY: Duration = Duration::from_secs(180);
/// The services' addresses; the first is the API server's, the tenth the name server's.
const SERVICES: &str = "10.96.0.0/16";

/// A control plane: its processes end with it, unless it was made to last.
pub struct ControlPlane {
    companions: Companions,
    /// The API server, seen from this host.
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    ports: Ports,
    /// Whether its processes end with this handle.
    doomed: bool,
}

/// What a control plane should be.
pub struct Settings {
    /// Whom it may outlive.
    pub lifetime: Lifetime,
    /// Where this host reaches the kubelets of nodes.
    pub nodes: Vec<(String, Ipv4Addr)>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Ports {
    etcd: u16,
    peer: u16,
    api: u16,
    dns: u16,
}

impl Ports {
    /// Free now; whoever loses a race for one says so in its log.
    fn pick() -> Result<Self> {
        let all = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0"));
        let mut ports = [0; 4];
        for (port, listener) in ports.iter_mut().zip(&all) {
            let listener = listener.as_ref().map_err(|e| anyhow::anyhow!("find a free port: {e}"))?;
            *port = listener.local_addr()?.port();
        }
        let [etcd, peer, api, dns] = ports;
        Ok(Self { etcd, peer, api, dns })
    }
}

impl ControlPlane {
    /// etcd and an API server without nodes, with data, logs and certificates in `dir`; ready when this returns.
    ///
    /// # Errors
    /// A program cannot be built or started, or does not become ready; the logs' ends are in the message.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &Settings { lifetime: Lifetime::Owned, nodes: Vec::new() })
    }

    /// The same for a cluster with nodes.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(dir: &Path, settings: &Settings) -> Result<Self> {
        let kubectl = ensure(Program::KUBECTL)?;
        let companions = Companions::open(dir, settings.lifetime)?;
        let ports = Ports::pick()?;
        state::save(&dir.join("ports.json"), &ports)?;
        let hosts: String = settings.nodes.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect();
        fs::write(dir.join("hosts"), format!("127.0.0.1 localhost\n{hosts}")).context("write the hosts")?;
        let pki_dir = dir.join("pki");
        let pki = Pki::make(&pki_dir)?;
        for (file, name) in [
            ("controller-manager", "system:kube-controller-manager"),
            ("scheduler", "system:kube-scheduler"),
            ("proxy", "system:kube-proxy"),
        ] {
            pki.client(file, name, None)?;
            pki.kubeconfig(file, &ports.server(Ipv4Addr::LOCALHOST))?;
        }
        for (node, _) in &settings.nodes {
            pki.client(&format!("node-{node}"), &format!("system:node:{node}"), Some("system:nodes"))?;
        }
        let kubeconfig = pki.kubeconfig("admin", &ports.server(Ipv4Addr::LOCALHOST))?;
        let mut plane = Self { companions, kubeconfig, kubectl, ports, doomed: true };
        plane.start_etcd()?;
        plane.start_api()?;
        Ok(plane)
    }

    /// One that another process started; it goes on when this handle is gone.
    ///
    /// # Errors
    /// There is none in this folder.
    pub fn open(dir: &Path) -> Result<Self> {
        let ports = state::load(&dir.join("ports.json"))?;
        let ports = ports.with_context(|| format!("there is no control plane in {}", dir.display()))?;
        Ok(Self {
            companions: Companions::open(dir, Lifetime::Persistent)?,
            kubeconfig: dir.join("pki/admin.kubeconfig"),
            kubectl: ensure(Program::KUBECTL)?,
            ports,
            doomed: false,
        })
    }

    /// Lets it outlive this handle.
    pub fn keep(&mut self) {
        self.doomed = false;
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Its processes.
    pub fn companions(&self) -> &Companions {
        &self.companions
    }

    /// The API server's port on the loopback.
    pub(super) fn api_port(&self) -> u16 {
        self.ports.api
    }

    /// The name server's.
    pub(super) fn dns_port(&self) -> u16 {
        self.ports.dns
    }

    /// A kubeconfig for a node, whose certificate's file is `file`.
    pub(super) fn node_kubeconfig(&self, file: &str) -> Result<String> {
        Pki::open(&self.companions.dir().join("pki")).render_kubeconfig(file, &self.ports.server(HOST_IP))
    }

    /// The CA's certificate, PEM.
    pub(super) fn ca(&self) -> Result<String> {
        fs::read_to_string(self.companions.dir().join("pki/ca.crt")).context("read the CA")
    }

    /// Starts etcd, if it does not run.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_etcd(&mut self) -> Result<()> {
        let (client, peer) = (
            format!("http://127.0.0.1:{}", self.ports.etcd),
            format!("http://127.0.0.1:{}", self.ports.peer),
        );
        let mut c = Command::new(ensure(Program::ETCD)?);
        c.args(["--name", "lab", "--unsafe-no-fsync", "--log-level", "warn", "--data-dir"])
            .arg(self.companions.dir().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("lab={peer}")]);
        self.companions.start("etcd", c)
    }

    /// The API server dials kubelets by the names of their nodes, which only a hosts file of its own can tell it.
    fn api_command(&self) -> Result<Command> {
        let program = ensure(Program::API_SERVER)?;
        let hosts = self.companions.dir().join("hosts");
        if fs::read_to_string(&hosts).context("read the hosts")?.lines().count() < 2 {
            return Ok(Command::new(program));
        }
        let mut c = own_mounts()?;
        c.args(["/bin/sh", "-c", "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"", "sh"]);
        c.arg(hosts).arg(program);
        Ok(c)
    }

    /// Starts the API server, if it does not run, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or does not become ready.
    pub fn start_api(&mut self) -> Result<()> {
        let pki = self.companions.dir().join("pki");
        let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
        let mut c = self.api_command()?;
        c.arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd))
            .arg(format!("--secure-port={}", self.ports.api))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .args(["--endpoint-reconciler-type=none", &format!("--service-cluster-ip-range={SERVICES}")])
            .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
            .args(["--allow-privileged=true", "--profiling=false"])
            .args(["--kubelet-preferred-address-types=Hostname"])
            .arg(file("kubelet-client-certificate", "kubelet-client.crt"))
            .arg(file("kubelet-client-key", "kubelet-client.key"))
            .arg(file("tls-cert-file", "apiserver.crt"))
            .arg(file("tls-private-key-file", "apiserver.key"))
            .arg(file("client-ca-file", "ca.crt"))
            .arg(file("service-account-key-file", "sa.pub"))
            .arg(file("service-account-signing-key-file", "sa.key"))
            .arg("--service-account-issuer=https://kubernetes.default.svc");
        self.companions.start("kube-apiserver", c)?;
        let ready = wait::until_ok("the API server to be ready", READY, || {
            if !self.companions.alive("kube-apiserver") {
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

    /// Starts what acts for the API server: the controller manager, the scheduler, and a name server for services.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start_managers(&mut self) -> Result<()> {
        let pki = self.companions.dir().join("pki");
        let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
        let mut c = Command::new(ensure(Program::CONTROLLER_MANAGER)?);
        c.arg(file("kubeconfig", "controller-manager.kubeconfig"))
            .arg(file("service-account-private-key-file", "sa.key"))
            .arg(file("root-ca-file", "ca.crt"))
            .args(["--use-service-account-credentials", "--allocate-node-cidrs=false"])
            .args(["--leader-elect=false", "--profiling=false", "--secure-port=0"])
            // A node counts as gone after 20 s without a word: long for a test, short for two busy cores.
            .args(["--node-monitor-grace-period=20s", "--node-monitor-period=2s"]);
        self.companions.start("kube-controller-manager", c)?;
        let mut c = Command::new(ensure(Program::SCHEDULER)?);
        c.arg(file("kubeconfig", "scheduler.kubeconfig")).args([
            "--leader-elect=false",
            "--profiling=false",
            "--secure-port=0",
        ]);
        self.companions.start("kube-scheduler", c)?;
        let mut c = Command::new(crate::lab::program("weir-lab")?);
        c.arg("dns").arg("--port").arg(self.ports.dns.to_string());
        c.arg("--kubectl").arg(&self.kubectl).arg("--kubeconfig").arg(&self.kubeconfig);
        self.companions.start(dns::NAME, c)
    }

    /// Kills the API server; etcd goes on.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop_api(&mut self) -> Result<()> {
        self.companions.kill("kube-apiserver")
    }

    /// Kills etcd; what it holds stays.
    ///
    /// # Errors
    /// It does not go.
    pub fn stop_etcd(&mut self) -> Result<()> {
        self.companions.kill("etcd")
    }

    /// kubectl as the administrator, to be given arguments.
    pub fn kubectl_command(&self) -> Command {
        let mut c = Command::new(&self.kubectl);
        c.arg("--kubeconfig").arg(&self.kubeconfig);
        c
    }

    /// A PATH on which kubectl is found first.
    ///
    /// # Errors
    /// A folder's name has a colon.
    pub fn path(&self) -> Result<OsString> {
        let own = self.kubectl.parent().map(Path::to_owned);
        let rest = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths(own.into_iter().chain(std::env::split_paths(&rest))).context("make a PATH")
    }

    /// Runs kubectl as the administrator.
    ///
    /// # Errors
    /// It fails: with all it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run_tool(self.kubectl_command().args(args)).with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// kubectl with something to read.
    ///
    /// # Errors
    /// It fails: with all it said.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut c = self.kubectl_command();
        c.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = c.spawn().context("run kubectl")?;
        child.stdin.take().context("kubectl's input")?.write_all(input.as_bytes())?;
        let out = child.wait_with_output()?;
        let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        check!(out.status.success(), "kubectl {}: {}\n{said}{why}", args.join(" "), out.status);
        Ok(said.into_owned())
    }

    /// Gives the cluster the chart's CRDs and waits until they are served.
    ///
    /// # Errors
    /// They are refused.
    pub fn apply_crds(&self) -> Result<()> {
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir/crds");
        let crds = crds.display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &crds])?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=180s", "-f", &crds]).map(drop)
    }

    fn tails(&self) -> String {
        ["etcd", "kube-apiserver"].map(|name| format!("{name}:\n{}\n", self.companions.tail(name))).concat()
    }
}

impl Ports {
    /// The API server's URL, for whoever sees this host under `ip`.
    fn server(self, ip: Ipv4Addr) -> String {
        format!("https://{ip}:{}", self.api)
    }
}

impl Drop for ControlPlane {
    /// With SIGKILL: the API server takes a minute to end otherwise, and what etcd holds is a test's.
    fn drop(&mut self) {
        if self.doomed
            && let Err(e) = self.companions.kill_all()
        {
            eprintln!("weir-lab: {e:#}");
        }
    }
}
