//! The controller's configuration file (YAML). Pools stand in it in the shape of the `StoragePool` custom resource, so
//! that what is written here can be applied to a cluster as it is.
//!
//! A field that is unknown or a value that cannot be is refused with file, line and what is allowed. Must not know:
//! what the values are used for.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use api::{Span, StoragePoolSpec};
use pool::ids::PoolName;
use serde::Deserialize;

/// Everything that the controller is told at start.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The name under which Kubernetes knows the driver.
    #[serde(default = "default_driver")]
    pub driver_name: String,
    /// Where it listens.
    pub listen: Listen,
    /// Where it keeps its records.
    pub store: Store,
    /// The way to the cluster, where the store or node tokens need one: a kubeconfig file. Without it the controller is
    /// the service account of its pod.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// Believe service account tokens of the node plugin, beside certificates.
    #[serde(default)]
    pub node_tokens: Option<NodeTokens>,
    /// Identity towards nodes, and whom to believe. Without it sessions are plain, which is refused on any address
    /// but loopback unless `insecure` says so.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// Accept plain sessions on an address that others can reach.
    #[serde(default)]
    pub insecure: bool,
    /// When a node counts as dead.
    #[serde(default)]
    pub lease: Lease,
    /// Have disks lend what their forecasts allow, rather than all that is free above the pool's reserve. The forecasts
    /// are made and shown either way.
    #[serde(default = "yes")]
    pub lend_by_forecast: bool,
    /// When moves that are worth while are looked for. What may move is said in the pools.
    #[serde(default)]
    pub moves: Moves,
    /// The pools. In a cluster they are StoragePool resources, and none stand here.
    #[serde(default)]
    pub pools: Vec<PoolResource>,
}

/// Addresses of the controller.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Listen {
    /// For CSI: `unix:///path/csi.sock` or `tcp://address:port`.
    pub csi: Endpoint,
    /// For the sessions of nodes: `address:port`.
    pub nodes: SocketAddr,
    /// For health and metrics over HTTP: `address:port`; nowhere if not given.
    #[serde(default)]
    pub http: Option<SocketAddr>,
    /// For people and `weir`; nowhere if not given.
    #[serde(default)]
    pub operator: Option<OperatorListen>,
}

/// Where the Operator service listens. Whoever reaches it may delete volumes: over TCP callers show a certificate of the
/// CA in `tls` whose organization is `weir:operators`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OperatorListen {
    /// `unix:///path/operator.sock`, which only this user may open, or `tcp://address:port`.
    pub at: Endpoint,
    /// No certificates, although `tls` is given: on loopback only. In a cluster: whoever may forward a port into the pod may
    /// operate.
    #[serde(default)]
    pub plain: bool,
}

impl OperatorListen {
    /// Whether callers have to prove that they are operators.
    #[must_use]
    pub fn proven(&self, tls: Option<&Tls>) -> bool {
        matches!(self.at, Endpoint::Tcp(_)) && tls.is_some() && !self.plain
    }
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        if let Some(p) = s.strip_prefix("unix://") {
            return if p.starts_with('/') {
                Ok(Endpoint::Unix(p.into()))
            } else {
                Err(format!(
                    "{s:?}: a unix endpoint is unix:// and an absolute path, unix:///run/weir/csi.sock say"
                ))
            };
        }
        match s.strip_prefix("tcp://").map(str::parse) {
            Some(Ok(a)) => Ok(Endpoint::Tcp(a)),
            Some(Err(_)) => {
                Err(format!("{s:?}: a TCP endpoint is tcp:// and address:port, tcp://127.0.0.1:9000 say"))
            }
            None => Err(format!("{s:?} is no endpoint: unix:///path or tcp://address:port is expected")),
        }
    }
}

/// Where records are kept: `path` for the embedded store, `kubernetes` for the cluster's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "StoreSection")]
pub enum Store {
    /// In a file; the directory must exist.
    Embedded(PathBuf),
    /// In custom resources.
    Kubernetes(KubernetesStore),
}

/// The store in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KubernetesStore {
    /// The namespace of the Lease; the pod's own when left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The Lease whose holder reigns.
    #[serde(default = "default_lease")]
    pub lease: String,
    /// How long, in seconds, others leave a Lease alone that is not renewed: at least 5. The holder gives up after two
    /// thirds of it.
    #[serde(default = "default_lease_seconds")]
    pub lease_seconds: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoreSection {
    path: Option<PathBuf>,
    kubernetes: Option<KubernetesStore>,
}

impl TryFrom<StoreSection> for Store {
    type Error = &'static str;

