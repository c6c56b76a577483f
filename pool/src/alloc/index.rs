//! The index over disks: what each has free, owned and on offer, and per (pool, block size, domain) the nodes in the
//! order of their room.
//!
//! Invariants, checkable with [`Pool::check`]: the orders always agree with the disks, because every change goes
//! through [`Pool::edit`]; a change of several runs happens whole or not at all. Must not know: policy.

use std::collections::{BTreeMap, BTreeSet};

use super::{owned::Owned, plan::Plan};
use crate::{
    disk::{Disk, Domain},
    free::{FreeError, FreeRun, FreeRuns},
    ids::{DiskId, NodeName, PoolName, VolumeId},
    units::{ExtentSize, Extents},
    volume::{Map, MapFault, Run},
};

/// What the performance model says of a disk as a lender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Extents it may lend beyond those it lends now. Loans applied after the offer are taken off it.
    pub lendable: Extents,
    /// How gladly, from 0 to 1000. Disks without an offer stand at [`Offer::NEUTRAL`].
    pub score: u32,
}

impl Offer {
    /// The score of a disk of which nothing is known.
    pub const NEUTRAL: u32 = 500;
}

/// Why the index refused a change. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The pool was not defined.
    #[error("pool {0} does not exist")]
    NoSuchPool(PoolName),
    /// The pool exists with another extent size, or the disk has another one than its pool.
    #[error("pool {pool} has extents of {have}, not {want}", have = .have.bytes(), want = .want.bytes())]
    ExtentSize {
        /// The pool.
        pool: PoolName,
        /// Its extent size.
        have: ExtentSize,
        /// The one that came.
        want: ExtentSize,
    },
    /// The pool still has disks.
    #[error("pool {0} still has disks")]
    PoolInUse(PoolName),
    /// The disk is there already.
    #[error("disk {0} is in the index already")]
    DiskExists(DiskId),
    /// The disk is not there.
    #[error("disk {0} is not in the index")]
    NoSuchDisk(DiskId),
    /// The disk has no extents, or more than 64 bits of bytes.
    #[error("disk {disk} cannot have {extents} extents")]
    DiskSize {
        /// The disk.
        disk: DiskId,
        /// Its extents.
        extents: Extents,
    },
    /// Something about the disk changed that never may.
    #[error("disk {disk}: its {what} cannot change")]
    DiskChanged {
        /// The disk.
        disk: DiskId,
        /// What changed.
        what: &'static str,
    },
    /// Volumes still own extents of the disk.
    #[error("disk {disk} still holds {used} extents of volumes")]
    DiskInUse {
        /// The disk.
        disk: DiskId,
        /// Owned extents.
        used: Extents,
    },
    /// The free runs refused.
    #[error("disk {disk}")]
    Free {
        /// The disk.
        disk: DiskId,
        /// Why.
        #[source]
        source: FreeError,
    },
    /// Extents that a volume owns cannot become free or another's.
    #[error("disk {}: of {} extents from {} some are owned by volume {owner}", .run.disk, .run.count, .run.first)]
    Owned {
        /// The run.
        run: Run,
        /// An owner.
        owner: VolumeId,
    },
    /// Extents that the volume does not own (all of) cannot be taken from it.
    #[error("disk {}: volume {volume} does not own all of {} extents from {}", .run.disk, .run.count, .run.first)]
    NotOwned {
        /// The run.
        run: Run,
        /// The volume.
        volume: VolumeId,
    },
    /// Extents that are on offer to others cannot be taken over.
    #[error("disk {}: of {} extents from {} some are free, and yet a volume is said to own them", .run.disk, .run.count, .run.first)]
    OwnedAndFree {
        /// The run.
        run: Run,
    },
    /// The map that came is not one.
    #[error(transparent)]
    Map(#[from] MapFault),
}

/// What a disk's extents are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// All.
    pub extents: Extents,
    /// Clean and nobody's.
    pub free: Extents,
    /// Owned by volumes.
    pub owned: Extents,
    /// Neither: awaiting a wipe, or set aside.
    pub set_aside: Extents,
}

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) disk: Disk,
    pub(super) free: FreeRuns,
    owned: Owned,
    offer: Option<Offer>,
}

