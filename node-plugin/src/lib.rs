//! The node plugin: claims disks, builds device stacks, exports and imports slices, serves the CSI Node service.

pub mod agent;
pub mod config;
pub mod convert;
pub mod csi;
pub mod disks;
pub mod disks_api;
pub mod flow;
pub mod kubelet;
pub mod limits;
mod metrics;
pub mod retirements;
pub mod serve;
pub mod session;
pub mod volumes_api;
