//! Who may touch a volume: attachment, live migration by guarded cut-over, eviction of the dead. One transition
//! table, run by the controller against one record; everything that nodes are told follows from the record
//! ([`crate::goals`]), so a controller that dies between any two steps loses nothing.
//!
//! Invariants
//! - At most one node is told to write, unless every holder reads only or sharing is `multiWriter`.
//! - A node that loses access stands in `leaving` until it says that its device is gone, and the host of every disk
//!   says that the leaver's export is gone. Until a leaver that could write is fenced at a disk, nobody else gets
//!   that disk.
//! - A cut-over is committed only when the source is fenced at every disk, and the source has fenced itself or (when
//!   it hosts none of the disks) is dead by its lease.
//! - Every transition raises the epoch. An observation confirms a step only if it was made under an epoch that is
//!   not older than that step.
//! - A node comes back only after its former access is gone entirely: a write that was queued in its kernel under
//!   the old access would otherwise replay under the new one.
//!
//! Must not know: messages, stores, clocks. Whether a node is alive is an argument.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{DiskId, Epoch, NodeName};
pub use crate::layout::Sharing;

/// How a holder uses the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mode {
    /// Only reads.
    pub read_only: bool,
    /// Asked for under an access mode that admits several nodes (CSI `MULTI_NODE_*`).
    pub multi_node: bool,
    /// Held by the controller's own wish, to move extents while nobody uses the volume. Yields to whoever asks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upkeep: bool,
}

impl Mode {
    /// How a volume that nobody uses is held while its extents move.
    pub const UPKEEP: Mode = Mode { read_only: false, multi_node: false, upkeep: true };
}

/// Who has access, by decision on record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "phase")]
pub enum Access {
    /// Nobody.
    #[default]
    Detached,
    /// `node` will hold it as soon as every host that can be reached has fenced those who are leaving.
    Granting {
        /// The holder to be.
        node: NodeName,
        /// How.
        mode: Mode,
    },
    /// The holders: one, or several that only read, or several under `multiWriter`.
    Attached {
        /// Each with its mode.
        holders: BTreeMap<NodeName, Mode>,
    },
    /// `source` writes; `target` reads, and its first write is held by its guard.
    Guarded {
        /// Who holds it.
        source: NodeName,
        /// Who is about to.
        target: NodeName,
        /// The epoch at which this phase began.
        since: Epoch,
    },
    /// The source is being fenced; the target's writes are still held.
    CuttingOver {
        /// Who held it.
        source: NodeName,
        /// Who will.
        target: NodeName,
        /// The source gave the volume up, or died: it is fenced whatever it does. Otherwise it fences itself only
        /// if it is quiet, and wins if it is not.
        source_left: bool,
        /// The epoch at which this phase began.
        since: Epoch,
    },
}

/// A node whose access was revoked and is not yet known to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// The epoch of the revocation: confirmations made under it or a later one count.
    pub since: Epoch,
    /// Whether it was allowed to write: if so, it must be fenced at a disk before anyone else gets that disk.
    pub wrote: bool,
    /// The disks that other nodes exported to it.
    pub disks: BTreeSet<DiskId>,
}

/// The access part of a volume's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AccessState {
    /// The fencing number.
    pub epoch: Epoch,
    /// Who has access.
    pub access: Access,
    /// Who is losing it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leaving: BTreeMap<NodeName, Leaving>,
}

/// How far a node's access is gone at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gone {
    /// It can do no more I/O there, and nothing that it queued will run.
    Fenced,
    /// Nothing is left there.
    Absent,
}

/// What can happen to a volume's access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node asks for the volume.
    Attach {
        /// Who.
        node: NodeName,
        /// How.
        mode: Mode,
    },
    /// A node gives the volume up, or its orchestrator does so for it.
    Detach {
        /// Who.
        node: NodeName,
    },
    /// The guard of the target holds a write, seen under `epoch`.
    HeldWrite {
        /// The target.
        node: NodeName,
        /// The epoch of the goal under which the guard stood.
        epoch: Epoch,
    },
    /// The source still writes: it refused to fence itself, under `epoch`.
    SourceBusy {
        /// The source.
        node: NodeName,
        /// The epoch of the goal that asked for it.
        epoch: Epoch,
    },
    /// Time passed, a node came or went, or a place confirmed something: look again whether a grant, a cut-over or
    /// a departure can go on.
    Review,
}

