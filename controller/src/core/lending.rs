//! The core's side of offers: the facts they are weighed from, and their way into the index.
//!
//! Must not know: how an offer comes about.

use std::{collections::BTreeMap, ops::Bound};

use forecast::Strength;
use pool::{
    ids::{DiskId, PoolName, VolumeId},
    units::Extents,
};

use super::{engine::Engine, load::MoveLoad};
use crate::flow::{Borrowed, DiskFacts, SetOffer};

impl Engine {
    /// What is so of at most `max` disks in the index, by id, after the one given.
    pub(super) fn disk_facts(&self, after: Option<DiskId>, max: usize) -> Vec<DiskFacts> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let indexed = self.disks.range((from, Bound::Unbounded)).filter(|(_, s)| s.indexed);
        let load = self.move_load();
        indexed.filter_map(|(id, _)| self.facts_of(*id, &load)).take(max).collect()
    }

    fn facts_of(&self, id: DiskId, load: &MoveLoad) -> Option<DiskFacts> {
        let (disk, usage) = (self.pool.disk(id)?, self.pool.usage(id)?);
        Some(DiskFacts {
            disk: id,
            node: disk.node.clone(),
            pool: disk.pool.clone(),
            class: disk.class,
            extent_size: disk.extent_size,
            extents: usage.extents,
            free: usage.free,
            owned: usage.owned,
            loans: self.loans_of(id),
            still: usage.set_aside == Extents::ZERO && load.off(id) + load.onto(id) == 0,
            reserve: disk.reserve,
            serving: disk.takes_new_data(),
            offer: self.pool.offer(id),
        })
    }

    /// What volumes that are held at other nodes have of a disk.
    pub(super) fn loans_of(&self, id: DiskId) -> BTreeMap<VolumeId, Borrowed> {
        let mut out: BTreeMap<VolumeId, Borrowed> = BTreeMap::new();
        let Some(disk) = self.pool.disk(id) else { return out };
        for (volume, run) in self.pool.owners(id) {
            let holders = self.volumes.get(&volume).map(|v| v.record.access.holders()).unwrap_or_default();
            // Of two holders one is about to go: the first is enough to say that it is lent.
            if let Some(by) = holders.into_iter().find(|h| *h != disk.node) {
                let b = out.entry(volume).or_insert(Borrowed { by, extents: Extents::ZERO });
                b.extents = b.extents.plus(run.count);
            }
        }
        out
    }

    /// Takes what a usual disk of each pool can do.
    pub(super) fn set_strengths(&mut self, strengths: BTreeMap<PoolName, Strength>) {
        self.strengths = strengths;
    }

    /// Sets offers in the index, where they are to count, but for disks that were allocated from or freed meanwhile: the next round has those.
    pub(super) fn set_offers(&mut self, offers: Vec<SetOffer>) {
        if !self.config.lend_by_forecast {
            return;
        }
        for o in offers {
            if self.pool.usage(o.disk).is_none_or(|u| u.free != o.free_then) {
                continue;
            }
            if let Err(e) = self.pool.set_offer(o.disk, o.offer) {
                tracing::warn!(disk = %o.disk, error = %e, "the index refused an offer");
            }
        }
    }
}
