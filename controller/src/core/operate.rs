//! What the core tells people page by page: disks, volumes, loans, and one volume with the reasons of its place.
//!
//! Invariants: a page costs what it holds, not what the pool holds. Must not know: messages, forecasts.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use pool::{
    alloc::Explanation,
    disk::DiskClass,
    ids::{DiskId, NodeName, PoolName, VolumeId},
    record::Lifecycle,
    units::{Bytes, Extents},
};

use super::{disks::DiskSlot, engine::Engine, measures::phase, query, volume::Volume};
use crate::api::{ApiError, DiskRow, NodeRow, Target};

/// Nodes that are named to a person who misspelled one.
const NAMED_NODES: usize = 16;

/// A disk with its loans.
#[derive(Clone, Debug)]
pub struct DiskLine {
    /// What every survey says of it.
    pub row: DiskRow,
    /// What it is made of.
    pub class: DiskClass,
    /// Bytes of volumes at other nodes.
    pub lent: Bytes,
}

/// A volume in a line.
#[derive(Clone, Debug)]
pub struct VolumeLine {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: PoolName,
    /// Its size.
    pub size: Bytes,
    /// Who has it, in a word.
    pub phase: String,
    /// By name.
    pub holders: Vec<NodeName>,
    /// What lies where: by node and disk.
    pub places: BTreeMap<(NodeName, DiskId), Bytes>,
    /// What is wrong with it.
    pub abnormal: Option<String>,
}

impl VolumeLine {
    /// Whether the node lends to it.
    pub fn is_lender(&self, node: &NodeName) -> bool {
        !self.holders.is_empty() && !self.holders.contains(node)
    }
}

/// A volume with all that is known of it.
#[derive(Clone, Debug)]
pub struct VolumeDetail {
    /// In a line.
    pub line: VolumeLine,
    /// Bytes of an extent.
    pub extent: Bytes,
    /// Why it was placed so.
    pub explanation: Option<Explanation>,
    /// What happened to it: milliseconds since 1970, and what.
    pub history: Vec<(u64, String)>,
}

