//! Disks on record: how they come, move and go, and the wiping of fresh ones.
//!
//! Invariants: an extent of a fresh disk is nobody's before it is wiped, unless the pool trusts its devices; a record is written
//! once at a time. Must not know: devices that are no disks, volumes' maps beyond which extents they use.

use std::collections::BTreeSet;

use pool::{
    disk::{Disk, DiskEvent, DiskState, Health, LastSeen},
    ids::{DiskId, Epoch, NodeName, VolumeId},
    record::{DiskRecord, Key, Record, Retired},
    units::Extents,
    volume::Run,
};

use super::{
    config::FreshDisks,
    engine::{Engine, Timer, Write},
    seen::{Condition, Content, DiskSeen, WipeSeen},
    told::{DiskRole, Goal, GoalKey},
};
use crate::{fault::Cause, store::Version};

/// Where a disk is found.
#[derive(Clone, Debug)]
pub(super) struct FoundAt {
    pub(super) node: NodeName,
    pub(super) device_id: String,
    pub(super) path: String,
}

/// A disk in the core's memory.
pub(super) struct DiskSlot {
    pub(super) record: DiskRecord,
    version: Option<Version>,
    pending: Option<Box<(Option<DiskRecord>, Cause)>>,
    /// What its node says of it.
    pub(super) seen: Option<DiskSeen>,
    /// The wipe of a fresh stretch that was reported done.
    wiped: Option<u64>,
    /// Where it has been found, when that is another node than the record's.
    pub(super) moved: Option<FoundAt>,
    /// Whether it is in the index.
    pub(super) indexed: bool,
    told: Option<NodeName>,
    /// What a person wants of it, until that is on record.
    wish: Option<Wish>,
    /// It leaves, and nobody waits any more for its label to be erased.
    pub(super) abandoned: bool,
}

/// What a person may want of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is to be emptied.
    Drain,
    /// It takes new extents again.
    Undrain,
    /// It leaves the pool, its label erased.
    Release,
    /// It never comes back.
    Forget,
}

impl Wish {
    pub(super) fn event(self) -> DiskEvent {
        match self {
            Wish::Drain => DiskEvent::Drain,
            Wish::Undrain => DiskEvent::Undrain,
            Wish::Release => DiskEvent::Release,
            Wish::Forget => DiskEvent::Forget,
        }
    }
}

impl DiskSlot {
    pub(super) fn new(record: DiskRecord, version: Option<Version>) -> Self {
        Self {
            record,
            version,
            pending: None,
            seen: None,
            wiped: None,
            moved: None,
            indexed: false,
            told: None,
            wish: None,
            abandoned: false,
        }
    }

    /// Whether it leaves the pool, on record or in the write that is under way.
    fn is_leaving(&self) -> bool {
        let next = self.pending.as_ref().map(|p| p.0.as_ref().map(|r| r.disk.state));
        self.record.disk.state == DiskState::Released || next == Some(Some(DiskState::Released))
    }

    /// Whether what a person wants of it is not on record yet.
    pub(super) fn has_wish(&self) -> bool {
        self.wish.is_some()
    }

    pub(super) fn wish(&self) -> Option<Wish> {
        self.wish
    }

    fn is_as_wished(&self, wish: Wish) -> bool {
        let state = self.record.disk.state;
        state.after(wish.event()).is_ok_and(|s| s == state)
    }

    /// Whether it is on record.
    pub(super) fn is_stored(&self) -> bool {
        self.version.is_some()
    }
}

impl Engine {
    /// Takes in what a node says of a disk.
    pub(super) fn note_disk(&mut self, name: &NodeName, seen: DiskSeen) -> Option<DiskId> {
        let id = seen.disk;
        let slot = self.disks.get_mut(&id).filter(|s| s.record.disk.node == *name)?;
        let device = self.nodes.get_mut(name).and_then(|n| n.devices.get_mut(&seen.device_id));
        if let Some(d) = device
            && seen.condition == Some(Condition::Serving)
        {
            // Newer than what was said of the device, which was blank before it was claimed.
            let pool = slot.record.disk.pool.to_string();
            (d.content, d.findings) = (Content::Weir { disk: id, pool }, vec![]);
        }
        if seen.condition != Some(Condition::Missing) {
            // It came back before its move was on record.
            slot.moved = None;
        }
        slot.seen = Some(seen);
        Some(id)
    }

