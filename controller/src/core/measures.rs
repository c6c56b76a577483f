//! What the core counts as it goes, and how things stand when somebody asks.

use std::{collections::BTreeMap, time::Duration};

use observe::prometheus::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use pool::{
    access::{Access, AccessState},
    ids::{NodeName, PoolName, VolumeId},
    moving::MoveCause,
    record::{Lifecycle, VolumeRecord},
    units::{Bytes, Extents},
};
use tokio::sync::broadcast;

use super::{engine::Engine, report::News};
use crate::fault::Cause;

/// Bounds in seconds of the time that a cut-over takes at the controller: a held write waits a little longer.
const CUT_OVER: [f64; 11] = [0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 2.0, 30.0];

/// Changes of volumes that a slow listener may be behind.
const NEWS: usize = 8192;

/// Why a node is shut out of a volume that it could write to, or that it was about to write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// It is the source of a migration whose target writes, or that has given the volume up.
    CutOver,
    /// It is the target of a cut-over that was given up: its write was held, and is failed.
    GivenUp,
    /// It has not been heard of: another node gets the volume, or it was given up in its name.
    DeadHolder,
}

impl Fence {
    const ALL: [Fence; 3] = [Fence::CutOver, Fence::GivenUp, Fence::DeadHolder];

    const fn as_str(self) -> &'static str {
        match self {
            Fence::CutOver => "cut-over",
            Fence::GivenUp => "cut-over-given-up",
            Fence::DeadHolder => "dead-holder",
        }
    }
}

/// The fences that a transition of a volume's access asks for. Who lets go of a volume that nobody waits for needs none, nor
/// does who could not write.
fn fences(
    cause: Cause,
    old: &AccessState,
    new: &AccessState,
    alive: &dyn Fn(&NodeName) -> bool,
) -> Vec<Fence> {
    let left = new.leaving.iter().filter(|(n, l)| l.wrote && old.leaving.get(*n) != Some(*l));
    let left: Vec<&NodeName> = left.map(|(n, _)| n).collect();
    match (cause, &old.access, &new.access) {
        (Cause::CutOver, _, Access::CuttingOver { source, .. }) if alive(source) => vec![Fence::CutOver],
        (Cause::CutOver, ..) => vec![Fence::DeadHolder],
        // Until now it was expected to fence itself.
        (Cause::CutOverLeft, _, Access::CuttingOver { source, .. }) if !alive(source) => {
            vec![Fence::DeadHolder]
        }
        (Cause::Abort, Access::CuttingOver { .. }, _) => vec![Fence::GivenUp],
        (Cause::Evict, ..) => vec![Fence::DeadHolder; left.len()],
        (Cause::Detach | Cause::Delete, ..) => {
            left.iter().filter(|n| !alive(n)).map(|_| Fence::DeadHolder).collect()
        }
        _ => vec![],
    }
}

/// Counted since the controller started. Clones count together.
#[derive(Clone, Debug)]
pub struct Measures {
    steps: Family<[(&'static str, &'static str); 1], Counter>,
    fences: Family<[(&'static str, &'static str); 1], Counter>,
    cut_overs: Histogram,
    proposed: Family<[(&'static str, &'static str); 2], Counter>,
    news: broadcast::Sender<News>,
}

impl Default for Measures {
    fn default() -> Self {
        let news = broadcast::channel(NEWS).0;
        let fences = Family::default();
        // From the start: a counter that appears with its first fence hides that one from `rate`.
        for f in Fence::ALL {
            drop(fences.get_or_create(&[("reason", f.as_str())]));
        }
        Self {
            steps: Family::default(),
            fences,
            cut_overs: Histogram::new(CUT_OVER),
            proposed: Family::default(),
            news,
        }
    }
}

impl Measures {
    /// A change of a volume's record is durable. `since`: the volume's note of when its cut-over began.
    pub(super) fn recorded(
        &self,
        volume: VolumeId,
        cause: Cause,
        now: Duration,
        since: &mut Option<Duration>,
    ) {
        // Nobody has to listen; who is slow learns how much was missed.
        if self.news.receiver_count() > 0 && self.news.send(News { volume, cause }).is_err() {
            tracing::debug!("nobody listens to news any more");
        }
        self.steps.get_or_create(&[("step", cause.as_str())]).inc();
        match cause {
            Cause::CutOver => *since = Some(now),
            Cause::Commit => {
                if let Some(begun) = since.take() {
                    self.cut_overs.observe(now.saturating_sub(begun).as_secs_f64());
                }
            }
            Cause::Abort => *since = None,
            _ => {}
        }
    }

