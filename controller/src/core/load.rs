//! How many moves disks and nodes have to do with, against how many their pool allows. Must not know: what is worth
//! moving.

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    ids::{DiskId, NodeName},
    policy::Budget,
    record::VolumeRecord,
};

use super::{engine::Engine, stays::Stays};

/// Moves under way.
#[derive(Clone, Debug, Default)]
pub(super) struct MoveLoad {
    from: BTreeMap<DiskId, u32>,
    to: BTreeMap<DiskId, u32>,
    nodes: BTreeMap<NodeName, u32>,
}

impl Engine {
    /// Counts the moves under way.
    pub(super) fn move_load(&self) -> MoveLoad {
        let mut load = MoveLoad::default();
        for r in self.mover.busy.iter().filter_map(|id| Some(&self.volumes.get(id)?.record)) {
            let (Some(m), Some((s, spare))) = (&r.moving, r.map.spare()) else { continue };
            let leg = s.legs.get(spare.leg as usize).map(|l| l.disk);
            if spare.filling {
                *load.to.entry(spare.place.disk).or_default() += 1;
            }
            if let Some(from) = if spare.filling { leg } else { Some(spare.place.disk) } {
                *load.from.entry(from).or_default() += 1;
            }
            let ends = leg.into_iter().chain([spare.place.disk]);
            let hosts = ends.filter_map(|d| self.host_of(d));
            for n in hosts.chain([m.by.clone()]).collect::<BTreeSet<_>>() {
                *load.nodes.entry(n).or_default() += 1;
            }
        }
        load
    }

    /// The node that has a disk.
    pub(super) fn host_of(&self, disk: DiskId) -> Option<NodeName> {
        self.disks.get(&disk).map(|s| s.record.disk.node.clone())
    }
}

impl MoveLoad {
    /// What a disk's pool allows.
    pub(super) fn limits(&self, e: &Engine, disk: DiskId) -> Budget {
        let spec = e.disks.get(&disk).and_then(|s| e.specs.get(&s.record.disk.pool));
        spec.map(|s| s.moving.budget).unwrap_or_default()
    }

    /// Moves off a disk.
    pub(super) fn off(&self, disk: DiskId) -> u32 {
        self.from.get(&disk).copied().unwrap_or(0)
    }

    /// Moves onto a disk.
    pub(super) fn onto(&self, disk: DiskId) -> u32 {
        self.to.get(&disk).copied().unwrap_or(0)
    }

    /// Whether another move of this volume may begin.
    pub(super) fn admits(&self, e: &Engine, r: &VolumeRecord, from: DiskId, to: DiskId) -> Result<(), Stays> {
        let limits = self.limits(e, from);
        if self.to.get(&to).is_some_and(|n| *n >= limits.per_disk) {
            return Err(Stays::TargetTaken);
        }
        // Who holds it copies; of a volume that nobody holds, the host of what it leaves.
        let by = r.access.sole_holder().cloned().or_else(|| e.host_of(from));
        let nodes = [e.host_of(from), e.host_of(to), by];
        let full = |n: &NodeName| self.nodes.get(n).is_some_and(|n| *n >= limits.per_node);
        match nodes.into_iter().flatten().find(full) {
            Some(node) => Err(Stays::NodeBusy { node, most: limits.per_node }),
            None => Ok(()),
        }
    }
}
