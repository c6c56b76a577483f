//! Which extents of a disk, and which disks of a node: best fit, so that runs stay long and maps short. Must not
//! know: layouts, lenders.

use std::cmp::Reverse;

use super::{index::Pool, view::View};
use crate::{
    free::{FreeRun, FreeRuns},
    ids::DiskId,
    units::Extents,
};

/// Cuts `count` extents out of the free runs in as few pieces as there can be: in the shortest run that holds them
/// all, else in the longest ones and the shortest that holds the rest. A free run that starts at `hint` is used
/// first, since it continues what the volume has. The pieces come in the order of the disk, the hinted one first.
///
/// # Panics
/// When fewer extents are free: the caller counted them.
pub(super) fn cut(free: &FreeRuns, count: u64, hint: Option<Extents>) -> Vec<FreeRun> {
    let mut rest = Extents::new(count);
    let mut head = None;
    if let Some(r) = hint.and_then(|h| free.starting_at(h)) {
        let n = r.count.min(rest);
        head = Some(FreeRun { first: r.first, count: n });
        rest = rest.minus(n);
    }
    let other = |r: &FreeRun| head.is_none_or(|h: FreeRun| h.first != r.first);
    let mut out = Vec::new();
    let mut taken: Option<FreeRun> = None;
    let mut longest = free.longest_first().filter(other);
    while !rest.is_zero() {
        // Both iterators follow one order, so what `longest` has given away is what lies at or above `taken`.
        let fit = free.fits(rest).find(|r| other(r));
        let fit = fit.filter(|r| taken.is_none_or(|t| (r.count, r.first) < (t.count, t.first)));
        if let Some(r) = fit {
            out.push(FreeRun { first: r.first, count: rest });
            break;
        }
        let r = longest.next().expect("the caller counted the free extents");
        rest = rest.minus(r.count);
        taken = Some(r);
        out.push(r);
    }
    out.sort_unstable();
    head.into_iter().chain(out).collect()
}

/// A disk with the extents that may be taken from it.
pub(super) type DiskRoom = (DiskId, u64);

/// Splits `amount` (no more than there is room) over disks of one node, over as few as possible. A disk that holds it
/// all is chosen by: continuing the volume in place, already used by it, fewest pieces, tightest fit, least room.
pub(super) fn split(view: &View<'_>, disks: &[DiskRoom], amount: u64) -> Vec<DiskRoom> {
    let mut left: Vec<DiskRoom> = disks.iter().copied().filter(|(_, r)| *r > 0).collect();
    let mut rest = amount;
    let mut out = Vec::new();
    while rest > 0 {
        let single = left.iter().filter(|(_, r)| *r >= rest).min_by_key(|(d, r)| fit_key(view, *d, *r, rest));
        if let Some((d, _)) = single {
            out.push((*d, rest));
            break;
        }
        let most = (0..left.len()).max_by_key(|i| (view.uses(left[*i].0), left[*i].1, Reverse(left[*i].0)));
        let Some(i) = most else { break };
        let (d, r) = left.swap_remove(i);
        out.push((d, r));
        rest -= r;
    }
    out
}

/// The one of these disks that suits `amount` best; all have room for it.
pub(super) fn best_disk(view: &View<'_>, disks: &[DiskRoom], amount: u64) -> Option<DiskId> {
    disks
        .iter()
        .filter(|(_, r)| *r >= amount)
        .min_by_key(|(d, r)| fit_key(view, *d, *r, amount))
        .map(|(d, _)| *d)
}

type FitKey = (bool, bool, usize, u64, u64, DiskId);

fn fit_key(view: &View<'_>, disk: DiskId, room: u64, amount: u64) -> FitKey {
    let free = free_of(view.pool, disk);
    let hint = view.hint(disk);
    let n = Extents::new(amount);
    let in_place = hint.and_then(|h| free.starting_at(h)).is_some_and(|r| r.count >= n);
    let (pieces, leftover) = match free.best_fit(n) {
        Some(r) => (1, r.count.minus(n).get()),
        None => (cut(free, amount, hint).len(), u64::MAX),
    };
    (!in_place, !view.uses(disk), pieces, leftover, room, disk)
}

/// The free runs of a disk that a view has named.
pub(super) fn free_of(pool: &Pool, disk: DiskId) -> &FreeRuns {
    &pool.slots.get(&disk).expect("a view names only disks of the index").free
}
