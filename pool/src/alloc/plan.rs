//! From a request to a plan: checks the request, asks the layout's placement for each block size, and writes the best
//! answer down as segments.
//!
//! Invariants: a plan only appends (its last segment may have grown); what it adds is free in the index it was made
//! from. Must not know: how a placement is found.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};

use super::{
    census,
    explain::Explanation,
    index::{Pool, Shelf, Slot},
    linear::{self, Share},
    refusal::Refusal,
    request::{Request, term_matches, term_node, term_zone},
    runs::{DiskRoom, cut, free_of},
    striped::{self, Span},
    view::{Ask, View},
    whole,
};
use crate::{
    disk::NODE_KEY,
    ids::{DiskId, NodeName},
    layout::{Layout, Locality},
    units::{Extents, Sectors},
    volume::{Leg, Map, Run, Segment, Stripe},
};

/// Where a volume will lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The whole map, what was there before included.
    pub map: Map,
    /// The runs that are new.
    pub added: Vec<Run>,
    /// The volume's size: at least what was asked for.
    pub extents: Extents,
    /// The node that it was planned for.
    pub home: Option<NodeName>,
    /// The other nodes that it lies on, by name.
    pub lenders: Vec<NodeName>,
    /// Extents that lie on them.
    pub borrowed: Extents,
    /// The logical block size of its disks, in bytes.
    pub logical_block: u32,
    /// Why.
    pub explanation: Explanation,
}

/// What a layout needs, new extents only.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// `rows` rows over `stripes` disks; a linear volume is one stripe.
    Rows { stripes: u64, rows: u64 },
    /// One entirely free disk of so many extents.
    Whole { size: u64, limit: u64 },
}

impl Need {
    /// New extents, at least.
    pub(super) fn extents(self) -> u64 {
        match self {
            Need::Rows { stripes, rows } => stripes.saturating_mul(rows),
            Need::Whole { size, .. } => size,
        }
    }

    fn of(req: &Request) -> Result<Self, Refusal> {
        let (have, size) = (req.existing.extents(), req.size);
        let wanted = size.saturating_sub(have).get();
        let limit = req.limit.map_or(u64::MAX, Extents::get);
        let stripes = match req.layout {
            Layout::Linear => 1,
            Layout::Striped { stripes, .. } => u64::from(stripes.max(1)),
            Layout::Mirrored { .. } => return Err(Refusal::NotSupported("layout: mirrored")),
            Layout::WholeDisk if !have.is_zero() => return Err(Refusal::CannotGrow("wholeDisk")),
            Layout::WholeDisk => return Ok(Need::Whole { size: wanted, limit }),
        };
        let rows = wanted.div_ceil(stripes);
        let needed = rows.saturating_mul(stripes).saturating_add(have.get());
        if needed > limit {
            let (needed, limit) = (Extents::new(needed), Extents::new(limit));
            return Err(Refusal::SizeLimit { layout: req.layout.as_str(), needed, limit });
        }
        Ok(Need::Rows { stripes, rows })
    }

    /// Whether these disks serve alone.
    fn fits(self, pool: &Pool, disks: &[DiskRoom]) -> bool {
        match self {
            Need::Rows { stripes, rows } => {
                let sum: u64 = disks.iter().map(|(_, r)| (*r).min(rows)).sum();
                stripes.checked_mul(rows).is_some_and(|n| sum >= n)
            }
            Need::Whole { size, limit } => disks.iter().any(|(d, room)| {
                *room >= size && *room <= limit && pool.slots.get(d).is_some_and(|s| s.whole().0)
            }),
        }
    }

    fn place(self, view: &View<'_>) -> Option<Vec<Share>> {
        match self {
            Need::Rows { stripes: 1, rows } => linear::place(view, rows),
            Need::Rows { stripes, rows } => striped::place(view, stripes, rows),
            Need::Whole { size, limit } => whole::place(view, size, limit).map(|s| vec![s]),
        }
    }

    /// The most new extents that can be had within the rules.
    pub(super) fn reach(self, view: &View<'_>) -> u64 {
        match self {
            Need::Rows { stripes: 1, .. } => linear::reach(view),
            Need::Rows { stripes, .. } => striped::reach(view, stripes),
            Need::Whole { .. } => whole::reach(view),
        }
    }
}

