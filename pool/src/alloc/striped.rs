//! Striped volumes: rows of one extent on each of k distinct disks.
//!
//! With T rows wanted, a set of disks serves exactly when its rooms, each counted up to T, sum to k * T: then the
//! disks' quotas are laid one after the other on k tapes of length T (McNaughton's wrap-around rule), and no row
//! meets a disk twice, since no quota is longer than a tape. While enough disks hold T rows each, every tape is one
//! disk; only a pool that is nearly full gets tapes of several.
//!
//! Invariants: tried in this order, each first in the volume's zone: k disks on k nodes; k disks, on as many nodes as
//! there can be; any quotas that serve. Must not know: how the rows are written down (`plan`).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use super::{
    explain::WhyChosen,
    linear::Share,
    runs::{DiskRoom, best_disk},
    view::{NodeRank, View},
};
use crate::ids::{DiskId, NodeName};

/// A node that may serve, with its disks that have room.
type Server<'a> = (&'a NodeName, Vec<DiskRoom>, WhyChosen);

/// Quotas of `rows` rows over `k` stripes in the order of the tapes, summing to `k * rows`.
pub(super) fn place(view: &View<'_>, k: u64, rows: u64) -> Option<Vec<Share>> {
    let zones = [view.zone.as_deref(), None];
    let zones = if zones[0].is_none() { &zones[1..] } else { &zones[..] };
    let first = |f: &dyn Fn(Option<&str>) -> Option<Vec<Share>>| zones.iter().find_map(|z| f(*z));
    first(&|z| on_distinct_nodes(view, z, k, rows))
        .or_else(|| first(&|z| on_distinct_disks(view, z, k, rows)))
        .or_else(|| first(&|z| wrapped(view, z, k, rows)))
}

/// The nodes that serve without costing a lender.
fn held<'a>(view: &View<'a>) -> Vec<Server<'a>> {
    let home = view.ask.home.as_ref().map(|h| (h, view.home_disks(), WhyChosen::Local));
    let used = view.used_lenders().into_iter().map(|(n, d)| (n, d, WhyChosen::LenderAlready));
    home.into_iter().chain(used).collect()
}

fn lender<'a>(view: &View<'a>, node: &'a NodeName) -> Server<'a> {
    (node, view.lend_disks(node), WhyChosen::Stripe)
}

fn share(node: &NodeName, disk: DiskId, count: u64, why: WhyChosen) -> Share {
    Share { node: node.clone(), disk, count, why }
}

fn on_distinct_nodes(view: &View<'_>, zone: Option<&str>, k: u64, rows: u64) -> Option<Vec<Share>> {
    let mut servers = held(view);
    let lenders = view.by_largest(zone).take(view.ask.lenders_left());
    let lenders = lenders.take_while(|(room, _)| *room >= rows).take(k as usize);
    servers.extend(lenders.map(|(_, n)| lender(view, n)));
    let one_each = servers
        .iter()
        .filter_map(|(n, disks, why)| best_disk(view, disks, rows).map(|d| share(n, d, rows, *why)));
    let out: Vec<Share> = one_each.take(k as usize).collect();
    if out.len() as u64 == k { Some(out) } else { None }
}

fn on_distinct_disks(view: &View<'_>, zone: Option<&str>, k: u64, rows: u64) -> Option<Vec<Share>> {
    let fitting = |disks: &[DiskRoom]| disks.iter().filter(|(_, r)| *r >= rows).count() as u64;
    let count = |servers: &[Server<'_>]| servers.iter().map(|(_, d, _)| fitting(d)).sum::<u64>();
    let mut servers = held(view);
    let base = count(&servers);
    let allowed = view.ask.lenders_left();
    // The most nodes first; where these have too few disks, the nodes with most disks.
    let widest = view.by_largest(zone).take(allowed).take_while(|(room, _)| *room >= rows);
    servers.extend(widest.take(k as usize).map(|(_, n)| lender(view, n)));
    if count(&servers) < k {
        servers = held(view);
        let need = k.saturating_sub(base).checked_mul(rows)?;
        let most = top(view, zone, allowed, need, |d| fitting(d) * rows);
        servers.extend(most.into_iter().map(|(_, n)| lender(view, n)));
        if count(&servers) < k {
            return None;
        }
    }
    let mut left = servers;
    for (_, disks, _) in &mut left {
        disks.retain(|(_, r)| *r >= rows);
    }
    let mut out = Vec::new();
    while (out.len() as u64) < k {
        for (node, disks, why) in &mut left {
            let Some(d) = best_disk(view, disks, rows).filter(|_| (out.len() as u64) < k) else { continue };
            disks.retain(|(o, _)| *o != d);
            out.push(share(node, d, rows, *why));
        }
    }
    Some(out)
}

fn wrapped(view: &View<'_>, zone: Option<&str>, k: u64, rows: u64) -> Option<Vec<Share>> {
    let servers = serving(view, zone, k, rows)?;
    let mut disks: Vec<(u64, Share)> = Vec::new();
    for (node, rooms, why) in &servers {
        disks.extend(rooms.iter().map(|(d, r)| (*r, share(node, *d, (*r).min(rows), *why))));
    }
    disks.sort_by_key(|a| (Reverse(a.1.count), a.0, a.1.disk));
    let mut rest = k.checked_mul(rows)?;
    let mut out = Vec::new();
    for (_, mut s) in disks {
        s.count = s.count.min(rest);
        rest -= s.count;
        if s.count > 0 {
            out.push(s);
        }
    }
    Some(out)
}

/// The nodes whose disks serve together, if any do within the rules.
fn serving<'a>(view: &View<'a>, zone: Option<&str>, k: u64, rows: u64) -> Option<Vec<Server<'a>>> {
    let sum = |d: &[DiskRoom]| d.iter().map(|(_, r)| (*r).min(rows)).sum::<u64>();
    let mut servers = held(view);
    let have = servers.iter().map(|(_, d, _)| sum(d)).sum::<u64>();
    let need = k.checked_mul(rows)?.saturating_sub(have);
    let lenders = top(view, zone, view.ask.lenders_left(), need, sum);
    if lenders.iter().map(|l| l.0).sum::<u64>() < need {
        return None;
    }
    servers.extend(lenders.into_iter().map(|(_, n)| lender(view, n)));
    Some(servers)
}

