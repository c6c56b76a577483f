//! Why there is no placement: looks at every disk of the pool, which only a refusal may cost. Must not know: which
//! placement would be preferred.

use std::{cmp::Reverse, collections::BTreeSet};

use super::{
    index::Slot,
    plan::{Need, block_allowed},
    refusal::{NodeRoom, Refusal, Shortage},
    request::term_matches,
    view::Ask,
};
use crate::{disk::Domain, ids::NodeName, layout::params::MAX_LENDERS, units::Extents};

/// Nodes named in a shortage.
const NAMED: usize = 8;

/// What a node costs as a lender.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Nothing: it is the home node, or lends already.
    Held,
    /// One lender more.
    New,
}

struct Group<'a> {
    node: &'a NodeName,
    role: Role,
    rooms: Vec<u64>,
}

impl Group<'_> {
    fn worth(&self, rows: u64) -> u64 {
        self.rooms.iter().map(|r| (*r).min(rows)).sum()
    }
}

/// Says why `need` cannot be met; the caller has found that it cannot.
pub(super) fn diagnose(ask: &Ask<'_>, existing: Option<u32>, need: Need) -> Refusal {
    let blocks: BTreeSet<u32> = ask.shelf.nodes.values().flat_map(|n| n.disks.keys().copied()).collect();
    let blocks: Vec<u32> = blocks.into_iter().filter(|b| block_allowed(ask, existing, *b)).collect();
    let blocks = blocks.as_slice();
    let allowed = |d: &Domain| ask.allows(d);
    if !ask.shelf.nodes.is_empty() && !ask.shelf.nodes.values().any(|n| allowed(&n.domain)) {
        let text = format!("no disk of pool {} is in the allowed domains", ask.req.pool);
        return Refusal::TopologyUnsatisfiable(text);
    }
    if ask.local_only() {
        return not_local(ask, blocks, need);
    }
    match need {
        Need::Whole { size, limit } => no_disk(ask, blocks, size, limit),
        Need::Rows { stripes, rows } => no_rows(ask, blocks, stripes, rows),
    }
}

fn not_local(ask: &Ask<'_>, blocks: &[u32], need: Need) -> Refusal {
    let needed = Extents::new(need.extents());
    let required = &ask.req.topology.required;
    if ask.home.is_none() && !required.is_empty() {
        let some =
            ask.shelf.nodes.iter().any(|(n, s)| required.iter().any(|t| term_matches(t, Some(n), &s.domain)));
        if !some {
            return Refusal::TopologyUnsatisfiable(format!(
                "locality: require, and no node of pool {} is where the volume must be accessible from",
                ask.req.pool
            ));
        }
    }
    let available = blocks.iter().map(|b| super::capacity::local_reach(ask, *b, need)).max().unwrap_or(0);
    Refusal::LocalityUnsatisfiable { node: ask.home.clone(), needed, available: Extents::new(available) }
}

fn no_disk(ask: &Ask<'_>, blocks: &[u32], size: u64, limit: u64) -> Refusal {
    let (mut count, mut largest, mut elsewhere) = (0, 0, false);
    for (node, shelf) in ask.shelf.nodes.iter().filter(|(_, s)| ask.allows(&s.domain)) {
        let home = ask.home.as_ref() == Some(node);
        for d in shelf.disks.iter().filter(|(b, _)| blocks.contains(b)).flat_map(|(_, d)| d) {
            let Some(slot) = ask.pool.slots.get(d) else { continue };
            let (own, lent) = slot.whole();
            if if home { own } else { lent } {
                let n = slot.disk.extents.get();
                (count, largest) = (count + 1, n.max(largest));
                elsewhere |= !home && n >= size && n <= limit;
            }
        }
    }
    if elsewhere {
        return Refusal::TooManyLenders { needed: ask.used.len() as u64 + 1, allowed: allowed_lenders(ask) };
    }
    Refusal::NoFreeDisk {
        pool: ask.req.pool.clone(),
        needed: Extents::new(size),
        limit: ask.req.limit,
        entirely_free: count,
        largest: Extents::new(largest),
    }
}

