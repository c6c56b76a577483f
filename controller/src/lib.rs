//! The controller: allocates, places, attaches, cuts over. A shell around the pure room `pool`: observe -> plan -> record ->
//! tell. It never touches a device.

pub mod admin;
pub mod admission;
pub mod api;
pub mod certificates;
pub mod cluster;
pub mod config;
pub mod core;
pub mod csi;
mod face;
pub mod fault;
pub mod flow;
pub mod identity;
mod late;
mod metrics;
pub mod operator;
pub mod pools;
pub mod remains;
pub mod report;
pub mod serve;
pub mod session;
mod status;
pub mod store;
pub mod tls;
