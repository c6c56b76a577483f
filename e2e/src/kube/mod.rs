//! Kubernetes on this machine's loopback and in the lab's nodes, from the published Go modules that the wrapper modules in
//! e2e/kube pin.
//!
//! Invariants: nothing is listened on but the loopback; every process ends with the one that started it, however that ends,
//! unless a cluster was made to last; a program is built once for a wrapper module and a Go version and kept in the lab's
//! cache.

mod binaries;
pub mod cluster;
pub mod dns;
mod images;
mod node;
mod pki;
mod plane;

pub use binaries::{Program, ensure, ensure_all};
pub use cluster::KubeCluster;
pub use images::{ATTACHER, BUSYBOX, TOOLBOX};
pub use plane::ControlPlane;
