//! The core's state and how inputs change it: synchronous, driven by the owner task in [`super`]. Inputs go in, writes
//! to be made come out of [`Engine::take_writes`]; answers and goals leave through their own channels.
//!
//! Invariants: one write at a time a record; a record in memory is what the store holds; everything that a node is
//! told follows from such records ([`super::publish`]); extents are reserved in the index while their record is being
//! written and given back if that fails. Must not know: clocks, randomness (both are handed in), sessions' streams.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use forecast::Strength;
use pool::{
    access::Facts,
    alloc::Pool,
    ids::{DiskId, NodeName, PoolName, Term, VolumeId},
    record::{Key, Record, VolumeRecord},
};

use super::{
    config::{CoreConfig, PoolSpec},
    disks::DiskSlot,
    measures::Measures,
    mover::Mover,
    nodes::Node,
    volume::{After, Pending, Volume, answer},
};
use crate::{
    api::ApiError,
    fault::Cause,
    store::{Class, StoreError, Version},
};

/// The time, as the owner task reads it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Now {
    /// Since the core started.
    pub(super) mono: Duration,
    /// Milliseconds since 1970.
    pub(super) unix_ms: u64,
}

/// A write to make.
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) cause: Cause,
    pub(super) expected: Option<Version>,
    /// `None` deletes.
    pub(super) record: Option<Record>,
}

/// A write that was made, or not: the new version, `None` after a deletion.
pub(super) struct Written {
    pub(super) key: Key,
    pub(super) result: Result<Option<Version>, StoreError>,
}

/// What a timer is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A node's lease may have run out.
    Lease(NodeName),
    /// A volume's leaver has had its time, a request its deadline, or a write is to be tried again.
    Volume(VolumeId),
    /// A disk's write is to be tried again.
    Disk(DiskId),
    /// A node's write is to be tried again.
    Node(NodeName),
    /// Moves may be due.
    Mover,
}

/// How soon a write is tried again that the store refused for now.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The core's state.
pub(super) struct Engine {
    pub(super) config: CoreConfig,
    pub(super) term: Term,
    pub(super) specs: BTreeMap<PoolName, PoolSpec>,
    /// Pools that are configured as their disks are not, and how so.
    pub(super) left_out: BTreeMap<PoolName, String>,
    pub(super) pool: Pool,
    /// What a usual disk of each pool can do, where any is known.
    pub(super) strengths: BTreeMap<PoolName, Strength>,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    /// Active volumes, and those being created, by name.
    pub(super) names: HashMap<String, VolumeId>,
    /// Whose wipe a wipe is.
    pub(super) wipes: HashMap<(DiskId, u64), VolumeId>,
    pub(super) disks: BTreeMap<DiskId, DiskSlot>,
    pub(super) nodes: BTreeMap<NodeName, Node>,
    /// Nodes that show a disk which is on record for another node, so that another look is due when that one reports.
    pub(super) contested: BTreeSet<NodeName>,
    pub(super) now: Now,
    /// When this reign began, in milliseconds since 1970.
    pub(super) began_ms: u64,
    pub(super) draw: Box<dyn FnMut() -> u128 + Send>,
    pub(super) next_session: u64,
    pub(super) measures: Measures,
    pub(super) mover: Mover,
    timers: BTreeSet<(Duration, Timer)>,
    writes: Vec<Write>,
    /// Why the core cannot go on.
    pub(super) fatal: Option<StoreError>,
}

impl Engine {
    pub(super) fn new(config: CoreConfig, term: Term, draw: Box<dyn FnMut() -> u128 + Send>) -> Self {
        let specs = config.pools.iter().map(|p| (p.name.clone(), p.clone())).collect();
        Self {
            config,
            term,
            specs,
            left_out: BTreeMap::new(),
            pool: Pool::new(),
            strengths: BTreeMap::new(),
            volumes: BTreeMap::new(),
            names: HashMap::new(),
            wipes: HashMap::new(),
            disks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            contested: BTreeSet::new(),
            now: Now::default(),
            began_ms: 0,
            draw,
            next_session: 0,
            measures: Measures::default(),
            mover: Mover::default(),
            timers: BTreeSet::new(),
            writes: Vec::new(),
            fatal: None,
        }
    }

