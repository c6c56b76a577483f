//! A Weir cluster in a lab: `weir-controller` on the host, `weir-node` in every node, and clients for both.
//!
//! The controller runs on the host, which the nodes reach as 10.0.2.2 through their control link: it is a machine of
//! its own to them, and can be killed and started without touching a node.

pub mod clients;
mod config;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    lab::{
        Background, Forward, Lab, Node,
        process::{self, Lifetime},
        program, state,
    },
    wait,
};
use clients::{Clients, NodeCsi};

/// How long anything in a lab may take that is not waited for by a test itself: emulated nodes are slow, and the two
/// cores of a small machine are shared by all of them.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// What a cluster should be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Nodes.
    pub nodes: u8,
    /// Pool disks of each.
    pub disks: u8,
    /// So many of them, the first ones, belong to the pool; the others are the test's own. `None`: all.
    pub pool_disks: Option<u8>,
    /// Bytes of each disk.
    pub disk_size: u64,
    /// I/Os a second that each does at most; `None`: as many as it can.
    pub disk_iops: Option<u32>,
    /// They are SATA disks; else virtio's.
    pub sata_disks: bool,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Bytes of memory of a node, in MiB.
    pub memory: u32,
    /// The pool takes blank disks for zeroed, as fresh sparse images are.
    pub trust_fresh_disks: bool,
    /// What moves by itself in the pool (`moving` of a StoragePool).
    pub moving: Value,
    /// Disks lend what is forecast. Otherwise all that is free: most tests fill disks to the last extent, and how much they
    /// took in the hour before is not what they are about.
    pub lend_by_forecast: bool,
    /// Bytes of each disk that are kept for its own node.
    pub reserve: u64,
    /// Devices that the pool takes beside the lab's disks, of kinds that it leaves out otherwise (a loop device).
    pub extra_devices: Vec<String>,
    /// The lab outlives this process under this name.
    pub persistent: Option<String>,
    /// Of an API server that has Weir's CRDs: the controller keeps its records there, and the pool is a resource of that name.
    pub kubeconfig: Option<PathBuf>,
}

impl Default for Spec {
    /// Three nodes with one disk of 1 GiB, extents of 4 MiB; nothing moves by itself.
    fn default() -> Self {
        Self {
            nodes: 3,
            disks: 1,
            pool_disks: None,
            disk_size: 1 << 30,
            disk_iops: None,
            sata_disks: false,
            extent_size: 4 << 20,
            memory: 640,
            trust_fresh_disks: false,
            moving: Self::still(),
            lend_by_forecast: false,
            reserve: 0,
            extra_devices: Vec::new(),
            persistent: None,
            kubeconfig: None,
        }
    }
}

impl Spec {
    /// Nothing moves by itself.
    pub fn still() -> Value {
        serde_json::json!({"gravity": false, "spill": false, "recall": false})
    }

    /// The pool of the lab's disks, as the custom resource has it.
    pub fn pool(&self) -> Value {
        config::pool(self)
    }

    /// Disks of a node that belong to the pool.
    pub fn pool_disks(&self) -> u8 {
        self.pool_disks.unwrap_or(self.disks).min(self.disks)
    }
}

/// A running cluster.
pub struct Cluster {
    lab: Lab,
    spec: Spec,
    ports: config::Ports,
    pki: config::Pki,
    clients: Clients,
    controller: Mutex<Option<Child>>,
    plugins: Mutex<Vec<Option<Background>>>,
    forwards: Mutex<Vec<Option<Arc<Forward>>>>,
}

impl Cluster {
    /// Boots the lab, starts the controller and the plugins, and waits until every disk serves.
    ///
    /// # Errors
    /// What did not come up, with the end of its log.
    pub fn start(spec: Spec) -> Result<Self> {
        let cluster = Self::boot(spec)?;
        cluster.start_controller(None)?;
        for n in 1..=cluster.spec.nodes {
            cluster.start_plugin(n, None)?;
        }
        cluster.wait_for_disks()?;
        Ok(cluster)
    }

    /// Boots the lab alone.
    ///
    /// # Errors
    /// A node did not come up.
    pub fn boot(spec: Spec) -> Result<Self> {
        let mut builder = Lab::builder()
            .nodes(spec.nodes)
            .disks(spec.disks)
            .disk_size(spec.disk_size)
            .disk_iops(spec.disk_iops)
            .sata_disks(spec.sata_disks)
            .memory(spec.memory)
            .program(program("weir-node")?);
        if let Some(name) = &spec.persistent {
            builder = builder.name(name).persistent();
        }
        let lab = builder.start()?;
        let ports = config::Ports::pick()?;
        let pki = config::Pki::new()?;
        Self::write_controller_tls(&pki, &lab.dir().join("tls"))?;
        let clients = Clients::new(ports.csi)?;
        let plugins = Mutex::new(vec![None; usize::from(spec.nodes)]);
        let forwards = Mutex::new((0..spec.nodes).map(|_| None).collect());
        Ok(Self { lab, spec, ports, pki, clients, controller: Mutex::new(None), plugins, forwards })
    }

