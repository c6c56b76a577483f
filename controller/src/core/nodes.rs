//! Nodes: sessions, leases, and what they report. Must not know: what follows from it (`steps`, `disks`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pool::{
    access::{Gone, Place},
    disk::{Domain, NODE_KEY},
    goals::ExportState,
    ids::{DiskId, NodeName, VolumeId},
    record::{Key, NodeRecord, Record},
};

use super::{
    engine::{Engine, RETRY, Timer, Write},
    handle::OpenError,
    seen::{Attachment, Device, Hello, Report},
    told::{Close, Goal, GoalKey, Outbox},
};
use crate::{fault::Cause, store::Version};

/// Whether a node is forgotten by the stored word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tombstone {
    Absent,
    /// A write of it has begun, and may have been carried out.
    Begun,
    Stands,
}

/// A node in the core's memory.
pub(super) struct Node {
    /// The newest word on it; `None` for a node that others' records name and that has never reported.
    pub(super) record: Option<NodeRecord>,
    /// The stored version, of what may be an older word.
    version: Option<Version>,
    /// The word that is being written.
    writing: Option<NodeRecord>,
    /// Whether the stored word is that it is forgotten.
    tombstone: Tombstone,
    /// A write is to be tried again.
    again: bool,
    /// When it last said something.
    pub(super) last: Duration,
    /// Whether its lease runs.
    pub(super) alive: bool,
    session: Option<(u64, Arc<Outbox>)>,
    /// Whether a full report came in this session.
    reported: bool,
    /// Devices it has reported in this session.
    pub(super) devices: BTreeMap<String, Device>,
    /// Why devices are not part of a pool.
    pub(super) unclaimed: BTreeMap<String, String>,
    /// Volumes that have to do with it.
    pub(super) volumes: BTreeSet<VolumeId>,
    /// Every goal that stands for it.
    goals: BTreeMap<GoalKey, Goal>,
}

impl Node {
    fn new(last: Duration) -> Self {
        Self {
            record: None,
            version: None,
            writing: None,
            tombstone: Tombstone::Absent,
            again: false,
            last,
            alive: true,
            session: None,
            reported: false,
            devices: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
            volumes: BTreeSet::new(),
            goals: BTreeMap::new(),
        }
    }

    /// Sets a goal; the session sends it if it is a new one.
    pub(super) fn tell(&mut self, key: GoalKey, goal: Goal) {
        if self.goals.get(&key) == Some(&goal) {
            return;
        }
        if let Some((_, out)) = &self.session {
            out.put(key.clone(), goal.clone());
        }
        self.goals.insert(key, goal);
    }

    /// Drops a goal: nothing more is asked for.
    pub(super) fn untell(&mut self, key: &GoalKey) {
        self.goals.remove(key);
        if let Some((_, out)) = &self.session {
            out.withdraw(key);
        }
    }

    /// Drops the goals for wipes of fresh stretches of a disk other than `wipe`.
    pub(super) fn untell_fresh(&mut self, disk: DiskId, wipe: u64) {
        let range = GoalKey::Wipe(disk, 0)..=GoalKey::Wipe(disk, u64::MAX);
        let fresh = |(k, g): (&GoalKey, &Goal)| match g {
            Goal::Wipe { volume: None, .. } if *k != GoalKey::Wipe(disk, wipe) => Some(k.clone()),
            Goal::Wipe { .. } | Goal::Disk { .. } | Goal::Export { .. } | Goal::Attachment { .. } => None,
        };
        let old: Vec<_> = self.goals.range(range).filter_map(fresh).collect();
        for k in old {
            self.untell(&k);
        }
    }

    /// Whether it has a session now, and has said everything in it.
    pub(super) fn has_reported(&self) -> bool {
        self.session.is_some() && self.reported
    }

    /// Whether it has a session and has not said everything in it yet.
    pub(super) fn is_unheard(&self) -> bool {
        self.session.is_some() && !self.reported
    }

    /// Whether a device of it carries the label of this disk, by its newest word.
    pub(super) fn shows(&self, disk: DiskId) -> bool {
        self.devices.values().any(|d| d.labelled() == Some(disk))
    }

