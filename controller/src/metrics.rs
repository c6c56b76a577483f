//! What a controller measures, for `/metrics`: little while it stands by, all once it reigns.

use std::{collections::BTreeMap, fmt, sync::atomic::AtomicU64, time::Duration};

use observe::{
    Operations,
    prometheus::{
        collector::Collector,
        encoding::{DescriptorEncoder, EncodeMetric as _},
        metrics::{
            MetricType,
            counter::ConstCounter,
            gauge::{ConstGauge, Gauge},
        },
        registry::{Registry, Unit},
    },
};
use pool::ids::Term;
use tokio::{runtime, time::timeout};

use crate::{
    core::{Handle, Tally},
    flow::{Flow, reason_word},
    identity::Refusals,
};

/// How long the core may take to count: less than whoever collects waits for all of it ([`observe::PATIENCE`]).
const COUNTING: Duration = Duration::from_secs(3);
const _: () = assert!(COUNTING.as_millis() < observe::PATIENCE.as_millis());

/// Who reigns, as far as this controller is concerned. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crown {
    reigns: Gauge,
    term: Gauge<u64, AtomicU64>,
}

impl Crown {
    /// This controller reigns.
    pub(crate) fn take(&self, term: Term) {
        self.term.set(term.get());
        self.reigns.set(1);
    }

    /// It does not any more.
    pub(crate) fn lay_down(&self) {
        self.reigns.set(0);
        self.term.set(0);
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("weir_controller_reigns", "Whether this controller reigns", self.reigns.clone());
        let help = "The term in which this controller reigns; 0 while it does not";
        registry.register("weir_controller_term", help, self.term.clone());
    }
}

/// The metrics of a controller that does not reign.
pub(crate) fn standby(crown: &Crown, operations: &Operations) -> Registry {
    let mut r = Registry::default();
    operations.register(&mut r);
    crown.register(&mut r);
    r
}

/// All metrics of a controller that reigns.
pub(crate) fn registry(
    handle: &Handle,
    crown: &Crown,
    operations: &Operations,
    refused: &Refusals,
) -> Registry {
    let mut r = standby(crown, operations);
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
        // Whether the core answers is for `/livez` to say: what is known without it is told all the same.
        match self.runtime.block_on(async { timeout(COUNTING, self.handle.tally()).await }) {
            Ok(Ok(t)) => encode(&t, &mut to)?,
            Ok(Err(e)) => tracing::warn!(error = %e, "no numbers of the core"),
            Err(_) => tracing::warn!("no numbers of the core: it has not answered for {COUNTING:?}"),
        }
        encode_flow(self.handle.flow(), &mut to)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use observe::prometheus::encoding::text;

    use super::*;
    use crate::{
        core::{Core, CoreConfig},
        fault::Fault,
        store::embedded::Embedded,
    };

    #[tokio::test]
    async fn a_core_that_does_not_answer_keeps_only_its_own_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&dir.path().join("records")).unwrap());
        let (core, handle) = Core::start(CoreConfig::default(), store, Fault::none()).await.unwrap();
        let operations = Operations::new("csi.weir.storage");
        let all = Arc::new(registry(&handle, &Crown::default(), &operations, &Refusals::default()));
        let collect = |all: Arc<Registry>| async {
            let body = move || {
                let mut text = String::new();
                text::encode(&mut text, &all).map(|()| text)
            };
            let text = tokio::task::spawn_blocking(body);
            timeout(Duration::from_secs(60), text).await.expect("it does not wait for ever").unwrap().unwrap()
        };
        // It has not begun to run.
        let text = collect(all.clone()).await;
        assert!(text.contains("weir_histories{of=\"disk\"} 0\n"), "{text}");
        assert!(!text.contains("weir_nodes"), "{text}");
        let core = tokio::spawn(core.run());
        // It may take longer than is waited for, on a machine that has more to do.
        let numbers =
            async { while !collect(all.clone()).await.contains("weir_nodes{state=\"alive\"} 0\n") {} };
        timeout(Duration::from_secs(60), numbers).await.unwrap();
        core.abort();
    }
}
