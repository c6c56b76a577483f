//! Block devices: what they are, how busy they are, which of them may become pool disks, and wiping them.
//!
//! Invariants: a device is named by its number; a candidate is only called free after an exclusive open of it
//! succeeded; wiping means zeroes that were written or that the device promised to return, never a discard
//! alone. Must not know: labels, extents.

mod candidates;
mod device;
mod stat;
mod zero;

pub use candidates::{Candidate, Rejected, candidates, candidates_where, find_disk};
pub use device::{BlockDevice, Identity, Limits};
pub use stat::{DiskStat, Inflight, parse_diskstats};
pub use zero::{DEFAULT_CHUNK, Progress, flush, zero_range};

use std::{io, path::PathBuf};

use crate::{Class, DevNo, sysfs::AttrError};

/// Why a block device call failed.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The path is no block device or cannot be opened.
    #[error("{op} {path}: {source}")]
    Path {
        /// Which call.
        op: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel shows no such device.
    #[error("there is no block device {0}")]
    NoDevice(DevNo),
    /// An attribute failed.
    #[error(transparent)]
    Attr(#[from] AttrError),
    /// A device that cannot be found, or is not the only one, under what was asked for.
    #[error("disk {wanted:?}: {why}")]
    Unresolved {
        /// What was asked for.
        wanted: String,
        /// Why.
        why: String,
    },
    /// The range is not aligned to the device's blocks, or ends past its end.
    #[error("range {offset}+{len} of a device of {size} bytes with blocks of {block}")]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Of the device.
        size: u64,
        /// Of a block.
        block: u64,
    },
    /// Zeroing failed; what lies before `done` is zero.
    #[error("zeroing at byte {at} ({done} bytes done): {source}")]
    Zero {
        /// Where.
        at: u64,
        /// How much was done.
        done: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Zeroing was told to stop; what lies before `done` is zero.
    #[error("zeroing was stopped after {done} bytes")]
    Aborted {
        /// How much was done.
        done: u64,
    },
    /// A flush failed: what was written before it may be lost, and another flush would not tell.
    #[error("flush: {0}")]
    Flush(#[source] io::Error),
}

impl BlockError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            BlockError::Path { source, .. } => Class::of_io(source),
            BlockError::NoDevice(_) => Class::Transient,
            BlockError::Attr(e) => e.class(),
            BlockError::Unresolved { .. } | BlockError::Range { .. } => Class::Permanent,
            // Zeroing again is always safe, and what is done is known.
            BlockError::Zero { source, .. } => match Class::of_io(source) {
                Class::OutcomeUnknown => Class::Transient,
                other => other,
            },
            BlockError::Aborted { .. } => Class::Transient,
            BlockError::Flush(_) => Class::OutcomeUnknown,
        }
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            BlockError::Path { source, .. } | BlockError::Zero { source, .. } | BlockError::Flush(source) => {
                crate::error::errno(source)
            }
            BlockError::Attr(e) => e.errno(),
            BlockError::NoDevice(_)
            | BlockError::Unresolved { .. }
            | BlockError::Range { .. }
            | BlockError::Aborted { .. } => None,
        }
    }
}