    /// The writes that have come up since the last call.
    pub(super) fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes)
    }

    /// When the next timer is due.
    pub(super) fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(super) fn arm(&mut self, at: Duration, timer: Timer) {
        self.timers.insert((at, timer));
    }

    pub(super) fn disarm(&mut self, at: Duration, timer: Timer) {
        self.timers.remove(&(at, timer));
    }

    /// Runs what is due.
    pub(super) fn on_time(&mut self) {
        while let Some((at, _)) = self.timers.first()
            && *at <= self.now.mono
        {
            match self.timers.pop_first() {
                Some((_, Timer::Lease(n))) => self.check_lease(&n),
                Some((_, Timer::Volume(v))) => self.advance(v),
                Some((_, Timer::Disk(d))) => self.advance_disk(d),
                Some((_, Timer::Node(n))) => self.rewrite_node(&n),
                Some((_, Timer::Mover)) => self.on_mover(),
                None => break,
            }
        }
    }

    /// A number for a wipe: drawn, so that no two are ever equal.
    pub(super) fn draw_wipe(&mut self) -> u64 {
        let n = (self.draw)();
        (n >> 64) as u64 ^ n as u64
    }

    pub(super) fn alive(&self, node: &NodeName) -> bool {
        match self.nodes.get(node) {
            Some(n) => n.alive,
            // Nothing is known of it: it counts as alive until it has had the time to report.
            None => self.now.mono < self.config.lease,
        }
    }

    /// Which node hosts each of the disks.
    pub(super) fn hosts(&self, disks: &BTreeSet<DiskId>) -> BTreeMap<DiskId, NodeName> {
        let host = |d: &DiskId| self.disks.get(d).map(|s| (*d, s.record.disk.node.clone()));
        disks.iter().filter_map(host).collect()
    }

    /// Runs `f` with the facts about a volume.
    pub(super) fn with_facts<T>(&self, v: &Volume, f: impl FnOnce(&Facts<'_>) -> T) -> T {
        let disks = self.hosts(&v.record.map.disks());
        f(&Facts {
            disks: &disks,
            alive: &|n| self.alive(n),
            sharing: v.record.params.sharing,
            confirmed: &v.live.confirmed,
        })
    }

    /// Hands a write out.
    pub(super) fn write(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// Begins the write of a volume's record.
    pub(super) fn write_volume(&mut self, id: VolumeId, pending: Pending) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let record = pending.next.as_ref().map(|r| Record::Volume(r.clone()));
        let write = Write { key: Key::Volume(id), cause: pending.cause, expected: v.version, record };
        v.pending = Some(Box::new(pending));
        self.write(write);
    }

    /// Takes note of how a write went.
    pub(super) fn on_written(&mut self, w: Written) {
        if let Err(e) = &w.result
            && e.class() != Class::Transient
        {
            tracing::error!(key = %w.key, error = observe::chain(e), "a record could not be written; the core stops");
        }
        let result = match w.result {
            Ok(version) => Ok(version),
            Err(e) if e.class() == Class::Transient => Err(observe::chain(&e)),
            Err(e) => {
                self.fatal.get_or_insert(e);
                return;
            }
        };
        match w.key {
            Key::Volume(id) => self.on_volume_written(id, result),
            Key::Disk(id) => self.on_disk_written(id, result),
            Key::Node(name) => self.on_node_written(&name, result),
        }
    }

    fn on_volume_written(&mut self, id: VolumeId, result: Result<Option<Version>, String>) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let Some(pending) = v.pending.take() else { return };
        match result {
            Ok(version) => self.on_volume_durable(id, version, *pending),
            Err(why) => self.on_volume_refused(id, *pending, &why),
        }
    }

    fn on_volume_refused(&mut self, id: VolumeId, pending: Pending, why: &str) {
        tracing::warn!(volume = %id, cause = pending.cause.as_str(), why, "a record was not written; will retry");
        self.give_back(id, &pending.reserved);
        let e = ApiError::Unavailable(format!("volume {id}: {why}"));
        match pending.after {
            After::Created(reply) => {
                self.forget_volume(id);
                answer(reply, Err(e));
                return;
            }
            After::Request(q) | After::Again(q) => q.request.fail(e),
            After::Nothing => {}
        }
        self.arm(self.now.mono + RETRY, Timer::Volume(id));
    }

    fn on_volume_durable(&mut self, id: VolumeId, version: Option<Version>, pending: Pending) {
        let Some(v) = self.volumes.get_mut(&id) else { return };
        tracing::debug!(volume = %id, cause = pending.cause.as_str(), "recorded");
        self.measures.recorded(id, pending.cause, self.now.mono, &mut v.live.cut_over_since);
        v.version = version;
        let gone = pending.next.is_none();
        let mut before = BTreeSet::new();
        if let Some(next) = pending.next {
            let old = std::mem::replace(&mut v.record, *next);
            v.live.map = None;
            before = old.disks();
            self.reindex(id, &old);
            self.count_fences(id, pending.cause, &old);
            self.note_move(id, pending.cause, &old);
        }
        self.set_aside(id, &pending.retire);
        self.set_free(id, &pending.release);
        self.see_off(&before);
        if gone {
            self.forget_volume(id);
            return;
        }
        self.after_durable(id, pending.after);
        self.advance(id);
    }

    /// Brings the indexes by name and wipe up to a volume's new record.
    fn reindex(&mut self, id: VolumeId, old: &VolumeRecord) {
        let Some(v) = self.volumes.get(&id) else { return };
        for r in &old.retired {
            self.wipes.remove(&(r.disk, r.wipe));
        }
        self.wipes.extend(v.record.retired.iter().map(|r| ((r.disk, r.wipe), id)));
        match v.record.lifecycle {
            pool::record::Lifecycle::Active => {}
            pool::record::Lifecycle::Deleting => {
                if self.names.get(&old.name) == Some(&id) {
                    self.names.remove(&old.name);
                }
            }
        }
    }

    /// Drops a volume that is on record no more.
    pub(super) fn forget_volume(&mut self, id: VolumeId) {
        self.unpublish(id);
        let Some(v) = self.volumes.remove(&id) else { return };
        for r in &v.record.retired {
            self.wipes.remove(&(r.disk, r.wipe));
        }
        if self.names.get(&v.record.name) == Some(&id) {
            self.names.remove(&v.record.name);
        }
        for q in v.queue {
            q.request.gone(id);
        }
    }
}
