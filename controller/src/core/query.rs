//! What the core tells those who ask and change nothing. Must not know: how anything is changed.

use std::collections::BTreeMap;

use pool::{
    alloc::Topology,
    disk::{DiskState, Health, NODE_KEY},
    ids::{NodeName, VolumeId},
    layout::{Layout, Locality, Sharing, params::Asked},
    record::{Lifecycle, VolumeRecord},
    units::{Bytes, Extents},
};

use super::{
    engine::Engine,
    grow::{Kind, placement},
    measures::phase,
    volume::Volume,
};
use crate::api::{
    ApiError, Capability, Capacity, DiskRow, NodeRow, Segments, Survey, VolumeInfo, VolumePage, VolumeRow,
};

/// Volumes of a page when the caller sets no limit: a message of 4 MiB holds them with names of 128 bytes.
const PAGE: usize = 2000;
/// What page tokens begin with: a token of another version is refused, not misread.
const TOKEN: &str = "v1.";

impl Engine {
    /// A volume as others see it.
    pub(super) fn info(&self, id: VolumeId) -> Option<VolumeInfo> {
        let v = self.volumes.get(&id).filter(|v| v.version.is_some())?;
        let r = &v.record;
        let accessible = match r.params.locality {
            Locality::Require => {
                let hosts: std::collections::BTreeSet<NodeName> =
                    self.hosts(&r.map.disks()).into_values().collect();
                hosts.into_iter().map(|h| Segments::from([(NODE_KEY.to_owned(), h.to_string())])).collect()
            }
            // Every node can borrow.
            Locality::Prefer | Locality::None => vec![],
        };
        Some(VolumeInfo {
            id,
            name: r.name.clone(),
            pool: r.pool.clone(),
            size: r.size(),
            published: r.access.users(),
            abnormal: self.abnormal(r),
            fs_type: r.params.fs_type.map(|f| f.as_str().to_owned()).unwrap_or_default(),
            accessible,
            context: BTreeMap::new(),
        })
    }

    pub(super) fn abnormal(&self, r: &VolumeRecord) -> Option<String> {
        if r.lifecycle == Lifecycle::Deleting {
            return Some("it is being deleted".to_owned());
        }
        for d in r.map.disks() {
            let Some(s) = self.disks.get(&d) else {
                return Some(format!("disk {d} is not on record"));
            };
            let disk = &s.record.disk;
            if let DiskState::Missing { .. } = disk.state {
                return Some(format!("disk {d} of node {} is missing", disk.node));
            }
            if disk.health == Health::Failing {
                return Some(format!("disk {d} of node {} fails", disk.node));
            }
            if !self.alive(&disk.node) {
                let silence = self.silence(&disk.node);
                return Some(format!(
                    "node {}, which holds a part, has not been heard of for {silence}",
                    disk.node
                ));
            }
        }
        None
    }

    /// One volume that is not being deleted.
    pub(super) fn one(&self, id: VolumeId) -> Result<VolumeInfo, ApiError> {
        let active = self.volumes.get(&id).filter(|v| v.record.lifecycle == Lifecycle::Active);
        active.and_then(|_| self.info(id)).ok_or_else(|| ApiError::NoVolume(id.to_string()))
    }

    /// A page of volumes.
    pub(super) fn page(&self, max: usize, token: &str) -> Result<VolumePage, ApiError> {
        use std::ops::Bound;
        let from = if token.is_empty() {
            Bound::Unbounded
        } else {
            let id = token.strip_prefix(TOKEN).and_then(|t| t.parse::<VolumeId>().ok());
            Bound::Excluded(id.ok_or_else(|| ApiError::BadToken(token.chars().take(64).collect()))?)
        };
        let max = if max == 0 { PAGE } else { max.min(PAGE) };
        let listed = |(id, v): (&VolumeId, &Volume)| match v.record.lifecycle {
            Lifecycle::Active => self.info(*id),
            Lifecycle::Deleting => None,
        };
        let mut rows = self.volumes.range((from, Bound::Unbounded)).filter_map(listed);
        let volumes: Vec<_> = rows.by_ref().take(max).collect();
        let next = rows.next().and(volumes.last()).map(|v| format!("{TOKEN}{}", v.id));
        Ok(VolumePage { volumes, next })
    }

    /// Room for volumes with these parameters.
    pub(super) fn capacity(
        &self,
        parameters: BTreeMap<String, String>,
        at: Option<Segments>,
    ) -> Result<Capacity, ApiError> {
        let (Asked { params, .. }, Kind { pool, extent_size }) = self.parse_params(parameters)?;
        let mut request = placement(&params, &pool, Extents::new(1));
        if let Some(at) = at {
            request.home = at.get(NODE_KEY).and_then(|n| n.parse().ok());
            request.topology = Topology { required: vec![at], preferred: vec![] };
        }
        let room = match self.pool.capacity(&request) {
            Ok(room) => room,
            // Nowhere is no room.
            Err(pool::alloc::Refusal::TopologyUnsatisfiable(_)) => pool::alloc::Capacity::default(),
            Err(r) => return Err(ApiError::Invalid(r.to_string())),
        };
        let bytes = |n| extent_size.checked_bytes_of(n).unwrap_or(Bytes::new(u64::MAX));
        let smallest = params.layout.round_up(Extents::new(1)).unwrap_or(Extents::new(1));
        Ok(Capacity {
            available: bytes(room.available),
            maximum_volume: bytes(room.maximum_volume),
            minimum_volume: bytes(smallest),
        })
    }