    /// Takes in that the wipe of a fresh stretch is done.
    pub(super) fn note_fresh(&mut self, w: &WipeSeen) -> bool {
        let Some(s) = self.disks.get_mut(&w.disk) else { return false };
        let ours = w.done && s.record.fresh.as_ref().is_some_and(|f| f.wipe == w.wipe);
        if ours {
            s.wiped = Some(w.wipe);
        }
        ours
    }

    /// Takes note of what a person wants of a disk.
    pub(super) fn wish(&mut self, id: DiskId, wish: Wish) {
        if let Some(s) = self.disks.get_mut(&id) {
            // A write that is under way may be about to make it otherwise; what leaves stays gone.
            let open = !s.is_leaving() && (s.pending.is_some() || !s.is_as_wished(wish));
            s.wish = Some(wish).filter(|_| open);
        }
    }

    /// Does what can be done about a disk now.
    pub(super) fn advance_disk(&mut self, id: DiskId) {
        let Some(s) = self.disks.get(&id) else { return };
        let vain = |w: &Wish| {
            matches!(w, Wish::Release | Wish::Forget) && s.pending.is_none() && self.after(s, *w).is_err()
        };
        if s.wish.as_ref().is_some_and(vain)
            && let Some(s) = self.disks.get_mut(&id)
        {
            // It came back, say: whoever wanted it away has to want it again.
            s.wish = None;
            self.answer_drains();
        }
        let Some(s) = self.disks.get(&id) else { return };
        if s.pending.is_none()
            && let Some((next, cause)) = self.plan_disk(id)
        {
            self.write_disk(id, next, cause);
        }
        self.publish_disk(id);
    }

    /// The record that a disk should have by what has been seen; `None` inside for none at all.
    fn plan_disk(&mut self, id: DiskId) -> Option<(Option<DiskRecord>, Cause)> {
        let wipe = self.draw_wipe();
        let s = self.disks.get(&id)?;
        if s.record.disk.state == DiskState::Released {
            return self.is_over(s).then_some((None, Cause::Disk));
        }
        let mut next = s.record.clone();
        if let Some(at) = s.moved.clone() {
            next.disk.domain = self.nodes.get(&at.node).map(|n| n.domain()).unwrap_or_default();
            (next.disk.node, next.device_id, next.path) = (at.node, at.device_id, at.path);
            next.epoch = next.epoch.next();
            return Some((Some(next), Cause::Disk));
        }
        if let Some(state) = self.leaving(s) {
            (next.disk.state, next.fresh) = (state, None);
            next.epoch = next.epoch.next();
            return Some((Some(next), Cause::Disk));
        }
        if let Some(seen) = &s.seen {
            self.take_condition(&mut next, seen);
        }
        if let Some(wish @ (Wish::Drain | Wish::Undrain)) = s.wish {
            next.disk.state = next.disk.state.after(wish.event()).unwrap_or(next.disk.state);
        }
        if next != s.record {
            next.epoch = next.epoch.next();
            return Some((Some(next), Cause::Disk));
        }
        let trusted = self.specs.get(&next.disk.pool).is_some_and(|p| p.fresh_disks == FreshDisks::Trust);
        let served = next.disk.state.takes_new_data() && !next.disk.extents.is_zero();
        let done = next.fresh.as_ref().filter(|f| s.wiped == Some(f.wipe)).cloned();
        if let Some(f) = done {
            next.clean_through =
                f.runs.iter().fold(next.clean_through, |at, r| at.max(r.first.plus(r.count)));
            next.fresh = None;
        }
        if next.fresh.is_none() && served {
            if trusted {
                next.clean_through = next.disk.extents;
            }
            let chunk =
                next.disk.extent_size.extents_round_down(self.config.fresh_chunk).max(Extents::new(1));
            next.fresh = next.next_fresh(chunk).map(|r| Retired {
                wipe,
                disk: id,
                runs: vec![r],
                consumers: BTreeSet::new(),
                epoch: Epoch::ZERO,
            });
        }
        (next != s.record).then_some((Some(next), Cause::Fresh))
    }

