//! The pool as one request sees it: disks of one logical block size in the allowed domains, split into the home
//! node's, those of lenders that the volume has, and everyone else's in the order of their room.
//!
//! Invariants: looking costs only what is looked at. Must not know: which layout is asked for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    ops::Bound,
};

use super::{
    index::{Pool, Ranked, Shelf, Slot},
    request::{Request, mix, term_matches},
    runs::DiskRoom,
};
use crate::{
    disk::Domain,
    ids::{DiskId, NodeName},
    layout::{Locality, params::MAX_LENDERS},
    units::Extents,
};

/// What is the same for every block size.
pub(super) struct Ask<'a> {
    pub(super) pool: &'a Pool,
    pub(super) shelf: &'a Shelf,
    pub(super) req: &'a Request,
    /// The node beside which the volume is to lie.
    pub(super) home: Option<NodeName>,
    /// The consumer's zone, where it is known.
    pub(super) zone: Option<String>,
    /// Lenders that the volume has, the one of its last segment first.
    pub(super) used: Vec<NodeName>,
    /// Disks that it has.
    pub(super) used_disks: BTreeSet<DiskId>,
    /// Where its last segment would go on, a leg each.
    pub(super) hints: BTreeMap<DiskId, Extents>,
}

impl Ask<'_> {
    /// Lenders that it may have beyond those it has.
    pub(super) fn lenders_left(&self) -> usize {
        if self.local_only() {
            return 0;
        }
        (self.req.max_lenders.min(MAX_LENDERS) as usize).saturating_sub(self.used.len())
    }

    /// Whether only the home node may serve.
    pub(super) fn local_only(&self) -> bool {
        match self.req.locality {
            Locality::Require => true,
            Locality::Prefer | Locality::None => false,
        }
    }

    /// Whether extents may lie in this domain.
    pub(super) fn allows(&self, domain: &Domain) -> bool {
        self.req.domains.is_empty() || self.req.domains.iter().any(|t| term_matches(t, None, domain))
    }
}

/// One block size of an [`Ask`].
pub(super) struct View<'a> {
    pub(super) pool: &'a Pool,
    pub(super) ask: &'a Ask<'a>,
    pub(super) block: u32,
    /// The zone to stay in while that suffices.
    pub(super) zone: Option<String>,
    domains: Vec<(&'a Domain, &'a Ranked)>,
}

/// A node with its room.
pub(super) type NodeRank<'a> = (u64, &'a NodeName);

impl<'a> View<'a> {
    pub(super) fn new(ask: &'a Ask<'a>, block: u32) -> Self {
        let class = ask.shelf.classes.get(&block);
        let domains: Vec<(&Domain, &Ranked)> =
            class.into_iter().flatten().filter(|(d, _)| ask.allows(d)).collect();
        let most_room = || {
            let (d, _) = domains.iter().max_by_key(|(d, r)| (r.by_lend.last(), Reverse(*d)))?;
            d.zone().map(str::to_owned)
        };
        let zone = ask.zone.clone().or_else(|| if ask.home.is_none() { most_room() } else { None });
        Self { pool: ask.pool, ask, block, zone, domains }
    }

    /// Whether the volume has extents on the disk.
    pub(super) fn uses(&self, disk: DiskId) -> bool {
        self.ask.used_disks.contains(&disk)
    }

    /// Where the volume's last segment would go on, on this disk.
    pub(super) fn hint(&self, disk: DiskId) -> Option<Extents> {
        self.ask.hints.get(&disk).copied()
    }

    fn disks_of(&self, node: &NodeName, room: fn(&Slot) -> u64) -> Vec<DiskRoom> {
        let Some(n) = self.ask.shelf.nodes.get(node).filter(|n| self.ask.allows(&n.domain)) else {
            return Vec::new();
        };
        let ids = n.disks.get(&self.block).into_iter().flatten().filter(|d| !self.ask.req.avoid.contains(*d));
        ids.filter_map(|d| self.pool.slots.get(d).map(|s| (*d, room(s)))).filter(|(_, r)| *r > 0).collect()
    }

    /// The disks of a node with room for consumers on that node.
    pub(super) fn local_disks(&self, node: &NodeName) -> Vec<DiskRoom> {
        self.disks_of(node, Slot::local)
    }

    /// The disks of a node with room for others.
    pub(super) fn lend_disks(&self, node: &NodeName) -> Vec<DiskRoom> {
        self.disks_of(node, Slot::lend)
    }

    /// The home node's disks with room.
    pub(super) fn home_disks(&self) -> Vec<DiskRoom> {
        self.ask.home.as_ref().map(|h| self.local_disks(h)).unwrap_or_default()
    }

    /// The lenders that the volume has, with their disks that have room; none where only the home node may serve.
    pub(super) fn used_lenders(&self) -> Vec<(&'a NodeName, Vec<DiskRoom>)> {
        if self.ask.local_only() {
            return Vec::new();
        }
        self.ask.used.iter().map(|n| (n, self.lend_disks(n))).filter(|(_, d)| !d.is_empty()).collect()
    }

