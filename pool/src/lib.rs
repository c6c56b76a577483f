//! The pure room: ids, units, disks, extents, volumes, allocation, attachment and migration, device stacks.
//!
//! Invariants: no I/O, no clock, no randomness, no async runtime; time and random bits are arguments. Everything
//! here can be run a million times a minute by a test.

pub mod access;
pub mod alloc;
pub mod disk;
pub mod free;
pub mod goals;
pub mod ids;
pub mod layout;
pub mod moving;
pub mod names;
pub mod planner;
pub mod policy;
pub mod record;
pub mod stack;
pub mod units;
pub mod volume;