impl Engine {
    /// At most `max` disks after the one given.
    pub(super) fn disk_lines(&self, after: Option<DiskId>, max: usize) -> Vec<DiskLine> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let stored = self.disks.range((from, Bound::Unbounded)).filter(|(_, s)| s.is_stored());
        stored.take(max).map(|(_, s)| self.disk_line(s)).collect()
    }

    fn disk_line(&self, s: &DiskSlot) -> DiskLine {
        let d = &s.record.disk;
        let lent = self.loans_of(d.id).values().fold(Extents::ZERO, |n, b| n.plus(b.extents));
        let lent = d.extent_size.checked_bytes_of(lent).unwrap_or_default();
        DiskLine { row: self.disk_row(s), class: d.class, lent }
    }

    /// The disk that a person means: an id, how one begins, or NODE:PATH.
    pub(super) fn find_disk(&self, text: &str) -> Result<DiskLine, ApiError> {
        let named = |s: &&DiskSlot| match text.split_once(':') {
            Some((node, path)) => s.record.disk.node.as_str() == node && s.record.path == path,
            None => begins(&s.record.disk.id.to_string(), &s.record.disk.id.simple(), text),
        };
        let mut found = self.disks.values().filter(|s| s.is_stored()).filter(named);
        match (found.next(), found.next()) {
            (Some(s), None) => Ok(self.disk_line(s)),
            (None, _) => Err(ApiError::NoSuchDisk(text.to_owned())),
            (Some(_), Some(_)) => {
                Err(ApiError::Invalid(format!("several disks begin with {text:?}: say more of it")))
            }
        }
    }

    /// The node or the disk that a person means: a node's name counts first.
    pub(super) fn find_target(&self, text: &str) -> Result<Target, ApiError> {
        // One that is forgotten is a node still.
        let is_node = |n: &NodeName| self.nodes.get(n).is_some_and(|n| n.record.is_some());
        if let Some(n) = text.parse().ok().filter(is_node) {
            return Ok(Target::Node(n));
        }
        match self.find_disk(text) {
            Ok(line) => Ok(Target::Disk(line.row.disk)),
            Err(ApiError::NoSuchDisk(_)) => {
                let nodes = self.known_nodes();
                let names: Vec<_> = nodes.iter().take(NAMED_NODES).map(NodeName::as_str).collect();
                Err(ApiError::NoTarget { text: text.to_owned(), nodes: names.join(", ") })
            }
            Err(e) => Err(e),
        }
    }

    /// At most `max` volumes after the one given.
    pub(super) fn volume_lines(&self, after: Option<VolumeId>, max: usize) -> Vec<VolumeLine> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let stored = self.volumes.range((from, Bound::Unbounded)).filter(|(_, v)| v.version.is_some());
        stored.take(max).map(|(_, v)| self.volume_line(v)).collect()
    }

    fn volume_line(&self, v: &Volume) -> VolumeLine {
        let r = &v.record;
        let mut places: BTreeMap<(NodeName, DiskId), Bytes> = BTreeMap::new();
        for run in r.map.runs() {
            let Some(s) = self.disks.get(&run.disk) else { continue };
            let bytes = places.entry((s.record.disk.node.clone(), run.disk)).or_default();
            *bytes = bytes.plus(r.extent_size.checked_bytes_of(run.count).unwrap_or_default());
        }
        let phase = match r.lifecycle {
            Lifecycle::Deleting => "Deleting",
            Lifecycle::Active => phase(&r.access.access),
        };
        VolumeLine {
            id: r.id,
            name: r.name.clone(),
            pool: r.pool.clone(),
            size: r.size(),
            phase: phase.to_owned(),
            holders: r.access.holders(),
            places,
            abnormal: self.abnormal(r),
        }
    }

    /// The volume that a person means: its name, its id, or how that begins.
    pub(super) fn find_volume(&self, text: &str) -> Result<VolumeId, ApiError> {
        if let Some(id) = self.names.get(text) {
            return Ok(*id);
        }
        let named = |v: &&Volume| {
            let id = v.record.id;
            v.version.is_some() && begins(&id.to_string(), &id.simple(), text)
        };
        let mut found = self.volumes.values().filter(named);
        match (found.next(), found.next()) {
            (Some(v), None) => Ok(v.record.id),
            (None, _) => Err(ApiError::NoVolume(text.to_owned())),
            (Some(_), Some(_)) => {
                Err(ApiError::Invalid(format!("several volumes begin with {text:?}: say more of it")))
            }
        }
    }

    /// One volume with the reasons of its place.
    pub(super) fn volume_detail(&self, text: &str) -> Result<VolumeDetail, ApiError> {
        let id = self.find_volume(text)?;
        let v = self.volumes.get(&id).ok_or_else(|| ApiError::NoVolume(text.to_owned()))?;
        Ok(VolumeDetail {
            line: self.volume_line(v),
            extent: v.record.extent_size.bytes(),
            explanation: v.record.explanation.clone(),
            history: v.record.history.iter().map(|h| (h.unix_ms, h.text.clone())).collect(),
        })
    }

    /// Every node but the forgotten ones.
    pub(super) fn node_rows(&self) -> Vec<NodeRow> {
        let all = self.nodes.iter().filter(|(_, n)| !n.is_forgotten());
        all.map(|(name, n)| query::node_row(name, n)).collect()
    }

    /// Nodes that are known, for a person who misspelled one.
    pub(super) fn known_nodes(&self) -> BTreeSet<NodeName> {
        self.nodes.iter().filter(|(_, n)| n.is_known()).map(|(name, _)| name.clone()).collect()
    }
}

/// Whether what a person typed is the beginning of an id: four characters at least say which is meant.
fn begins(hyphenated: &str, simple: &str, text: &str) -> bool {
    text.len() >= 4 && (hyphenated.starts_with(text) || simple.starts_with(text))
}
