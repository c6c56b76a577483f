//! The protocols Weir speaks, compiled from `proto/`: generated code, no logic.
//!
//! Messages, clients and servers come from `build.rs`, which compiles every `.proto` of the folder;
//! each protobuf package has one module here. This crate must not know pools, kernels or files.

use std::time::Duration;

/// Container Storage Interface 1.12.0, package `csi.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// What people and tests ask a controller beside CSI, package `weir.admin.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod admin {
    tonic::include_proto!("weir.admin.v1");
}

/// What people ask a controller and tell it to do, package `weir.operator.v1`. Its messages can be written as JSON.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod operator {
    tonic::include_proto!("weir.operator.v1");
}

/// The session between node plugins and the controller, package `weir.node.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod node {
    tonic::include_proto!("weir.node.v1");
}

/// Metadata of a refused session: where the reigning controller is found, `address:port`.
pub const LEADER: &str = "weir-leader";

/// How long a controller may take to find out who opens a session, by asking others (the API server, of a token): a node
/// waits for longer than that.
pub const IDENTIFY: Duration = Duration::from_secs(10);

/// How a plugin makes itself known to the kubelet, package `pluginregistration` (v1).
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Every field the protocols mark with `csi_secret`, as (full message name, field name), sorted.
///
/// Values of these fields must not reach a log, a status message or a store. The generated `Debug`
/// prints them. `VolumeCapability.MountVolume.mount_flags` may be sensitive too, but carries no mark.
pub const SECRET_FIELDS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/secret_fields.rs"));
