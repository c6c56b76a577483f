//! Devices of nodes: which become disks of a pool, which are known as disks, and which are left alone.
//!
//! Invariants: a device is claimed only when it carries no signature and a pool selects it; what is left alone is left alone for a
//! reason that people can read; a disk is taken from a node only when that node is gone, or has said itself that it misses it.
//! Must not know: volumes, extents.

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    disk::{Disk, DiskState, Health, LastSeen},
    ids::{DiskId, Epoch, NodeName},
    record::DiskRecord,
    units::Extents,
};

use super::{
    config::{DeviceSelector, NodeSelector, PoolSpec},
    disks::{DiskSlot, FoundAt},
    engine::Engine,
    nodes::Node,
    seen::{Condition, Content, Device},
};
use crate::fault::Cause;

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

fn selects_node(s: &NodeSelector, name: &NodeName, labels: &BTreeMap<String, String>) -> bool {
    any_glob(&s.names, name.as_str()) && s.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl Engine {
    /// Looks at every device of a node; gives the disks about which something has to be done.
    pub(super) fn consider_devices(&mut self, name: &NodeName) -> BTreeSet<DiskId> {
        let Some(n) = self.nodes.get(name) else { return BTreeSet::new() };
        let devices: Vec<_> = n.devices.iter().map(|(id, d)| (id.clone(), d.clone())).collect();
        let mut unclaimed = BTreeMap::new();
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
                let (device_id, path) = (id.to_owned(), device.path.clone());
                s.moved = Some(FoundAt { node: name.clone(), device_id, path });
            } else {
                // What was so a moment ago may not be so any more.
                s.moved.take_if(|at| at.node == *name);
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
