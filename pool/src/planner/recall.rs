//! Lent extents leave a disk whose owner needs the room: the coldest first, home if there is room, else to whoever has most.
//! Begins when what is free, or about to be, is less than the owner's forecast need; ends half a margin above it.

use super::{Board, Fit, SPILL, Why, bytes};
use crate::{ids::DiskId, moving::MoveCause};

pub(super) fn plan(board: &mut Board<'_>) {
    let short: Vec<(u64, DiskId)> =
        board.disks.values().filter(|d| d.lacks() > 0).map(|d| (d.lacks(), d.disk)).collect();
    // Who lacks most first.
    for (_, disk) in std::collections::BTreeSet::from_iter(short).into_iter().rev() {
        if !board.giving.contains(&disk) {
            recall(board, disk);
        }
    }
}

fn recall(board: &mut Board<'_>, disk: DiskId) {
    let Some(d) = board.disks.get(&disk).cloned() else { return };
    let wanted = (d.lacks() + d.margin() / 2).min(board.most);
    let mut lent = board.pieces_on(disk);
    lent.retain(|(v, _)| v.home != d.node);
    // By I/O per extent, without a division.
    lent.sort_by(|(v, p), (w, q)| {
        let of = |io: u64, n: u64| u128::from(io) * u128::from(n);
        of(p.io, q.count).cmp(&of(q.io, p.count)).then((v.volume, p.start).cmp(&(w.volume, q.start)))
    });
    for (v, p) in lent {
        let count = if p.whole.is_some() { p.count } else { p.count.min(wanted) };
        let home = board.target(v, p, count, SPILL, &Fit::on(&v.home));
        let other = || board.target(v, p, count, SPILL, &Fit::off(&d.node));
        if let Some((to, n)) = home.or_else(other) {
            let why = Why::Recall { free: bytes(v, d.free + d.coming), need: bytes(v, d.need) };
            board.propose(v, p, to, n, MoveCause::Recall, why);
            return;
        }
    }
}
