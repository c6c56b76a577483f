//! The core against scripted nodes: what it decides, what it tells, what survives it.
#![allow(clippy::unwrap_used)]

mod cluster;
mod disks;
mod drains;
mod feed;
mod kubernetes;
mod moves;
mod node;
mod parting;
mod plans;
mod proposals;
mod restart;
mod rig;
mod scale;
mod store;
mod stores;
mod wire;
mod world;