    /// Why there is no room for a volume of this size, wherever it may lie; `None` when there is.
    pub(super) fn no_room(
        &self,
        parameters: BTreeMap<String, String>,
        size: Bytes,
    ) -> Result<Option<String>, ApiError> {
        let (Asked { params, .. }, Kind { pool, extent_size }) = self.parse_params(parameters)?;
        let least = extent_size.extents_round_up(size).max(Extents::new(1));
        let Some(extents) = params.layout.round_up(least) else {
            return Ok(Some(format!("{} bytes are beyond what can be addressed", size.get())));
        };
        Ok(self.pool.plan(&placement(&params, &pool, extents)).err().map(|r| r.to_string()))
    }

    /// Why the volume cannot be used so, or `None` when it can.
    pub(super) fn validate(
        &self,
        id: VolumeId,
        capabilities: &[Capability],
        parameters: BTreeMap<String, String>,
    ) -> Result<Option<String>, ApiError> {
        self.one(id)?;
        let Some(v) = self.volumes.get(&id) else { return Err(ApiError::NoVolume(id.to_string())) };
        if !parameters.is_empty() {
            match self.parse_params(parameters) {
                Err(ApiError::Invalid(why)) => return Ok(Some(why)),
                Err(e) => return Err(e),
                Ok((asked, Kind { pool, .. })) => {
                    let params = asked.of_one_that_lies(v.record.params.layout);
                    if let Some(d) = v.record.difference(&pool, &params, Bytes::ZERO, None) {
                        return Ok(Some(d));
                    }
                }
            }
        }
        Ok(capabilities.iter().find_map(|c| unfit(&v.record, c)))
    }

    /// Everything, for people and tests.
    pub(super) fn survey(&self) -> Survey {
        Survey {
            term: self.term.get(),
            nodes: self.node_rows(),
            disks: self.disks.values().filter(|s| s.is_stored()).map(|s| self.disk_row(s)).collect(),
            volumes: self.volumes.values().filter(|v| v.version.is_some()).map(volume_row).collect(),
            moves: self.move_rows(),
            drains: self.drain_rows(),
        }
    }

    pub(super) fn disk_row(&self, s: &super::disks::DiskSlot) -> DiskRow {
        let d = &s.record.disk;
        let usage = self.pool.usage(d.id);
        let bytes = |n: Extents| d.extent_size.checked_bytes_of(n).unwrap_or_default();
        DiskRow {
            disk: d.id,
            node: d.node.clone(),
            pool: d.pool.clone(),
            path: s.record.path.clone(),
            state: disk_state_text(s),
            size: bytes(d.extents),
            free: usage.map(|u| bytes(u.free)).unwrap_or_default(),
            unwiped: usage.map(|u| bytes(u.set_aside)).unwrap_or_default(),
        }
    }
}

/// A disk's state in a word, with the reason where its node gives one.
pub(super) fn disk_state_text(s: &super::disks::DiskSlot) -> String {
    let d = &s.record.disk;
    let failing = d.state == DiskState::Serving && d.health == Health::Failing;
    let state = if failing { "failing".to_owned() } else { d.state.to_string() };
    match s.seen.as_ref().map(|o| o.reason.as_str()).filter(|r| !r.is_empty()) {
        Some(r) => format!("{state}: {r}"),
        None => state,
    }
}

pub(super) fn node_row(name: &NodeName, n: &super::nodes::Node) -> NodeRow {
    let (address, port) = n.address();
    NodeRow {
        node: name.clone(),
        alive: n.alive,
        address: if port == 0 { address } else { format!("{address}:{port}") },
        unclaimed: n.unclaimed.iter().map(|(p, why)| format!("{p}: {why}")).collect(),
    }
}

fn volume_row(v: &Volume) -> VolumeRow {
    let r = &v.record;
    let segments = r
        .map
        .0
        .iter()
        .flat_map(|s| s.legs.iter().map(|l| (s.start.get(), s.leg_count().get(), l.disk, l.first.get())));
    VolumeRow {
        volume: r.id,
        name: r.name.clone(),
        size: r.size(),
        phase: phase(&r.access.access).to_owned(),
        holders: r.access.holders(),
        leaving: r.access.leaving.keys().cloned().collect(),
        epoch: r.access.epoch,
        deleting: r.lifecycle == Lifecycle::Deleting,
        segments: segments.collect(),
        history: r.history.iter().map(|h| format!("{} {} {}", h.sequence, h.unix_ms, h.text)).collect(),
    }
}

/// Why a volume does not go with a capability.
pub(super) fn unfit(r: &VolumeRecord, c: &Capability) -> Option<String> {
    if !c.block && c.mode.multi_node && !c.mode.read_only {
        return Some(
            "a mounted file system cannot be written by several nodes: use volumeMode Block".to_owned(),
        );
    }
    if !c.block && r.params.sharing == Sharing::MultiWriter {
        return Some("sharing: multiWriter is for raw block volumes".to_owned());
    }
    if r.params.layout != Layout::Linear && r.params.sharing == Sharing::MultiWriter {
        return Some("sharing: multiWriter needs layout: linear".to_owned());
    }
    match r.params.fs_type {
        Some(f) if !c.block && !c.fs_type.is_empty() && c.fs_type != f.as_str() => {
            Some(format!("its file system is {f}, not {}", c.fs_type))
        }
        Some(_) | None => None,
    }
}
