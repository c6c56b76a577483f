//! Weir's control of the kernel: device-mapper, nvmet, nvme over TCP, block devices, mounts, control groups.
//!
//! Every call here is synchronous and may block for as long as the kernel likes (a flush below a dead path, a
//! connect to a dead peer). Callers run them on threads of their own, under [`deadline`]. Invariants: nothing
//! here is on the I/O path; every error keeps its errno and answers its [`Class`]; what a call creates and
//! cannot finish, it removes again, and says so when it could not. Must not know: records, goals, epochs, the
//! protocol, an async runtime.

pub mod block;
pub mod cgroup;
pub mod deadline;
pub mod devno;
pub mod dm;
pub mod error;
pub mod health;
pub mod mount;
pub mod nvme;
pub mod nvmet;
pub mod scsi;
mod sysfs;
pub mod uevent;

pub use devno::DevNo;
pub use error::Class;
pub use sysfs::AttrError;

/// What an `ensure_*` call found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was missing, or there only in part, and has been made.
    Created,
    /// It was there as wanted; nothing was touched.
    Identity,
    /// It was there otherwise and has been changed.
    Swapped,
}
