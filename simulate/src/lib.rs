//! The planner's methods over traces and generated load, without a cluster.

pub mod command;
pub mod evaluate;
pub mod nodes;
pub mod random;
pub mod trace;
