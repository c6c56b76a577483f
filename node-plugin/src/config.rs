//! What the plugin is told about itself: a YAML file, command line flags above it, defaults below it.
//!
//! Invariants: an unknown field or a bad value is refused with the file, line and column and what is allowed; what
//! [`Config`] holds has been checked. Must not know: what the values are used for.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use pool::ids::NodeName;
use serde::Deserialize;

mod address;
mod flags;
mod values;

pub use address::{AddressError, storage_address};
pub use flags::Flags;
pub use values::{Cidr, Endpoint, Glob, LogFormat, LogLevel, SocketPath, TopologyKey};

/// Where the plugin's answers to "which node is nearer" hang: segments are `<prefix>/<key>`.
pub const TOPOLOGY_PREFIX: &str = "topology.weir.storage/";
/// Name under which the driver is known to the orchestrator, unless configured otherwise.
pub const DRIVER_NAME: &str = "csi.weir.storage";
/// Volumes that a node can hold at once, unless configured otherwise: what the design was measured with.
const MAX_VOLUMES: u32 = 300;
/// NVMe over TCP's registered port.
const STORAGE_PORT: u16 = 4420;
/// Where a file is looked for that nobody named; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/weir/node.yaml";

/// The file's content. Every field may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct File {
    node: Option<NodeName>,
    driver_name: Option<String>,
    controller: Option<ControllerSection>,
    csi: CsiSection,
    state_dir: Option<PathBuf>,
    storage: StorageSection,
    devices: Option<Vec<Glob>>,
    topology: BTreeMap<TopologyKey, String>,
    max_volumes: Option<u32>,
    kubelet: KubeletSection,
    http: HttpSection,
    logging: LoggingSection,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ControllerSection {
    endpoints: Vec<Endpoint>,
    tls: Option<Tls>,
    token: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct CsiSection {
    endpoint: Option<SocketPath>,
}

/// Files of the TLS between node and controller: mutual where the node has a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Tls {
    /// Certificates that the controller's is checked with, PEM.
    pub ca: PathBuf,
    /// The node's certificate, PEM; left out where a token says who it is.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Name that the controller's certificate must carry; the endpoint's host when left out.
    #[serde(default)]
    pub server_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct StorageSection {
    address: Option<std::net::IpAddr>,
    interface: Option<String>,
    cidr: Option<Cidr>,
    port: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct KubeletSection {
    registry: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct HttpSection {
    listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct LoggingSection {
    level: LogLevel,
    format: LogFormat,
}

/// How the address is found under which other nodes reach this node's exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageNet {
    /// This one.
    Address(std::net::IpAddr),
    /// The first address of this interface.
    Interface(String),
    /// The address of this node that lies in this network.
    Network(Cidr),
    /// The address from which the controller is reached.
    TowardsController,
}

/// The checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who this node is.
    pub node: NodeName,
    /// The CSI driver's name.
    pub driver_name: String,
    /// Where controllers are dialled, in order; never empty.
    pub controllers: Vec<Endpoint>,
    /// TLS towards them.
    pub tls: Option<Tls>,
    /// The file of the service account token that tells them who this node is.
    pub token: Option<PathBuf>,
    /// The socket on which CSI is served.
    pub csi_socket: PathBuf,
    /// Where the plugin keeps what must outlive it.
    pub state_dir: PathBuf,
    /// How the storage address is found.
    pub storage: StorageNet,
    /// Port of the exports.
    pub storage_port: u16,
    /// Devices that are looked at; empty: every whole disk.
    pub devices: Vec<Glob>,
    /// Topology segments with their full keys, this node's own among them.
    pub topology: BTreeMap<String, String>,
    /// Volumes that the node can hold at once.
    pub max_volumes: u32,
    /// The kubelet's registry folder; without one the plugin does not register itself.
    pub kubelet_registry: Option<PathBuf>,
    /// Where health and metrics are served.
    pub http: Option<SocketAddr>,
    /// What is logged.
    pub log_level: LogLevel,
    /// How.
    pub log_format: LogFormat,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file says something that is not allowed.
    #[error("{}{place}: {why}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong, and what is allowed.
        why: String,
    },
    /// Something that has no default was given neither in the file nor as a flag.
    #[error("{what} is not set: give {flag}, or `{field}` in the configuration file")]
    Missing {
        /// What.
        what: &'static str,
        /// The flag.
        flag: &'static str,
        /// The field.
        field: &'static str,
    },
    /// What was given is not usable on this node.
    #[error("{0}")]
    Unusable(String),
}

/// A place in a file: `:line:column`, or nothing where it is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(Option<(usize, usize)>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// Reads a file's text. `path` is only for the error.
pub fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    // An empty file is YAML's null, which is no mapping; to people it is a file that says nothing.
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return Ok(File::default());
    }
    let bad = |place, why: String| ConfigError::Bad { path: path.to_owned(), place, why };
    let file: File = serde_yaml::from_str(text).map_err(|e| {
        let place = Place(e.location().map(|l| (l.line(), l.column())));
        bad(place, without_place(&e.to_string()))
    })?;
    file.check().map_err(|(field, why)| bad(Place(find_field(text, field)), why))?;
    Ok(file)
}

/// serde_yaml ends its messages with the place, which is told once already.
fn without_place(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(m, _)| m).to_owned()
}

/// Where a field is set, for rules that need more than the field itself.
fn find_field(text: &str, field: &str) -> Option<(usize, usize)> {
    text.lines().enumerate().find_map(|(n, l)| {
        let key = l.trim_start();
        let set = key.strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with(':'));
        set.then(|| (n + 1, l.len() - key.len() + 1))
    })
}