/// Why an event is refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody else holds it, and may not share it.
    #[error("held by node {}", list(.holders))]
    InUse {
        /// The holders.
        holders: Vec<NodeName>,
    },
    /// The node holds it already, in another way.
    #[error("node {node} holds it already with another access mode")]
    OtherMode {
        /// The holder.
        node: NodeName,
    },
    /// The node's former access has not gone yet: to be tried again.
    #[error("the former access of node {node} is still being taken down")]
    StillLeaving {
        /// Who is leaving.
        node: NodeName,
    },
}

fn list(n: &[NodeName]) -> String {
    n.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

/// What a transition means to people: for events and the record's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A node got the volume.
    Attached(NodeName),
    /// A node gave it up.
    Detached(NodeName),
    /// A dead holder lost it to another node.
    Evicted(NodeName),
    /// A migration began.
    MigrationStarted {
        /// From.
        source: NodeName,
        /// To.
        target: NodeName,
    },
    /// A migration's cut-over began.
    CutOverStarted {
        /// From.
        source: NodeName,
        /// To.
        target: NodeName,
    },
    /// A migration is done.
    Migrated {
        /// From.
        source: NodeName,
        /// To.
        target: NodeName,
    },
    /// A migration was given up; the source goes on.
    MigrationAborted {
        /// Who goes on.
        source: NodeName,
        /// Who is taken down.
        target: NodeName,
    },
    /// Both wrote: the source goes on, the target's write is failed.
    Conflict {
        /// Who goes on.
        source: NodeName,
        /// Whose write is failed.
        target: NodeName,
    },
}

/// Where an access has to be taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// At the consumer: its own device.
    Device,
    /// At the host of this disk: the export for the consumer.
    Export(DiskId),
}

/// What the world looks like to a transition.
pub struct Facts<'a> {
    /// The volume's disks and the nodes that host them.
    pub disks: &'a BTreeMap<DiskId, NodeName>,
    /// Whether a node's lease still runs. A node of which nothing is known yet counts as alive: "cannot see it" is
    /// not "it is gone".
    pub alive: &'a dyn Fn(&NodeName) -> bool,
    /// What the volume's parameters allow.
    pub sharing: Sharing,
    /// What nodes have said about access that is being taken down.
    pub confirmed: &'a Confirmations,
}

impl Facts<'_> {
    fn hosts_any(&self, node: &NodeName) -> bool {
        self.disks.values().any(|h| h == node)
    }

    fn exported_to(&self, node: &NodeName) -> impl Iterator<Item = DiskId> {
        self.disks.iter().filter(move |(_, h)| *h != node).map(|(d, _)| *d)
    }
}

/// The newest word on each (consumer, place) about access that is gone, as the controller keeps it in memory. It
/// need not survive the controller: nodes report again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirmations(BTreeMap<(NodeName, Place), (Epoch, Option<Gone>)>);

impl Confirmations {
    /// Takes note of how far `consumer`'s access is gone at `place` (`None`: it stands), as brought about under
    /// `epoch`. An older epoch than the one known is ignored. Under one epoch access that is being taken down only
    /// goes on going: a word that arrives late takes nothing back, for nobody would say the newer one again.
    pub fn note(&mut self, consumer: &NodeName, place: Place, epoch: Epoch, gone: Option<Gone>) {
        let e = self.0.entry((consumer.clone(), place)).or_insert((epoch, gone));
        if epoch > e.0 {
            *e = (epoch, gone);
        } else if epoch == e.0 {
            e.1 = e.1.max(gone);
        }
    }

    /// How far `consumer`'s access is gone at `place`, if that was brought about under `since` or later.
    pub fn gone(&self, consumer: &NodeName, place: Place, since: Epoch) -> Option<Gone> {
        self.0.get(&(consumer.clone(), place)).filter(|(e, _)| *e >= since).and_then(|(_, g)| *g)
    }
}

impl Leaving {
    /// The leaver's places.
    pub fn places(&self) -> impl Iterator<Item = Place> + '_ {
        std::iter::once(Place::Device).chain(self.disks.iter().map(|d| Place::Export(*d)))
    }

    /// Whether `disk` may be given to others as far as the leaver `who` goes.
    pub fn fenced_at(&self, who: &NodeName, disk: DiskId, confirmed: &Confirmations) -> bool {
        let place = if self.disks.contains(&disk) { Place::Export(disk) } else { Place::Device };
        !self.wrote || confirmed.gone(who, place, self.since).is_some()
    }

    /// Whether nothing is left of the leaver `who`.
    pub fn is_gone(&self, who: &NodeName, confirmed: &Confirmations) -> bool {
        self.places().all(|p| confirmed.gone(who, p, self.since) == Some(Gone::Absent))
    }
}

