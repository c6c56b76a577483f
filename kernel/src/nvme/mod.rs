//! The consumer's side of NVMe over TCP: connections through /dev/nvme-fabrics, controllers and namespaces
//! through sysfs.
//!
//! Invariants: a connection that stands is found before another is asked for; a namespace is found by its uuid,
//! never by its name (`nvme0n1` may be another one after a reconnect). Timeouts given here only detect: whether
//! a lender is lost is decided elsewhere. A connect to a dead peer blocks for TCP's own time-out (two minutes),
//! and deleting a live controller whose peer is dead blocks 28 s: run both under [`crate::deadline`]. Must not
//! know: volumes, multipath above.

mod connect;
mod health;
mod list;
mod observe;
mod sockets;

pub use connect::{ConnectOptions, Connected};
pub use health::HealthLog;
pub use list::ListedNamespace;
pub use observe::{BlockNamespace, Controller, ControllerState, Waited};
pub use sockets::drop_sockets;

use std::{io, net::IpAddr, path::PathBuf};

use crate::{Class, sysfs::AttrError, uevent::UeventError};

/// Where a subsystem is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The lender's address.
    pub traddr: IpAddr,
    /// Its TCP port.
    pub trsvcid: u16,
    /// The subsystem.
    pub nqn: String,
}

/// NVMe of this node.
#[derive(Clone, Debug)]
pub struct Nvme {
    sys: PathBuf,
    fabrics: PathBuf,
}

/// Why an NVMe call failed.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The fabrics device could not be opened.
    #[error("open {path}: {source}; is the nvme-tcp module loaded?")]
    Fabrics {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection was refused or failed.
    #[error("connect to {nqn} at {traddr}:{trsvcid}: {source}")]
    Connect {
        /// The subsystem.
        nqn: String,
        /// The address.
        traddr: IpAddr,
        /// The port.
        trsvcid: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel says that the connection stands, and shows no controller for it.
    #[error("the kernel says {0} is connected already and shows no such controller")]
    Contradiction(String),
    /// The fabrics device answered something unreadable.
    #[error("connect answered {0:?}")]
    Answer(String),
    /// A value that would change the meaning of the options.
    #[error("{what} {value:?} cannot be passed to the kernel")]
    BadOption {
        /// Which option.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// An attribute failed.
    #[error(transparent)]
    Attr(#[from] AttrError),
    /// Uevents cannot be heard.
    #[error(transparent)]
    Uevent(#[from] UeventError),
    /// Sockets could not be listed or dropped.
    #[error("socket diagnosis: {op}: {source}")]
    SockDiag {
        /// Which call.
        op: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace did not appear in time.
    #[error("no namespace with uuid {uuid} appeared within the time")]
    NoNamespace {
        /// Its uuid.
        uuid: String,
    },
}

impl NvmeError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            NvmeError::Fabrics { source, .. } | NvmeError::SockDiag { source, .. } => Class::of_io(source),
            // Whatever the peer said (EIO, a refusal, a time-out), connecting again does no harm: a second
            // connection to the same subsystem is refused by the kernel.
            NvmeError::Connect { source, .. } => match Class::of_io(source) {
                Class::OutcomeUnknown => Class::Transient,
                other => other,
            },
            NvmeError::Attr(e) => e.class(),
            NvmeError::Uevent(e) => e.class(),
            NvmeError::Contradiction(_) | NvmeError::NoNamespace { .. } => Class::Transient,
            NvmeError::Answer(_) => Class::OutcomeUnknown,
            NvmeError::BadOption { .. } => Class::Permanent,
        }
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            NvmeError::Fabrics { source, .. }
            | NvmeError::Connect { source, .. }
            | NvmeError::SockDiag { source, .. } => crate::error::errno(source),
            NvmeError::Attr(e) => e.errno(),
            NvmeError::Uevent(e) => Some(e.source),
            NvmeError::Contradiction(_)
            | NvmeError::Answer(_)
            | NvmeError::BadOption { .. }
            | NvmeError::NoNamespace { .. } => None,
        }
    }
}

impl Default for Nvme {
    fn default() -> Self {
        Self::new()
    }
}

impl Nvme {
    /// NVMe of the running kernel.
    pub fn new() -> Self {
        Self::at("/sys", "/dev/nvme-fabrics")
    }

    /// With another sysfs and fabrics device (tests).
    pub fn at(sys: impl Into<PathBuf>, fabrics: impl Into<PathBuf>) -> Self {
        Self { sys: sys.into(), fabrics: fabrics.into() }
    }
}
