//! The disks of this node: which devices there are, which of them are the pool's, their labels, their wipes.
//!
//! Invariants: a device is written to only as the controller's goal says, and only after it was read again right
//! before; nothing is zeroed while a device-mapper table maps it or while the label gives it to another volume;
//! each disk has threads of its own, so one that hangs delays no other and never the session; a device that is not
//! seen is called missing only after every device was looked at.
//!
//! Must not know: exports, attachments, the session's transport.

mod devices;
mod hardware;
mod room;
mod slot;
mod uevents;
mod wiper;

pub use hardware::{Found, Hardware, HardwareError, KernelHardware, Mapping};
pub use room::{DiskRoom, start};

#[cfg(test)]
mod tests;