/// What an accepted event leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to record.
    Unchanged,
    /// The new state, to be made durable before anyone is told.
    Changed(AccessState, Vec<Notice>),
}

impl AccessState {
    /// Nodes that hold or are being given the volume: who appears as "published".
    pub fn holders(&self) -> Vec<NodeName> {
        match &self.access {
            Access::Detached => vec![],
            Access::Granting { node, .. } => vec![node.clone()],
            Access::Attached { holders } => holders.keys().cloned().collect(),
            Access::Guarded { source, target, .. } => vec![source.clone(), target.clone()],
            Access::CuttingOver { source, target, source_left: false, .. } => {
                vec![source.clone(), target.clone()]
            }
            Access::CuttingOver { target, source_left: true, .. } => vec![target.clone()],
        }
    }

    /// The node that holds it for the controller's own work, where nobody uses it.
    pub fn upkeeper(&self) -> Option<&NodeName> {
        match &self.access {
            Access::Attached { holders } => holders.iter().find(|(_, m)| m.upkeep).map(|(n, _)| n),
            Access::Detached
            | Access::Granting { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => None,
        }
    }

    /// Nodes that people use it on: [`AccessState::holders`] but for the controller's own.
    pub fn users(&self) -> Vec<NodeName> {
        if self.upkeeper().is_some() { vec![] } else { self.holders() }
    }

    /// The one node that writes to it, attached and settled, while nobody is leaving.
    pub fn sole_holder(&self) -> Option<&NodeName> {
        match &self.access {
            Access::Attached { holders } if holders.len() == 1 && self.leaving.is_empty() => {
                holders.first_key_value().filter(|(_, m)| !m.read_only).map(|(n, _)| n)
            }
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => None,
        }
    }

    /// Every node that has, gets or is losing access.
    pub fn everyone(&self) -> BTreeSet<NodeName> {
        let mut all: BTreeSet<NodeName> = self.holders().into_iter().collect();
        all.extend(self.leaving.keys().cloned());
        if let Access::CuttingOver { source, .. } = &self.access {
            all.insert(source.clone());
        }
        all
    }

    /// Whether `node` has, gets or is losing access.
    pub fn concerns(&self, node: &NodeName) -> bool {
        self.everyone().contains(node)
    }

    /// Nobody has access and nobody's former access is left: the volume may be deleted.
    pub fn is_idle(&self) -> bool {
        self.access == Access::Detached && self.leaving.is_empty()
    }

    /// Whether nobody who is leaving could still write to `disk`, so that `node` may have it.
    pub fn open_for(&self, node: &NodeName, disk: DiskId, confirmed: &Confirmations) -> bool {
        self.leaving.iter().all(|(n, l)| n == node || l.fenced_at(n, disk, confirmed))
    }

    /// The transition table.
    ///
    /// # Errors
    /// When the event is a request that must not be granted now; the state is unchanged.
    pub fn on(&self, event: &Event, facts: &Facts<'_>) -> Result<Outcome, Refusal> {
        match event {
            Event::Attach { node, mode } => self.on_attach(node, *mode, facts),
            Event::Detach { node } => Ok(self.on_detach(node, facts)),
            Event::HeldWrite { node, epoch } => Ok(self.on_held(node, *epoch, facts)),
            Event::SourceBusy { node, epoch } => Ok(self.on_busy(node, *epoch, facts)),
            Event::Review => Ok(self.on_review(facts)),
        }
    }

    fn on_attach(&self, node: &NodeName, mode: Mode, facts: &Facts<'_>) -> Result<Outcome, Refusal> {
        if self.leaving.contains_key(node) {
            return Err(Refusal::StillLeaving { node: node.clone() });
        }
        let alive = |n: &NodeName| (facts.alive)(n);
        if let Some(keeper) = self.upkeeper() {
            return Ok(self.take_over(keeper, node, mode, facts));
        }
        match &self.access {
            // The controller's own work waits for nobody.
            _ if mode.upkeep && !self.is_idle() => Err(Refusal::InUse { holders: self.holders() }),
            Access::Detached => Ok(self.grant(node, mode, &[], &[], facts)),
            Access::Granting { node: n, mode: m } if n == node => Self::same(node, *m, mode),
            Access::Granting { node: n, .. } if alive(n) => Err(Refusal::InUse { holders: vec![n.clone()] }),
            Access::Granting { node: n, .. } => Ok(self.grant(node, mode, &[], &[n], facts)),
            Access::Attached { holders } => self.attach_beside(holders, node, mode, facts),
            Access::Guarded { source, target, .. }
            | Access::CuttingOver { source, target, source_left: false, .. }
                if node == source || node == target =>
            {
                if mode.multi_node && !mode.read_only {
                    Ok(Outcome::Unchanged)
                } else {
                    Err(Refusal::OtherMode { node: node.clone() })
                }
            }
            Access::Guarded { source, target, .. } => match (alive(source), alive(target)) {
                // The target died before it wrote: the source may migrate to somebody else.
                (true, false) if mode.multi_node && !mode.read_only => {
                    let mut next = self.bump();
                    next.leave(target, false, facts);
                    let notices = vec![
                        Notice::MigrationAborted { source: source.clone(), target: target.clone() },
                        Notice::MigrationStarted { source: source.clone(), target: node.clone() },
                    ];
                    next.guard(source, node);
                    Ok(Outcome::Changed(next, notices))
                }
                (false, false) => Ok(self.grant(node, mode, &[source], &[target], facts)),
                (true, _) | (false, true) => {
                    Err(Refusal::InUse { holders: vec![source.clone(), target.clone()] })
                }
            },
            Access::CuttingOver { target, source_left: true, .. } if node == target => Ok(Outcome::Unchanged),
            // It gave the volume up, and is as good as leaving: it must not become a holder before it is gone.
            Access::CuttingOver { source, source_left: true, .. } if node == source => {
                Err(Refusal::StillLeaving { node: node.clone() })
            }
            Access::CuttingOver { source, target, .. } if !alive(source) && !alive(target) => {
                Ok(self.grant(node, mode, &[source], &[target], facts))
            }
            Access::CuttingOver { .. } => Err(Refusal::InUse { holders: self.holders() }),
        }
    }

    /// A user takes the volume from the controller's own work: at once on the same node, elsewhere as from the dead. One
    /// who only reads gets it on the same node when the writer that stood there has gone, and has to ask again: as a
    /// reader the node could lose the volume without being fenced, though its device may not have heard yet.
    fn take_over(&self, keeper: &NodeName, node: &NodeName, mode: Mode, facts: &Facts<'_>) -> Outcome {
        if mode.upkeep {
            return Outcome::Unchanged;
        }
        if keeper == node {
            let mut next = self.bump();
            if mode.read_only {
                next.leave(keeper, true, facts);
                next.access = Access::Detached;
                return Outcome::Changed(next, vec![]);
            }
            next.access = Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) };
            return Outcome::Changed(next, vec![Notice::Attached(node.clone())]);
        }
        match self.grant(node, mode, &[keeper], &[], facts) {
            // Nobody has lost anything.
            Outcome::Changed(next, notices) => {
                let news = notices.into_iter().filter(|n| !matches!(n, Notice::Evicted(_)));
                Outcome::Changed(next, news.collect())
            }
            Outcome::Unchanged => Outcome::Unchanged,
        }
    }

    fn attach_beside(
        &self,
        holders: &BTreeMap<NodeName, Mode>,
        node: &NodeName,
        mode: Mode,
        facts: &Facts<'_>,
    ) -> Result<Outcome, Refusal> {
        if let Some(m) = holders.get(node) {
            return Self::same(node, *m, mode);
        }
        let living: BTreeMap<_, _> = holders.iter().filter(|(n, _)| (facts.alive)(n)).collect();
        if living.is_empty() {
            let (readers, writers): (Vec<_>, Vec<_>) = holders.iter().partition(|(_, m)| m.read_only);
            let names =
                |v: Vec<(&NodeName, &Mode)>| v.into_iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
            let (readers, writers) = (names(readers), names(writers));
            return Ok(self.grant(
                node,
                mode,
                &writers.iter().collect::<Vec<_>>(),
                &readers.iter().collect::<Vec<_>>(),
                facts,
            ));
        }
        let all_multi = mode.multi_node && living.values().all(|m| m.multi_node);
        let all_read = mode.read_only && living.values().all(|m| m.read_only);
        if all_multi && (all_read || facts.sharing == Sharing::MultiWriter) {
            let mut next = self.bump();
            let mut holders = holders.clone();
            holders.insert(node.clone(), mode);
            next.access = Access::Attached { holders };
            return Ok(Outcome::Changed(next, vec![Notice::Attached(node.clone())]));
        }
        // Here the volume has one writer, or readers beside which a writer has no place.
        if let (true, Some((source, m)), 1) = (all_multi, living.first_key_value(), holders.len())
            && !m.read_only
            && !mode.read_only
        {
            let mut next = self.bump();
            next.guard(source, node);
            let notice = Notice::MigrationStarted { source: (*source).clone(), target: node.clone() };
            return Ok(Outcome::Changed(next, vec![notice]));
        }
        Err(Refusal::InUse { holders: living.keys().map(|n| (*n).clone()).collect() })
    }

    fn on_detach(&self, node: &NodeName, facts: &Facts<'_>) -> Outcome {
        let mut next = self.bump();
        let notices = match &self.access {
            Access::Granting { node: n, .. } if n == node => {
                next.leave(node, false, facts);
                next.access = Access::Detached;
                vec![Notice::Detached(node.clone())]
            }
            Access::Attached { holders } if holders.contains_key(node) => {
                let mut rest = holders.clone();
                let wrote = rest.remove(node).is_some_and(|m| !m.read_only);
                next.leave(node, wrote, facts);
                next.access =
                    if rest.is_empty() { Access::Detached } else { Access::Attached { holders: rest } };
                vec![Notice::Detached(node.clone())]
            }
            Access::Guarded { source, target, .. } if node == source => {
                next.access = Self::cutting(source, target, true, next.epoch);
                vec![Notice::CutOverStarted { source: source.clone(), target: target.clone() }]
            }
            Access::Guarded { source, target, .. }
            | Access::CuttingOver { source, target, source_left: false, .. }
                if node == target =>
            {
                // The guard let nothing through, so the source may go on even if it had fenced itself.
                next.leave(target, false, facts);
                next.access = Self::sole_writer(source);
                vec![Notice::MigrationAborted { source: source.clone(), target: target.clone() }]
            }
            Access::CuttingOver { source, target, source_left: false, .. } if node == source => {
                next.access = Self::cutting(source, target, true, next.epoch);
                vec![]
            }
            Access::CuttingOver { source, target, source_left: true, .. } if node == target => {
                next.leave(target, false, facts);
                next.leave(source, true, facts);
                next.access = Access::Detached;
                vec![Notice::Detached(source.clone()), Notice::Detached(target.clone())]
            }
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => return Outcome::Unchanged,
        };
        Outcome::Changed(next, notices)
    }

    fn on_held(&self, node: &NodeName, epoch: Epoch, facts: &Facts<'_>) -> Outcome {
        match &self.access {
            Access::Guarded { source, target, since } if node == target && epoch >= *since => {
                let mut next = self.bump();
                next.access = Self::cutting(source, target, !(facts.alive)(source), next.epoch);
                let notice = Notice::CutOverStarted { source: source.clone(), target: target.clone() };
                Outcome::Changed(next, vec![notice])
            }
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => Outcome::Unchanged,
        }
    }

    fn on_busy(&self, node: &NodeName, epoch: Epoch, facts: &Facts<'_>) -> Outcome {
        match &self.access {
            Access::CuttingOver { source, target, source_left: false, since }
                if node == source && epoch >= *since =>
            {
                let mut next = self.bump();
                next.leave(target, false, facts);
                next.access = Self::sole_writer(source);
                let notice = Notice::Conflict { source: source.clone(), target: target.clone() };
                Outcome::Changed(next, vec![notice])
            }
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => Outcome::Unchanged,
        }
    }

    fn on_review(&self, facts: &Facts<'_>) -> Outcome {
        // Who is gone is dropped without a new epoch: nobody's rights change by it.
        let mut next = self.clone();
        next.leaving.retain(|n, l| !l.is_gone(n, facts.confirmed));
        let dropped = next.leaving.len() < self.leaving.len();
        let step = match &next.access {
            Access::Granting { node, mode } => next.review_grant(node, *mode, facts),
            Access::CuttingOver { source, target, source_left, since } => {
                next.review_cut_over(source, target, *source_left, *since, facts)
            }
            Access::Detached | Access::Attached { .. } | Access::Guarded { .. } => Outcome::Unchanged,
        };
        match step {
            Outcome::Unchanged if dropped => Outcome::Changed(next, vec![]),
            Outcome::Unchanged | Outcome::Changed(..) => step,
        }
    }

    /// A grant waits for every place of a leaver that can still be reached. Places that cannot give their disk to
    /// nobody until they have confirmed the fence ([`AccessState::open_for`]).
    fn review_grant(&self, node: &NodeName, mode: Mode, facts: &Facts<'_>) -> Outcome {
        let waits = self.leaving.iter().filter(|(_, l)| l.wrote).any(|(n, l)| {
            l.places().any(|p| {
                let who = match p {
                    Place::Device => Some(n),
                    Place::Export(d) => facts.disks.get(&d),
                };
                who.is_some_and(|w| (facts.alive)(w)) && facts.confirmed.gone(n, p, l.since).is_none()
            })
        });
        if waits {
            return Outcome::Unchanged;
        }
        let mut next = self.bump();
        next.access = Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) };
        Outcome::Changed(next, vec![Notice::Attached(node.clone())])
    }

    fn review_cut_over(
        &self,
        source: &NodeName,
        target: &NodeName,
        source_left: bool,
        since: Epoch,
        facts: &Facts<'_>,
    ) -> Outcome {
        let source_alive = (facts.alive)(source);
        let self_fenced = facts.confirmed.gone(source, Place::Device, since).is_some();
        if !source_left && !source_alive && !self_fenced {
            let mut next = self.bump();
            next.access = Self::cutting(source, target, true, next.epoch);
            return Outcome::Changed(next, vec![]);
        }
        // A dead source that hosts disks of the volume may still write to them: wait for it.
        let source_done = self_fenced || (!source_alive && !facts.hosts_any(source));
        let exports_done = facts
            .exported_to(source)
            .all(|d| facts.confirmed.gone(source, Place::Export(d), since).is_some());
        if !source_done || !exports_done {
            return Outcome::Unchanged;
        }
        let mut next = self.bump();
        // Every disk has fenced it: what is left is to take the remains down.
        next.leave(source, false, facts);
        next.access = Self::sole_writer(target);
        Outcome::Changed(next, vec![Notice::Migrated { source: source.clone(), target: target.clone() }])
    }

    /// The state in which `node` gets the volume as its only holder; `writers` and `readers` lose it.
    fn grant(
        &self,
        node: &NodeName,
        mode: Mode,
        writers: &[&NodeName],
        readers: &[&NodeName],
        facts: &Facts<'_>,
    ) -> Outcome {
        let mut next = self.bump();
        let mut notices = vec![];
        for (n, wrote) in writers.iter().map(|n| (*n, true)).chain(readers.iter().map(|n| (*n, false))) {
            next.leave(n, wrote, facts);
            notices.push(Notice::Evicted(n.clone()));
        }
        if next.leaving.values().any(|l| l.wrote) {
            next.access = Access::Granting { node: node.clone(), mode };
        } else {
            next.access = Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) };
            notices.push(Notice::Attached(node.clone()));
        }
        Outcome::Changed(next, notices)
    }

    fn leave(&mut self, node: &NodeName, wrote: bool, facts: &Facts<'_>) {
        let disks = facts.exported_to(node).collect();
        self.leaving.insert(node.clone(), Leaving { since: self.epoch, wrote, disks });
    }

    fn guard(&mut self, source: &NodeName, target: &NodeName) {
        let since = self.epoch;
        self.access = Access::Guarded { source: source.clone(), target: target.clone(), since };
    }

    fn bump(&self) -> AccessState {
        AccessState { epoch: self.epoch.next(), ..self.clone() }
    }

    fn cutting(source: &NodeName, target: &NodeName, source_left: bool, since: Epoch) -> Access {
        Access::CuttingOver { source: source.clone(), target: target.clone(), source_left, since }
    }

    /// The one holder after a migration: both sides had asked for a mode that admits several nodes.
    fn sole_writer(node: &NodeName) -> Access {
        let mode = Mode { read_only: false, multi_node: true, upkeep: false };
        Access::Attached { holders: BTreeMap::from([(node.clone(), mode)]) }
    }

    fn same(node: &NodeName, have: Mode, want: Mode) -> Result<Outcome, Refusal> {
        if have == want { Ok(Outcome::Unchanged) } else { Err(Refusal::OtherMode { node: node.clone() }) }
    }
}
