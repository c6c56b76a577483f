//! A volume in the core's memory: its record as it is durable, the one write that may be under way, requests that
//! wait, and what nodes have said about it.
//!
//! Invariants: `record` is what the store holds; nothing is told to nodes from anything else. Must not know: sessions.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use pool::{
    access::{Access, Confirmations, Gone, Mode, Place},
    goals::ExportState,
    ids::{DiskId, NodeName, VolumeId},
    layout::params::Limits,
    moving::{Mirror, MoveCause},
    record::VolumeRecord,
    units::Bytes,
    volume::Run,
};
use tokio::sync::oneshot;

use super::{
    seen::{Attachment, AttachmentSeen, ExportSeen},
    told::{GoalKey, VolumeMap},
};
use crate::{
    api::{ApiError, Attached, VolumeInfo},
    fault::Cause,
    store::Version,
};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// Beside whom a node may have a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// No rule but the record's own.
    Anybody,
    /// It was judged while these held it and nobody else did. When it comes to it there may be others.
    Only(Vec<NodeName>),
}

/// A node that is to have a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) node: NodeName,
    pub(super) beside: Beside,
}

impl Arrival {
    /// The first of those who use the volume now whom it was not judged against.
    pub(super) fn stranger(&self, users: &[NodeName]) -> Option<NodeName> {
        match &self.beside {
            Beside::Anybody => None,
            Beside::Only(_) if users.contains(&self.node) => None,
            Beside::Only(known) => users.iter().find(|u| !known.contains(u)).cloned(),
        }
    }
}

/// A request about one volume.
pub(super) enum Request {
    Attach { arrival: Arrival, mode: Mode, wait: bool, reply: Reply<Attached> },
    Detach { node: Option<NodeName>, wait: bool, reply: Reply<()> },
    Delete { reply: Reply<()> },
    Expand { required: Bytes, limit: Option<Bytes>, reply: Reply<VolumeInfo> },
    Modify { limits: Limits, reply: Reply<()> },
}

impl Request {
    /// Whether whoever asked has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Request::Attach { reply, .. } => reply.is_closed(),
            Request::Detach { reply, .. } => reply.is_closed(),
            Request::Delete { reply } => reply.is_closed(),
            Request::Expand { reply, .. } => reply.is_closed(),
            Request::Modify { reply, .. } => reply.is_closed(),
        }
    }

    /// Answers that the volume is not there any more, which is what some have asked for.
    pub(super) fn gone(self, id: VolumeId) {
        match self {
            Request::Detach { reply, .. } | Request::Delete { reply } => answer(reply, Ok(())),
            Request::Attach { .. } | Request::Expand { .. } | Request::Modify { .. } => {
                self.fail(ApiError::NoVolume(id.to_string()));
            }
        }
    }

    /// Answers with a failure.
    pub(super) fn fail(self, e: ApiError) {
        match self {
            Request::Attach { reply, .. } => answer(reply, Err(e)),
            Request::Detach { reply, .. } => answer(reply, Err(e)),
            Request::Delete { reply } => answer(reply, Err(e)),
            Request::Expand { reply, .. } => answer(reply, Err(e)),
            Request::Modify { reply, .. } => answer(reply, Err(e)),
        }
    }
}

/// Answers; whoever asked may have gone, which changes nothing here.
pub(super) fn answer<T>(reply: Reply<T>, value: Result<T, ApiError>) {
    if reply.send(value).is_err() {
        tracing::debug!("an answer found nobody waiting");
    }
}

/// A request that waits for its turn.
pub(super) struct Queued {
    pub(super) deadline: Duration,
    pub(super) request: Request,
}

/// What follows once a write is durable.
pub(super) enum After {
    Nothing,
    Created(Reply<VolumeInfo>),
    Request(Queued),
    /// A request that could not be served before: it is the next in line.
    Again(Queued),
}

/// The write under way.
pub(super) struct Pending {
    /// The record to be; `None`: none.
    pub(super) next: Option<Box<VolumeRecord>>,
    pub(super) cause: Cause,
    pub(super) after: After,
    /// Extents taken in the index for it: given back if it fails.
    pub(super) reserved: Vec<Run>,
    /// Extents to be set aside once it is durable.
    pub(super) retire: Vec<Run>,
    /// Extents that become free once it is durable.
    pub(super) release: Vec<Run>,
}

/// What a request waits for after its decision is durable.
pub(super) enum Want {
    Attached { node: NodeName, reply: Reply<Attached> },
    Gone { nodes: Vec<NodeName>, reply: Reply<()> },
    Resized { size: Bytes, reply: Reply<VolumeInfo> },
}

/// A request whose decision is durable.
pub(super) struct Waiter {
    pub(super) deadline: Duration,
    pub(super) want: Want,
}