    /// A move was proposed; it has begun, or was refused.
    pub(super) fn proposed(&self, cause: MoveCause, begun: bool) {
        let outcome = if begun { "begun" } else { "refused" };
        self.proposed.get_or_create(&[("cause", cause.as_str()), ("outcome", outcome)]).inc();
    }

    /// Changes of volumes from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Makes them part of what is told.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Changes of volumes' records, by what they are part of: evict is a fence of a dead holder";
        registry.register("weir_volume_steps", help, self.steps.clone());
        let help = "Nodes shut out of volumes that they could write to, by why";
        registry.register("weir_fences", help, self.fences.clone());
        let help = "Moves that were worth while, by why: begun, or refused for now";
        registry.register("weir_moves_proposed", help, self.proposed.clone());
        let help = "From the record that begins a cut-over to the one that ends it";
        registry.register_with_unit("weir_cutover", help, Unit::Seconds, self.cut_overs.clone());
    }
}

/// Room in a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Of all its disks that serve.
    pub size: Bytes,
    /// Of it, what volumes can be made of.
    pub free: Bytes,
    /// Of it, what waits to be wiped.
    pub unwiped: Bytes,
    /// Of what is free, what other nodes may have now.
    pub lendable: Bytes,
}

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Room by pool.
    pub pools: BTreeMap<PoolName, Room>,
    /// Disks by state.
    pub disks: BTreeMap<String, u64>,
    /// Nodes that are alive, and that are not.
    pub nodes: (u64, u64),
    /// Volumes by phase.
    pub volumes: BTreeMap<&'static str, u64>,
    /// Bytes that a node (the first) lends to another.
    pub loans: BTreeMap<(NodeName, NodeName), Bytes>,
}

impl Engine {
    /// Counts who is shut out by a volume's new record.
    pub(super) fn count_fences(&self, id: VolumeId, cause: Cause, old: &VolumeRecord) {
        let Some(v) = self.volumes.get(&id) else { return };
        for f in fences(cause, &old.access, &v.record.access, &|n| self.alive(n)) {
            self.measures.fences.get_or_create(&[("reason", f.as_str())]).inc();
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let mut t = Tally::default();
        for n in self.nodes.values().filter(|n| !n.is_forgotten()) {
            *if n.alive { &mut t.nodes.0 } else { &mut t.nodes.1 } += 1;
        }
        for s in self.disks.values().filter(|s| s.is_stored()) {
            let d = &s.record.disk;
            *t.disks.entry(d.state.to_string()).or_default() += 1;
            let bytes = |n: Extents| d.extent_size.checked_bytes_of(n).unwrap_or_default();
            let room = t.pools.entry(d.pool.clone()).or_default();
            if let Some(u) = self.pool.usage(d.id) {
                room.size = room.size.plus(bytes(d.extents));
                room.free = room.free.plus(bytes(u.free));
                room.unwiped = room.unwiped.plus(bytes(u.set_aside));
                let lendable = self.pool.lendable(d.id).unwrap_or_default();
                room.lendable = room.lendable.plus(bytes(lendable));
            }
        }
        for v in self.volumes.values().filter(|v| v.version.is_some()) {
            let phase = match v.record.lifecycle {
                Lifecycle::Deleting => "Deleting",
                Lifecycle::Active => phase(&v.record.access.access),
            };
            *t.volumes.entry(phase).or_default() += 1;
            for borrower in v.record.access.holders() {
                for run in v.record.map.runs() {
                    let Some(d) = self.disks.get(&run.disk).map(|s| &s.record.disk) else { continue };
                    if d.node != borrower {
                        let lent = t.loans.entry((d.node.clone(), borrower.clone())).or_default();
                        *lent = lent.plus(d.extent_size.checked_bytes_of(run.count).unwrap_or_default());
                    }
                }
            }
        }
        t
    }
}

/// What an access is called.
pub(super) fn phase(access: &Access) -> &'static str {
    match access {
        Access::Detached => "Detached",
        Access::Granting { .. } => "Granting",
        Access::Attached { .. } => "Attached",
        Access::Guarded { .. } => "Guarded",
        Access::CuttingOver { .. } => "CuttingOver",
    }
}