impl Slot {
    /// Extents that a consumer on the disk's own node can get.
    pub(super) fn local(&self) -> u64 {
        if self.disk.takes_new_data() { self.free.total().get() } else { 0 }
    }

    /// Extents that other nodes can get.
    pub(super) fn lend(&self) -> u64 {
        let above_reserve = self.local().saturating_sub(self.disk.reserve.get());
        self.offer.map_or(above_reserve, |o| above_reserve.min(o.lendable.get()))
    }

    pub(super) fn score(&self) -> u32 {
        self.offer.map_or(Offer::NEUTRAL, |o| o.score)
    }

    /// Whether it can be had whole: (by its own node, by others).
    pub(super) fn whole(&self) -> (bool, bool) {
        let own = self.disk.takes_new_data() && self.free.is_whole();
        // An entirely free disk has no owner whose growth an offer would have to leave room for.
        let lent = self.disk.reserve.is_zero() && self.offer.is_none_or(|o| !o.lendable.is_zero());
        (own, own && lent)
    }
}

/// What a node's disks of one block size have room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// For its own consumers.
    pub(super) local: u64,
    /// For others.
    pub(super) lend: u64,
    /// On the one disk that has most for others.
    pub(super) largest: u64,
}

/// The nodes of one domain with disks of one block size, in the order of their room. Only rooms above zero are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranked {
    pub(super) by_lend: BTreeSet<(u64, NodeName)>,
    pub(super) by_largest: BTreeSet<(u64, NodeName)>,
    pub(super) by_local: BTreeSet<(u64, NodeName)>,
    /// Entirely free disks, by size: those that their own node can have, and those that any can.
    pub(super) whole_local: BTreeSet<(u64, DiskId)>,
    pub(super) whole_lend: BTreeSet<(u64, DiskId)>,
    pub(super) lend: u64,
}

fn swap<K: Ord + Clone>(set: &mut BTreeSet<(u64, K)>, key: &K, old: u64, new: u64) {
    if old == new {
        return;
    }
    if old > 0 {
        set.remove(&(old, key.clone()));
    }
    if new > 0 {
        set.insert((new, key.clone()));
    }
}

impl Ranked {
    fn rerank(&mut self, node: &NodeName, old: Room, new: Room) {
        swap(&mut self.by_lend, node, old.lend, new.lend);
        swap(&mut self.by_largest, node, old.largest, new.largest);
        swap(&mut self.by_local, node, old.local, new.local);
        self.lend = self.lend - old.lend + new.lend;
    }

    fn is_empty(&self) -> bool {
        self.by_local.is_empty() && self.whole_local.is_empty()
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct NodeShelf {
    pub(super) domain: Domain,
    pub(super) disks: BTreeMap<u32, BTreeSet<DiskId>>,
    pub(super) room: BTreeMap<u32, Room>,
}

/// One pool.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    pub(super) extent_size: ExtentSize,
    pub(super) nodes: BTreeMap<NodeName, NodeShelf>,
    /// By logical block size, then by domain.
    pub(super) classes: BTreeMap<u32, BTreeMap<Domain, Ranked>>,
    /// Disks with an offer: without any, candidates need no sampling.
    pub(super) offers: u64,
}

/// The index over all disks of all pools.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    pub(super) shelves: BTreeMap<PoolName, Shelf>,
    pub(super) slots: BTreeMap<DiskId, Slot>,
}

impl Pool {
    /// No pool, no disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a pool known. Again with the same extent size changes nothing.
    pub fn define_pool(&mut self, pool: PoolName, extent_size: ExtentSize) -> Result<(), IndexError> {
        if let Some(s) = self.shelves.get(&pool) {
            if s.extent_size == extent_size {
                return Ok(());
            }
            return Err(IndexError::ExtentSize { pool, have: s.extent_size, want: extent_size });
        }
        let shelf = Shelf { extent_size, nodes: BTreeMap::new(), classes: BTreeMap::new(), offers: 0 };
        self.shelves.insert(pool, shelf);
        Ok(())
    }

    /// Forgets a pool without disks.
    pub fn remove_pool(&mut self, pool: &PoolName) -> Result<(), IndexError> {
        match self.shelves.get(pool) {
            None => Err(IndexError::NoSuchPool(pool.clone())),
            Some(s) if !s.nodes.is_empty() => Err(IndexError::PoolInUse(pool.clone())),
            Some(_) => {
                self.shelves.remove(pool);
                Ok(())
            }
        }
    }

