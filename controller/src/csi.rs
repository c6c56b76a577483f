//! The CSI front end: Identity and Controller services over [`crate::api::Api`].
//!
//! Invariants: a request is checked here for what the CSI specification demands of its form; what it means is the
//! core's. No secret reaches a log: requests are never printed whole. Must not know: stores, nodes, allocation.

mod controller;
mod convert;
mod identity;

pub use controller::ControllerService;
pub use identity::IdentityService;
