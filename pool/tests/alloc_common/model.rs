//! The slow oracle: every extent a cell, every set of lenders tried.

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    alloc::{Offer, Pool, Request},
    disk::Disk,
    free::FreeRun,
    ids::{DiskId, NodeName, VolumeId},
    layout::{Layout, Locality},
    units::{ExtentSize, Extents},
    volume::{Map, Run},
};

use super::alloc_common::{e, pool_name};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Free,
    Aside,
    Owned(VolumeId),
}

#[derive(Clone, Debug)]
pub(crate) struct ModelDisk {
    pub(crate) disk: Disk,
    pub(crate) cells: Vec<Cell>,
    pub(crate) offer: Option<Offer>,
}

impl ModelDisk {
    pub(crate) fn free(&self) -> u64 {
        self.cells.iter().filter(|c| **c == Cell::Free).count() as u64
    }

    pub(crate) fn room(&self, home: bool) -> u64 {
        if !self.disk.takes_new_data() {
            return 0;
        }
        if home {
            return self.free();
        }
        let above = self.free().saturating_sub(self.disk.reserve.get());
        self.offer.map_or(above, |o| above.min(o.lendable.get()))
    }

    /// The free runs, found cell by cell.
    pub(crate) fn free_runs(&self) -> Vec<FreeRun> {
        let mut out: Vec<FreeRun> = Vec::new();
        for (i, c) in self.cells.iter().enumerate() {
            let i = i as u64;
            match out.last_mut() {
                Some(r) if *c == Cell::Free && r.end() == e(i) => r.count = r.count.plus(e(1)),
                _ if *c == Cell::Free => out.push(FreeRun { first: e(i), count: e(1) }),
                _ => {}
            }
        }
        out
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) disks: BTreeMap<DiskId, ModelDisk>,
    pub(crate) volumes: BTreeMap<VolumeId, Map>,
}

impl Model {
    pub(crate) fn nodes(&self) -> BTreeSet<NodeName> {
        self.disks.values().map(|d| d.disk.node.clone()).collect()
    }

    pub(crate) fn blocks(&self) -> BTreeSet<u32> {
        self.disks.values().map(|d| d.disk.logical_block).collect()
    }

    pub(crate) fn set(&mut self, runs: &[Run], from: Cell, to: Cell) {
        for r in runs {
            let cells = &mut self.disks.get_mut(&r.disk).expect("a known disk").cells;
            for c in &mut cells[r.first.get() as usize..r.end().get() as usize] {
                assert_eq!(*c, from, "{r:?}");
                *c = to;
            }
        }
    }

    /// The same pool made anew, its disks added in the opposite order.
    pub(crate) fn rebuild(&self) -> Pool {
        let mut p = Pool::new();
        p.define_pool(pool_name(), ExtentSize::DEFAULT).expect("new");
        for d in self.disks.values().rev() {
            p.add_disk(d.disk.clone(), d.free_runs()).expect("a new disk");
            p.set_offer(d.disk.id, d.offer).expect("a known disk");
        }
        for (v, m) in &self.volumes {
            p.adopt(*v, m).expect("nobody else's");
        }
        p
    }

    fn allowed(&self, req: &Request, d: &Disk) -> bool {
        let matches =
            |t: &BTreeMap<String, String>| t.iter().all(|(k, v)| d.domain.labels().get(k) == Some(v));
        req.domains.is_empty() || req.domains.iter().any(matches)
    }

    pub(crate) fn used_nodes(&self, map: &Map) -> BTreeSet<NodeName> {
        map.disks().iter().map(|d| self.disks[d].disk.node.clone()).collect()
    }

    /// The nodes that may be the home, one of which is: `None` stands for "no node in particular".
    pub(crate) fn homes(&self, req: &Request) -> Vec<Option<NodeName>> {
        match req.locality {
            Locality::None => vec![None],
            Locality::Prefer => vec![req.home.clone()],
            Locality::Require if req.home.is_some() => vec![req.home.clone()],
            Locality::Require => self.nodes().into_iter().map(Some).collect(),
        }
    }