    fn try_from(s: StoreSection) -> Result<Self, Self::Error> {
        match (s.path, s.kubernetes) {
            (Some(path), None) => Ok(Store::Embedded(path)),
            (None, Some(k)) => Ok(Store::Kubernetes(k)),
            (None, None) | (Some(_), Some(_)) => Err(
                "store is either path, for a file, or kubernetes, for the cluster's resources ({} will do)",
            ),
        }
    }
}

/// Tokens of the node plugin, checked by the cluster's API server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeTokens {
    /// The audience that they are made for.
    #[serde(default = "default_audience")]
    pub audience: String,
    /// `namespace:name` of the node plugin's service account.
    pub service_account: String,
}

/// TLS material: `ca`, `cert` and `key` for files, `kubernetes` for what the controller makes itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TlsSection")]
pub enum Tls {
    /// PEM files; they are read anew when they change.
    Files(TlsFiles),
    /// The reigning controller makes a CA and certificates, and keeps them in the cluster.
    Kubernetes(KubernetesTls),
}

/// TLS material in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA that nodes' certificates must come from; only tokens count without one.
    pub ca: Option<PathBuf>,
    /// The controller's certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// TLS material in objects of the cluster, which are there already and may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KubernetesTls {
    /// Their namespace; the pod's own when left out.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The Secret of the controller's certificate.
    pub secret: String,
    /// The Secret of the CA and its key.
    pub ca_secret: String,
    /// The ConfigMap with the CAs that nodes trust.
    pub bundle: String,
    /// Names and addresses under which the controller is dialled.
    pub names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TlsSection {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    kubernetes: Option<KubernetesTls>,
}

impl TryFrom<TlsSection> for Tls {
    type Error = &'static str;

    fn try_from(s: TlsSection) -> Result<Self, Self::Error> {
        match (s.ca, s.cert, s.key, s.kubernetes) {
            (ca, Some(cert), Some(key), None) => Ok(Tls::Files(TlsFiles { ca, cert, key })),
            (None, None, None, Some(k)) if k.names.is_empty() => {
                Err("kubernetes.names: at least one name is needed, under which nodes dial the controller")
            }
            (None, None, None, Some(k)) => Ok(Tls::Kubernetes(k)),
            _ => Err(
                "tls is either cert, key and (for nodes' certificates) ca, which are files, or kubernetes",
            ),
        }
    }
}

/// Timing of node sessions.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Lease {
    /// How often a node says that it lives, in milliseconds.
    pub heartbeat_ms: u32,
    /// How long after its last word a node counts as dead, in milliseconds: at least three heartbeats.
    pub lease_ms: u32,
}

impl Default for Lease {
    /// 1 s and 5 s: a word lost on a busy network kills nobody, and a dead node's volumes can move within seconds.
    fn default() -> Self {
        Self { heartbeat_ms: 1000, lease_ms: 5000 }
    }
}

/// When moves are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Moves {
    /// How long a controller has to have reigned before it moves anything by itself: `5m`.
    pub settle: Span,
    /// How often it looks: `60s`.
    pub every: Span,
}

impl Default for Moves {
    fn default() -> Self {
        Self { settle: Span::seconds(300), every: Span::seconds(60) }
    }
}

/// A pool, as the `StoragePool` resource has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PoolResource {
    /// `weir.storage/v1alpha1`, if given.
    #[serde(default)]
    pub api_version: Option<String>,
    /// `StoragePool`, if given.
    #[serde(default)]
    pub kind: Option<String>,
    /// Its name.
    pub metadata: Metadata,
    /// What it is.
    pub spec: StoragePoolSpec,
}

/// The part of Kubernetes's object metadata that means something here.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// The pool's name.
    pub name: PoolName,
}

fn default_lease() -> String {
    "weir-controller".to_owned()
}

fn default_lease_seconds() -> u32 {
    15
}

fn default_audience() -> String {
    "weir".to_owned()
}

fn yes() -> bool {
    true
}

