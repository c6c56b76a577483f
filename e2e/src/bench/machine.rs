//! Where something was measured: numbers of an emulated node say nothing without it.

use anyhow::Result;
use serde::Serialize;

use crate::lab::Lab;

/// The lab and its host.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    pub(super) accelerator: String,
    pub(super) kernel: String,
    pub(super) host_cpus: usize,
    pub(super) nodes: usize,
    pub(super) node_cpus: u8,
    pub(super) node_memory_mib: u32,
}

impl Machine {
    /// Of a lab that runs.
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        let config = lab.config();
        Ok(Self {
            accelerator: config.accel.as_str().to_owned(),
            kernel: lab.kernel().to_owned(),
            host_cpus: std::thread::available_parallelism()?.get(),
            nodes: lab.nodes().len(),
            node_cpus: config.cpus,
            node_memory_mib: config.memory,
        })
    }

    /// One that tests may print.
    #[cfg(test)]
    pub(super) fn example() -> Self {
        let (accelerator, kernel) = ("tcg".to_owned(), "6.1".to_owned());
        Self { accelerator, kernel, host_cpus: 2, nodes: 3, node_cpus: 1, node_memory_mib: 640 }
    }
}
