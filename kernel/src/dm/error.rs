//! Errors of the device-mapper room.

use std::io;

use rustix::io::Errno;

use super::table::BadTable;
use crate::Class;

/// Why a device-mapper call failed.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// The control device could not be opened or made.
    #[error("open /dev/mapper/control: {0}; is the dm_mod module loaded?")]
    Control(#[source] io::Error),
    /// An ioctl failed.
    #[error("device-mapper {op} of {device}: {source}")]
    Ioctl {
        /// Which call.
        op: &'static str,
        /// Name or UUID of the device; `-` when none is concerned.
        device: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The kernel's answer could not be understood.
    #[error("device-mapper {op} of {device} answered something unreadable: {why}")]
    Malformed {
        /// Which call.
        op: &'static str,
        /// The device.
        device: String,
        /// What was wrong.
        why: String,
    },
    /// A name, UUID, message or table that the kernel's interface cannot carry.
    #[error("{what} of {device} has {got} bytes, the kernel takes {max}")]
    TooLong {
        /// Which argument.
        what: &'static str,
        /// The device.
        device: String,
        /// Its length.
        got: usize,
        /// What is allowed.
        max: usize,
    },
    /// A table that is none.
    #[error("table of {device}: {source}")]
    Table {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: BadTable,
    },
    /// Name and UUID do not belong together: another device has one of them.
    #[error("{device} exists with UUID {found:?}, expected {wanted:?}; not touched")]
    Foreign {
        /// The name.
        device: String,
        /// What the kernel has.
        found: String,
        /// What was expected.
        wanted: String,
    },
    /// There is no inactive table to commit.
    #[error("{device} has no preloaded table")]
    NothingPreloaded {
        /// The device.
        device: String,
    },
    /// The node under /dev/mapper could not be made or removed.
    #[error("device node of {device}: {source}")]
    Node {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step failed and so did undoing what came before it: the device is as neither wanted nor before.
    #[error("{cause}; undoing it failed too: {rollback}")]
    RollbackFailed {
        /// What failed first.
        #[source]
        cause: Box<DmError>,
        /// What failed then.
        rollback: Box<DmError>,
    },
}

impl DmError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            DmError::Control(e) => Class::of_io(e),
            DmError::Node { source, .. } => Class::of_io(source),
            DmError::Ioctl { source, .. } => Class::of(*source),
            DmError::Malformed { .. } => Class::OutcomeUnknown,
            DmError::TooLong { .. }
            | DmError::Table { .. }
            | DmError::Foreign { .. }
            | DmError::NothingPreloaded { .. } => Class::Permanent,
            DmError::RollbackFailed { .. } => Class::OutcomeUnknown,
        }
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            DmError::Ioctl { source, .. } => Some(*source),
            DmError::Control(e) => crate::error::errno(e),
            DmError::Node { source, .. } => crate::error::errno(source),
            DmError::RollbackFailed { cause, .. } => cause.errno(),
            DmError::Malformed { .. }
            | DmError::TooLong { .. }
            | DmError::Table { .. }
            | DmError::Foreign { .. }
            | DmError::NothingPreloaded { .. } => None,
        }
    }

    /// Whether the kernel says that there is no such device. Not to be taken as "it was removed by us".
    pub fn is_not_found(&self) -> bool {
        matches!(self, DmError::Ioctl { source, .. } if *source == Errno::NXIO)
    }

    /// Joins a failure with the outcome of undoing it.
    pub(crate) fn after_rollback(self, rollback: Result<(), DmError>) -> DmError {
        match rollback {
            Ok(()) => self,
            Err(r) => DmError::RollbackFailed { cause: Box::new(self), rollback: Box::new(r) },
        }
    }
}