/// What is known of a volume beyond its record. It need not survive: nodes report again.
#[derive(Default)]
pub(super) struct Live {
    pub(super) confirmed: Confirmations,
    pub(super) attachments: BTreeMap<NodeName, AttachmentSeen>,
    pub(super) exports: BTreeMap<(DiskId, NodeName), ExportSeen>,
    /// Since when each leaver has had its time.
    pub(super) leaving: BTreeMap<NodeName, Duration>,
    /// Wipes reported done, with why others do not go on.
    pub(super) wiped: BTreeSet<(DiskId, u64)>,
    /// How far the mirror of a move was when it last got on, and when.
    pub(super) progress: Option<(Mirror, Duration)>,
    /// When something of it last moved by itself, in milliseconds since 1970, and why, if this controller has seen it.
    pub(super) moved: Option<(u64, MoveCause)>,
    /// Since when it is being cut over, if this controller has seen the beginning.
    pub(super) cut_over_since: Option<Duration>,
    /// Nodes that are listed as having to do with it.
    pub(super) nodes: BTreeSet<NodeName>,
    /// Goals that stand.
    pub(super) goals: BTreeSet<(NodeName, GoalKey)>,
    /// The map as nodes get it, made once a record.
    pub(super) map: Option<Arc<VolumeMap>>,
    pub(super) waiters: Vec<Waiter>,
}

/// A volume.
pub(super) struct Volume {
    pub(super) record: VolumeRecord,
    /// The stored version; `None` while it is being created.
    pub(super) version: Option<Version>,
    pub(super) pending: Option<Box<Pending>>,
    pub(super) queue: VecDeque<Queued>,
    pub(super) live: Live,
}

impl Volume {
    pub(super) fn new(record: VolumeRecord, version: Option<Version>) -> Self {
        Self { record, version, pending: None, queue: VecDeque::new(), live: Live::default() }
    }

    /// Whether anything about it can go on by itself.
    pub(super) fn is_active(&self) -> bool {
        let r = &self.record;
        !r.access.is_idle() || !r.retired.is_empty() || r.moving.is_some() || self.pending.is_some()
    }

    /// The source of a cut-over that gives the volume up, and everyone who is leaving.
    pub(super) fn leavers(&self) -> BTreeSet<NodeName> {
        let mut out: BTreeSet<_> = self.record.access.leaving.keys().cloned().collect();
        if let Access::CuttingOver { source, source_left: true, .. } = &self.record.access.access {
            out.insert(source.clone());
        }
        out
    }

    /// Whether `node`'s own device is gone, as far as the record ever gave it one.
    pub(super) fn device_gone(&self, node: &NodeName) -> bool {
        let absent = |since| self.live.confirmed.gone(node, Place::Device, since) == Some(Gone::Absent);
        let state = &self.record.access;
        if let Some(l) = state.leaving.get(node) {
            return absent(l.since);
        }
        match &state.access {
            Access::CuttingOver { source, source_left: true, since, .. } if source == node => absent(*since),
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => !state.holders().contains(node),
        }
    }

    /// Whether `node` can use it: its device is up under the record's epoch, and all of its legs have paths.
    pub(super) fn usable_on(&self, node: &NodeName) -> Option<&AttachmentSeen> {
        let guarded = match &self.record.access.access {
            Access::Attached { holders } if holders.contains_key(node) => false,
            Access::Guarded { source, .. } if source == node => false,
            Access::Guarded { target, .. } | Access::CuttingOver { target, .. } if target == node => true,
            Access::Detached
            | Access::Granting { .. }
            | Access::Attached { .. }
            | Access::Guarded { .. }
            | Access::CuttingOver { .. } => return None,
        };
        self.live.attachments.get(node).filter(|a| {
            let up = match a.state {
                Some(Attachment::Open) => true,
                Some(Attachment::Guarded) => guarded,
                Some(Attachment::Absent | Attachment::Fenced) | None => false,
            };
            up && a.epoch >= self.record.access.epoch && a.queueing.is_empty()
        })
    }

    /// Whether the host of `disk` has said that the export for `consumer` stands.
    pub(super) fn leg_ready(&self, disk: DiskId, consumer: &NodeName) -> bool {
        let seen = self.live.exports.get(&(disk, consumer.clone()));
        seen.is_some_and(|e| e.state == Some(ExportState::Serving))
    }

    /// The map as nodes get it.
    pub(super) fn told_map(&mut self) -> Arc<VolumeMap> {
        let r = &self.record;
        let make =
            || Arc::new(VolumeMap { name: r.name.clone(), extent_size: r.extent_size, map: r.map.clone() });
        self.live.map.get_or_insert_with(make).clone()
    }
}
