//! How long operations take and how they end.

use std::time::Duration;

use prometheus_client::{
    metrics::{family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Bounds in seconds: from a call that only looks to one that waits for a dead node's lease.
const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

type Labels = [(&'static str, String); 2];

/// Seconds of gRPC operations, by operation and code. Clones count together.
#[derive(Clone, Debug)]
pub struct Operations(Family<Labels, Histogram>);

impl Default for Operations {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(BOUNDS)))
    }
}

impl Operations {
    /// Makes them part of what is told.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Duration of CSI operations, by gRPC code";
        registry.register_with_unit("weir_csi_operation", help, Unit::Seconds, self.0.clone());
    }

    /// Counts one. `code` is a gRPC code's name, as `Ok` or `NotFound`.
    pub fn record(&self, operation: &str, code: &str, took: Duration) {
        let labels = [("operation", operation.to_owned()), ("code", code.to_owned())];
        self.0.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
