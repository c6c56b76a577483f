//! Device-mapper: devices, tables, swaps, guards.
//!
//! The ioctls are issued directly rather than through the `devicemapper` crate (which needs libclang to build,
//! and whose resume takes no flags) or dmsetup (a fork and exec costs more than a swap may). Weir depends on
//! details that have to be exact: a resume that finds an inactive table and carries `DM_NOFLUSH_FLAG` (without
//! it, queued writes get EIO), `DM_DEV_ARM_POLL`, `DM_TABLE_CLEAR`, and buffers that grow.
//!
//! Invariants: a device is found by its UUID, never by its name alone; a fresh device whose table cannot be
//! loaded or resumed is removed again; a device whose swap fails is resumed with its old table; nothing waits
//! for udev. Must not know: volumes, roles, epochs.

mod abi;
mod buf;
mod control;
mod device;
mod error;
mod events;
mod guard;
mod node;
mod parse;
mod stats;
mod status;
mod table;
mod throttle;

pub use control::{Control, DeviceInfo, ListedDevice, RawTarget, TargetVersion, Which};
pub use device::DeviceSpec;
pub use error::DmError;
pub use events::EventPoll;
pub use guard::{HOLD_MS, guard_top, guard_write_leg};
pub use node::{dev_node_path, ensure_dev_node, remove_dev_node};
pub use stats::{AreaStat, Region};
pub use status::{DelayStatus, MirrorStatus, MultipathStatus, PathState};
pub use table::{BadTable, DelayLeg, Line, Stripe, Table, Target};
pub use throttle::set_mirror_throttle;