    /// Adds a disk of which only `clean` is free: everything else is set aside until it is released or adopted. The
    /// node's domain becomes the disk's.
    pub fn add_disk(
        &mut self,
        disk: Disk,
        clean: impl IntoIterator<Item = FreeRun>,
    ) -> Result<(), IndexError> {
        let shelf = self.shelves.get(&disk.pool).ok_or_else(|| IndexError::NoSuchPool(disk.pool.clone()))?;
        if shelf.extent_size != disk.extent_size {
            let (have, want) = (shelf.extent_size, disk.extent_size);
            return Err(IndexError::ExtentSize { pool: disk.pool, have, want });
        }
        if self.slots.contains_key(&disk.id) {
            return Err(IndexError::DiskExists(disk.id));
        }
        if disk.extents.is_zero() || disk.extent_size.checked_bytes_of(disk.extents).is_none() {
            return Err(IndexError::DiskSize { disk: disk.id, extents: disk.extents });
        }
        let mut free = FreeRuns::none_of(disk.extents);
        for r in clean {
            free.insert(r.first, r.count).map_err(|source| IndexError::Free { disk: disk.id, source })?;
        }
        let id = disk.id;
        self.slots.insert(id, Slot { disk, free, owned: Owned::default(), offer: None });
        self.enlist(id);
        Ok(())
    }

