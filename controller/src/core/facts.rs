//! What planners of moves have to know that only the core knows, page by page: disks, volumes that one node holds, policies.
//!
//! Invariants: a page costs what it looks at, not what the pool holds; a volume that is being changed, or whose holder is silent, is
//! no fact, and a disk that cannot be read gives nothing. Must not know: loads, what is worth moving.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use pool::{
    disk::DiskState,
    ids::{DiskId, NodeName, PoolName, VolumeId},
    layout::{Layout, Locality},
    moving::MoveCause,
    planner::{self, DiskFact, VolumeFact},
    policy::MovePolicy,
    record::{Lifecycle, VolumeRecord},
    units::{ExtentSize, Extents},
};

use super::{engine::Engine, load::MoveLoad, volume::Volume};

/// How moves of a pool are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolToPlan {
    /// What may move.
    pub policy: MovePolicy,
    /// Extents that move at a time.
    pub most: Extents,
    /// Whether its disks lend by forecast: then the owner's growth is part of what it needs.
    pub by_forecast: bool,
}

/// Whether anything can be planned, and by what rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planning {
    /// Nodes that have a session and have not said yet what they have.
    pub unheard: usize,
    /// Pools in which something moves by itself.
    pub pools: BTreeMap<PoolName, PoolToPlan>,
}

/// A disk; of its loads nothing is known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskToPlan {
    /// Its pool.
    pub pool: PoolName,
    /// Bytes of an extent.
    pub extent_size: ExtentSize,
    /// It gives something away, or nobody can read it.
    pub gives: bool,
    /// It takes something.
    pub takes: bool,
    /// The rest.
    pub fact: DiskFact,
}

/// A volume; of its I/O nothing is known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeToPlan {
    /// Its pool.
    pub pool: PoolName,
    /// The rest.
    pub fact: VolumeFact,
}

/// Which volumes are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those with extents on one of these.
    pub disks: BTreeSet<DiskId>,
    /// Those of these pools that have extents away from their node.
    pub away: BTreeSet<PoolName>,
}

impl Engine {
    /// By what rules moves are planned.
    pub(super) fn planning(&self) -> Planning {
        let pools = self.specs.values().filter(|s| !s.moving.is_still()).map(|s| {
            let most = s.extent_size.extents_round_down(self.config.move_piece).max(Extents::new(1));
            let by_forecast = self.config.lend_by_forecast;
            (s.name.clone(), PoolToPlan { policy: s.moving, most, by_forecast })
        });
        Planning { unheard: self.nodes.values().filter(|n| n.is_unheard()).count(), pools: pools.collect() }
    }

    /// Looks at `max` disks after the one given; with the last one looked at.
    pub(super) fn disks_to_plan(
        &self,
        after: Option<DiskId>,
        max: usize,
    ) -> (Vec<DiskToPlan>, Option<DiskId>) {
        let load = self.move_load();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids: Vec<DiskId> =
            self.disks.range((from, Bound::Unbounded)).take(max).map(|(d, _)| *d).collect();
        let rows = ids.iter().filter_map(|d| self.disk_to_plan(*d, &load)).collect();
        (rows, ids.last().copied())
    }

    fn disk_to_plan(&self, id: DiskId, load: &MoveLoad) -> Option<DiskToPlan> {
        let (disk, usage) = (self.pool.disk(id)?, self.pool.usage(id)?);
        let spec = self.specs.get(&disk.pool).filter(|s| !s.moving.is_still())?;
        let heard = self.is_heard(&disk.node);
        Some(DiskToPlan {
            pool: spec.name.clone(),
            extent_size: disk.extent_size,
            // One that is being emptied is the mover's own business.
            gives: !heard || disk.state != DiskState::Serving || load.off(id) > 0,
            takes: load.onto(id) > 0,
            fact: DiskFact {
                disk: id,
                node: disk.node.clone(),
                block: disk.logical_block,
                extents: usage.extents.get(),
                free: usage.free.get(),
                coming: usage.set_aside.get(),
                lendable: self.pool.lendable(id).unwrap_or_default().get(),
                need: disk.reserve.get(),
                usable: 0,
                load: 0,
                left: 0,
                come: 0,
                serving: disk.takes_new_data() && heard,
            },
        })
    }

