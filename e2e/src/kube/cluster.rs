//! A Kubernetes cluster in the lab: a control plane on this host, nodes that run the kubelet, and Weir on it as a person
//! would install it.
//!
//! Invariant: all state is in the lab's folder, so that any process may act on a cluster it has opened.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure as check};
use serde_json::{Value, json};

use super::{
    binaries::{self, Program, ensure},
    images,
    node::{Kit, SHARE, seen},
    plane::{self, ControlPlane},
};
use crate::{
    cluster::tail,
    lab::{Lab, Node, companions, names, process::Lifetime, state, tools::run_tool},
    wait,
};

/// How long the cluster may take for anything that no test waits for itself.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// The namespace that Weir is installed to.
pub const WEIR: &str = "weir-system";
/// The release's name.
pub const RELEASE: &str = "weir";

/// What a cluster should be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The lab's name; it then outlives this process.
    pub persistent: Option<String>,
    /// Nodes.
    pub nodes: u8,
    /// Pool disks of each. A node has one more, the last, that Weir is not told of: to compare with.
    pub disks: u8,
    /// Bytes of each disk.
    pub disk_size: u64,
    /// MiB of memory of a node.
    pub memory: u32,
    /// Processors of a node.
    pub cpus: u8,
}

impl Default for Spec {
    /// Three nodes of one processor with one disk of 2 GiB.
    fn default() -> Self {
        Self { persistent: None, nodes: 3, disks: 1, disk_size: 2 << 30, memory: 1024, cpus: 1 }
    }
}

/// A running cluster.
pub struct KubeCluster {
    // In this order they end: the nodes' folder holds the control plane's.
    plane: ControlPlane,
    lab: Lab,
}

impl KubeCluster {
    /// Builds what is missing, starts everything and waits until all nodes are ready. Weir is not installed yet.
    ///
    /// # Errors
    /// What did not come up, with the end of its log.
    pub fn up(spec: &Spec) -> Result<Self> {
        // The forward's address is 10 and the node's number, written side by side.
        check!((1..=9).contains(&spec.nodes), "a cluster has 1 to 9 nodes");
        let kit = Kit::new("/lab/bin/images/store.tar")?;
        let loopback = free_loopback()?;
        let [a, b, c, _] = loopback.octets();
        let mut builder = Lab::builder()
            .nodes(spec.nodes)
            .disks(spec.disks + 1)
            .disk_size(spec.disk_size)
            .memory(spec.memory)
            .cpus(spec.cpus)
            .share(SHARE, binaries::dir()?)
            .forward(&format!("tcp:{a}.{b}.{c}.1{{n}}:10250-:10250"));
        if let Some(name) = &spec.persistent {
            builder = builder.name(name).persistent();
        }
        let lab = builder.create()?;
        let dir = lab.dir().join("bin/images");
        let mut all = images::common()?;
        all.push(images::weir(&dir)?);
        images::store(&dir.join("store.tar"), &all).context("unpack the images")?;
        let settings = plane::Settings {
            lifetime: lab.config().lifetime,
            nodes: (1..=spec.nodes).map(|n| (names::node(n), kubelet_address(loopback, n))).collect(),
        };
        let plane = ControlPlane::start_with(&companions::dir(lab.dir()), &settings)?;
        let mut cluster = Self { plane, lab };
        cluster.start_nodes(&kit, spec.nodes)?;
        cluster.lab.keep();
        if cluster.lab.config().lifetime == Lifetime::Persistent {
            cluster.plane.keep();
        }
        Ok(cluster)
    }

    fn start_nodes(&mut self, kit: &Kit, nodes: u8) -> Result<()> {
        for node in self.lab.nodes() {
            kit.prepare(node, nodes, &self.plane)?;
        }
        self.plane.start_managers()?;
        self.lab.each(Node::start)?;
        self.introduce().context("make the services of the API server and the name server")?;
        for node in self.lab.nodes() {
            self.wait_node(node, true)?;
        }
        Ok(())
    }