    /// Ends its session.
    pub(super) fn close(&mut self, why: Close) {
        if let Some((_, out)) = self.session.take() {
            out.close(why);
        }
    }

    /// Its topology.
    pub(super) fn domain(&self) -> Domain {
        self.record.as_ref().map(|r| r.domain.clone()).unwrap_or_default()
    }

    /// Whether a person has said that it never comes back.
    pub(super) fn is_forgotten(&self) -> bool {
        self.record.as_ref().is_some_and(|r| r.forgotten)
    }

    /// The same, on record.
    pub(super) fn is_forgotten_for_good(&self) -> bool {
        self.is_forgotten() && self.tombstone == Tombstone::Stands
    }

    /// Whether it has ever reported, and is not forgotten: one of those that people are told of.
    pub(super) fn is_known(&self) -> bool {
        self.record.as_ref().is_some_and(|r| !r.forgotten)
    }

    /// Where its exports are reached.
    pub(super) fn address(&self) -> (String, u32) {
        self.record.as_ref().map(|r| (r.address.clone(), r.port)).unwrap_or_default()
    }
}

impl Engine {
    /// The node, made known if it was not: from then on its lease runs.
    pub(super) fn node_mut(&mut self, name: &NodeName) -> &mut Node {
        if !self.nodes.contains_key(name) {
            self.arm(self.now.mono + self.config.lease, Timer::Lease(name.clone()));
        }
        self.nodes.entry(name.clone()).or_insert_with(|| Node::new(self.now.mono))
    }

    /// Takes a node's record at start.
    pub(super) fn load_node(&mut self, record: NodeRecord, version: Version) {
        let n = self.node_mut(&record.name.clone());
        // Nothing is waited for of one that is forgotten.
        if record.forgotten {
            (n.alive, n.tombstone) = (false, Tombstone::Stands);
        }
        n.record = Some(record);
        n.version = Some(version);
    }

    /// Opens a session: the node gets every goal that stands for it.
    ///
    /// # Errors
    /// It is forgotten, and has not been booted since; or that it is no longer so is not on record yet.
    pub(super) fn open_session(&mut self, hello: Hello, out: Arc<Outbox>) -> Result<u64, OpenError> {
        let name = hello.node.clone();
        let known = self.nodes.get(&name).and_then(|n| n.record.as_ref());
        if known.is_some_and(|r| r.is_barred(&hello.boot_id)) {
            tracing::warn!(k8s_node = %name, "a node that is forgotten speaks up and was not booted since: refused");
            self.note_boot(&name, hello.boot_id);
            return Err(OpenError::Forgotten { node: name });
        }
        let rebooted = known.is_some_and(|r| !r.boot_id.is_empty() && r.boot_id != hello.boot_id);
        self.next_session += 1;
        let session = self.next_session;
        let mut labels = hello.topology;
        labels.remove(NODE_KEY);
        let record = NodeRecord {
            name: name.clone(),
            domain: Domain::new(labels),
            address: hello.address,
            port: hello.port,
            boot_id: hello.boot_id,
            forgotten: false,
        };
        let n = self.node_mut(&name);
        if n.tombstone != Tombstone::Absent {
            // Until the store knows, a successor of this controller would confirm in its place what it has not done.
            n.record = Some(record);
            self.write_node(&name);
            return Err(OpenError::Returning { node: name });
        }
        n.close(Close::Replaced);
        self.forget_devices(&name);
        let n = self.node_mut(&name);
        n.reported = false;
        out.fill(n.goals.clone());
        n.session = Some((session, out));
        let known = n.record.as_ref() == Some(&record) && n.version.is_some();
        tracing::info!(k8s_node = %name, session, rebooted, plugin = hello.version, "session opened");
        self.heard(&name);
        if !known {
            self.node_mut(&name).record = Some(record);
            self.write_node(&name);
            self.refresh_disks(&name);
            self.advance_all_of(&name);
        }
        Ok(session)
    }

