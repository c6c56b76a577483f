//! Whole-disk volumes: the smallest entirely free disk that is large enough, the home node's first.

use super::{explain::WhyChosen, linear::Share, request::mix, view::View};
use crate::ids::DiskId;

/// All of one disk of at least `size` and at most `limit` extents.
pub(super) fn place(view: &View<'_>, size: u64, limit: u64) -> Option<Share> {
    let fits = |d: &DiskId| {
        view.pool.slots.get(d).map(|s| (s.disk.extents.get(), s)).filter(|(n, _)| *n >= size && *n <= limit)
    };
    let home = view
        .home_disks()
        .into_iter()
        .filter_map(|(d, _)| fits(&d).filter(|(_, s)| s.whole().0).map(|(n, _)| (n, d)));
    let found = home.min().map(|(n, d)| (n, d, WhyChosen::Local)).or_else(|| {
        let zone = view.zone.as_deref();
        let near = zone.and_then(|z| lent(view, Some(z), size, limit));
        near.or_else(|| lent(view, None, size, limit)).map(|(n, d)| (n, d, WhyChosen::WholeDisk))
    });
    let (count, disk, why) = found?;
    let node = view.pool.slots.get(&disk)?.disk.node.clone();
    Some(Share { node, disk, count, why })
}

fn lent(view: &View<'_>, zone: Option<&str>, size: u64, limit: u64) -> Option<(u64, DiskId)> {
    if view.ask.lenders_left() == 0 {
        return None;
    }
    let seed = view.ask.req.seed;
    // Of each domain the smallest: a home node's disk among them is no loan, and was looked at before.
    let at_home = |d: &DiskId| view.pool.slots.get(d).map(|s| &s.disk.node) == view.ask.home.as_ref();
    view.whole_lend(zone, size)
        .filter_map(|mut disks| disks.find(|(_, d)| !at_home(d)))
        .filter(|(n, _)| *n <= limit)
        .min_by_key(|(n, d)| (*n, mix(seed, &d.to_bytes()), *d))
}

/// The largest disk that can be had within the rules, or 0.
pub(super) fn reach(view: &View<'_>) -> u64 {
    let home = view
        .home_disks()
        .into_iter()
        .filter_map(|(d, room)| view.pool.slots.get(&d).filter(|s| s.whole().0).map(|_| room));
    let home = home.max().unwrap_or(0);
    if view.ask.lenders_left() == 0 {
        return home;
    }
    let lent = view.whole_largest();
    home.max(lent)
}