impl Pool {
    /// Finds the place for a new volume or for the growth of one; changes nothing.
    pub fn plan(&self, req: &Request) -> Result<Plan, Refusal> {
        if req.size.is_zero() {
            return Err(Refusal::ZeroSize);
        }
        let mut ask = self.ask(req)?;
        let block = existing_block(&ask)?;
        if req.size <= req.existing.extents() {
            return Ok(nothing_to_add(&ask, block.unwrap_or_default()));
        }
        let need = Need::of(req)?;
        let blocks = blocks(&ask, block);
        let open = ask.local_only() && ask.home.is_none();
        let mut best = None;
        for b in &blocks {
            let mut rank = 0;
            if open {
                ask.home = None;
                let Some((r, home)) = choose_home(&ask, *b, need) else { continue };
                (rank, ask.home) = (r, Some(home));
            }
            let view = View::new(&ask, *b);
            let Some(shares) = need.place(&view) else { continue };
            let key = (rank, preference(&view, &shares));
            if best.as_ref().is_none_or(|(k, _)| key < *k) {
                best = Some((key, write(&view, &shares)));
            }
        }
        if let Some((_, plan)) = best {
            return Ok(plan);
        }
        if open {
            ask.home = None;
        }
        Err(census::diagnose(&ask, block, need))
    }

    /// Finds a new place for up to `count` extents of a volume that has others: at most so many, in one run. `req` says
    /// of the volume what a growth would say; where no single disk has room for all, less is found.
    pub fn plan_run(&self, req: &Request, count: Extents) -> Result<Run, Refusal> {
        let mut want = count.get();
        loop {
            let size = Extents::new(req.existing.extents().get().saturating_add(want));
            let plan = self.plan(&Request { size, layout: Layout::Linear, ..req.clone() });
            match plan.map(|p| p.added.into_iter().max_by_key(|r| r.count)) {
                Ok(Some(run)) => return Ok(run),
                Err(e) if want <= 1 => return Err(e),
                Ok(None) | Err(_) => want /= 2,
            }
            if want == 0 {
                return Err(Refusal::ZeroSize);
            }
        }
    }

    /// Reads out of the request and the index what planning needs.
    pub(super) fn ask<'a>(&'a self, req: &'a Request) -> Result<Ask<'a>, Refusal> {
        let shelf = self.shelves.get(&req.pool).ok_or_else(|| Refusal::NoSuchPool {
            pool: req.pool.clone(),
            known: self.shelves.keys().take(8).cloned().collect(),
        })?;
        let (mut order, mut used_disks) = (Vec::new(), BTreeSet::new());
        for seg in req.existing.0.iter().rev() {
            for leg in &seg.legs {
                let slot = self.slots.get(&leg.disk).ok_or(Refusal::UnknownDisk(leg.disk))?;
                if used_disks.insert(leg.disk) && !order.contains(&slot.disk.node) {
                    order.push(slot.disk.node.clone());
                }
            }
        }
        let home = match req.locality {
            Locality::None => None,
            Locality::Prefer => req.home.clone().or_else(|| hinted_home(req)),
            Locality::Require => req.home.clone().or_else(|| order.first().cloned()),
        };
        if let Some(h) = req.home.as_ref().filter(|h| !may_be_home(shelf, req, h)) {
            return Err(Refusal::TopologyUnsatisfiable(format!(
                "node {h} is in none of the topologies that the volume must be accessible from"
            )));
        }
        let hints = req.existing.0.last().map(|s| {
            s.legs.iter().map(|l| (l.disk, l.first.plus(s.leg_count()))).collect::<BTreeMap<_, _>>()
        });
        let zone = match &home {
            Some(h) => shelf.nodes.get(h).and_then(|n| n.domain.zone().map(str::to_owned)),
            None => req.topology.preferred.first().and_then(term_zone).map(str::to_owned),
        };
        order.retain(|n| home.as_ref() != Some(n));
        let hints = hints.unwrap_or_default();
        Ok(Ask { pool: self, shelf, req, home, zone, used: order, used_disks, hints })
    }
}

