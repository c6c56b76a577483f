//! What a controller measures, for `/metrics`.

use std::fmt;

use observe::{
    Operations,
    prometheus::{
        collector::Collector,
        encoding::{DescriptorEncoder, EncodeMetric as _},
        metrics::{MetricType, gauge::ConstGauge},
        registry::{Registry, Unit},
    },
};
use tokio::runtime;

use crate::core::{Handle, Tally};

/// All metrics of a controller.
pub(crate) fn registry(handle: &Handle, operations: &Operations) -> Registry {
    let mut r = Registry::default();
    operations.register(&mut r);
    handle.measures().register(&mut r);
    r.register_collector(Box::new(Gauges { handle: handle.clone(), runtime: runtime::Handle::current() }));
    r
}

/// Read from the core when somebody asks. Asked on a thread that may block.
struct Gauges {
    handle: Handle,
    runtime: runtime::Handle,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

impl Collector for Gauges {
    fn encode(&self, to: DescriptorEncoder<'_>) -> fmt::Result {
        match self.runtime.block_on(self.handle.tally()) {
            Ok(t) => encode(&t, to),
            Err(e) => {
                tracing::warn!(error = %e, "no numbers");
                Ok(())
            }
        }
    }
}

fn encode(t: &Tally, mut to: DescriptorEncoder<'_>) -> fmt::Result {
    let pools = t.pools.iter().flat_map(|(p, r)| {
        let row = |kind: &str, b: pool::units::Bytes| {
            (vec![("pool", p.to_string()), ("kind", kind.to_owned())], b.get())
        };
        [row("size", r.size), row("free", r.free), row("unwiped", r.unwiped)]
    });
    let help = "Room in pools: size of the disks that serve, of it free, and waiting to be wiped";
    family(&mut to, "weir_pool", help, Some(&Unit::Bytes), pools)?;
    let disks = t.disks.iter().map(|(state, n)| (vec![("state", state.clone())], *n));
    family(&mut to, "weir_disks", "Pool disks, by state", None, disks)?;
    let nodes = [("alive", t.nodes.0), ("dead", t.nodes.1)];
    let nodes = nodes.map(|(state, n)| (vec![("state", state.to_owned())], n));
    family(&mut to, "weir_nodes", "Nodes, by whether their lease runs", None, nodes)?;
    let volumes = t.volumes.iter().map(|(phase, n)| (vec![("phase", (*phase).to_owned())], *n));
    family(&mut to, "weir_volumes", "Volumes, by who has them", None, volumes)?;
    let loans = t.loans.iter().map(|((lender, borrower), b)| {
        (vec![("lender", lender.to_string()), ("borrower", borrower.to_string())], b.get())
    });
    family(&mut to, "weir_loans", "What nodes lend to others", Some(&Unit::Bytes), loans)
}

fn family(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    rows: impl IntoIterator<Item = (Vec<(&'static str, String)>, u64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for (labels, n) in rows {
        ConstGauge::new(n).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