    /// Brings a record's state up to what its node says.
    fn take_condition(&self, next: &mut DiskRecord, seen: &DiskSeen) {
        let on = |state: DiskState, e: DiskEvent| state.after(e).unwrap_or(state);
        let state = next.disk.state;
        match seen.condition {
            Some(Condition::Serving) => {
                let found = on(state, DiskEvent::Found);
                if found == DiskState::Claimed && !seen.extents.is_zero() {
                    next.disk.extents = seen.extents;
                    next.disk.state = on(found, DiskEvent::Labelled);
                } else if found != DiskState::Claimed {
                    next.disk.state = found;
                }
                next.device_id.clone_from(&seen.device_id);
                next.path.clone_from(&seen.path);
                // It failed and was mended, or its device answered again: what is said of it now counts.
                if seen.reason.is_empty() && next.disk.health == Health::Failing {
                    next.disk.health = Health::Good;
                }
            }
            Some(Condition::Missing) => next.disk.state = on(state, DiskEvent::Lost),
            Some(Condition::Failed) if state != DiskState::Claimed => next.disk.health = Health::Failing,
            Some(Condition::Failed | Condition::Released) | None => {}
        }
        if !next.disk.extents.is_zero() && !seen.extents.is_zero() && next.disk.extents != seen.extents {
            tracing::error!(disk = %seen.disk, on_record = %next.disk.extents, seen = %seen.extents,
                "the disk's size differs from its record: the record stands");
        }
    }

    pub(super) fn write_disk(&mut self, id: DiskId, next: Option<DiskRecord>, cause: Cause) {
        let Some(s) = self.disks.get_mut(&id) else { return };
        let expected = s.version;
        s.pending = Some(Box::new((next.clone(), cause)));
        self.reoffer(id);
        let record = next.map(|r| Record::Disk(Box::new(r)));
        self.write(Write { key: Key::Disk(id), cause, expected, record });
    }

    pub(super) fn on_disk_written(&mut self, id: DiskId, result: Result<Option<Version>, String>) {
        let Some(s) = self.disks.get_mut(&id) else { return };
        let Some(pending) = s.pending.take() else { return };
        let version = match result {
            Ok(v) => v,
            Err(why) => {
                tracing::warn!(disk = %id, why, "the disk's record was not written; will retry");
                if s.version.is_none() {
                    self.disks.remove(&id);
                } else {
                    self.arm(self.now.mono + std::time::Duration::from_secs(1), Timer::Disk(id));
                    self.reoffer(id);
                }
                return;
            }
        };
        s.version = version;
        let Some(next) = pending.0 else {
            self.drop_disk(id);
            self.answer_drains();
            return;
        };
        let old = std::mem::replace(&mut s.record, next);
        if old.disk.node != s.record.disk.node {
            (s.moved, s.seen) = (None, None);
            tracing::info!(disk = %id, from = %old.disk.node, to = %s.record.disk.node, "disk moved");
        }
        let moved = old.disk.node != s.record.disk.node;
        s.wish = s.wish.filter(|wish| !s.is_leaving() && !s.is_as_wished(*wish));
        if old.disk.state != s.record.disk.state {
            tracing::info!(disk = %id, from = %old.disk.state, to = %s.record.disk.state, "disk changed state");
        }
        self.index_disk(id, &old);
        self.wake_mover();
        self.answer_drains();
        if moved {
            self.rehost(id, &old.disk.node);
        }
        if old.disk.state != DiskState::Released && self.is_out(id) {
            // What they still have to do with it is over.
            for v in self.volumes_naming(id).collect::<Vec<_>>() {
                self.advance(v);
            }
        }
        self.advance_disk(id);
    }

    /// Has the index see a disk as it is to be offered now.
    fn reoffer(&mut self, id: DiskId) {
        let Some(d) = self.disks.get(&id).filter(|s| s.indexed).map(|s| self.offered(&s.record.disk)) else {
            return;
        };
        if self.pool.disk(id) != Some(&d)
            && let Err(e) = self.pool.update_disk(d)
        {
            tracing::error!(disk = %id, error = %e, "the index refused what changed about the disk");
        }
    }

