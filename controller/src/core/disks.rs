//! Disks: which devices become disks of a pool, how they come and go, and the wiping of fresh ones.
//!
//! Invariants: a device is claimed only when it carries no signature and a pool selects it; what is left alone is
//! left alone for a reason that people can read; an extent of a fresh disk is nobody's before it is wiped, unless the
//! pool trusts its devices. Must not know: volumes' maps, beyond which extents they use.

use std::collections::BTreeSet;

use pool::{
    disk::{Disk, DiskEvent, DiskState, Health, LastSeen},
    ids::{DiskId, Epoch, NodeName, VolumeId},
    record::{DiskRecord, Key, Record, Retired},
    units::Extents,
    volume::Run,
};

use super::{
    config::{DeviceSelector, FreshDisks, NodeSelector, PoolSpec},
    engine::{Engine, Timer, Write},
    nodes::Node,
    seen::{Condition, Content, Device, DiskSeen, WipeSeen},
    told::{DiskRole, Goal, GoalKey},
};
use crate::{fault::Cause, store::Version};

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
    moved: Option<(NodeName, String, String)>,
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

/// Whether `text` matches a pattern in which `*` stands for anything and `?` for one character.
fn glob(pattern: &str, text: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut i, mut j, mut star) = (0, 0, None);
    while j < t.len() {
        if i < p.len() && (p[i] == '?' || p[i] == t[j]) && p[i] != '*' {
            (i, j) = (i + 1, j + 1);
        } else if i < p.len() && p[i] == '*' {
            star = Some((i, j));
            i += 1;
        } else if let Some((si, sj)) = star {
            star = Some((si, sj + 1));
            (i, j) = (si + 1, sj + 1);
        } else {
            return false;
        }
    }
    p[i..].iter().all(|c| *c == '*')
}

fn any_glob(patterns: &[String], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|p| glob(p, text))
}

fn selects_device(s: &DeviceSelector, d: &Device) -> bool {
    any_glob(&s.paths, &d.path)
        && any_glob(&s.serials, &d.serial)
        && (s.classes.is_empty() || s.classes.contains(&d.class))
        && s.min_size.is_none_or(|m| d.size >= m)
}

