//! What people are told about volumes, disks and nodes in the cluster's resources: gathered on request, from records and
//! from who has been heard of. Must not know: resources, who is told.

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    access::Access,
    disk::{DiskState, Health},
    ids::{DiskId, NodeName, PoolName, VolumeId},
    layout::params::ClaimRef,
    record::Lifecycle,
    units::{Bytes, Extents},
};

use super::{engine::Engine, measures::phase, nodes::Node, query::disk_state_text};
use crate::fault::Cause;

/// A change of a volume's record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// The volume.
    pub volume: VolumeId,
    /// What it was for.
    pub cause: Cause,
}

/// A volume, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeReport {
    /// For whom it was made.
    pub claim: ClaimRef,
    /// Its size.
    pub size: Bytes,
    /// The phase of its access, or deleting.
    pub state: String,
    /// Who has it: `n1`, or `n1 -> n2`.
    pub nodes: String,
    /// Where its parts lie.
    pub disks: BTreeSet<DiskId>,
    /// What lies on other nodes than the one that has it, and on how many.
    pub borrowed: (Bytes, usize),
    /// Whether somebody has it.
    pub attached: bool,
    /// What is wrong with it.
    pub abnormal: Option<String>,
    /// What happened last.
    pub last: String,
}

/// A disk, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskReport {
    /// Its node.
    pub node: NodeName,
    /// Its pool.
    pub pool: PoolName,
    /// Where it was seen last.
    pub path: String,
    /// Its state with the reason, where there is one.
    pub state: String,
    /// Whether it takes new extents.
    pub ready: bool,
    /// Whether it fails.
    pub failing: bool,
    /// Bytes for data.
    pub size: Bytes,
    /// Free for volumes.
    pub free: Bytes,
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is heard of.
    Alive,
    /// It is not.
    Silent,
    /// A person has said that it never comes back.
    Forgotten,
}

/// All disks and nodes, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Disks on record.
    pub disks: BTreeMap<DiskId, DiskReport>,
    /// Nodes on record, with how they stand.
    pub nodes: BTreeMap<NodeName, Standing>,
    /// Pools that are configured as their disks are not, and how so.
    pub left_out: BTreeMap<PoolName, String>,
}

impl Engine {
    pub(super) fn volume_report(&self, id: VolumeId) -> Option<VolumeReport> {
        let r = &self.volumes.get(&id).filter(|v| v.version.is_some())?.record;
        let holders = r.access.holders();
        let nodes = match &r.access.access {
            Access::Guarded { source, target, .. } | Access::CuttingOver { source, target, .. } => {
                format!("{source} -> {target}")
            }
            Access::Granting { node, .. } => format!("-> {node}"),
            Access::Detached | Access::Attached { .. } => {
                holders.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
            }
        };
        let (mut borrowed, mut lenders) = (Bytes::ZERO, BTreeSet::new());
        for run in r.map.runs() {
            let Some(host) = self.disks.get(&run.disk).map(|s| &s.record.disk.node) else { continue };
            if !holders.is_empty() && !holders.contains(host) {
                borrowed = borrowed.plus(r.extent_size.checked_bytes_of(run.count).unwrap_or_default());
                lenders.insert(host);
            }
        }
        Some(VolumeReport {
            claim: r.claim.clone(),
            size: r.size(),
            state: match r.lifecycle {
                Lifecycle::Deleting => "Deleting".to_owned(),
                Lifecycle::Active => phase(&r.access.access).to_owned(),
            },
            nodes,
            disks: r.map.disks(),
            borrowed: (borrowed, lenders.len()),
            attached: !holders.is_empty(),
            abnormal: self.abnormal(r),
            last: r.history.last().map(|h| h.text.clone()).unwrap_or_default(),
        })
    }

    pub(super) fn fleet(&self) -> Fleet {
        let disks = self.disks.iter().filter(|(_, s)| s.is_stored()).map(|(id, s)| {
            let d = &s.record.disk;
            let bytes = |n: Extents| d.extent_size.checked_bytes_of(n).unwrap_or_default();
            let failing = d.health == Health::Failing;
            let report = DiskReport {
                node: d.node.clone(),
                pool: d.pool.clone(),
                path: s.record.path.clone(),
                state: disk_state_text(s),
                ready: d.state == DiskState::Serving && !failing && self.alive(&d.node),
                failing,
                size: bytes(d.extents),
                free: self.pool.usage(d.id).map(|u| bytes(u.free)).unwrap_or_default(),
            };
            (*id, report)
        });
        let nodes = self.nodes.iter().filter(|(_, n)| n.record.is_some());
        let standing = |n: &Node| match n.alive {
            _ if n.is_forgotten() => Standing::Forgotten,
            true => Standing::Alive,
            false => Standing::Silent,
        };
        Fleet {
            disks: disks.collect(),
            nodes: nodes.map(|(name, n)| (name.clone(), standing(n))).collect(),
            left_out: self.left_out.clone(),
        }
    }

    /// Volumes that have to do with a node: it holds them, or parts of them lie there, in use or not.
    pub(super) fn volumes_at(&self, node: &NodeName) -> Vec<VolumeId> {
        let disks = self.disks.iter().filter(|(_, s)| s.record.disk.node == *node);
        let mut all: BTreeSet<VolumeId> =
            disks.flat_map(|(id, _)| self.pool.owners(*id).map(|(v, _)| v)).collect();
        all.extend(self.nodes.get(node).into_iter().flat_map(|n| &n.volumes));
        all.into_iter().collect()
    }
}
