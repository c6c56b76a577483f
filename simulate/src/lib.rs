//! `weir simulate`: forecasts and policies over traces or generated load, without a cluster.
//!
//! Invariants: the same trace and seed give the same numbers on every machine and run, times and memory apart ([`scale`]). Must not
//! know real nodes.

pub mod cluster;
pub mod command;
pub mod compare;
pub mod evaluate;
pub mod generate;
pub mod nodes;
pub mod plot;
pub mod policy;
pub mod random;
pub mod scale;
pub mod trace;
