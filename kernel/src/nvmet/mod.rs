//! The lender's side of NVMe over TCP: the kernel's nvmet, through configfs.
//!
//! Order, because the kernel minds it: subsystem, its attributes, its host, port attributes, namespace with
//! path and uuid, enable, and the link into the port LAST. A port that is linked before the namespace is enabled
//! makes an initiator drop the namespace and fail its I/O. A namespace added to a subsystem that is linked
//! already appears at the initiator by itself.
//!
//! Invariants: every `ensure_*` may be interrupted anywhere and called again; uuid and nsid of a namespace stay
//! the same over a restart (or the initiator drops the device). Must not know: who may export what: a caller
//! exports nothing after a boot before ownership has been checked. Note that taking a host off the list of
//! allowed ones does nothing to a connection that stands: fence the slice's table, then disable the namespace.

mod ensure;
mod observe;
mod resize;

use std::path::{Path, PathBuf};

pub use observe::{Namespace, Port, Subsystem, Tree};

use crate::{Class, sysfs::AttrError};

/// Where configfs shows nvmet.
pub const CONFIGFS: &str = "/sys/kernel/config/nvmet";

/// Namespaces that the kernel takes in one subsystem (`NVMET_MAX_NAMESPACES`).
pub const MAX_NAMESPACES: u32 = 1024;

/// Where a port listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortAddr {
    /// Address, IPv4 or IPv6.
    pub traddr: std::net::IpAddr,
    /// TCP port.
    pub trsvcid: u16,
}

/// A namespace as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// Its number in the subsystem, from 1.
    pub nsid: u32,
    /// The device behind it.
    pub device: PathBuf,
    /// Its uuid: the slice id.
    pub uuid: pool::ids::SliceId,
}

/// nvmet of this node.
#[derive(Clone, Debug)]
pub struct Nvmet {
    root: PathBuf,
}

/// Why nvmet could not be told or read.
#[derive(Debug, thiserror::Error)]
pub enum NvmetError {
    /// configfs or the module is not there.
    #[error("{0} is not there: load nvmet and nvmet-tcp, and mount configfs")]
    NotLoaded(PathBuf),
    /// An attribute failed.
    #[error(transparent)]
    Attr(#[from] AttrError),
    /// The port listens elsewhere and serves subsystems, so that it cannot be changed.
    #[error("port {port} listens on {found} and serves {subsystems} subsystems")]
    PortTaken {
        /// Its number.
        port: u32,
        /// Where it listens.
        found: String,
        /// How many it serves.
        subsystems: usize,
    },
    /// No port has this number.
    #[error("port {0} does not exist")]
    NoPort(u32),
    /// A namespace number that the kernel refuses.
    #[error("nsid {0} is out of range")]
    BadNsid(u32),
    /// The uuid is served under another number already.
    #[error("uuid {uuid} is nsid {found} of {nqn}, asked for nsid {wanted}")]
    UuidTaken {
        /// The subsystem.
        nqn: String,
        /// The uuid.
        uuid: String,
        /// Its number.
        found: u32,
        /// The one asked for.
        wanted: u32,
    },
    /// A namespace could not be finished, nor removed; the next `ensure_namespace` finds it and goes on from there.
    #[error("{cause}; undoing it failed too: {rollback}")]
    RollbackFailed {
        /// What failed first.
        #[source]
        cause: AttrError,
        /// What failed then.
        rollback: AttrError,
    },
    /// Every namespace number is in use.
    #[error("{0} has {MAX_NAMESPACES} namespaces, the kernel takes no more")]
    Full(String),
}

impl NvmetError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            NvmetError::NotLoaded(_) => Class::Permanent,
            NvmetError::Attr(e) => e.class(),
            NvmetError::RollbackFailed { .. } => Class::OutcomeUnknown,
            NvmetError::PortTaken { .. } => Class::Busy,
            NvmetError::NoPort(_) => Class::Transient,
            NvmetError::BadNsid(_) | NvmetError::UuidTaken { .. } | NvmetError::Full(_) => Class::Permanent,
        }
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            NvmetError::Attr(e) | NvmetError::RollbackFailed { cause: e, .. } => e.errno(),
            NvmetError::NotLoaded(_)
            | NvmetError::PortTaken { .. }
            | NvmetError::NoPort(_)
            | NvmetError::BadNsid(_)
            | NvmetError::UuidTaken { .. }
            | NvmetError::Full(_) => None,
        }
    }
}

impl Nvmet {
    /// nvmet of the running kernel.
    pub fn open() -> Result<Self, NvmetError> {
        Self::at(Path::new(CONFIGFS))
    }

    /// nvmet under another root (tests, or a configfs mounted elsewhere).
    pub fn at(root: &Path) -> Result<Self, NvmetError> {
        let n = Self { root: root.to_owned() };
        if n.subsystems().is_dir() { Ok(n) } else { Err(NvmetError::NotLoaded(n.root)) }
    }

    fn subsystems(&self) -> PathBuf {
        self.root.join("subsystems")
    }

    fn subsystem(&self, nqn: &str) -> PathBuf {
        self.subsystems().join(nqn)
    }

    fn namespaces(&self, nqn: &str) -> PathBuf {
        self.subsystem(nqn).join("namespaces")
    }

    fn namespace(&self, nqn: &str, nsid: u32) -> PathBuf {
        self.namespaces(nqn).join(nsid.to_string())
    }

    fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }

    fn port(&self, id: u32) -> PathBuf {
        self.ports().join(id.to_string())
    }

    fn host(&self, nqn: &str) -> PathBuf {
        self.root.join("hosts").join(nqn)
    }
}
