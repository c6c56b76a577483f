//! The node plugin: claims disks, builds device stacks, exports and imports slices, serves the CSI Node service.

pub mod disks_api;
pub mod volumes_api;
