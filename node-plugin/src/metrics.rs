//! What a node plugin measures of itself: counted by its parts, or read from them when somebody asks; nothing twice.

use std::{fmt, sync::Arc, time::Duration};

use observe::{
    Operations, Verdict,
    prometheus::{
        collector::Collector,
        encoding::{DescriptorEncoder, EncodeMetric as _},
        metrics::gauge::ConstGauge,
        registry::Registry,
    },
};
use tokio::sync::watch;

use crate::{agent::Agent, flow::Recorder, kubelet::Standing};

/// A kernel call that has not returned for so long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// Where the numbers come from.
pub(crate) struct Gauges {
    /// Volumes, exports, disks, kernel calls.
    pub(crate) agent: Arc<Agent>,
    /// Histories.
    pub(crate) recorder: Arc<Recorder>,
    /// The session.
    pub(crate) session_up: watch::Receiver<Verdict>,
    /// The kubelet, where the plugin registers itself.
    pub(crate) registered: Option<watch::Receiver<Standing>>,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

/// All metrics of a node plugin.
pub(crate) fn registry(gauges: Gauges, operations: &Operations) -> Registry {
    let mut r = Registry::default();
    operations.register(&mut r);
    gauges.agent.held_writes().register(&mut r);
    r.register_collector(Box::new(gauges));
    r
}

impl Collector for Gauges {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.agent.book().counts();
        let by_state = [
            ("weir_node_volumes", "Volumes with devices on this node, by state", &counts.attachments),
            ("weir_node_exports", "Slices lent to other nodes, by state", &counts.exports),
            ("weir_node_disks", "Pool disks of this node, by condition", &counts.disks),
        ];
        for (name, help, states) in by_state {
            let mut family = to.encode_descriptor(name, help, None, ConstGauge::new(0_u64).metric_type())?;
            for (state, n) in states {
                let labels = [("state", state.to_lowercase())];
                ConstGauge::new(*n).encode(family.encode_family(&labels)?)?;
            }
        }
        let up = u64::from(self.session_up.borrow().is_ok());
        let (disks, volumes) = self.recorder.counts();
        let by_kind = [("disk", disks), ("volume", volumes)];
        let (name, help) = ("weir_node_histories", "What has a history on this node");
        let mut family = to.encode_descriptor(name, help, None, ConstGauge::new(0_u64).metric_type())?;
        for (of, n) in by_kind {
            ConstGauge::new(n).encode(family.encode_family(&[("of", of)])?)?;
        }
        let stuck = self.agent.calls().older_than(STUCK).len() as u64;
        let singles = [
            ("weir_node_session_up", "Whether a controller has said what this node should have", up),
            ("weir_node_legs_queueing", "Borrowed parts without a path: their I/O waits", counts.queueing),
            ("weir_node_writes_held", "Guards that hold the first write of a migration", counts.held),
            ("weir_node_wipes", "Wipes under way or waiting", counts.wiping),
            ("weir_node_kernel_calls_stuck", "Kernel calls that have not returned for 10 s", stuck),
        ];
        for (name, help, n) in singles {
            one(&mut to, name, help, n)?;
        }
        if let Some(r) = &self.registered {
            let n = u64::from(*r.borrow() == Standing::Registered);
            one(&mut to, "weir_node_kubelet_registered", "Whether the kubelet has taken the plugin", n)?;
        }
        Ok(())
    }
}

fn one(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, n: u64) -> fmt::Result {
    let gauge = ConstGauge::new(n);
    gauge.encode(to.encode_descriptor(name, help, None, gauge.metric_type())?)
}
