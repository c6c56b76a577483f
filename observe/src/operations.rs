//! How long operations take and how they end.
//!
//! Those of CSI bear the names that kubernetes-csi/csi-lib-utils gives them (metrics/metrics.go), so that dashboards made
//! for any driver show this one; others bear Weir's own.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::layer::UNIMPLEMENTED;

/// Bounds in seconds, as csi-lib-utils has them.
const CSI_BOUNDS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
/// The same for what is not CSI: looks, and requests that wait for nodes.
const OWN_BOUNDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];
/// How the methods of CSI's services begin.
const CSI: &str = "/csi.v1.";

/// The name of what is not implemented.
const UNKNOWN: &str = "unknown";

type CsiLabels = [(&'static str, String); 3];
type OwnLabels = [(&'static str, String); 2];

/// Seconds of gRPC operations, by method and code. Clones count together.
#[derive(Clone, Debug)]
pub struct Operations {
    driver: Arc<str>,
    csi: Family<CsiLabels, Histogram>,
    own: Family<OwnLabels, Histogram>,
}

impl Operations {
    /// Of the CSI driver of this name.
    pub fn new(driver: &str) -> Self {
        Self {
            driver: driver.into(),
            csi: Family::new_with_constructor(|| Histogram::new(CSI_BOUNDS)),
            own: Family::new_with_constructor(|| Histogram::new(OWN_BOUNDS)),
        }
    }

    /// Makes them part of what is told.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Container Storage Interface operation duration with gRPC error code status total";
        registry.register_with_unit("csi_plugin_operations", help, Unit::Seconds, self.csi.clone());
        let help = "Duration of operations beside CSI, by gRPC code";
        registry.register_with_unit("weir_operation", help, Unit::Seconds, self.own.clone());
    }

    /// Counts one. `path`: as `/csi.v1.Node/NodeStageVolume`. `code`: a gRPC code's name as Go has it, `OK` or `NotFound`.
    /// What is not implemented is counted without its name: callers must not be able to make up labels.
    pub fn record(&self, path: &str, code: &str, took: Duration) {
        let name = if code == UNIMPLEMENTED { UNKNOWN } else { path };
        let seconds = took.as_secs_f64();
        if path.starts_with(CSI) {
            let method = ("method_name", name.to_owned());
            let labels =
                [("driver_name", self.driver.to_string()), method, ("grpc_status_code", code.to_owned())];
            self.csi.get_or_create(&labels).observe(seconds);
        } else {
            let operation = name.rsplit('/').next().unwrap_or(name);
            let labels = [("operation", operation.to_owned()), ("code", code.to_owned())];
            self.own.get_or_create(&labels).observe(seconds);
        }
    }
}