    /// Whether the session is the node's current one; its messages count only then.
    pub(super) fn is_current(&self, name: &NodeName, session: u64) -> bool {
        let n = self.nodes.get(name).and_then(|n| n.session.as_ref());
        n.is_some_and(|(s, _)| *s == session)
    }

    /// Notes the end of a session. The node is not dead for it: its lease decides.
    pub(super) fn close_session(&mut self, name: &NodeName, session: u64) {
        if self.is_current(name, session)
            && let Some(n) = self.nodes.get_mut(name)
        {
            n.session = None;
            tracing::info!(k8s_node = %name, session, "session ended");
        }
    }

    /// The node said something.
    pub(super) fn heard(&mut self, name: &NodeName) {
        let (now, lease) = (self.now.mono, self.config.lease);
        let n = self.node_mut(name);
        n.last = now;
        if n.alive {
            return;
        }
        n.alive = true;
        self.arm(now + lease, Timer::Lease(name.clone()));
        tracing::info!(k8s_node = %name, "node is back");
        self.refresh_disks(name);
        self.advance_all_of(name);
    }

    pub(super) fn check_lease(&mut self, name: &NodeName) {
        let (now, lease) = (self.now.mono, self.config.lease);
        let Some(n) = self.nodes.get_mut(name).filter(|n| n.alive) else { return };
        if now < n.last + lease {
            let at = n.last + lease;
            self.arm(at, Timer::Lease(name.clone()));
            return;
        }
        n.alive = false;
        tracing::warn!(k8s_node = %name, "node has not been heard of for {lease:?}: taken for dead");
        self.refresh_disks(name);
        self.advance_all_of(name);
        self.settle_contested(name);
    }

    pub(super) fn advance_all_of(&mut self, name: &NodeName) {
        let volumes = self.nodes.get(name).map(|n| n.volumes.clone()).unwrap_or_default();
        for v in volumes {
            self.advance(v);
        }
    }

    /// For how long the node has not been heard of, for people.
    pub(super) fn silence(&self, name: &NodeName) -> String {
        match self.nodes.get(name) {
            Some(n) => format!("{} s", self.now.mono.saturating_sub(n.last).as_secs()),
            None => "ever".to_owned(),
        }
    }

    /// Begins to write the newest word on a node, unless a write is under way: that one's end looks again.
    pub(super) fn write_node(&mut self, name: &NodeName) {
        let Some(n) = self.nodes.get_mut(name).filter(|n| n.writing.is_none()) else { return };
        n.writing = n.record.clone();
        if n.is_forgotten() && n.tombstone == Tombstone::Absent {
            n.tombstone = Tombstone::Begun;
        }
        let expected = n.version;
        let record = n.record.clone().map(|r| Record::Node(Box::new(r)));
        self.write(Write { key: Key::Node(name.clone()), cause: Cause::Node, expected, record });
    }

    pub(super) fn on_node_written(&mut self, name: &NodeName, result: Result<Option<Version>, String>) {
        let Some(n) = self.nodes.get_mut(name) else { return };
        let written = n.writing.take();
        match result {
            Ok(version) => {
                n.version = version;
                let forgotten = written.as_ref().is_some_and(|r| r.forgotten);
                n.tombstone = if forgotten { Tombstone::Stands } else { Tombstone::Absent };
                if written != n.record {
                    self.write_node(name);
                } else if n.is_forgotten() {
                    self.settle_forgotten(name);
                }
            }
            // Until then memory knows better than the store.
            Err(why) => {
                tracing::warn!(k8s_node = %name, why, "the node's record was not written; will retry");
                if !std::mem::replace(&mut n.again, true) {
                    self.arm(self.now.mono + RETRY, Timer::Node(name.clone()));
                }
            }
        }
    }

    /// Tries a write again.
    pub(super) fn rewrite_node(&mut self, name: &NodeName) {
        if let Some(n) = self.nodes.get_mut(name) {
            n.again = false;
            self.write_node(name);
        }
    }

    /// Takes note of the boot of a forgotten node that never said one: the next one is another.
    fn note_boot(&mut self, name: &NodeName, boot_id: String) {
        let record = self.nodes.get_mut(name).and_then(|n| n.record.as_mut());
        if let Some(r) = record.filter(|r| r.boot_id.is_empty()) {
            r.boot_id = boot_id;
            self.write_node(name);
        }
    }