    fn write_controller_tls(pki: &config::Pki, dir: &Path) -> Result<()> {
        state::create_private_dir(dir)?;
        let (pair, operator) = (pki.controller()?, pki.operator()?);
        for (name, text) in [
            ("ca.crt", &pki.ca()),
            ("controller.crt", &pair.cert),
            ("controller.key", &pair.key),
            ("operator.crt", &operator.cert),
            ("operator.key", &operator.key),
        ] {
            state::write_private(&dir.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    fn write_node_files(&self, node: &Node) -> Result<()> {
        let pair = self.pki.node(&node.name())?;
        let dir = config::TLS_DIR;
        for (path, text) in [
            ("/etc/weir/node.yaml".to_owned(), &config::node(node, &self.spec, self.ports)),
            (format!("{dir}/ca.crt"), &self.pki.ca()),
            (format!("{dir}/node.crt"), &pair.cert),
            (format!("{dir}/node.key"), &pair.key),
        ] {
            node.write_file(&path, text.as_bytes())?;
        }
        Ok(())
    }

    /// The lab below.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What it was asked to be.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Node `n`, from 1.
    pub fn node(&self, n: u8) -> &Arc<Node> {
        self.lab.node(n)
    }

    /// Where the controller speaks CSI, as seen from a node.
    pub fn controller_from_node(&self) -> String {
        format!("10.0.2.2:{}", self.ports.csi)
    }

    /// The controller's log.
    pub fn controller_log(&self) -> PathBuf {
        self.lab.dir().join("controller.log")
    }

    /// The controller's process id, while it runs.
    pub fn controller_pid(&self) -> Option<u32> {
        lock(&self.controller).as_ref().map(Child::id)
    }

    /// Starts the controller; `crash_at` makes it end itself at a crash point.
    ///
    /// # Errors
    /// It did not become ready; with the end of its log. Not so with a crash point: it may die at any time.
    pub fn start_controller(&self, crash_at: Option<&str>) -> Result<()> {
        let dir = self.lab.dir();
        let path = dir.join("controller.yaml");
        fs::write(&path, config::controller(&self.spec, self.ports, dir))?;
        fs::write(dir.join("operator.yaml"), config::operator(self.ports, dir))?;
        let log = File::options().create(true).append(true).open(self.controller_log())?;
        let mut command = Command::new(program("weir-controller")?);
        command.arg("--config").arg(&path);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("RUST_LOG", log_level());
        command.env_remove("WEIR_CRASH_AT");
        if let Some(at) = crash_at {
            command.env("WEIR_CRASH_AT", at);
        }
        let lifetime = if self.spec.persistent.is_some() { Lifetime::Persistent } else { Lifetime::Owned };
        let child = process::start(command, lifetime).context("start weir-controller")?;
        *lock(&self.controller) = Some(child);
        if crash_at.is_some() {
            return Ok(());
        }
        wait::until("the controller to be ready", PATIENCE, || {
            if self.controller_ended()? {
                bail!("weir-controller ended:\n{}", tail(&self.controller_log()));
            }
            Ok(self.clients.ready().unwrap_or(false).then_some(()))
        })
    }

    /// Whether the controller has ended by itself.
    ///
    /// # Errors
    /// Its state cannot be asked for.
    pub fn controller_ended(&self) -> Result<bool> {
        match lock(&self.controller).as_mut() {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// Kills the controller, as a power cut would.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill_controller(&self) -> Result<()> {
        if let Some(mut child) = lock(&self.controller).take() {
            child.kill().context("kill weir-controller")?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts the plugin of a node and waits until it answers; `crash_at` makes it end itself at a crash point.
    ///
    /// # Errors
    /// It did not come up; with the end of its log.
    pub fn start_plugin(&self, n: u8, crash_at: Option<&str>) -> Result<()> {
        let node = self.node(n);
        self.write_node_files(node)?;
        let env = crash_at.map_or(String::new(), |at| format!("WEIR_CRASH_AT={at} "));
        let level = log_level();
        let command = format!("env {env}RUST_LOG={level} /lab/bin/weir-node --config /etc/weir/node.yaml");
        let running = node.spawn("weir-node", &command)?;
        lock(&self.plugins)[usize::from(n) - 1] = Some(running);
        let socket = wait::until_ok(&format!("weir-node's socket on n{n}"), PATIENCE, || {
            node.run_ok(&format!("test -S {}", config::NODE_SOCKET))?;
            let old = lock(&self.forwards)[usize::from(n) - 1].clone();
            match old {
                Some(f) => Ok(f),
                None => Ok(Arc::new(node.forward(config::NODE_SOCKET, self.lab.dir())?)),
            }
        })
        .with_context(|| tail(&node.log("weir-node")))?;
        lock(&self.forwards)[usize::from(n) - 1] = Some(socket);
        // A socket that an earlier plugin left behind leads nowhere.
        let csi = self.node_csi(n)?;
        wait::until(&format!("weir-node on n{n} to answer"), PATIENCE, || {
            if crash_at.is_none() && self.plugin_ended(n)? {
                bail!("weir-node ended");
            }
            Ok(csi.probe().ok())
        })
        .with_context(|| tail(&node.log("weir-node")))
    }

    /// Kills the plugin of a node (SIGKILL) and nothing else.
    ///
    /// # Errors
    /// It did not run.
    pub fn kill_plugin(&self, n: u8) -> Result<()> {
        let running = lock(&self.plugins)[usize::from(n) - 1].take();
        let running = running.with_context(|| format!("weir-node does not run on n{n}"))?;
        self.node(n).signal(&running, "KILL")
    }

    /// Whether the plugin of a node has ended by itself.
    ///
    /// # Errors
    /// The node cannot be reached.
    pub fn plugin_ended(&self, n: u8) -> Result<bool> {
        match &lock(&self.plugins)[usize::from(n) - 1] {
            Some(b) => Ok(self.node(n).ended(b)?.is_some()),
            None => Ok(true),
        }
    }

    /// Boots a node that was killed, and starts its plugin.
    ///
    /// # Errors
    /// It did not come up.
    pub fn revive(&self, n: u8) -> Result<()> {
        lock(&self.plugins)[usize::from(n) - 1] = None;
        self.node(n).start()?;
        self.start_plugin(n, None)
    }

    /// The CSI Controller and Admin clients.
    pub fn csi(&self) -> &Clients {
        &self.clients
    }

    /// The CSI Node client of a node.
    ///
    /// # Errors
    /// Its plugin was never started.
    pub fn node_csi(&self, n: u8) -> Result<NodeCsi<'_>> {
        let forward = lock(&self.forwards)[usize::from(n) - 1].clone();
        let forward = forward.with_context(|| format!("weir-node was never started on n{n}"))?;
        self.clients.node(forward)
    }

    /// The pool at a glance, as the controller tells it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn survey(&self) -> Result<Value> {
        self.clients.survey()
    }

    /// Waits until every disk of every node serves and is wiped.
    ///
    /// # Errors
    /// They did not; with the survey and the end of the logs.
    pub fn wait_for_disks(&self) -> Result<()> {
        let each = usize::from(self.spec.pool_disks()) + self.spec.extra_devices.len();
        let want = usize::from(self.spec.nodes) * each;
        self.wait_survey(&format!("{want} disks to serve"), |s| {
            let disks = s["disks"].as_array().map_or(&[][..], Vec::as_slice);
            let ok = |d: &Value| d["state"] == "serving" && d["unwiped"].as_u64() == Some(0);
            disks.len() == want && disks.iter().all(ok)
        })
        .map(drop)
    }

    /// Waits until the survey satisfies `good`, and returns it.
    ///
    /// # Errors
    /// It did not within [`PATIENCE`]; with the last survey and the ends of the logs.
    pub fn wait_survey(&self, what: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        wait::until(what, PATIENCE, || {
            last = self.survey().unwrap_or(Value::Null);
            Ok(good(&last).then(|| last.clone()))
        })
        .with_context(|| format!("last survey: {last:#}\n{}", self.logs()))
    }

    /// The row of a volume in the survey; `None` when it is not there.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn volume_row(&self, id: &str) -> Result<Option<Value>> {
        Ok(find_volume(&self.survey()?, id).cloned())
    }

    /// Waits until the row of a volume satisfies `good`.
    ///
    /// # Errors
    /// As [`Cluster::wait_survey`].
    pub fn wait_volume(&self, id: &str, what: &str, good: impl Fn(Option<&Value>) -> bool) -> Result<()> {
        self.wait_survey(what, |s| !s.is_null() && good(find_volume(s, id))).map(drop)
    }

    /// The ends of all logs, for messages.
    pub fn logs(&self) -> String {
        let mut out = format!("-- controller\n{}", tail(&self.controller_log()));
        for n in self.lab.nodes() {
            out += &format!("\n-- weir-node on {}\n{}", n.name(), tail(&n.log("weir-node")));
        }
        out
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.spec.persistent.is_none()
            && let Err(e) = self.kill_controller()
        {
            eprintln!("e2e: {e:#}");
        }
    }
}

/// The row of a volume in a survey.
pub fn find_volume<'a>(survey: &'a Value, id: &str) -> Option<&'a Value> {
    survey["volumes"].as_array()?.iter().find(|v| v["volume"].as_str() == Some(id))
}

/// What the binaries log: `RUST_LOG` of whoever runs the lab.
fn log_level() -> String {
    std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned())
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last lines of a log.
pub fn tail(path: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