fn selects_node(
    s: &NodeSelector,
    name: &NodeName,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    any_glob(&s.names, name.as_str()) && s.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl Engine {
    /// Looks at every device of a node; gives the disks about which something has to be done.
    pub(super) fn consider_devices(&mut self, name: &NodeName) -> BTreeSet<DiskId> {
        let Some(n) = self.nodes.get(name) else { return BTreeSet::new() };
        let devices: Vec<_> = n.devices.iter().map(|(id, d)| (id.clone(), d.clone())).collect();
        let mut unclaimed = std::collections::BTreeMap::new();
        let mut todo = BTreeSet::new();
        let elsewhere = |disk: DiskId| self.disks.get(&disk).is_some_and(|s| s.record.disk.node != *name);
        if devices.iter().filter_map(|(_, d)| d.labelled()).any(elsewhere) {
            self.contested.insert(name.clone());
        } else {
            self.contested.remove(name);
        }
        for (id, device) in devices {
            let found = match &device.content {
                Content::Blank => self.consider_blank(name, &id, &device),
                Content::Weir { disk, pool } => self.consider_labelled(name, &id, &device, *disk, pool),
                Content::Foreign => Err(format!("carries {}", findings(&device))),
                Content::Busy => Err(format!("is in use: {}", findings(&device))),
                Content::Unreadable => Err(format!("cannot be read: {}", findings(&device))),
            };
            match found {
                Ok(disk) => drop(todo.insert(disk)),
                Err(why) => drop(unclaimed.insert(device.path.clone(), why)),
            }
        }
        if let Some(n) = self.nodes.get_mut(name) {
            for (path, why) in unclaimed.iter().filter(|(p, w)| n.unclaimed.get(*p) != Some(*w)) {
                tracing::info!(k8s_node = %name, path, "device left alone: it {why}");
            }
            n.unclaimed = unclaimed;
        }
        todo
    }

    /// Whether a living node other than the one on record shows the disk: carried there, it is not lost with its node.
    pub(super) fn is_shown_elsewhere(&self, id: DiskId) -> bool {
        let other = |n: &&NodeName| self.disks.get(&id).is_some_and(|s| s.record.disk.node != **n);
        let shows = |n: &NodeName| {
            self.alive(n) && self.nodes.get(n).is_some_and(|n| n.has_reported() && n.shows(id))
        };
        self.contested.iter().filter(other).any(shows)
    }

    /// Looks again at the nodes that show disks of others, now that `name` has said something, is dead, or forgotten.
    pub(super) fn settle_contested(&mut self, name: &NodeName) {
        let others: Vec<NodeName> = self.contested.iter().filter(|n| *n != name).cloned().collect();
        for n in others {
            for d in self.consider_devices(&n) {
                self.advance_disk(d);
            }
        }
    }

    /// A device without any signature: claimed if a pool selects it.
    fn consider_blank(&mut self, name: &NodeName, id: &str, device: &Device) -> Result<DiskId, String> {
        let here = |s: &&DiskSlot| s.record.disk.node == *name && s.record.device_id == id;
        if let Some(s) = self.disks.values().find(here) {
            return match s.record.disk.state {
                DiskState::Claimed | DiskState::Missing { was: LastSeen::Claimed } => Ok(s.record.disk.id),
                DiskState::Serving
                | DiskState::Draining
                | DiskState::Missing { .. }
                | DiskState::Released => Err(format!(
                    "is blank, yet disk {} is on record for it: it was replaced or its label was erased",
                    s.record.disk.id
                )),
            };
        }
        let spec = self.select(name, device)?;
        let id = id.to_owned();
        Ok(self.claim(name, id, device, &spec))
    }

    pub(super) fn select(&self, name: &NodeName, device: &Device) -> Result<PoolSpec, String> {
        let labels = self.nodes.get(name).map(|n| n.domain()).unwrap_or_default();
        let takes = |p: &&PoolSpec| {
            (p.nodes.is_empty() || p.nodes.iter().any(|s| selects_node(s, name, labels.labels())))
                && p.devices.iter().any(|s| selects_device(s, device))
        };
        let mut takers = self.specs.values().filter(takes);
        let spec = takers.next().ok_or("is selected by no pool")?;
        if let Some(other) = takers.next() {
            return Err(format!(
                "is selected by pool {} and by pool {}: neither takes it",
                spec.name, other.name
            ));
        }
        if let Some(b) = spec.logical_block.filter(|b| *b != device.logical_block) {
            return Err(format!(
                "has logical blocks of {} bytes; pool {} wants {b}",
                device.logical_block, spec.name
            ));
        }
        // One extent goes to the labels.
        if spec.extent_size.extents_round_down(device.size) < Extents::new(2) {
            return Err(format!("is too small for extents of {}", spec.extent_size.bytes()));
        }
        Ok(spec.clone())
    }

    fn claim(&mut self, name: &NodeName, device_id: String, device: &Device, spec: &PoolSpec) -> DiskId {
        let id = DiskId::from_u128((self.draw)());
        let record = DiskRecord {
            disk: Disk {
                id,
                node: name.clone(),
                pool: spec.name.clone(),
                extents: Extents::ZERO,
                extent_size: spec.extent_size,
                logical_block: device.logical_block,
                physical_block: device.physical_block,
                class: device.class,
                state: DiskState::Claimed,
                health: Health::Good,
                domain: self.nodes.get(name).map(|n| n.domain()).unwrap_or_default(),
                reserve: spec.extent_size.extents_round_down(spec.reserve),
            },
            device_id,
            path: device.path.clone(),
            epoch: Epoch::ZERO.next(),
            clean_through: Extents::ZERO,
            fresh: None,
        };
        tracing::info!(disk = %id, k8s_node = %name, path = device.path, pool = %spec.name, "device is being claimed");
        self.disks.insert(id, DiskSlot::new(record.clone(), None));
        self.write_disk(id, Some(record), Cause::Claim);
        id
    }

    /// Whether its node has looked, in its present session, and has not got it.
    fn is_missed(&self, s: &DiskSlot) -> bool {
        let there = self.nodes.get(&s.record.disk.node).and_then(|n| n.devices.get(&s.record.device_id));
        match s.seen.as_ref().and_then(|seen| seen.condition) {
            Some(Condition::Missing) => true,
            // Another device has its name now.
            Some(Condition::Failed) => {
                there.is_some_and(|d| matches!(d.content, Content::Blank | Content::Foreign))
            }
            Some(Condition::Serving | Condition::Released) | None => false,
        }
    }

    /// A device with a label of ours: the disk that it names, wherever it is. One that is to be taken from another node is moved by
    /// the next write of its record.
    fn consider_labelled(
        &mut self,
        name: &NodeName,
        id: &str,
        device: &Device,
        disk: DiskId,
        pool: &str,
    ) -> Result<DiskId, String> {
        let judged = self.judge_labelled(name, disk, pool);
        if let Some(s) = self.disks.get_mut(&disk) {
            if judged.is_ok() && s.record.disk.node != *name {
                s.moved = Some((name.clone(), id.to_owned(), device.path.clone()));
            } else {
                // What was so a moment ago may not be so any more.
                s.moved.take_if(|(to, ..)| to == name);
            }
        }
        judged.map(|()| disk)
    }

    /// Whether the disk that a label names is this node's, or is to become so.
    fn judge_labelled(&self, name: &NodeName, disk: DiskId, pool: &str) -> Result<(), String> {
        let Some(slot) = self.disks.get(&disk) else {
            return Err(format!("is labelled as disk {disk} of pool {pool}, which is not on record here"));
        };
        let on = &slot.record.disk.node;
        if on == name {
            return Ok(());
        }
        let state = slot.record.disk.state;
        if state == DiskState::Released {
            return Err(format!("is labelled as disk {disk} of node {on}, which leaves the pool"));
        }
        let (alive, node) = (self.alive(on), self.nodes.get(on));
        let gone = node.is_some_and(Node::is_forgotten_for_good)
            || !alive && matches!(state, DiskState::Missing { .. });
        let shown = node.is_some_and(|n| n.shows(disk));
        if alive && shown {
            return Err(format!("is labelled as disk {disk}, which node {on} has as well: neither is moved"));
        }
        // That it does not show the disk says nothing before it has looked at all of its devices.
        if alive && !self.is_missed(slot) {
            return Err(format!(
                "is labelled as disk {disk} of node {on}, which has not said that it is missing there"
            ));
        }
        // Two nodes may reach one device: that its node is silent does not say that it has let go of it.
        if !alive && !gone {
            return Err(format!(
                "is labelled as disk {disk} of node {on}, which is dead: if it was carried here from there and {on} is off for good, \
                 `weir forget {on}` has it taken here with all that lies on it"
            ));
        }
        Ok(())
    }

    /// What a node said in earlier sessions of its devices and disks counts no more.
    pub(super) fn forget_devices(&mut self, name: &NodeName) {
        self.node_mut(name).devices.clear();
        for s in self.disks.values_mut().filter(|s| s.record.disk.node == *name) {
            s.seen = None;
        }
    }

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
        if let Some((node, device_id, path)) = s.moved.clone() {
            next.disk.domain = self.nodes.get(&node).map(|n| n.domain()).unwrap_or_default();
            (next.disk.node, next.device_id, next.path) = (node, device_id, path);
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

    fn write_disk(&mut self, id: DiskId, next: Option<DiskRecord>, cause: Cause) {
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

fn findings(d: &Device) -> String {
    if d.findings.is_empty() { "something unknown".to_owned() } else { d.findings.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn wildcards() {
        for (p, t, want) in [
            ("/dev/vd*", "/dev/vdb", true),
            ("/dev/vd?", "/dev/vdb", true),
            ("/dev/vd?", "/dev/vdb1", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*a", "aaab", false),
        ] {
            assert_eq!(glob(p, t), want, "{p} {t}");
        }
    }
}
