//! The custom resources of group `weir.storage/v1alpha1`: what they look like, and how they relate to the records of
//! the pure room.
//!
//! In a cluster the `spec` of [`LogicalVolume`], [`NodeDisk`] and [`StorageNode`] *is* the controller's record: one write of it
//! is one decision, so nothing that must not be lost stands in a `status`, which tools are free to drop. `status` is
//! for people and follows from records alone. [`StoragePool`] is written by people, in the cluster or in a
//! controller's configuration file: one shape for both.
//!
//! Invariants: a record goes into a resource and comes back the same ([`convert`]); the schemas in `charts/weir/crds` are
//! generated from these types ([`crds`]). Must not know: how resources are stored, who writes them when.

// The lint takes each printer column's name for one attribute given many times.
#![allow(clippy::duplicated_attributes)]

mod condition;
pub mod convert;
pub mod crds;
mod disk;
mod node;
pub mod parameters;
mod pool_resource;
mod quantity;
pub mod reference;
mod schema;
mod snapshot;
mod span;
mod volume;

pub use condition::{Condition, ConditionStatus, set_condition};
pub use disk::{DiskState, NodeDisk, NodeDiskSpec, NodeDiskStatus, Wipe};
pub use node::{StorageNode, StorageNodeSpec, StorageNodeStatus};
pub use pool_resource::{
    BadPool, DeviceClass, DeviceSelector, ExtentSizeQuantity, FreshDisks, MoveSettings, NodeSelector,
    StoragePool, StoragePoolSpec, StoragePoolStatus,
};
pub use quantity::{BadQuantity, Quantity};
pub use snapshot::{LogicalSnapshot, LogicalSnapshotSpec, LogicalSnapshotStatus};
pub use span::{BadSpan, Span};
pub use volume::{
    Access, AccessPhase, Choice, Claim, HistoryLine, Layout, LayoutType, Leaving, Leg, LogicalVolume,
    LogicalVolumeSpec, LogicalVolumeStatus, Mode, Moving, Params, Placement, Rejection, Segment, Spare,
    Stretch,
};

/// The group of all resources.
pub const GROUP: &str = "weir.storage";
/// Their version.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all resources.
pub const API_VERSION: &str = "weir.storage/v1alpha1";
/// The finalizer of resources that are records: `kubectl delete` marks them, and takes no record away.
pub const RECORD_FINALIZER: &str = "weir.storage/record";