    /// A cluster that another process started; it goes on when this handle is gone.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let lab = Lab::open(name)
            .with_context(|| format!("there is no cluster {name}: `./dev kube up` makes one"))?;
        Ok(Self { plane: ControlPlane::open(&companions::dir(lab.dir()))?, lab })
    }

    /// Ends the cluster and removes all it had.
    ///
    /// # Errors
    /// Something does not end.
    pub fn down(self) -> Result<()> {
        let Self { plane, lab } = self;
        drop(plane);
        lab.down()
    }

    /// The nodes.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Node `n`, from 1.
    pub fn node(&self, n: u8) -> &Arc<Node> {
        self.lab.node(n)
    }

    /// Disks of a node that are the pool's; the next one is nobody's.
    pub fn pool_disks(&self) -> u8 {
        self.lab.config().disks.saturating_sub(1)
    }

    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// The control plane, to stop and start parts of it.
    pub fn plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.plane
    }

    /// Services that nobody else makes: the API server's address, behind which pods find it, and the name server's.
    fn introduce(&self) -> Result<()> {
        let slice = |name: &str, space: &str, protocol: &str, port_name: &str, port: u16| {
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-lab"), "namespace": space,
                             "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [names::HOST_IP], "conditions": {"ready": true}}],
                "ports": [{"name": port_name, "protocol": protocol, "port": port}],
            })
        };
        let dns = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "protocol": "UDP", "port": 53}]},
        });
        self.apply(&[
            dns,
            slice("kube-dns", "kube-system", "UDP", "dns", self.plane.dns_port()),
            slice("kubernetes", "default", "TCP", "https", self.plane.api_port()),
        ])
    }

    /// Waits until a node is ready, or no longer.
    ///
    /// # Errors
    /// It takes too long.
    pub fn wait_node(&self, node: &Node, ready: bool) -> Result<()> {
        let name = node.name();
        let what = format!("{name} to be {}", if ready { "ready" } else { "not ready" });
        self.wait(&what, PATIENCE, || {
            let n = self.get(&["node", &name])?;
            Ok((condition(&n, "Ready") == Some("True")).eq(&ready).then_some(()))
        })
        .with_context(|| format!("{}\n{}", tail(&node.log("boot")), tail(&node.log("kubelet"))))
    }

    /// Waits, looking once a second: each look is a program of its own.
    ///
    /// # Errors
    /// It takes longer than `limit`, with the last error of `look`; errors meanwhile count as "not yet".
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let mut last = std::time::Instant::now() - Duration::from_secs(1);
        wait::until_ok(what, limit, || {
            if last.elapsed() < Duration::from_secs(1) {
                bail!("not yet");
            }
            let found = look();
            last = std::time::Instant::now();
            found?.context("it is not so yet")
        })
    }

    /// An object, or a list of them, as JSON: `get(&["pods", "-A"])`.
    ///
    /// # Errors
    /// kubectl's.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.plane.kubectl(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).context("parse kubectl's answer")
    }

    /// Makes objects or changes them.
    ///
    /// # Errors
    /// kubectl's.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.plane.kubectl_with(&["apply", "-f", "-"], &render_list(objects)).map(drop)
    }

    /// Makes objects.
    ///
    /// # Errors
    /// kubectl's.
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        self.plane.kubectl_with(&["create", "-f", "-"], &render_list(objects)).map(drop)
    }

    /// helm, to be given arguments.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        let dir = self.lab.dir().join("helm");
        let mut c = Command::new(ensure(Program::HELM)?);
        for (variable, folder) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            c.env(variable, dir.join(folder));
        }
        c.arg("--kubeconfig").arg(self.plane.kubeconfig()).args(args);
        run_tool(&mut c).with_context(|| format!("helm {}", args.join(" ")))
    }

    /// Installs Weir from the chart, with a pool of the lab's disks, and waits until every disk serves.
    ///
    /// # Errors
    /// helm's, or something does not come up: with what the pods say.
    pub fn install(&self) -> Result<()> {
        self.install_with(&[])
    }

    /// The same with values of its own: `install_with(&["attachRequired=true"])`.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn install_with(&self, set: &[&str]) -> Result<()> {
        let (chart, values) = (chart().display().to_string(), self.write_values()?.display().to_string());
        let mut args =
            vec!["install", RELEASE, &chart, "--namespace", WEIR, "--create-namespace", "--values", &values];
        args.extend(set.iter().flat_map(|value| ["--set", value]));
        self.helm(&args)?;
        self.wait_weir().with_context(|| self.pods_at_a_glance())
    }

    fn write_values(&self) -> Result<PathBuf> {
        let path = self.lab.dir().join("values.yaml");
        fs::write(&path, serde_json::to_vec_pretty(&values(self.pool_disks()))?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Puts the image of one static program, with the given name, into a node's store.
    ///
    /// # Errors
    /// It cannot be built, or the node does not take it.
    pub fn import(&self, node: &Node, program: Program, name: &str) -> Result<()> {
        let (ctr, tar) = (ensure(Program::CTR)?, images::single(program, name)?);
        let (ctr, tar) = (seen(&ctr)?, seen(&tar)?);
        let script = format!("{} -n k8s.io images import {}", ctr.display(), tar.display());
        let done = node.exec_within(&script, PATIENCE)?.check(&script);
        done.map(drop).with_context(|| format!("node {}", node.name()))
    }

    /// Waits until the plugin is known on every node and every disk of the pool serves.
    ///
    /// # Errors
    /// It takes too long.
    pub fn wait_weir(&self) -> Result<()> {
        let nodes = self.lab.nodes().len();
        self.wait("the driver on every node", PATIENCE, || {
            let list = self.get(&["csinodes"])?;
            let has =
                |n: &&Value| items(&n["spec"]["drivers"]).iter().any(|d| d["name"] == "csi.weir.storage");
            Ok((items(&list["items"]).iter().filter(has).count() == nodes).then_some(()))
        })?;
        let want = nodes * usize::from(self.pool_disks());
        self.wait("all disks to serve", PATIENCE, || {
            let list = self.get(&["nodedisks.weir.storage"])?;
            let ok = |d: &&Value| d["spec"]["state"] == "serving" && d["spec"]["extents"] != 0;
            let serving = items(&list["items"]).iter().filter(ok).count();
            check!(serving == want, "{serving} of {want} disks serve");
            Ok(Some(()))
        })
    }

    /// All pods, the last events, and the last words of Weir and of the nodes' kernels, for messages.
    pub fn pods_at_a_glance(&self) -> String {
        let say = |args: &[&str]| self.plane.kubectl(args).unwrap_or_else(|e| format!("{e:#}"));
        let events = say(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let lines: Vec<_> = events.lines().collect();
        let mut text = say(&["get", "pods,pvc", "-A", "-o", "wide"]);
        text += "\n";
        text += &lines[lines.len().saturating_sub(25)..].join("\n");
        for workload in ["deployment/weir-controller", "daemonset/weir-node"] {
            let of =
                ["logs", "-n", WEIR, workload, "--all-pods", "--all-containers", "--prefix", "--tail=12"];
            text += &format!("\n-- {workload}\n{}", say(&of));
        }
        for node in self.lab.nodes() {
            let kernel = node.run_ok("dmesg --level=emerg,alert,crit,err,warn | tail -n 8");
            let kernel = kernel.unwrap_or_else(|e| format!("{e:#}"));
            text += &format!("\n-- kernel of {}\n{kernel}", node.name());
        }
        text
    }
}

/// The values that a lab's cluster needs beside the chart's own.
fn values(disks: u8) -> Value {
    let serials: Vec<_> = (0..disks).map(|disk| format!("weir-n*-d{disk}")).collect();
    json!({
        "image": {"pullPolicy": "Never"},
        "sidecars": {
            "provisioner": {"image": {"pullPolicy": "Never"}, "capacityPollInterval": "10s"},
            "resizer": {"image": {"pullPolicy": "Never"}},
        },
        // Tests fill disks to the last extent, and tests before them have come and gone within the hour.
        "controller": {"lendByForecast": false},
        "node": {"storageNetwork": {"interface": "eth1"}},
        // A pod may take a minute to start in emulated nodes.
        "uninstallCheck": {"timeoutSeconds": 600},
        "storagePools": [{
            "name": "default",
            // The lab's images are sparse: wiping them would cost emulated nodes minutes.
            "spec": {"extentSize": "4Mi", "freshDisks": "trust", "devices": [{"serials": serials}]},
        }],
        "storageClasses": [
            {"name": "weir", "default": true, "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
             "volumeBindingMode": "WaitForFirstConsumer"},
            {"name": "weir-xfs", "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
             "volumeBindingMode": "WaitForFirstConsumer", "parameters": {"csi.storage.k8s.io/fstype": "xfs"}},
            {"name": "weir-immediate", "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
             "volumeBindingMode": "Immediate"},
        ],
    })
}

/// The chart of this workspace.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir")
}

/// An array's members; none of anything else.
pub fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// The status of an object's condition.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    items(&object["status"]["conditions"]).iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn render_list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// Where this host reaches the kubelet of a node.
fn kubelet_address(loopback: Ipv4Addr, n: u8) -> Ipv4Addr {
    let [a, b, c, _] = loopback.octets();
    Ipv4Addr::new(a, b, c, 10 + n)
}

/// A corner of the loopback that nobody uses, so that labs may stand side by side: 127.a.b.0.
fn free_loopback() -> Result<Ipv4Addr> {
    for _ in 0..16 {
        let random = u16::from_str_radix(&state::random_hex(2)?, 16)?;
        let [a, b] = random.to_be_bytes();
        let corner = Ipv4Addr::new(127, a.max(1), b, 0);
        if std::net::TcpListener::bind((kubelet_address(corner, 1), 10250)).is_ok() {
            return Ok(corner);
        }
    }
    bail!("no address of the loopback has port 10250 free")
}