    /// Disks with room for the request, on the home node or one of `lenders`.
    pub(crate) fn rooms(
        &self,
        req: &Request,
        blocks: &BTreeSet<u32>,
        home: Option<&NodeName>,
        lenders: &BTreeSet<NodeName>,
    ) -> Vec<(DiskId, u64)> {
        let mut out = Vec::new();
        for (id, d) in &self.disks {
            let at_home = home == Some(&d.disk.node);
            if (at_home || lenders.contains(&d.disk.node))
                && blocks.contains(&d.disk.logical_block)
                && self.allowed(req, &d.disk)
            {
                out.push((*id, d.room(at_home)));
            }
        }
        out
    }

    /// Every set of nodes besides the home that may lend, if at most `allowed` of them.
    pub(crate) fn lender_sets(
        &self,
        req: &Request,
        home: Option<&NodeName>,
        allowed: usize,
    ) -> Vec<BTreeSet<NodeName>> {
        if req.locality == Locality::Require {
            return vec![BTreeSet::new()];
        }
        let mut used = self.used_nodes(&req.existing);
        used.retain(|n| home != Some(n));
        let others: Vec<NodeName> =
            self.nodes().into_iter().filter(|n| home != Some(n) && !used.contains(n)).collect();
        let left = allowed.saturating_sub(used.len());
        let sets = 0..1u32 << others.len();
        sets.filter(|s| s.count_ones() as usize <= left)
            .map(|s| {
                let new = others.iter().enumerate().filter(|(i, _)| s >> i & 1 == 1).map(|(_, n)| n.clone());
                used.iter().cloned().chain(new).collect()
            })
            .collect()
    }

    /// Whether some placement exists with disks of these block sizes together and so many lenders.
    pub(crate) fn possible_in(
        &self,
        req: &Request,
        size: u64,
        blocks: &BTreeSet<u32>,
        lenders: usize,
    ) -> bool {
        self.homes(req).iter().any(|home| {
            self.lender_sets(req, home.as_ref(), lenders).iter().any(|set| {
                let rooms = self.rooms(req, blocks, home.as_ref(), set);
                self.serves(req, size, &rooms)
            })
        })
    }

    /// Whether some placement exists of `size` new extents, block sizes not mixed.
    pub(crate) fn possible(&self, req: &Request, size: u64, lenders: usize) -> bool {
        self.blocks_for(req).iter().any(|b| self.possible_in(req, size, &BTreeSet::from([*b]), lenders))
    }

    pub(crate) fn blocks_for(&self, req: &Request) -> BTreeSet<u32> {
        let have: BTreeSet<u32> =
            req.existing.disks().iter().map(|d| self.disks[d].disk.logical_block).collect();
        let mut all = self.blocks();
        all.retain(|b| req.logical_block.is_none_or(|l| l == *b) && (have.is_empty() || have.contains(b)));
        all
    }

    fn serves(&self, req: &Request, size: u64, rooms: &[(DiskId, u64)]) -> bool {
        match req.layout {
            Layout::Linear => rooms.iter().map(|(_, r)| r).sum::<u64>() >= size,
            Layout::Striped { stripes, .. } => {
                let mut left: Vec<u64> = rooms.iter().map(|(_, r)| *r).collect();
                rows(&mut left, u64::from(stripes), size.div_ceil(u64::from(stripes)))
            }
            Layout::WholeDisk => rooms.iter().any(|(d, r)| {
                let all = self.disks[d].disk.extents.get();
                *r == all && all >= size && req.limit.is_none_or(|l| e(all) <= l)
            }),
            Layout::Mirrored { .. } => false,
        }
    }
}

/// Row by row, from the k disks with most left: if that fails, nothing else succeeds.
fn rows(left: &mut [u64], k: u64, rows: u64) -> bool {
    for _ in 0..rows {
        left.sort_unstable_by(|a, b| b.cmp(a));
        if left.len() < k as usize || left[k as usize - 1] == 0 {
            return false;
        }
        left[..k as usize].iter_mut().for_each(|l| *l -= 1);
    }
    true
}

/// A row: the chunk of its stripe, and the extent on each leg.
pub(crate) type Row = (Option<u64>, Vec<(DiskId, Extents)>);

/// The rows of a map: for each row of extents the extent on each leg, with the chunk.
pub(crate) fn rows_of(map: &Map) -> Vec<Row> {
    let mut out = Vec::new();
    for s in &map.0 {
        let chunk = s.stripe.map(|s| s.chunk.get());
        for i in 0..s.leg_count().get() {
            out.push((chunk, s.legs.iter().map(|l| (l.disk, l.first.plus(e(i)))).collect()));
        }
    }
    out
}
