//! Linear volumes: home disks, then lenders that the volume has, then as few new ones as suffice.
//!
//! Invariants: the nodes taken in the order of their room are the fewest that suffice, so when they are too many, no
//! choice of lenders is few enough. Must not know: extents, only amounts.

use std::{cmp::Reverse, collections::BTreeSet};

use super::{
    explain::WhyChosen,
    request::mix,
    runs::split,
    view::{NodeRank, View},
};
use crate::ids::{DiskId, NodeName};

/// So much from this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) node: NodeName,
    pub(super) disk: DiskId,
    pub(super) count: u64,
    pub(super) why: WhyChosen,
}

/// Lenders looked at beyond those that are needed.
const SPARE_CANDIDATES: usize = 8;
/// Lenders drawn by the seed, where offers make the order of room the wrong one.
const SAMPLED: usize = 8;

/// Shares of `size` extents in all; `None` when there is no room within the rules.
pub(super) fn place(view: &View<'_>, size: u64) -> Option<Vec<Share>> {
    let mut out = Vec::new();
    let mut rest = size;
    let mut from = |node: &NodeName, disks: &[(DiskId, u64)], rest: &mut u64, why| {
        let n = disks.iter().map(|(_, r)| *r).sum::<u64>().min(*rest);
        *rest -= n;
        out.extend(split(view, disks, n).into_iter().map(|(disk, count)| Share {
            node: node.clone(),
            disk,
            count,
            why,
        }));
    };
    if let Some(home) = &view.ask.home {
        from(home, &view.home_disks(), &mut rest, WhyChosen::Local);
    }
    for (node, disks) in view.used_lenders() {
        from(node, &disks, &mut rest, WhyChosen::LenderAlready);
    }
    if rest > 0 {
        let zone = view.zone.as_deref();
        let lenders = zone.and_then(|z| choose(view, Some(z), rest)).or_else(|| choose(view, None, rest))?;
        for node in lenders {
            from(node, &view.lend_disks(node), &mut rest, WhyChosen::MostRoom);
        }
    }
    Some(out)
}

/// The fewest new lenders that hold `need` extents; of the sets of that size, the one with the best scores.
fn choose<'a>(view: &View<'a>, zone: Option<&str>, need: u64) -> Option<Vec<&'a NodeName>> {
    let allowed = view.ask.lenders_left();
    let mut order = view.by_lend(zone);
    let mut candidates: Vec<NodeRank<'a>> = Vec::new();
    let mut sum = 0u64;
    while sum < need {
        if candidates.len() == allowed {
            return None;
        }
        let c = order.next()?;
        sum += c.0;
        candidates.push(c);
    }
    let fewest = candidates.len();
    candidates.extend(order.take(SPARE_CANDIDATES));
    if view.ask.shelf.offers > 0 {
        let have: BTreeSet<&NodeName> = candidates.iter().map(|c| c.1).collect();
        let drawn: BTreeSet<NodeRank<'a>> =
            view.sample(zone, SAMPLED).into_iter().filter(|c| !have.contains(c.1)).collect();
        candidates.extend(drawn);
    }
    let seed = view.ask.req.seed;
    candidates.sort_by_cached_key(|(room, n)| {
        (Reverse(view.score(n)), Reverse(*room), mix(seed, n.as_str().as_bytes()), (*n).clone())
    });
    Some(best_set(&candidates, fewest, need))
}

/// The first set in the candidates' order that has `fewest` members and room for `need`. A candidate that cannot
/// belong to such a set with those before it never can with those after.
fn best_set<'a>(candidates: &[NodeRank<'a>], fewest: usize, need: u64) -> Vec<&'a NodeName> {
    let mut out = Vec::with_capacity(fewest);
    let mut rest = need;
    for (i, (room, node)) in candidates.iter().enumerate() {
        let Some(more) = fewest.checked_sub(out.len() + 1) else { break };
        let mut later: Vec<u64> = candidates[i + 1..].iter().map(|c| c.0).collect();
        later.sort_unstable_by_key(|r| Reverse(*r));
        if room + later.iter().take(more).sum::<u64>() >= rest {
            out.push(*node);
            rest = rest.saturating_sub(*room);
        }
    }
    out
}

/// The most extents that can be placed within the rules.
pub(super) fn reach(view: &View<'_>) -> u64 {
    let sum = |d: Vec<(DiskId, u64)>| d.into_iter().map(|(_, r)| r).sum::<u64>();
    let held = sum(view.home_disks()) + view.used_lenders().into_iter().map(|(_, d)| sum(d)).sum::<u64>();
    held + view.by_lend(None).take(view.ask.lenders_left()).map(|(r, _)| r).sum::<u64>()
}