    fn merged(
        &self,
        zone: Option<&str>,
        by: fn(&Ranked) -> &BTreeSet<(u64, NodeName)>,
    ) -> impl Iterator<Item = NodeRank<'a>> + use<'a> {
        let mut sets: Vec<_> = self
            .domains
            .iter()
            .filter(|(d, _)| zone.is_none_or(|z| d.zone() == Some(z)))
            .map(|(_, r)| by(r).iter().rev())
            .collect();
        let mut heads = BinaryHeap::new();
        for (i, s) in sets.iter_mut().enumerate() {
            heads.extend(s.next().map(|(r, n)| (*r, Reverse(n), i)));
        }
        std::iter::from_fn(move || {
            let (room, Reverse(node), i) = heads.pop()?;
            heads.extend(sets.get_mut(i).and_then(Iterator::next).map(|(r, n)| (*r, Reverse(n), i)));
            Some((room, node))
        })
    }

    fn new_lenders(
        &self,
        zone: Option<&str>,
        by: fn(&Ranked) -> &BTreeSet<(u64, NodeName)>,
    ) -> impl Iterator<Item = NodeRank<'a>> + use<'a> {
        let ask = self.ask;
        self.merged(zone, by).filter(move |(_, n)| ask.home.as_ref() != Some(*n) && !ask.used.contains(*n))
    }

    /// Nodes that would be new lenders, by what they can lend, most first.
    pub(super) fn by_lend(&self, zone: Option<&str>) -> impl Iterator<Item = NodeRank<'a>> + use<'a> {
        self.new_lenders(zone, |r| &r.by_lend)
    }

    /// The same by what their best disk can lend.
    pub(super) fn by_largest(&self, zone: Option<&str>) -> impl Iterator<Item = NodeRank<'a>> + use<'a> {
        self.new_lenders(zone, |r| &r.by_largest)
    }

    /// Every node, by what it has for its own consumers, most first.
    pub(super) fn by_local(&self) -> impl Iterator<Item = NodeRank<'a>> + use<'a> {
        self.merged(None, |r| &r.by_local)
    }

    /// Entirely free disks of at least `size` that others can have, smallest first within each domain.
    pub(super) fn whole_lend(
        &self,
        zone: Option<&str>,
        size: u64,
    ) -> impl Iterator<Item = impl Iterator<Item = (u64, DiskId)>> {
        let in_zone = move |d: &Domain| zone.is_none_or(|z| d.zone() == Some(z));
        self.domains
            .iter()
            .filter(move |(d, _)| in_zone(d))
            .map(move |(_, r)| r.whole_lend.range((size, DiskId::from_u128(0))..).copied())
    }

    /// The size of the largest entirely free disk that others can have, or 0.
    pub(super) fn whole_largest(&self) -> u64 {
        self.domains.iter().filter_map(|(_, r)| r.whole_lend.last()).map(|(n, _)| *n).max().unwrap_or(0)
    }

    /// What all nodes of the allowed domains can lend.
    pub(super) fn lend_total(&self) -> u64 {
        self.domains.iter().map(|(_, r)| r.lend).sum()
    }

    /// A few nodes drawn by the request's seed, so that a good score is found below the top of the order too.
    pub(super) fn sample(&self, zone: Option<&str>, n: usize) -> Vec<NodeRank<'a>> {
        let first: NodeName = "0".parse().expect("a digit is a name");
        let sets: Vec<_> = self
            .domains
            .iter()
            .filter(|(d, _)| zone.is_none_or(|z| d.zone() == Some(z)))
            .map(|(_, r)| &r.by_lend)
            .filter(|s| !s.is_empty())
            .collect();
        let mut out = Vec::new();
        for i in 0..n {
            let draw = mix(self.ask.req.seed, &(i as u64).to_le_bytes());
            let Some(set) = sets.get(draw as usize % sets.len().max(1)) else { break };
            let top = set.last().map_or(0, |(r, _)| *r);
            // "0" sorts before every other name, so this is "at most `room`".
            let room = (draw >> 8) % top.max(1) + 1;
            let below = (Bound::Unbounded, Bound::Excluded((room.saturating_add(1), first.clone())));
            let found = set.range(below).next_back().or_else(|| set.first());
            out.extend(found.map(|(r, n)| (*r, n)));
        }
        out.retain(|(_, n)| self.ask.home.as_ref() != Some(*n) && !self.ask.used.contains(*n));
        out
    }

    /// How gladly a node lends: its disks' scores, weighed by their room.
    pub(super) fn score(&self, node: &NodeName) -> u64 {
        let (mut sum, mut rooms) = (0u128, 0u128);
        for (d, room) in self.lend_disks(node) {
            let score = self.pool.slots.get(&d).map_or(0, Slot::score);
            sum += u128::from(score) * u128::from(room);
            rooms += u128::from(room);
        }
        u64::try_from(sum / rooms.max(1)).unwrap_or(u64::MAX)
    }
}