    /// Takes over what changed about a disk: its state, health, reserve, class, node or domain (the node's domain
    /// becomes the disk's).
    pub fn update_disk(&mut self, disk: Disk) -> Result<(), IndexError> {
        let slot = self.slots.get(&disk.id).ok_or(IndexError::NoSuchDisk(disk.id))?;
        let changed = |what| Err(IndexError::DiskChanged { disk: disk.id, what });
        let old = &slot.disk;
        if old.pool != disk.pool {
            return changed("pool");
        }
        if old.extents != disk.extents || old.extent_size != disk.extent_size {
            return changed("size");
        }
        if old.logical_block != disk.logical_block {
            return changed("logical block size");
        }
        let id = disk.id;
        self.delist(id);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.disk = disk;
        }
        self.enlist(id);
        Ok(())
    }

    /// Takes out a disk of which no volume owns anything.
    pub fn remove_disk(&mut self, id: DiskId) -> Result<Disk, IndexError> {
        let slot = self.slots.get(&id).ok_or(IndexError::NoSuchDisk(id))?;
        if slot.owned.total() > 0 {
            return Err(IndexError::DiskInUse { disk: id, used: Extents::new(slot.owned.total()) });
        }
        self.delist(id);
        self.slots.remove(&id).map(|s| s.disk).ok_or(IndexError::NoSuchDisk(id))
    }

    /// Sets or clears what the performance model says of a disk.
    pub fn set_offer(&mut self, id: DiskId, offer: Option<Offer>) -> Result<(), IndexError> {
        let slot = self.slots.get(&id).ok_or(IndexError::NoSuchDisk(id))?;
        let (had, has) = (u64::from(slot.offer.is_some()), u64::from(offer.is_some()));
        if let Some(shelf) = self.shelves.get_mut(&slot.disk.pool) {
            shelf.offers = shelf.offers - had + has;
        }
        self.edit(id, |slot| {
            slot.offer = offer;
            Ok(())
        })
    }

    /// What the performance model said of a disk last, less what was lent since.
    pub fn offer(&self, id: DiskId) -> Option<Offer> {
        self.slots.get(&id)?.offer
    }

    /// What other nodes may have of a disk now.
    pub fn lendable(&self, id: DiskId) -> Option<Extents> {
        self.slots.get(&id).map(|s| Extents::new(s.lend()))
    }

    /// Sets free extents aside, so that nobody gets them.
    pub fn reserve_runs(&mut self, runs: &[Run]) -> Result<(), IndexError> {
        self.all_or_none(runs, Pool::take_one, Pool::give_one)
    }

    /// Makes extents free that are neither free nor owned: wiped ones.
    pub fn release_runs(&mut self, runs: &[Run]) -> Result<(), IndexError> {
        self.all_or_none(runs, Pool::give_one, Pool::take_one)
    }

    /// Notes that a volume owns what its map says: at start, from the records. None of it may be free or another's.
    pub fn adopt(&mut self, volume: VolumeId, map: &Map) -> Result<(), IndexError> {
        map.check()?;
        let runs: Vec<Run> = map.runs().collect();
        self.all_or_none(&runs, |p, r| p.own_one(r, volume), |p, r| p.disown_one(r, volume))
    }

    /// Takes what was planned for the volume; refuses a plan that the index has moved on from.
    pub fn apply(&mut self, volume: VolumeId, plan: &Plan) -> Result<(), IndexError> {
        self.reserve_runs(&plan.added)?;
        let owned =
            self.all_or_none(&plan.added, |p, r| p.own_one(r, volume), |p, r| p.disown_one(r, volume));
        if let Err(e) = owned {
            self.release_runs(&plan.added)?;
            return Err(e);
        }
        for r in &plan.added {
            self.edit(r.disk, |slot| {
                let lent = plan.home.as_ref() != Some(&slot.disk.node);
                if let Some(o) = slot.offer.as_mut().filter(|_| lent) {
                    o.lendable = o.lendable.saturating_sub(r.count);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes a free run for a volume.
    pub fn take_run(&mut self, volume: VolumeId, run: Run) -> Result<(), IndexError> {
        self.reserve_runs(&[run])?;
        let owned = self.all_or_none(&[run], |p, r| p.own_one(r, volume), |p, r| p.disown_one(r, volume));
        if owned.is_err() {
            self.release_runs(&[run])?;
        }
        owned
    }

    /// Takes extents from a volume; they stay set aside until [`Pool::release_runs`], once they are wiped.
    pub fn retire(&mut self, volume: VolumeId, runs: &[Run]) -> Result<(), IndexError> {
        self.all_or_none(runs, |p, r| p.disown_one(r, volume), |p, r| p.own_one(r, volume))
    }

    /// The disk's record.
    pub fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.slots.get(&id).map(|s| &s.disk)
    }

    /// Every disk, by id.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.slots.values().map(|s| &s.disk)
    }

    /// The disk's free runs.
    pub fn free_of(&self, id: DiskId) -> Option<&FreeRuns> {
        self.slots.get(&id).map(|s| &s.free)
    }

    /// What the disk's extents are used for.
    pub fn usage(&self, id: DiskId) -> Option<DiskUsage> {
        let s = self.slots.get(&id)?;
        let (free, owned) = (s.free.total(), Extents::new(s.owned.total()));
        let set_aside = s.disk.extents.minus(free).minus(owned);
        Some(DiskUsage { extents: s.disk.extents, free, owned, set_aside })
    }

    /// The runs that volumes own on the disk, in its order.
    pub fn owners(&self, id: DiskId) -> impl Iterator<Item = (VolumeId, Run)> + '_ {
        self.slots.get(&id).into_iter().flat_map(move |s| {
            s.owned
                .iter()
                .map(move |(f, c, v)| (v, Run { disk: id, first: Extents::new(f), count: Extents::new(c) }))
        })
    }

    /// The extent size of a pool.
    pub fn extent_size(&self, pool: &PoolName) -> Option<ExtentSize> {
        self.shelves.get(pool).map(|s| s.extent_size)
    }

    /// The pools, by name.
    pub fn pools(&self) -> impl Iterator<Item = &PoolName> {
        self.shelves.keys()
    }

    fn all_or_none(
        &mut self,
        runs: &[Run],
        step: impl Fn(&mut Pool, &Run) -> Result<(), IndexError>,
        undo: impl Fn(&mut Pool, &Run) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        for (i, r) in runs.iter().enumerate() {
            if let Err(e) = step(self, r) {
                for done in runs[..i].iter().rev() {
                    undo(self, done).expect("a step just taken can be taken back");
                }
                return Err(e);
            }
        }
        Ok(())
    }

    fn take_one(&mut self, r: &Run) -> Result<(), IndexError> {
        self.edit(r.disk, |s| {
            s.free.take(r.first, r.count).map_err(|source| IndexError::Free { disk: r.disk, source })
        })
    }

    fn give_one(&mut self, r: &Run) -> Result<(), IndexError> {
        self.edit(r.disk, |s| {
            if let Some(owner) = s.owned.owner_in(r.first.get(), r.count.get()) {
                return Err(IndexError::Owned { run: *r, owner });
            }
            s.free.insert(r.first, r.count).map_err(|source| IndexError::Free { disk: r.disk, source })
        })
    }

    fn own_one(&mut self, r: &Run, volume: VolumeId) -> Result<(), IndexError> {
        self.edit(r.disk, |s| {
            let end = r.first.checked_add(r.count).filter(|e| *e <= s.disk.extents && !r.count.is_zero());
            if end.is_none() {
                let source = FreeError::Outside { first: r.first, count: r.count, extents: s.disk.extents };
                return Err(IndexError::Free { disk: r.disk, source });
            }
            if let Some(owner) = s.owned.owner_in(r.first.get(), r.count.get()) {
                return Err(IndexError::Owned { run: *r, owner });
            }
            if s.free.overlaps(r.first, r.count) {
                return Err(IndexError::OwnedAndFree { run: *r });
            }
            s.owned.insert(r.first.get(), r.count.get(), volume);
            Ok(())
        })
    }

    fn disown_one(&mut self, r: &Run, volume: VolumeId) -> Result<(), IndexError> {
        self.edit(r.disk, |s| {
            if s.owned.remove(r.first.get(), r.count.get(), volume) {
                Ok(())
            } else {
                Err(IndexError::NotOwned { run: *r, volume })
            }
        })
    }

    /// The one way to change a disk that is enlisted: the orders follow.
    fn edit(
        &mut self,
        id: DiskId,
        f: impl FnOnce(&mut Slot) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let slot = self.slots.get_mut(&id).ok_or(IndexError::NoSuchDisk(id))?;
        let before = slot.whole();
        let out = f(slot);
        let after = slot.whole();
        let (size, block) = (slot.disk.extents.get(), slot.disk.logical_block);
        let (pool, node) = (slot.disk.pool.clone(), slot.disk.node.clone());
        if before != after {
            let ranked = self.ranked_mut(&pool, &node, block);
            swap(&mut ranked.whole_local, &id, size * u64::from(before.0), size * u64::from(after.0));
            swap(&mut ranked.whole_lend, &id, size * u64::from(before.1), size * u64::from(after.1));
        }
        self.rerank(&pool, &node, block);
        out
    }

    fn ranked_mut(&mut self, pool: &PoolName, node: &NodeName, block: u32) -> &mut Ranked {
        let shelf = self.shelves.get_mut(pool).expect("an enlisted disk's pool exists");
        let domain = shelf.nodes.get(node).expect("an enlisted disk's node exists").domain.clone();
        shelf.classes.entry(block).or_default().entry(domain).or_default()
    }

    fn room_of(&self, disks: &BTreeSet<DiskId>) -> Room {
        disks.iter().filter_map(|d| self.slots.get(d)).fold(Room::default(), |r, s| Room {
            local: r.local + s.local(),
            lend: r.lend + s.lend(),
            largest: r.largest.max(s.lend()),
        })
    }

    fn rerank(&mut self, pool: &PoolName, node: &NodeName, block: u32) {
        let shelf = self.shelves.get(pool).expect("an enlisted disk's pool exists");
        let n = shelf.nodes.get(node).expect("an enlisted disk's node exists");
        let new = n.disks.get(&block).map(|d| self.room_of(d)).unwrap_or_default();
        let old = n.room.get(&block).copied().unwrap_or_default();
        if old == new {
            return;
        }
        self.ranked_mut(pool, node, block).rerank(node, old, new);
        let shelf = self.shelves.get_mut(pool).expect("an enlisted disk's pool exists");
        if let Some(n) = shelf.nodes.get_mut(node) {
            n.room.insert(block, new);
        }
    }

    /// Puts a disk into the orders, under its node and with the node in the disk's domain.
    fn enlist(&mut self, id: DiskId) {
        let Some(slot) = self.slots.get(&id) else { return };
        let (disk, offer) = (slot.disk.clone(), slot.offer.is_some());
        let shelf = self.shelves.get_mut(&disk.pool).expect("the caller has looked for the pool");
        shelf.offers += u64::from(offer);
        let node = shelf.nodes.entry(disk.node.clone()).or_default();
        if node.domain != disk.domain {
            let all: Vec<DiskId> = node.disks.values().flatten().copied().collect();
            for d in &all {
                self.delist(*d);
                if let Some(s) = self.slots.get_mut(d) {
                    s.disk.domain = disk.domain.clone();
                }
            }
            let shelf = self.shelves.get_mut(&disk.pool).expect("the caller has looked for the pool");
            shelf.nodes.entry(disk.node.clone()).or_default().domain = disk.domain.clone();
            for d in all {
                self.enlist(d);
            }
        }
        let shelf = self.shelves.get_mut(&disk.pool).expect("the caller has looked for the pool");
        let node = shelf.nodes.entry(disk.node.clone()).or_default();
        node.disks.entry(disk.logical_block).or_default().insert(id);
        let (local, lend) = self.slots.get(&id).map(Slot::whole).unwrap_or_default();
        let size = disk.extents.get();
        let ranked = self.ranked_mut(&disk.pool, &disk.node, disk.logical_block);
        swap(&mut ranked.whole_local, &id, 0, size * u64::from(local));
        swap(&mut ranked.whole_lend, &id, 0, size * u64::from(lend));
        self.rerank(&disk.pool, &disk.node, disk.logical_block);
    }

    /// Takes a disk out of the orders; its slot stays.
    fn delist(&mut self, id: DiskId) {
        let Some(slot) = self.slots.get(&id) else { return };
        let (pool, node) = (slot.disk.pool.clone(), slot.disk.node.clone());
        let (size, block, offer) = (slot.disk.extents.get(), slot.disk.logical_block, slot.offer.is_some());
        let ranked = self.ranked_mut(&pool, &node, block);
        ranked.whole_local.remove(&(size, id));
        ranked.whole_lend.remove(&(size, id));
        let shelf = self.shelves.get_mut(&pool).expect("an enlisted disk's pool exists");
        shelf.offers -= u64::from(offer);
        if let Some(d) = shelf.nodes.get_mut(&node).and_then(|n| n.disks.get_mut(&block)) {
            d.remove(&id);
        }
        self.rerank(&pool, &node, block);
        let shelf = self.shelves.get_mut(&pool).expect("an enlisted disk's pool exists");
        if let Some(n) = shelf.nodes.get_mut(&node) {
            n.disks.retain(|_, d| !d.is_empty());
            n.room.retain(|b, _| n.disks.contains_key(b));
            if n.disks.is_empty() {
                shelf.nodes.remove(&node);
            }
        }
        if let Some(class) = shelf.classes.get_mut(&block) {
            class.retain(|_, r| !r.is_empty());
            if class.is_empty() {
                shelf.classes.remove(&block);
            }
        }
    }

    /// Holds every invariant against the index; the text says which one is broken. Costs the whole index: for tests
    /// and for a controller that doubts itself.
    pub fn check(&self) -> Result<(), String> {
        let mut again = Pool::new();
        for (name, s) in &self.shelves {
            again.define_pool(name.clone(), s.extent_size).map_err(|e| e.to_string())?;
        }
        for (id, s) in &self.slots {
            s.free.check().map_err(|e| format!("disk {id}: {e}"))?;
            s.owned.check(s.disk.extents.get()).map_err(|e| format!("disk {id}: {e}"))?;
            for (f, c, v) in s.owned.iter() {
                if s.free.overlaps(Extents::new(f), Extents::new(c)) {
                    return Err(format!("disk {id}: extents from {f} are free and owned by {v}"));
                }
            }
            again.slots.insert(*id, s.clone());
            again.enlist(*id);
        }
        for (name, s) in &self.shelves {
            let o = again.shelves.get(name).ok_or("a pool is missing")?;
            let nonempty = |c: &BTreeMap<u32, BTreeMap<Domain, Ranked>>| -> Vec<(u32, Domain, Ranked)> {
                c.iter()
                    .flat_map(|(b, d)| d.iter().map(|(k, r)| (*b, k.clone(), r.clone())))
                    .filter(|(_, _, r)| !r.is_empty())
                    .collect()
            };
            if nonempty(&s.classes) != nonempty(&o.classes) {
                return Err(format!("pool {name}: the orders do not agree with the disks"));
            }
            if s.offers != o.offers || s.nodes.keys().ne(o.nodes.keys()) {
                return Err(format!("pool {name}: its nodes or offers do not agree with the disks"));
            }
        }
        Ok(())
    }
}
