//! What people see of Weir in the cluster: `status` of its resources, and events on claims, nodes and disks.
//!
//! It follows from the core and changes nothing there; nothing is decided by it, and all of it may be lost. Only the reigning
//! controller writes. Invariants: a status is written when it says something new, not more often than people read; the API
//! server being away, or silent, delays it and does nothing else; one object's trouble holds no other up. Must not know: how
//! records are kept.

mod events;
mod plan;
mod todo;
mod troubles;
mod waiting;
mod writer;

pub use waiting::Waiting;
pub use writer::Reporter;
