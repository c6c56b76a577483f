//! The label that a disk carries: two checksummed, generation-numbered copies of who the disk is and which runs of
//! extents belong to which volume. docs/on-disk-format.md is the byte-level description.
//!
//! Invariants: a single damaged byte or a write torn anywhere leaves a readable truth (the state before or after)
//! or a clear refusal, never a wrong label; generations only grow; no input from a disk panics.
//!
//! Must not know: what a volume is for, where time or ids come from, tokio, and (but for [`file`]) any real device.
//!
//! Bytes are encoded by hand, little-endian, rather than with zerocopy: records are of variable length, every field
//! is validated into a newtype anyway, and `layout` is then the one table that code and documentation share.

pub mod claim;
pub mod file;
mod header;
pub mod layout;
pub mod mem;
pub mod model;
mod page;
pub mod probe;
pub mod read;
mod record;
pub mod rescue;
mod signatures;
pub mod storage;
pub mod write;

pub use claim::{ClaimError, ClaimRequest, Claimed, Force, ReleaseError, claim, release};
pub use file::{FileStorage, OpenMode};
pub use mem::MemDisk;
pub use model::{Geometry, Identity, Label, PoolUid, RunEntry, RunState, VolumeEntry, VolumeSummary};
pub use probe::{Signature, probe_signatures};
pub use read::{CopyFault, CopyId, FoundLabel, OtherCopy, ReadLabelError, SizeChange, read_label};
pub use storage::{Storage, StorageError};
pub use write::{LabelDisk, OpenLabelError, UpdateLabelError, Updated};