/// Reads the file that the flags name, or the default one if it is there.
fn load(flags: &Flags) -> Result<File, ConfigError> {
    let path = flags.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text),
        Err(e) if flags.config.is_none() && e.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

impl File {
    /// Rules over several fields: (the field to point at, what is wrong).
    fn check(&self) -> Result<(), (&'static str, String)> {
        let s = &self.storage;
        let given = [s.address.is_some(), s.interface.is_some(), s.cidr.is_some()];
        if given.iter().filter(|g| **g).count() > 1 {
            let why = "at most one of `address`, `interface` and `cidr` is allowed in `storage`";
            return Err(("storage", why.to_owned()));
        }
        if s.port == Some(0) {
            return Err(("port", "port 0 is no port: 1 to 65535 is allowed".to_owned()));
        }
        if self.controller.as_ref().is_some_and(|c| c.endpoints.is_empty()) {
            let why = "at least one endpoint is needed, such as `http://10.0.0.1:9710`";
            return Err(("endpoints", why.to_owned()));
        }
        let tls = self.controller.as_ref().and_then(|c| c.tls.as_ref());
        if tls.is_some_and(|t| t.cert.is_some() != t.key.is_some()) {
            return Err(("tls", "`cert` and `key` go together".to_owned()));
        }
        if self.max_volumes == Some(0) {
            return Err(("maxVolumes", "a node that may hold no volume is of no use: 1 or more".to_owned()));
        }
        if let Some(dir) = self.state_dir.as_ref().filter(|d| !d.is_absolute()) {
            return Err(("stateDir", format!("{} is not an absolute path", dir.display())));
        }
        if let Some(dir) = self.kubelet.registry.as_ref().filter(|d| !d.is_absolute()) {
            return Err(("registry", format!("{} is not an absolute path", dir.display())));
        }
        if self.topology.values().any(|v| !values::is_label_value(v)) {
            return Err(("topology", format!("a value is not valid: {}", values::LABEL_VALUE)));
        }
        match self.driver_name.as_deref().filter(|n| !values::is_driver_name(n)) {
            Some(n) => Err(("driverName", format!("{n:?} is not valid: {}", values::DRIVER_NAME_RULE))),
            None => Ok(()),
        }
    }
}

impl Config {
    /// The configuration from flags, the file they name, and defaults.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::merge(load(flags)?, flags)
    }

    /// Flags above the file above the defaults.
    pub fn merge(file: File, flags: &Flags) -> Result<Self, ConfigError> {
        let node = match flags.node.clone().or(file.node) {
            Some(n) => n,
            None => host_name()?,
        };
        let controllers = match (&flags.controller[..], &file.controller) {
            ([], Some(c)) => c.endpoints.clone(),
            ([], None) => {
                let (flag, field) = ("--controller", "controller.endpoints");
                return Err(ConfigError::Missing { what: "the controller's endpoint", flag, field });
            }
            (some, _) => some.to_vec(),
        };
        let driver_name = file.driver_name.unwrap_or_else(|| DRIVER_NAME.to_owned());
        let mut topology: BTreeMap<String, String> =
            file.topology.iter().map(|(k, v)| (k.full(), v.clone())).collect();
        topology.insert(format!("{TOPOLOGY_PREFIX}node"), node.to_string());
        let (tls, token) = file.controller.map_or((None, None), |c| (c.tls, c.token));
        Ok(Self {
            node,
            controllers,
            tls,
            token,
            csi_socket: flags.csi_endpoint.clone().or(file.csi.endpoint).map_or_else(
                || PathBuf::from(format!("/var/lib/kubelet/plugins/{driver_name}/csi.sock")),
                SocketPath::into_path,
            ),
            state_dir: flags
                .state_dir
                .clone()
                .or(file.state_dir)
                .unwrap_or_else(|| PathBuf::from("/var/lib/weir")),
            storage: flags.storage().unwrap_or_else(|| file.storage.net()),
            storage_port: flags.storage_port.or(file.storage.port).unwrap_or(STORAGE_PORT),
            devices: if flags.device.is_empty() {
                file.devices.unwrap_or_default()
            } else {
                flags.device.clone()
            },
            topology,
            max_volumes: flags.max_volumes.or(file.max_volumes).unwrap_or(MAX_VOLUMES),
            kubelet_registry: flags.kubelet_registry.clone().or(file.kubelet.registry),
            http: flags.http.or(file.http.listen),
            log_level: flags.log_level.unwrap_or(file.logging.level),
            log_format: flags.log_format.unwrap_or(file.logging.format),
            driver_name,
        })
    }

    /// Whether a device path may be looked at.
    pub fn looks_at(&self, path: &str) -> bool {
        self.devices.is_empty() || self.devices.iter().any(|g| g.matches(path))
    }
}

impl StorageSection {
    fn net(&self) -> StorageNet {
        match (&self.address, &self.interface, &self.cidr) {
            (Some(a), _, _) => StorageNet::Address(*a),
            (None, Some(i), _) => StorageNet::Interface(i.clone()),
            (None, None, Some(c)) => StorageNet::Network(*c),
            (None, None, None) => StorageNet::TowardsController,
        }
    }
}

fn host_name() -> Result<NodeName, ConfigError> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    name.parse()
        .map_err(|e| ConfigError::Unusable(format!("the host's name cannot be the node's: {e}; give --node")))
}

#[cfg(test)]
mod tests;
