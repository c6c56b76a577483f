//! Extents leave a disk that is forecast to be overloaded: what is lent first, then the owner's, the hottest first, to disks
//! that stay well below. Begins at 70 % of what the disk can do.

use super::{Board, Fit, SPILL, TAKE, Why};
use crate::{ids::DiskId, moving::MoveCause};

pub(super) fn plan(board: &mut Board<'_>) {
    let hot: Vec<(u64, DiskId)> = board
        .disks
        .values()
        .filter(|d| d.usable > 0 && d.busy() >= SPILL)
        .map(|d| (d.busy(), d.disk))
        .collect();
    for (_, disk) in std::collections::BTreeSet::from_iter(hot).into_iter().rev() {
        if !board.giving.contains(&disk) {
            spill(board, disk);
        }
    }
}

fn spill(board: &mut Board<'_>, disk: DiskId) {
    let Some(d) = board.disks.get(&disk).cloned() else { return };
    let hold_s = board.policy.hold_s;
    let mut pieces = board.pieces_on(disk);
    pieces.retain(|(v, p)| p.peak > 0 && v.moved_s.is_none_or(|s| s >= hold_s));
    pieces.sort_by(|(v, p), (w, q)| {
        let of = |io: u64, n: u64| u128::from(io) * u128::from(n);
        let lent = (v.home == d.node).cmp(&(w.home == d.node));
        lent.then(of(q.peak, p.count).cmp(&of(p.peak, q.count)))
            .then((v.volume, p.start).cmp(&(w.volume, q.start)))
    });
    for (v, p) in pieces {
        let count = if p.whole.is_some() { p.count } else { p.count.min(board.most) };
        // Another disk of the same node costs the volume nothing.
        let near = board.target(v, p, count, TAKE, &Fit::on(&v.home).rated());
        let found = near.or_else(|| board.target(v, p, count, TAKE, &Fit::anywhere().rated()));
        if let Some((to, n)) = found.filter(|(_, n)| p.peak_of(*n) > 0) {
            let why = Why::Spill { busy: d.busy() / 10 };
            board.propose(v, p, to, n, MoveCause::Spill, why);
            return;
        }
    }
}
