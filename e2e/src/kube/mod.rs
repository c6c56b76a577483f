//! A Kubernetes control plane on this machine's loopback, from the published Go modules that the wrapper modules in
//! e2e/kube pin.
//!
//! Invariants: nothing is listened on but 127.0.0.1; every process ends with the one that started it, however that ends; a
//! program is built once for a wrapper module and a Go version and kept in the lab's cache.

mod binaries;
mod pki;
mod plane;

pub use binaries::{Program, ensure};
pub use plane::ControlPlane;