/// The `allowed` nodes of most worth, or some that are worth `need` together. A node is worth no more than its room,
/// so the order of room tells when to stop looking.
fn top<'a>(
    view: &View<'a>,
    zone: Option<&str>,
    allowed: usize,
    need: u64,
    worth: impl Fn(&[DiskRoom]) -> u64,
) -> Vec<NodeRank<'a>> {
    let mut best: BinaryHeap<Reverse<NodeRank<'a>>> = BinaryHeap::new();
    let mut sum = 0u64;
    if allowed == 0 {
        return Vec::new();
    }
    for (room, node) in view.by_lend(zone) {
        let full = best.len() == allowed;
        if sum >= need || (full && best.peek().is_some_and(|Reverse((w, _))| room <= *w)) {
            break;
        }
        let w = worth(&view.lend_disks(node));
        if w == 0 {
            continue;
        }
        best.push(Reverse((w, node)));
        sum += w;
        if full && let Some(Reverse((w, _))) = best.pop() {
            sum -= w;
        }
    }
    let mut out: Vec<NodeRank<'a>> = best.into_iter().map(|Reverse(n)| n).collect();
    out.sort_by(|a, b| b.cmp(a));
    out
}

/// The most extents that can be placed within the rules. What is possible for some number of rows is possible for
/// any smaller one (the capped sum is concave in it), so the largest is found by halving.
pub(super) fn reach(view: &View<'_>, k: u64) -> u64 {
    let local = held(view).iter().flat_map(|(_, d, _)| d).map(|(_, r)| *r).sum::<u64>();
    let all = local + view.by_lend(None).take(view.ask.lenders_left()).map(|(r, _)| r).sum::<u64>();
    let (mut possible, mut impossible) = (0, all / k.max(1) + 1);
    while impossible - possible > 1 {
        let rows = possible + (impossible - possible) / 2;
        if serving(view, None, k, rows).is_some() {
            possible = rows;
        } else {
            impossible = rows;
        }
    }
    possible * k
}

/// One row span of the tapes: `len` rows on these disk places, a stripe each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) len: u64,
    pub(super) legs: Vec<(DiskId, u64)>,
}

/// Lays the shares' runs (in order, summing to `k * rows`) on k tapes and cuts them wherever any tape changes run.
pub(super) fn weave(runs: &[(DiskId, u64, u64)], k: u64, rows: u64) -> Vec<Span> {
    let mut tapes: Vec<BTreeMap<u64, (DiskId, u64)>> = vec![BTreeMap::new(); k as usize];
    let mut cuts = BTreeSet::from([rows]);
    let mut at = 0;
    for (disk, first, count) in runs {
        let (mut first, mut left) = (*first, *count);
        while left > 0 {
            let (tape, row) = (at / rows, at % rows);
            let n = left.min(rows - row);
            if let Some(t) = tapes.get_mut(tape as usize) {
                t.insert(row, (*disk, first));
            }
            cuts.insert(row);
            (at, first, left) = (at + n, first + n, left - n);
        }
    }
    let cuts: Vec<u64> = cuts.into_iter().collect();
    let leg = |tape: &BTreeMap<u64, (DiskId, u64)>, row: u64| {
        tape.range(..=row).next_back().map(|(start, (d, f))| (*d, f + (row - start)))
    };
    cuts.windows(2)
        .map(|w| Span { len: w[1] - w[0], legs: tapes.iter().filter_map(|t| leg(t, w[0])).collect() })
        .collect()
}
