//! Where the server's certificate comes from: files that somebody else renews, or the cluster, where the reigning controller
//! makes a CA and certificates of its own and renews them.
//!
//! Invariant: a new certificate is used without a restart, and what cannot be read leaves the last one in use. Must not
//! know: sessions.

pub mod cluster;
mod files;
mod mint;
pub mod plan;

pub use files::{FilesError, watch_files};
pub use mint::{MintError, Pair};
