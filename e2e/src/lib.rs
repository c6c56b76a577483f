//! The lab: whole clusters on one machine, from QEMU nodes that run a stock distribution kernel, and what is run in them.
//!
//! [`lab`] is the host's side (build, boot, command and break nodes), [`agent`] the side inside a node, [`proto`] what
//! they say to each other. Tests start at [`lab::Lab::builder`]. Nothing here knows the inside of Weir's own crates.

pub mod agent;
pub mod bench;
pub mod cli;
pub mod cluster;
pub mod demo;
pub mod kube;
pub mod lab;
mod manifests;
pub mod mux;
mod nvmet;
pub mod proto;
pub mod runner;
pub mod suite;
pub mod verify;
pub mod vm;
pub mod wait;
