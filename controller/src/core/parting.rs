//! Nodes and disks that leave: a disk that is emptied is released; what never comes back is forgotten, as a person says.
//!
//! Invariants: nothing of a volume that is not being deleted lies on what leaves; what a forgotten node would have to confirm is
//! taken for confirmed, and it is not heard before it has been booted anew, so that nothing of it is left in a kernel; extents of
//! a disk that leaves are given to nobody, wiped or not; a disk's record goes when no volume's names it. Must not know: sessions.

use std::collections::BTreeSet;

use pool::{
    access::{Gone, Place},
    disk::{DiskEvent, DiskState},
    ids::{DiskId, NodeName, VolumeId},
    record::Lifecycle,
};

use super::{
    disks::{DiskSlot, Wish},
    engine::Engine,
    nodes::Node,
    seen::Condition,
    told::Close,
};
use crate::api::{ApiError, Parting, Target};

/// Volumes that are named to a person.
const NAMED: usize = 8;

impl Engine {
    /// Has a disk released, or a disk or a node forgotten; says what is left of it on record. Asked again it changes nothing.
    pub(super) fn part(&mut self, target: &Target, forget: bool) -> Result<Parting, ApiError> {
        match target {
            Target::Node(n) if forget => self.forget_node(n),
            Target::Node(n) => Err(ApiError::Invalid(format!(
                "{n} is a node: disks are released, one by one; a node that never comes back is forgotten"
            ))),
            Target::Disk(d) if forget => self.forget_disk(*d),
            Target::Disk(d) => self.release_disk(*d),
        }
    }

    fn forget_node(&mut self, name: &NodeName) -> Result<Parting, ApiError> {
        let Some(n) = self.nodes.get(name).filter(|n| n.record.is_some()) else {
            return Err(ApiError::NoNode(name.to_string()));
        };
        if n.is_forgotten() {
            return Ok(self.left_of(name));
        }
        if n.alive {
            return Err(ApiError::Precondition(format!(
                "node {name} is alive: only a node that never comes back can be forgotten. To take it out of the cluster, empty its \
                 disks (weir drain {name}), stop it, and then forget it"
            )));
        }
        let disks: Vec<DiskId> = self.disks_of(name).filter(|d| !self.is_shown_elsewhere(*d)).collect();
        let rescue = "Put its disks into another node first, or delete these volumes";
        self.lies_nothing_on(&format!("node {name}"), &disks, rescue)?;
        let Some(n) = self.nodes.get_mut(name) else { return Err(ApiError::NoNode(name.to_string())) };
        if let Some(r) = &mut n.record {
            r.forgotten = true;
        }
        n.close(Close::Forgotten);
        tracing::warn!(k8s_node = %name, disks = disks.len(), volumes = n.volumes.len(), "node is forgotten, as a person wants");
        self.write_node(name);
        Ok(self.left_of(name))
    }

    fn forget_disk(&mut self, id: DiskId) -> Result<Parting, ApiError> {
        let s = self.disks.get(&id).ok_or(ApiError::NoDisk(id))?;
        if let Err(why) = self.after(s, Wish::Forget) {
            return Err(ApiError::Precondition(format!("disk {id} of node {}: {why}", s.record.disk.node)));
        }
        self.lies_nothing_on(
            &format!("disk {id}"),
            &[id],
            "If it does not come back, delete these volumes first",
        )?;
        if let Some(s) = self.disks.get_mut(&id) {
            // One that was to be released, and cannot be.
            s.abandoned = s.record.disk.state == DiskState::Released;
        }
        Ok(self.wish_away(id, Wish::Forget))
    }

