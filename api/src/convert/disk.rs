//! Disks.

use kube::ResourceExt;
use pool::{
    disk::{self, Disk, Domain},
    ids::Term,
    record::{self, DiskRecord, Retired},
};

use super::{NotARecord, need, none};
use crate::{DiskState, NodeDisk, NodeDiskSpec, Stretch, Wipe};

impl From<&Retired> for Wipe {
    fn from(r: &Retired) -> Self {
        let Retired { wipe, disk, runs, consumers, epoch } = r;
        Self {
            wipe: format!("{wipe:016x}"),
            disk: *disk,
            runs: runs.iter().copied().map(Stretch::from).collect(),
            consumers: consumers.clone(),
            epoch: *epoch,
        }
    }
}

impl TryFrom<&Wipe> for Retired {
    type Error = NotARecord;

    fn try_from(w: &Wipe) -> Result<Self, NotARecord> {
        let Wipe { wipe, disk, runs, consumers, epoch } = w;
        let plain =
            wipe.len() == 16 && wipe.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let number = if plain { u64::from_str_radix(wipe, 16).ok() } else { None };
        let bad = || NotARecord::Number { field: "wipe", text: wipe.chars().take(64).collect() };
        Ok(Self {
            wipe: number.ok_or_else(bad)?,
            disk: *disk,
            runs: runs.iter().copied().map(record::Stretch::from).collect(),
            consumers: consumers.clone(),
            epoch: *epoch,
        })
    }
}

impl From<record::Stretch> for Stretch {
    fn from(s: record::Stretch) -> Self {
        Self { first: s.first, count: s.count }
    }
}

impl From<Stretch> for record::Stretch {
    fn from(s: Stretch) -> Self {
        Self { first: s.first, count: s.count }
    }
}

impl NodeDisk {
    /// The resource of a disk's record.
    pub fn of(record: &DiskRecord, term: Term) -> Self {
        let DiskRecord { disk, device_id, path, epoch, clean_through, fresh } = record;
        let Disk {
            id,
            node,
            pool,
            extents,
            extent_size,
            logical_block,
            physical_block,
            class,
            state,
            health,
            domain,
            reserve,
        } = disk;
        let (state, was) = match *state {
            disk::DiskState::Claimed => (DiskState::Claimed, None),
            disk::DiskState::Serving => (DiskState::Serving, None),
            disk::DiskState::Draining => (DiskState::Draining, None),
            disk::DiskState::Missing { was } => (DiskState::Missing, Some(was)),
            disk::DiskState::Released => (DiskState::Released, None),
        };
        let spec = NodeDiskSpec {
            term: term.get(),
            node: node.clone(),
            pool: pool.clone(),
            extents: *extents,
            extent_size: *extent_size,
            logical_block: *logical_block,
            physical_block: *physical_block,
            class: *class,
            state,
            was,
            health: *health,
            domain: domain.labels().clone(),
            reserve: *reserve,
            device_id: device_id.clone(),
            path: path.clone(),
            epoch: *epoch,
            clean_through: *clean_through,
            fresh: fresh.as_ref().map(Wipe::from),
        };
        NodeDisk::new(&id.to_string(), spec)
    }

    /// The record that it is.
    ///
    /// # Errors
    /// See [`NotARecord`].
    pub fn record(&self) -> Result<DiskRecord, NotARecord> {
        let s = &self.spec;
        let away = [("was", s.was.is_some())];
        let state = match s.state {
            DiskState::Missing => disk::DiskState::Missing { was: need(s.was, "was", "state missing")? },
            DiskState::Claimed => none(&away, "state claimed").map(|()| disk::DiskState::Claimed)?,
            DiskState::Serving => none(&away, "state serving").map(|()| disk::DiskState::Serving)?,
            DiskState::Draining => none(&away, "state draining").map(|()| disk::DiskState::Draining)?,
            DiskState::Released => none(&away, "state released").map(|()| disk::DiskState::Released)?,
        };
        Ok(DiskRecord {
            disk: Disk {
                id: self.name_any().parse()?,
                node: s.node.clone(),
                pool: s.pool.clone(),
                extents: s.extents,
                extent_size: s.extent_size,
                logical_block: s.logical_block,
                physical_block: s.physical_block,
                class: s.class,
                state,
                health: s.health,
                domain: Domain::new(s.domain.clone()),
                reserve: s.reserve,
            },
            device_id: s.device_id.clone(),
            path: s.path.clone(),
            epoch: s.epoch,
            clean_through: s.clean_through,
            fresh: s.fresh.as_ref().map(Retired::try_from).transpose()?,
        })
    }
}
