//! Values of the configuration that have rules of their own.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

/// Values that serde reads as text and parses.
macro_rules! from_text {
    ($t:ty) => {
        impl TryFrom<String> for $t {
            type Error = String;
            fn try_from(s: String) -> Result<Self, String> {
                s.parse()
            }
        }
    };
}

/// Where a controller is dialled: `http://host:port` or `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint(String);

impl Endpoint {
    /// As a URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, a)| a)
    }

    /// Whether it wants TLS.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("https://")
    }
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is no endpoint: `http://host:port` or `https://host:port` is allowed");
        let (scheme, authority) = s.split_once("://").unwrap_or(("http", s));
        let authority = authority.trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        let host_ok =
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b));
        let port_ok = port.parse::<u16>().is_ok_and(|p| p != 0);
        if matches!(scheme, "http" | "https") && host_ok && port_ok {
            Ok(Self(format!("{scheme}://{authority}")))
        } else {
            Err(bad())
        }
    }
}
from_text!(Endpoint);

/// A unix socket: `unix:///path` or `/path`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketPath(PathBuf);

/// `sun_path` holds 108 bytes with the final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

impl SocketPath {
    /// The path.
    pub fn into_path(self) -> PathBuf {
        self.0
    }
}

impl FromStr for SocketPath {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let path = s.strip_prefix("unix://").or_else(|| s.strip_prefix("unix:")).unwrap_or(s);
        if path.starts_with('/') && !path.ends_with('/') && path.len() <= SOCKET_PATH_MAX {
            Ok(Self(PathBuf::from(path)))
        } else {
            Err(format!(
                "{s:?} is no socket: `unix:///absolute/path` of at most {SOCKET_PATH_MAX} bytes is allowed"
            ))
        }
    }
}
from_text!(SocketPath);

/// A pattern of device paths, such as `/dev/disk/by-id/nvme-*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Glob(glob::Pattern);

impl Glob {
    /// Whether a path is one of those meant, as it stands or by a link that matches.
    pub fn matches(&self, path: &str) -> bool {
        self.0.matches(path) || self.links_to(path)
    }

    /// Patterns over links (`/dev/disk/by-id/...`) mean what the links lead to.
    fn links_to(&self, path: &str) -> bool {
        let Ok(found) = glob::glob(self.0.as_str()) else { return false };
        found.flatten().any(|p| std::fs::canonicalize(&p).is_ok_and(|real| real == Path::new(path)))
    }
}

impl FromStr for Glob {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if !s.starts_with("/dev/") {
            return Err(format!(
                "{s:?} is no pattern of devices: paths below /dev/ are allowed, with * ? [...]"
            ));
        }
        glob::Pattern::new(s).map(Self).map_err(|e| format!("{s:?} is no pattern: {e}"))
    }
}
from_text!(Glob);

/// A network: address and prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr {
    net: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether an address lies in it.
    pub fn contains(&self, a: IpAddr) -> bool {
        match (self.net, a) {
            (IpAddr::V4(n), IpAddr::V4(a)) => {
                let shift = 32 - u32::from(self.prefix);
                (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(n), IpAddr::V6(a)) => {
                let shift = 128 - u32::from(self.prefix);
                (n.to_bits() ^ a.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("{s:?} is no network: `address/prefix`, such as 10.0.0.0/8, is allowed");
        let (net, prefix) = s.split_once('/').ok_or_else(bad)?;
        let net: IpAddr = net.parse().map_err(|_| bad())?;
        let max = if net.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|p| *p <= max).ok_or_else(bad)?;
        Ok(Self { net, prefix })
    }
}
from_text!(Cidr);

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.net, self.prefix)
    }
}

/// The part of a topology key behind the prefix: `zone`, `rack`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct TopologyKey(String);

impl TopologyKey {
    /// With the prefix. A key that brings a prefix of its own keeps it.
    pub fn full(&self) -> String {
        if self.0.contains('/') { self.0.clone() } else { format!("{}{}", super::TOPOLOGY_PREFIX, self.0) }
    }
}

impl FromStr for TopologyKey {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s == "node" || s == format!("{}node", super::TOPOLOGY_PREFIX) {
            return Err("topology key `node` is set by the plugin itself".to_owned());
        }
        let (prefix, name) = s.split_once('/').map_or((None, s), |(p, n)| (Some(p), n));
        if prefix.is_none_or(is_dns) && !name.is_empty() && is_label_value(name) {
            Ok(Self(s.to_owned()))
        } else {
            Err(format!(
                "topology key {s:?} is not valid: a name such as `zone`, or `prefix/name`; {LABEL_VALUE}"
            ))
        }
    }
}
from_text!(TopologyKey);

/// The rule behind [`is_label_value`], as Kubernetes has it for labels.
pub(super) const LABEL_VALUE: &str =
    "letters, digits, '-', '_' and '.' are allowed, a letter or digit at both ends, at most 63 characters";

pub(super) fn is_label_value(s: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let b = s.as_bytes();
    b.len() <= 63
        && edge(b.first())
        && edge(b.last())
        && b.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
}

fn is_dns(s: &str) -> bool {
    s.parse::<pool::ids::NodeName>().is_ok()
}

/// The rule behind [`is_driver_name`] (csi.proto, GetPluginInfoResponse.name).
pub(super) const DRIVER_NAME_RULE: &str =
    "a domain name of at most 63 characters is allowed, such as csi.weir.storage";

pub(super) fn is_driver_name(s: &str) -> bool {
    s.len() <= 63 && is_dns(s)
}

/// What is logged: state changes from `info` on, what will be retried from `warn` on, what needs a person at `error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// And what will be retried.
    Warn,
    /// And what changed.
    #[default]
    Info,
    /// And how.
    Debug,
    /// And everything.
    Trace,
}

impl LogLevel {
    /// As tracing's filters spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
