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

mod transitions;

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
}