fn default_driver() -> String {
    "csi.weir.storage".to_owned()
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML, or a field or value is not allowed: the source says where and what is.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, and what is allowed.
        #[source]
        source: serde_yaml::Error,
    },
    /// Fields that do not go together.
    #[error("{}: {field}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which field.
        field: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks a text; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Config = serde_yaml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        match config.check() {
            Ok(()) => Ok(config),
            Err((field, problem)) => Err(ConfigError::Invalid { path: path.to_owned(), field, problem }),
        }
    }

    fn check(&self) -> Result<(), (String, String)> {
        let bad = |field: &str, problem: String| Err((field.to_owned(), problem));
        if self.tls.is_none() && !self.insecure && !self.listen.nodes.ip().is_loopback() {
            return bad(
                "listen.nodes",
                format!(
                    "{} can be reached by others, and there is no tls: give tls with ca, cert and key, or say \
                     insecure: true if the network is yours alone",
                    self.listen.nodes
                ),
            );
        }
        if let Some(o) = &self.listen.operator
            && let Endpoint::Tcp(at) = &o.at
            && !o.proven(self.tls.as_ref())
            && !at.ip().is_loopback()
        {
            let why = "can be reached by others: without certificates only a loopback address or a unix socket will do";
            return bad("listen.operator", format!("{at} {why}"));
        }
        if self.lease.heartbeat_ms == 0 || self.lease.lease_ms < 3 * self.lease.heartbeat_ms {
            return bad(
                "lease",
                "leaseMs must be at least three times heartbeatMs, and both above 0".to_owned(),
            );
        }
        if self.moves.every.as_seconds() == 0 {
            return bad("moves.every", "at least 1s".to_owned());
        }
        if self.node_tokens.is_some() && self.tls.is_none() && !self.listen.nodes.ip().is_loopback() {
            return bad("nodeTokens", "tokens must not cross a network in the clear: give tls".to_owned());
        }
        let only_tokens = match &self.tls {
            Some(Tls::Files(f)) => f.ca.is_none(),
            Some(Tls::Kubernetes(_)) => true,
            None => false,
        };
        if only_tokens && self.node_tokens.is_none() {
            return bad(
                "tls",
                "nodes could not prove who they are: give tls.ca for certificates, or nodeTokens".to_owned(),
            );
        }
        if let Some(t) = self.node_tokens.as_ref().filter(|t| t.service_account.split(':').count() != 2) {
            return bad(
                "nodeTokens.serviceAccount",
                format!("{:?}: namespace:name is expected", t.service_account),
            );
        }
        match &self.store {
            Store::Embedded(_) if self.pools.is_empty() => {
                return bad("pools", "there must be at least one pool".to_owned());
            }
            Store::Kubernetes(_) if !self.pools.is_empty() => {
                return bad(
                    "pools",
                    "with store.kubernetes pools are StoragePool resources: kubectl apply them".to_owned(),
                );
            }
            Store::Kubernetes(k) if k.lease_seconds < 5 => {
                return bad("store.kubernetes.leaseSeconds", format!("{}: at least 5", k.lease_seconds));
            }
            Store::Embedded(_) | Store::Kubernetes(_) => {}
        }
        let mut seen = BTreeSet::new();
        for (i, p) in self.pools.iter().enumerate() {
            let at = |f: &str| format!("pools[{i}].{f}");
            if !seen.insert(&p.metadata.name) {
                return Err((at("metadata.name"), format!("there are two pools named {}", p.metadata.name)));
            }
            for (field, got, want) in
                [("apiVersion", &p.api_version, api::API_VERSION), ("kind", &p.kind, "StoragePool")]
            {
                if let Some(g) = got.as_deref().filter(|g| *g != want) {
                    return Err((at(field), format!("{g:?}: {want} is expected")));
                }
            }
            p.spec.check().map_err(|e| (at(e.field), e.problem))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pool::units::Bytes;

    use super::*;

    const GOOD: &str = "
listen: {csi: 'unix:///run/weir/csi.sock', nodes: '127.0.0.1:9500'}
store: {path: /var/lib/weir/controller.redb}
pools:
- apiVersion: weir.storage/v1alpha1
  kind: StoragePool
  metadata: {name: vms}
  spec:
    extentSize: 8Mi
    nodes: [{names: ['n*']}]
    devices:
    - paths: ['/dev/vd*']
      minSize: 1Gi
";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("weir.yaml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_good_file_is_understood() {
        let c = parse(GOOD).unwrap();
        let p = &c.pools[0];
        assert_eq!(p.spec.extent_size.0.bytes(), Bytes::mib(8));
        assert_eq!(p.spec.devices[0].min_size.bytes(), Bytes::gib(1));
        assert_eq!(c.lease.lease_ms, 5000);
        assert_eq!(c.driver_name, "csi.weir.storage");
        assert_eq!((c.moves.settle.to_string(), c.moves.every.to_string()), ("5m".into(), "1m".into()));
        let c = parse(&format!("{GOOD}moves: {{settle: 0s, every: 2s}}\n")).unwrap();
        assert_eq!((c.moves.settle.as_seconds(), c.moves.every.as_seconds()), (0, 2));
        assert!(parse(&format!("{GOOD}moves: {{every: 0s}}\n")).unwrap_err().contains("moves.every"));
    }

    #[test]
    fn in_a_cluster_store_and_pools_are_resources() {
        const CLUSTER: &str = "
listen: {csi: 'unix:///run/weir/csi.sock', nodes: '127.0.0.1:9500'}
store: {kubernetes: {}}
nodeTokens: {serviceAccount: 'weir:weir-node'}
";
        let c = parse(CLUSTER).unwrap();
        assert!(
            matches!(&c.store, Store::Kubernetes(k) if k.lease == "weir-controller" && k.lease_seconds == 15)
        );
        assert_eq!(c.node_tokens.unwrap().audience, "weir");
        for (from, to, says) in [
            ("{kubernetes: {}}", "{}", "either path"),
            ("{kubernetes: {}}", "{kubernetes: {}, path: /x}", "either path"),
            ("{}", "{leaseSeconds: 2}", "at least 5"),
            ("weir:weir-node", "weir-node", "namespace:name"),
        ] {
            let e = parse(&CLUSTER.replace(from, to)).unwrap_err();
            assert!(e.contains(says), "{to}: {e}");
        }
        let own = "tls: {kubernetes: {secret: s, caSecret: c, bundle: b, names: [weir.ns.svc]}}";
        let with_tls = |t: &str| parse(&format!("{CLUSTER}{t}"));
        assert!(matches!(with_tls(own).unwrap().tls, Some(Tls::Kubernetes(k)) if k.ca_secret == "c"));
        assert!(with_tls("tls: {cert: /a, key: /b}").is_ok(), "tokens need no CA of clients");
        assert!(with_tls("tls: {cert: /a}").unwrap_err().contains("tls is either"));
        assert!(with_tls(&own.replace("weir.ns.svc", "")).unwrap_err().contains("at least one name"));
        let bare = format!("{CLUSTER}{own}").replace("nodeTokens: {serviceAccount: 'weir:weir-node'}\n", "");
        assert!(parse(&bare).unwrap_err().contains("prove who they are"));
        let pools = GOOD.replace("{path: /var/lib/weir/controller.redb}", "{kubernetes: {}}");
        assert!(parse(&pools).unwrap_err().contains("StoragePool resources"));
    }

    #[test]
    fn mistakes_are_named_with_line_and_what_is_allowed() {
        for (from, to, says) in [
            (
                "extentSize",
                "extentsize",
                &["weir.yaml", "line 9", "unknown field `extentsize`", "`extentSize`"][..],
            ),
            ("8Mi", "9Mi", &["line 9", "power of two", "4 MiB"]),
            ("8Mi", "8Xi", &["line 9", "8Xi", "Mi"]),
            ("unix:///run/weir/csi.sock", "run/csi.sock", &["line 2", "unix:///path"]),
            ("127.0.0.1:9500", "0.0.0.0:9500", &["listen.nodes", "tls"]),
            ("127.0.0.1:9500", "nowhere", &["line 2"]),
            ("{name: vms}", "{name: VMs}", &["line 7", "lower-case"]),
            ("kind: StoragePool", "kind: Pool", &["pools[0].kind", "StoragePool"]),
            ("minSize: 1Gi", "classes: [floppy]", &["line 13", "floppy", "nvme"]),
        ] {
            let e = parse(&GOOD.replace(from, to)).unwrap_err();
            for s in says {
                assert!(e.contains(s), "{to}: {e:?} does not say {s:?}");
            }
        }
    }

    #[test]
    fn operators_are_proven_wherever_others_could_come_from() {
        let with = |operator: &str| {
            let listen = format!("nodes: '127.0.0.1:9500', operator: {operator}}}");
            parse(&GOOD.replace("nodes: '127.0.0.1:9500'}", &listen))
        };
        let plain = with("{at: 'tcp://127.0.0.1:9502'}").unwrap().listen.operator.unwrap();
        assert!(!plain.proven(None));
        with("{at: 'unix:///run/weir/operator.sock'}").unwrap();
        for bad in ["{at: 'tcp://0.0.0.0:9502'}", "{at: 'tcp://0.0.0.0:9502', plain: true}"] {
            let e = with(bad).unwrap_err();
            assert!(e.contains("listen.operator"), "{e}");
        }
        let tls = "store: {path: /var/lib/weir/controller.redb}\ntls: {ca: a, cert: b, key: c}";
        let secure = GOOD.replace("store: {path: /var/lib/weir/controller.redb}", tls);
        let secure =
            secure.replace("'127.0.0.1:9500'}", "'127.0.0.1:9500', operator: {at: 'tcp://0.0.0.0:9502'}}");
        let c = parse(&secure).unwrap();
        assert!(c.listen.operator.unwrap().proven(c.tls.as_ref()));
    }

    #[test]
    fn a_pool_that_would_take_everything_is_refused() {
        let e = parse(&GOOD.replace("- paths: ['/dev/vd*']\n      minSize: 1Gi", "- {}")).unwrap_err();
        assert!(e.contains("pools[0].spec.devices"), "{e}");
    }
}
