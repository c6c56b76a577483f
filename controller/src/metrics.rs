//! What a controller measures, for `/metrics`.

use std::{collections::BTreeMap, fmt};

use observe::{
    Operations,
    prometheus::{
        collector::Collector,
        encoding::{DescriptorEncoder, EncodeMetric as _},
        metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
        registry::{Registry, Unit},
    },
};
use tokio::runtime;

use crate::{
    core::{Handle, Tally},
    flow::{Flow, reason_word},
    identity::Refusals,
};

/// All metrics of a controller.
pub(crate) fn registry(handle: &Handle, operations: &Operations, refused: &Refusals) -> Registry {
    let mut r = Registry::default();
    operations.register(&mut r);
    refused.register(&mut r);
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
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        match self.runtime.block_on(self.handle.tally()) {
            Ok(t) => {
                encode(&t, &mut to)?;
                encode_flow(self.handle.flow(), &mut to)
            }
            Err(e) => {
                tracing::warn!(error = %e, "no numbers");
                Ok(())
            }
        }
    }
}

fn encode(t: &Tally, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let pools = t.pools.iter().flat_map(|(p, r)| {
        let row = |kind: &str, b: pool::units::Bytes| {
            (vec![("pool", p.to_string()), ("kind", kind.to_owned())], b.get())
        };
        [row("size", r.size), row("free", r.free), row("unwiped", r.unwiped), row("lendable", r.lendable)]
    });
    let help = "Room in pools: size of the disks that serve, of it free, waiting to be wiped, and to lend";
    family(to, "weir_pool", help, Some(&Unit::Bytes), pools)?;
    let disks = t.disks.iter().map(|(state, n)| (vec![("state", state.clone())], *n));
    family(to, "weir_disks", "Pool disks, by state", None, disks)?;
    let nodes = [("alive", t.nodes.0), ("dead", t.nodes.1)];
    let nodes = nodes.map(|(state, n)| (vec![("state", state.to_owned())], n));
    family(to, "weir_nodes", "Nodes, by whether their lease runs", None, nodes)?;
    let volumes = t.volumes.iter().map(|(phase, n)| (vec![("phase", (*phase).to_owned())], *n));
    family(to, "weir_volumes", "Volumes, by who has them", None, volumes)?;
    let loans = t.loans.iter().map(|((lender, borrower), b)| {
        (vec![("lender", lender.to_string()), ("borrower", borrower.to_string())], b.get())
    });
    family(to, "weir_loans", "What nodes lend to others", Some(&Unit::Bytes), loans)
}

fn encode_flow(flow: &Flow, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut reasons: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (_, o) in flow.offers() {
        *reasons.entry(("space", reason_word(&o.space_reason))).or_default() += 1;
        *reasons.entry(("io", reason_word(&o.io_reason))).or_default() += 1;
    }
    let offers = reasons
        .into_iter()
        .map(|((of, reason), n)| (vec![("of", of.to_owned()), ("reason", reason.to_owned())], n));
    family(to, "weir_offers", "Disks by why they lend what they lend", None, offers)?;
    let help = "Loans that are slowed because the owner of the lent disk waits";
    family(to, "weir_loans_slowed", help, None, [(vec![], flow.bounded())])?;
    let (disks, volumes) = flow.counts();
    let known = [("disk", disks), ("volume", volumes)].map(|(of, n)| (vec![("of", of.to_owned())], n));
    family(to, "weir_histories", "What has a history", None, known)?;
    let heard = flow.heard();
    let heard = [("taken", heard.recordings), ("lost", heard.lost)];
    let mut family = to.encode_descriptor(
        "weir_recordings",
        "What nodes recorded: taken in, and lost on the way",
        None,
        MetricType::Counter,
    )?;
    for (outcome, n) in heard {
        ConstCounter::new(n).encode(family.encode_family(&[("outcome", outcome)])?)?;
    }
    Ok(())
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