fn no_rows(ask: &Ask<'_>, blocks: &[u32], k: u64, rows: u64) -> Refusal {
    let by_block: Vec<(u32, Vec<Group<'_>>)> = blocks.iter().map(|b| (*b, groups(ask, &[*b]))).collect();
    let fewest = by_block.iter().filter_map(|(_, g)| fewest_lenders(g, k, rows)).min();
    if let Some(n) = fewest {
        return Refusal::TooManyLenders { needed: ask.used.len() as u64 + n, allowed: allowed_lenders(ask) };
    }
    let needed = Extents::new(k.saturating_mul(rows));
    if fewest_lenders(&groups(ask, blocks), k, rows).is_some() {
        let by_block = by_block.iter().map(|(b, g)| (*b, Extents::new(reach(g, k)))).collect();
        return Refusal::BlockSizesMixed { needed, by_block };
    }
    let disks = |g: &[Group<'_>]| g.iter().map(|g| g.rooms.len() as u64).sum::<u64>();
    let usable = by_block.iter().map(|(_, g)| disks(g)).max().unwrap_or(0);
    if k > 1 && usable < k {
        return Refusal::NotEnoughDisks { pool: ask.req.pool.clone(), stripes: k, usable };
    }
    let best =
        by_block.into_iter().map(|(b, g)| (reach(&g, k), Reverse(b), g)).max_by_key(|(r, b, _)| (*r, *b));
    let (available, groups) = best.map(|(r, _, g)| (r, g)).unwrap_or_default();
    shortage(ask, needed, available, groups, blocks)
}

fn shortage(
    ask: &Ask<'_>,
    needed: Extents,
    available: u64,
    groups: Vec<Group<'_>>,
    blocks: &[u32],
) -> Refusal {
    let mut rooms: Vec<(u64, &NodeName)> =
        groups.iter().map(|g| (g.rooms.iter().sum::<u64>(), g.node)).filter(|(r, _)| *r > 0).collect();
    rooms.sort_by_key(|(r, n)| (Reverse(*r), *n));
    let (mut free, mut not_serving) = (0, 0);
    for n in ask.shelf.nodes.values().filter(|n| ask.allows(&n.domain)) {
        for d in n.disks.iter().filter(|(b, _)| blocks.contains(b)).flat_map(|(_, d)| d) {
            let Some(s) = ask.pool.slots.get(d) else { continue };
            if s.disk.takes_new_data() {
                free += s.free.total().get();
            } else {
                not_serving += s.free.total().get();
            }
        }
    }
    let available = Extents::new(available);
    let most = rooms.iter().take(NAMED);
    Refusal::NotEnoughSpace(Box::new(Shortage {
        pool: ask.req.pool.clone(),
        extent_size: ask.shelf.extent_size,
        needed,
        available,
        missing: needed.saturating_sub(available),
        nodes: rooms.len() as u64,
        most: most.map(|(r, n)| NodeRoom { node: (*n).clone(), room: Extents::new(*r) }).collect(),
        held_back: Extents::new(free).saturating_sub(available),
        not_serving: Extents::new(not_serving),
    }))
}

fn allowed_lenders(ask: &Ask<'_>) -> u64 {
    u64::from(ask.req.max_lenders.min(MAX_LENDERS))
}

/// Every node with the rooms of its disks, one entry a disk.
fn groups<'a>(ask: &Ask<'a>, blocks: &[u32]) -> Vec<Group<'a>> {
    let mut out = Vec::new();
    for (node, shelf) in ask.shelf.nodes.iter().filter(|(_, s)| ask.allows(&s.domain)) {
        let home = ask.home.as_ref() == Some(node);
        let room = if home { Slot::local } else { Slot::lend };
        let disks = shelf.disks.iter().filter(|(b, _)| blocks.contains(b)).flat_map(|(_, d)| d);
        let rooms = disks.filter_map(|d| ask.pool.slots.get(d)).map(room).filter(|r| *r > 0).collect();
        let role = if home || ask.used.contains(node) { Role::Held } else { Role::New };
        out.push(Group { node, role, rooms });
    }
    out
}

/// The fewest new lenders with which `rows` rows of `k` disks are possible.
fn fewest_lenders(groups: &[Group<'_>], k: u64, rows: u64) -> Option<u64> {
    let need = k.checked_mul(rows)?;
    let held: u64 = groups.iter().filter(|g| g.role == Role::Held).map(|g| g.worth(rows)).sum();
    let mut worths: Vec<u64> = groups.iter().filter(|g| g.role == Role::New).map(|g| g.worth(rows)).collect();
    worths.sort_unstable_by_key(|w| Reverse(*w));
    let (mut sum, mut n) = (held, 0);
    for w in worths {
        if sum >= need {
            break;
        }
        (sum, n) = (sum + w, n + 1);
    }
    if sum >= need { Some(n) } else { None }
}

/// The most extents in rows of `k` disks, lenders not counted.
fn reach(groups: &[Group<'_>], k: u64) -> u64 {
    let all: u64 = groups.iter().flat_map(|g| &g.rooms).sum();
    let (mut possible, mut impossible) = (0, all / k.max(1) + 1);
    while impossible - possible > 1 {
        let rows = possible + (impossible - possible) / 2;
        if fewest_lenders(groups, k, rows).is_some() {
            possible = rows;
        } else {
            impossible = rows;
        }
    }
    possible * k
}