    fn release_disk(&mut self, id: DiskId) -> Result<Parting, ApiError> {
        let s = self.disks.get(&id).ok_or(ApiError::NoDisk(id))?;
        let d = &s.record.disk;
        if d.state == DiskState::Released {
            return Ok(self.wish_away(id, Wish::Release));
        }
        if let Err(why) = self.after(s, Wish::Release) {
            return Err(ApiError::Precondition(format!("disk {id} of node {}: {why}", d.node)));
        }
        let (device, path) = (s.record.device_id.as_str(), s.record.path.as_str());
        let seen = self.nodes.get(&d.node).filter(|n| n.has_reported()).and_then(|n| n.devices.get(device));
        let Some(seen) = seen else {
            return Err(ApiError::Precondition(format!(
                "disk {id}: node {} does not show {path} now, and its label could not be erased: try again when it does, or forget \
                 the disk",
                d.node
            )));
        };
        if let Ok(spec) = self.select(&d.node, seen) {
            return Err(ApiError::Precondition(format!(
                "disk {id}: pool {} selects {path} of node {}, and would take it again at once: change the pool's devices first",
                spec.name, d.node
            )));
        }
        if let Some(v) = self.volumes_naming(id).next() {
            return Err(ApiError::Precondition(format!(
                "disk {id}: something of volume {v} is still on it, or is being wiped: wait until `weir drain {id}` has ended"
            )));
        }
        Ok(self.wish_away(id, Wish::Release))
    }

    /// Whether nothing lies on these disks that anybody may still want; `rescue` is what to do otherwise.
    fn lies_nothing_on(&self, what: &str, disks: &[DiskId], rescue: &str) -> Result<(), ApiError> {
        let owners = disks.iter().flat_map(|d| self.pool.owners(*d)).map(|(v, _)| v);
        let wanted =
            |v: &VolumeId| self.volumes.get(v).is_none_or(|v| v.record.lifecycle == Lifecycle::Active);
        let all: BTreeSet<VolumeId> = owners.filter(wanted).collect();
        if all.is_empty() {
            return Ok(());
        }
        let name = |v: &VolumeId| {
            let Some(v) = self.volumes.get(v) else { return v.to_string() };
            let (claim, name) = (&v.record.claim, &v.record.name);
            match (&claim.pvc_namespace, &claim.pvc_name) {
                (Some(ns), Some(pvc)) => format!("{name} (claim {ns}/{pvc})"),
                _ => name.clone(),
            }
        };
        let named: Vec<String> = all.iter().take(NAMED).map(name).collect();
        let more = all.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let volumes = if all.len() == 1 { "a volume".to_owned() } else { format!("{} volumes", all.len()) };
        Err(ApiError::Precondition(format!(
            "{what} holds parts of {volumes}, which would be lost with it: {}{more}. {rescue}",
            named.join(", ")
        )))
    }

    fn wish_away(&mut self, id: DiskId, wish: Wish) -> Parting {
        self.wish(id, wish);
        self.advance_disk(id);
        Parting { disks: 1, volumes: self.volumes_naming(id).count(), done: false }
    }

    fn disks_of<'a>(&'a self, name: &'a NodeName) -> impl Iterator<Item = DiskId> + 'a {
        self.disks.iter().filter(move |(_, s)| s.record.disk.node == *name).map(|(id, _)| *id)
    }

    fn left_of(&self, name: &NodeName) -> Parting {
        let disks = self.disks_of(name).count();
        let n = self.nodes.get(name);
        let volumes = n.map_or(0, |n| n.volumes.len());
        let done = disks == 0 && volumes == 0 && n.is_some_and(Node::is_forgotten_for_good);
        Parting { disks, volumes, done }
    }