    /// Whether a node lives and has said what it has.
    fn is_heard(&self, node: &NodeName) -> bool {
        self.alive(node) && self.nodes.get(node).is_some_and(|n| n.has_reported())
    }

    /// Looks at `max` volumes after the one given for those that are wanted; with the last one looked at.
    pub(super) fn volumes_to_plan(
        &self,
        after: Option<VolumeId>,
        max: usize,
        wanted: &Wanted,
    ) -> (Vec<VolumeToPlan>, Option<VolumeId>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut rows, mut last) = (Vec::new(), None);
        for (id, v) in self.volumes.range((from, Bound::Unbounded)).take(max) {
            last = Some(*id);
            rows.extend(self.volume_to_plan(v, wanted));
        }
        (rows, last)
    }

    fn volume_to_plan(&self, v: &Volume, wanted: &Wanted) -> Option<VolumeToPlan> {
        let r = &v.record;
        let settled = r.lifecycle == Lifecycle::Active && v.version.is_some() && v.pending.is_none();
        if !settled || !v.queue.is_empty() || r.moving.is_some() || r.access.users().len() != 1 {
            return None;
        }
        let home = r.access.sole_holder()?;
        if !self.is_wanted(r, home, wanted) || !self.is_heard(home) || self.backs_off(r.id).is_some() {
            return None;
        }
        let first = r.map.0.first()?.legs.first()?.disk;
        let still_s = self.still_s(r);
        Some(VolumeToPlan {
            pool: r.pool.clone(),
            fact: VolumeFact {
                volume: r.id,
                epoch: r.access.epoch,
                home: home.clone(),
                extent_size: r.extent_size,
                still_s,
                moved_s: self.moved_s(v, still_s),
                coming_home: is_coming_home(v),
                bound: r.params.locality == Locality::Require || r.params.layout == Layout::WholeDisk,
                block: self.pool.disk(first)?.logical_block,
                not: r.retired.iter().map(|r| r.disk).collect(),
                pieces: r.map.0.iter().flat_map(planner::pieces).collect(),
                max_lenders: r.params.max_lenders as usize,
            },
        })
    }

    fn is_wanted(&self, r: &VolumeRecord, home: &NodeName, wanted: &Wanted) -> bool {
        let mut legs = r.map.0.iter().flat_map(|s| s.legs.iter().map(|l| l.disk));
        let away = wanted.away.contains(&r.pool);
        let host = |d: DiskId| self.disks.get(&d).map(|s| &s.record.disk.node);
        legs.any(|d| wanted.disks.contains(&d) || (away && host(d) != Some(home)))
    }

    fn seconds_since(&self, unix_ms: u64) -> u64 {
        self.now.unix_ms.saturating_sub(unix_ms) / 1000
    }

    /// Seconds since anything was noted of a volume: its record keeps that.
    fn still_s(&self, r: &VolumeRecord) -> u64 {
        r.history.last().map_or(u64::MAX, |l| self.seconds_since(l.unix_ms))
    }

    /// Seconds since something of a volume moved by itself.
    ///
    /// Only memory knows for certain. What moved before this reign is counted as moved at its beginning, or when anything was last
    /// noted of the volume if that is longer ago: a move is noted, so it cannot have been since.
    fn moved_s(&self, v: &Volume, still_s: u64) -> Option<u64> {
        if let Some((at, _)) = v.live.moved {
            return Some(self.seconds_since(at));
        }
        let born = v.record.history.first().filter(|l| l.sequence == 0);
        if born.is_some_and(|l| l.unix_ms >= self.began_ms) {
            return None;
        }
        Some(self.seconds_since(self.began_ms).max(still_s))
    }
}

/// Whether the last thing that happened to a volume is that a piece of it came home.
fn is_coming_home(v: &Volume) -> bool {
    let newest = v.record.history.last().map_or(0, |l| l.unix_ms);
    v.live.moved.is_some_and(|(at, cause)| cause == MoveCause::Gravity && at >= newest)
}