/// The node that the topology names first.
fn hinted_home(req: &Request) -> Option<NodeName> {
    let t = &req.topology;
    let only = if t.required.len() == 1 { t.required.first() } else { None };
    t.preferred.first().or(only).and_then(term_node)
}

/// Whether the consumer may be on this node; of a node that has no disk only its name is known.
pub(super) fn may_be_home(shelf: &Shelf, req: &Request, node: &NodeName) -> bool {
    let required = &req.topology.required;
    required.is_empty()
        || required.iter().any(|t| match shelf.nodes.get(node) {
            Some(n) => term_matches(t, Some(node), &n.domain),
            None => t.get(NODE_KEY).is_none_or(|n| n == node.as_str()),
        })
}

/// The block size of what the volume has; `None` for a new volume.
fn existing_block(ask: &Ask<'_>) -> Result<Option<u32>, Refusal> {
    let mut by_block: BTreeMap<u32, Extents> = BTreeMap::new();
    for r in ask.req.existing.runs() {
        let block =
            ask.pool.slots.get(&r.disk).map(|s| s.disk.logical_block).ok_or(Refusal::UnknownDisk(r.disk))?;
        let n = by_block.entry(block).or_default();
        *n = n.plus(r.count);
    }
    if by_block.len() > 1 {
        let by_block = by_block.into_iter().collect();
        return Err(Refusal::BlockSizesMixed { needed: ask.req.existing.extents(), by_block });
    }
    Ok(by_block.into_keys().next())
}

/// The block sizes that may serve and have room.
pub(super) fn blocks(ask: &Ask<'_>, existing: Option<u32>) -> Vec<u32> {
    let all = ask.shelf.classes.keys().copied();
    all.filter(|b| block_allowed(ask, existing, *b)).collect()
}

/// Whether disks of this block size may serve.
pub(super) fn block_allowed(ask: &Ask<'_>, existing: Option<u32>, block: u32) -> bool {
    existing.is_none_or(|e| e == block) && ask.req.logical_block.is_none_or(|r| r == block)
}

/// Of the nodes that the consumer may be on, one that serves alone: the first that is preferred, else the one with
/// most room. With its rank, lower being better.
fn choose_home(ask: &Ask<'_>, block: u32, need: Need) -> Option<(usize, NodeName)> {
    let view = View::new(ask, block);
    let serves = |node: &NodeName| {
        may_be_home(ask.shelf, ask.req, node) && need.fits(ask.pool, &view.local_disks(node))
    };
    let preferred = &ask.req.topology.preferred;
    for (rank, term) in preferred.iter().enumerate() {
        let found = match term_node(term) {
            Some(n) => Some(n).filter(|n| serves(n)),
            None => with_room(&view, need).find(|n| in_term(ask, term, n) && serves(n)).cloned(),
        };
        if let Some(n) = found {
            return Some((rank, n));
        }
    }
    let required = &ask.req.topology.required;
    if !required.is_empty() && required.iter().all(|t| term_node(t).is_some()) {
        let named = required.iter().filter_map(term_node).filter(|n| serves(n));
        let local = |n: &NodeName| view.local_disks(n).iter().map(|(_, r)| *r).sum::<u64>();
        return named.max_by_key(|n| (local(n), Reverse(n.clone()))).map(|n| (preferred.len(), n));
    }
    with_room(&view, need).find(|n| serves(n)).map(|n| (preferred.len(), n.clone()))
}

fn with_room<'a>(view: &View<'a>, need: Need) -> impl Iterator<Item = &'a NodeName> + use<'a> {
    view.by_local().take_while(move |(room, _)| *room >= need.extents()).map(|(_, n)| n)
}

fn in_term(ask: &Ask<'_>, term: &super::TopologyTerm, node: &NodeName) -> bool {
    ask.shelf.nodes.get(node).is_some_and(|n| term_matches(term, Some(node), &n.domain))
}

/// Orders the answers of several block sizes: most local, fewest lenders, most room left in the pool, smallest block.
type Preference = (Reverse<u64>, usize, Reverse<u64>, u32);