    /// Takes in what a node reports.
    pub(super) fn on_report(&mut self, name: &NodeName, report: Report) {
        let mut touched = BTreeSet::new();
        let full = report.full;
        let of_disks = full || !report.devices.is_empty() || !report.disks.is_empty();
        if full {
            self.forget_seen(name, &mut touched);
        }
        for (id, device) in report.devices {
            let n = self.node_mut(name);
            match device {
                Some(d) => drop(n.devices.insert(id, d)),
                None => drop(n.devices.remove(&id)),
            }
        }
        for a in report.attachments {
            let gone = match a.state {
                Some(Attachment::Absent) => Some(Gone::Absent),
                Some(Attachment::Fenced) => Some(Gone::Fenced),
                Some(Attachment::Guarded | Attachment::Open) | None => None,
            };
            let Some(v) = self.volumes.get_mut(&a.volume) else {
                tracing::warn!(k8s_node = %name, volume = %a.volume, "attachment of a volume that is not on record: left alone");
                continue;
            };
            v.live.confirmed.note(name, Place::Device, a.epoch, gone);
            touched.insert(a.volume);
            v.live.attachments.insert(name.clone(), a);
        }
        for e in report.exports {
            let gone = match e.state {
                Some(ExportState::Absent) => Some(Gone::Absent),
                Some(ExportState::Fenced) => Some(Gone::Fenced),
                Some(ExportState::Serving) | None => None,
            };
            let hosted = self.disks.get(&e.disk).is_some_and(|d| d.record.disk.node == *name);
            let Some(v) = self.volumes.get_mut(&e.volume).filter(|_| hosted) else {
                tracing::warn!(k8s_node = %name, volume = %e.volume, disk = %e.disk, "export that is not on record: left alone");
                continue;
            };
            v.live.confirmed.note(&e.consumer, Place::Export(e.disk), e.epoch, gone);
            touched.insert(e.volume);
            v.live.exports.insert((e.disk, e.consumer.clone()), e);
        }
        let mut disks = BTreeSet::new();
        for w in report.wipes {
            match self.wipes.get(&(w.disk, w.wipe)) {
                Some(id) if w.done => {
                    if let Some(v) = self.volumes.get_mut(id) {
                        v.live.wiped.insert((w.disk, w.wipe));
                        touched.insert(*id);
                    }
                }
                Some(_) | None => {
                    if self.note_fresh(&w) {
                        disks.insert(w.disk);
                    }
                }
            }
            if w.refused {
                tracing::error!(k8s_node = %name, disk = %w.disk, wipe = w.wipe, why = w.reason, "a wipe is refused: its extents stay set aside");
            } else if !w.done && !w.reason.is_empty() {
                tracing::warn!(k8s_node = %name, disk = %w.disk, wipe = w.wipe, why = w.reason, "a wipe does not go on");
            }
        }
        for d in report.disks {
            if let Some(id) = self.note_disk(name, d) {
                disks.insert(id);
            }
        }
        disks.extend(self.consider_devices(name));
        if full {
            // What follows may rest on what the node has said in this session.
            self.node_mut(name).reported = true;
        }
        for d in disks {
            self.advance_disk(d);
        }
        for v in touched {
            self.advance(v);
        }
        if of_disks {
            self.settle_contested(name);
        }
    }

    /// A full report replaces everything that the node had said in earlier sessions, except what it has confirmed to
    /// be gone: that stays gone.
    fn forget_seen(&mut self, name: &NodeName, touched: &mut BTreeSet<VolumeId>) {
        self.forget_devices(name);
        let volumes = self.node_mut(name).volumes.clone();
        for id in volumes {
            let Some(v) = self.volumes.get_mut(&id) else { continue };
            let disks = &self.disks;
            v.live.attachments.remove(name);
            v.live.exports.retain(|(d, _), _| disks.get(d).is_none_or(|s| s.record.disk.node != *name));
            touched.insert(id);
        }
    }
}
