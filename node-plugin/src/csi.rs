//! The CSI Identity and Node services.
//!
//! Invariants: what stands is read from the kernel (mounts, device-mapper), never from a record of its own, so a
//! restart at any point converges; a device is formatted only after it was read and found without any signature;
//! one operation a volume at a time, until the last thread of it has returned; secrets and mount flags never reach
//! a log or a message.
//!
//! Must not know: the session with the controller, device stacks, labels.

mod capability;
mod error;
mod faults;
mod identity;
mod locks;
mod node;
mod paths;
mod publish;
mod socket;
mod stage;
mod stats;
mod superblock;
mod tools;
mod work;

pub use capability::{Access, AccessMode, Capability};
pub use error::CsiError;
pub use faults::{Faults, Point};
pub use identity::{IdentityService, Readiness};
pub use node::{NodeService, NodeSettings};
pub use socket::{SocketError, bind, serve};
pub use tools::{KernelTools, Tools};

#[cfg(test)]
mod tests;