fn preference(view: &View<'_>, shares: &[Share]) -> Preference {
    let (home, away): (Vec<&Share>, Vec<&Share>) =
        shares.iter().partition(|s| view.ask.home.as_ref() == Some(&s.node));
    let lenders: BTreeSet<&NodeName> = away.iter().map(|s| &s.node).collect();
    let local = home.iter().map(|s| s.count).sum();
    (Reverse(local), lenders.len(), Reverse(view.lend_total()), view.block)
}

fn nothing_to_add(ask: &Ask<'_>, block: u32) -> Plan {
    let view = View::new(ask, block);
    finish(&view, ask.req.existing.clone(), Vec::new(), &[])
}

/// Writes the shares down as segments.
fn write(view: &View<'_>, shares: &[Share]) -> Plan {
    let mut map = view.ask.req.existing.clone();
    let mut shares = shares.to_vec();
    order_like_existing(view, &map, &mut shares);
    let mut added = Vec::new();
    for s in &shares {
        let pieces = cut(free_of(view.pool, s.disk), s.count, view.hint(s.disk));
        added.extend(pieces.iter().map(|p| Run { disk: s.disk, first: p.first, count: p.count }));
    }
    match view.ask.req.layout {
        Layout::Striped { stripes, chunk } => {
            let runs: Vec<_> = added.iter().map(|r| (r.disk, r.first.get(), r.count.get())).collect();
            let k = u64::from(stripes.max(1));
            let rows = runs.iter().map(|r| r.2).sum::<u64>() / k;
            for span in striped::weave(&runs, k, rows) {
                push_span(&mut map, &span, chunk);
            }
        }
        Layout::Linear | Layout::WholeDisk | Layout::Mirrored { .. } => {
            for r in &added {
                let legs = vec![Leg { disk: r.disk, first: r.first }];
                map.push(Segment { start: map.extents(), count: r.count, legs, stripe: None, spare: None });
            }
        }
    }
    finish(view, map, added, &shares)
}

/// Puts shares that go on where the last segment ends in that segment's order, so that they become one with it.
fn order_like_existing(view: &View<'_>, map: &Map, shares: &mut [Share]) {
    let Some(last) = map.0.last() else { return };
    let place = |d: DiskId| last.legs.iter().position(|l| l.disk == d).unwrap_or(usize::MAX);
    let equal = shares.windows(2).all(|w| w[0].count == w[1].count);
    let striped = last.stripe.is_some();
    if striped && equal && shares.len() == last.legs.len() {
        shares.sort_by_key(|s| place(s.disk));
    } else if !striped {
        let goes_on =
            |d: DiskId| view.hint(d).is_some_and(|h| free_of(view.pool, d).starting_at(h).is_some());
        shares.sort_by_key(|s| !goes_on(s.disk));
    }
}

fn push_span(map: &mut Map, span: &Span, chunk: Sectors) {
    let count = Extents::new(span.len * span.legs.len() as u64);
    let stripe = Some(Stripe { chunk });
    if let Some(last) = map.0.last_mut()
        && last.stripe == stripe
        && last.legs.len() == span.legs.len()
        && last
            .legs
            .iter()
            .zip(&span.legs)
            .all(|(l, (d, f))| l.disk == *d && l.first.plus(last.leg_count()).get() == *f)
    {
        // Whole extents are whole chunks on every leg, so the two interleave as one.
        last.count = last.count.plus(count);
        return;
    }
    let legs = span.legs.iter().map(|(d, f)| Leg { disk: *d, first: Extents::new(*f) }).collect();
    map.0.push(Segment { start: map.extents(), count, legs, stripe, spare: None });
}

fn finish(view: &View<'_>, map: Map, added: Vec<Run>, shares: &[Share]) -> Plan {
    let home = view.ask.home.clone();
    let mut lenders = BTreeSet::new();
    let mut borrowed = Extents::ZERO;
    for r in map.runs() {
        let node = view.pool.slots.get(&r.disk).map(|s: &Slot| &s.disk.node);
        if let Some(n) = node.filter(|n| home.as_ref() != Some(n)) {
            lenders.insert(n.clone());
            borrowed = borrowed.plus(r.count);
        }
    }
    Plan {
        extents: map.extents(),
        map,
        added,
        home,
        lenders: lenders.into_iter().collect(),
        borrowed,
        logical_block: view.block,
        explanation: Explanation::of(view, shares),
    }
}