    /// Brings the index up to a disk's new record.
    fn index_disk(&mut self, id: DiskId, old: &DiskRecord) {
        let Some(s) = self.disks.get(&id) else { return };
        let disk = self.offered(&s.record.disk);
        let Some(s) = self.disks.get_mut(&id) else { return };
        let r = &s.record;
        if r.disk.state == DiskState::Released {
            if std::mem::take(&mut s.indexed)
                && let Err(e) = self.pool.remove_disk(id)
            {
                tracing::error!(disk = %id, error = %e, "a disk that leaves the pool is still in use");
            }
            return;
        }
        if r.disk.extents.is_zero() {
            return;
        }
        let cleaned = r.clean_through.saturating_sub(old.clean_through);
        let done = if !s.indexed {
            s.indexed = true;
            // A disk that was not in the index before has nobody's extents on it.
            self.pool.add_disk(disk, r.free_runs(vec![]))
        } else {
            let update = self.pool.update_disk(disk);
            update.and_then(|()| {
                let run = Run { disk: id, first: old.clean_through, count: cleaned };
                if cleaned.is_zero() { Ok(()) } else { self.pool.release_runs(&[run]) }
            })
        };
        if let Err(e) = done {
            tracing::error!(disk = %id, error = %e, "the index does not agree with the disk's record");
        }
    }

    fn drop_disk(&mut self, id: DiskId) {
        let Some(s) = self.disks.remove(&id) else { return };
        let node = s.record.disk.node;
        self.node_mut(&node).untell(&GoalKey::Disk(id));
        self.node_mut(&node).untell_fresh(id, 0);
        tracing::info!(disk = %id, k8s_node = %node, "disk is off the record");
    }

    /// The disk as the index is to see it: nothing new goes to a node that is not heard of, nor to a disk that is about to leave.
    fn offered(&self, disk: &Disk) -> Disk {
        let mut disk = disk.clone();
        if !self.alive(&disk.node) || self.disks.get(&disk.id).is_some_and(DiskSlot::is_leaving) {
            disk.state = disk.state.after(DiskEvent::Lost).unwrap_or(disk.state);
        }
        disk
    }

    /// A node came, went, or stands elsewhere now: so do its disks, as far as new data goes.
    pub(super) fn refresh_disks(&mut self, name: &NodeName) {
        let domain = self.nodes.get(name).map(|n| n.domain()).unwrap_or_default();
        let mut changed = Vec::new();
        for s in self.disks.values_mut().filter(|s| s.record.disk.node == *name) {
            s.record.disk.domain = domain.clone();
            changed.push(s.record.disk.id);
        }
        for d in changed {
            self.reoffer(d);
        }
    }

    /// Tells the nodes of every volume that has to do with the disk where it is now; it was on `before`.
    fn rehost(&mut self, id: DiskId, before: &NodeName) {
        let names = |v: &VolumeId| self.volumes.get(v).is_some_and(|v| v.record.disks().contains(&id));
        let there = self.nodes.get(before).into_iter().flat_map(|n| n.volumes.iter().copied()).filter(names);
        let volumes: BTreeSet<VolumeId> = self.pool.owners(id).map(|(v, _)| v).chain(there).collect();
        for v in volumes {
            if let Some(v) = self.volumes.get_mut(&v) {
                // What its former host serves is no way to it.
                v.live.exports.retain(|(d, _), _| *d != id);
            }
            self.advance(v);
        }
    }

    /// Tells a disk's node what to do with it.
    pub(super) fn publish_disk(&mut self, id: DiskId) {
        let Some(s) = self.disks.get_mut(&id).filter(|s| s.version.is_some()) else { return };
        let r = s.record.clone();
        let node = r.disk.node.clone();
        let before = s.told.replace(node.clone()).filter(|n| *n != node);
        if let Some(n) = before {
            self.node_mut(&n).untell(&GoalKey::Disk(id));
            self.node_mut(&n).untell_fresh(id, 0);
        }
        let role = match r.disk.state {
            DiskState::Claimed | DiskState::Missing { was: LastSeen::Claimed } => DiskRole::Claim,
            DiskState::Serving | DiskState::Draining | DiskState::Missing { .. } => DiskRole::Serve,
            DiskState::Released => DiskRole::Release,
        };
        let (extent_size, pool) = (r.disk.extent_size, r.disk.pool);
        let goal = Goal::Disk { epoch: r.epoch, role, device_id: r.device_id, pool, extent_size };
        self.node_mut(&node).tell(GoalKey::Disk(id), goal);
        if let Some(f) = r.fresh {
            let goal = Goal::Wipe { volume: None, runs: f.runs, extent_size, epoch: f.epoch };
            let n = self.node_mut(&node);
            n.untell_fresh(id, f.wipe);
            n.tell(GoalKey::Wipe(id, f.wipe), goal);
        } else {
            self.node_mut(&node).untell_fresh(id, 0);
        }
    }
}