    /// Volumes whose records name a disk: parts of them lie there, or are to be wiped, or somebody who is leaving had them from there.
    pub(super) fn volumes_naming(&self, id: DiskId) -> impl Iterator<Item = VolumeId> + '_ {
        let host = self.disks.get(&id).map(|s| &s.record.disk.node);
        let involved =
            host.and_then(|h| self.nodes.get(h)).into_iter().flat_map(|n| n.volumes.iter().copied());
        let all: BTreeSet<VolumeId> = self.pool.owners(id).map(|(v, _)| v).chain(involved).collect();
        all.into_iter().filter(move |v| self.volumes.get(v).is_some_and(|v| v.record.disks().contains(&id)))
    }

    /// What became of a node that is forgotten is on record: all that waited for it goes on.
    pub(super) fn settle_forgotten(&mut self, name: &NodeName) {
        self.refresh_disks(name);
        self.advance_all_of(name);
        // First what was carried away: it stays in the pool.
        self.settle_contested(name);
        let disks: Vec<DiskId> = self.disks_of(name).collect();
        for d in disks {
            self.advance_disk(d);
        }
    }

    pub(super) fn is_forgotten(&self, name: &NodeName) -> bool {
        self.nodes.get(name).is_some_and(Node::is_forgotten_for_good)
    }

    /// Whether a disk is out of the pool, and what lay on it with it.
    pub(super) fn is_out(&self, id: DiskId) -> bool {
        self.disks.get(&id).is_none_or(|s| s.record.disk.state == DiskState::Released)
    }

    /// The state of a disk that a person wants otherwise; why not, if it cannot be.
    pub(super) fn after(&self, s: &DiskSlot, wish: Wish) -> Result<DiskState, String> {
        let (state, lost) = (s.record.disk.state, !self.alive(&s.record.disk.node));
        // A dead node does not say that a disk is missing.
        let state = if wish == Wish::Forget && lost && state != DiskState::Released {
            state.after(DiskEvent::Lost).unwrap_or(state)
        } else {
            state
        };
        state.after(wish.event()).map_err(|e| e.to_string())
    }

    /// The state of a disk that is to leave, once nothing of any volume lies on it.
    pub(super) fn leaving(&self, s: &DiskSlot) -> Option<DiskState> {
        let id = s.record.disk.id;
        let wish = match s.wish() {
            Some(wish @ (Wish::Release | Wish::Forget)) => wish,
            Some(Wish::Drain | Wish::Undrain) | None if self.is_forgotten(&s.record.disk.node) => {
                Wish::Forget
            }
            Some(Wish::Drain | Wish::Undrain) | None => return None,
        };
        self.after(s, wish).ok().filter(|_| self.pool.owners(id).next().is_none())
    }

    /// Whether a released disk's record can go: no volume's names it, and its label is erased, or nobody can erase it.
    pub(super) fn is_over(&self, s: &DiskSlot) -> bool {
        let d = &s.record.disk;
        let erased = s.abandoned
            || match s.seen.as_ref().and_then(|seen| seen.condition) {
                Some(Condition::Released | Condition::Missing) => true,
                Some(Condition::Serving | Condition::Failed) | None => !self.alive(&d.node),
            };
        erased && self.volumes_naming(d.id).next().is_none()
    }

    /// Disks that a volume had to do with may have nothing to do with it any more.
    pub(super) fn see_off(&mut self, disks: &BTreeSet<DiskId>) {
        for d in disks {
            let waits = self.disks.get(d).is_some_and(|s| {
                let wished = matches!(s.wish(), Some(Wish::Release | Wish::Forget));
                wished || s.record.disk.state == DiskState::Released || self.is_forgotten(&s.record.disk.node)
            });
            if waits {
                self.advance_disk(*d);
            }
        }
    }

    /// Confirms in place of those who never come back what they would have to confirm of the volume.
    pub(super) fn vouch(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get(&id) else { return };
        let epoch = v.record.access.epoch;
        let mut said = Vec::new();
        for (node, l) in &v.record.access.leaving {
            for place in l.places() {
                let host = match place {
                    Place::Device => Some(node),
                    Place::Export(d) => self.disks.get(&d).map(|s| &s.record.disk.node),
                };
                let out = matches!(place, Place::Export(d) if self.is_out(d));
                let gone = if out || host.is_some_and(|h| self.is_forgotten(h)) {
                    Some(Gone::Absent)
                } else if place != Place::Device && host == Some(node) {
                    // Its lender's disk has come to it: its device is all that it has there.
                    v.live.confirmed.gone(node, Place::Device, l.since)
                } else {
                    None
                };
                if gone.is_some() {
                    said.push((node.clone(), place, gone));
                }
            }
        }
        let Some(v) = self.volumes.get_mut(&id).filter(|_| !said.is_empty()) else { return };
        for (node, place, gone) in said {
            v.live.confirmed.note(&node, place, epoch, gone);
        }
    }
}
