//! Extents leave a disk that is fuller than the pool's bound: the coldest first, to another disk of the same node if one has
//! room, else to the emptiest. Ends at the bound; disks take extents up to five percent below it.

use super::{Board, Fit, TAKE, Why};
use crate::{ids::DiskId, moving::MoveCause};

pub(super) fn plan(board: &mut Board<'_>) {
    let Some(bound) = board.policy.fullness else { return };
    let all = board.disks.values().map(|d| (d.over(bound), d.disk));
    let full: Vec<(u64, DiskId)> = all.filter(|(n, _)| *n > 0).collect();
    for (n, disk) in std::collections::BTreeSet::from_iter(full).into_iter().rev() {
        if !board.giving.contains(&disk) {
            relieve(board, disk, n, bound);
        }
    }
}

fn relieve(board: &mut Board<'_>, disk: DiskId, wanted: u64, bound: u32) {
    let Some(d) = board.disks.get(&disk).cloned() else { return };
    let hold_s = board.policy.hold_s;
    let mut pieces = board.pieces_on(disk);
    pieces.retain(|(v, _)| v.moved_s.is_none_or(|s| s >= hold_s));
    pieces.sort_by(|(v, p), (w, q)| {
        let of = |io: u64, n: u64| u128::from(io) * u128::from(n);
        of(p.io, q.count).cmp(&of(q.io, p.count)).then((v.volume, p.start).cmp(&(w.volume, q.start)))
    });
    for (v, p) in pieces {
        let count = if p.whole.is_some() { p.count } else { p.count.min(board.most).min(wanted) };
        let near = board.target(v, p, count, TAKE, &Fit::on(&d.node));
        if let Some((to, n)) = near.or_else(|| board.target(v, p, count, TAKE, &Fit::anywhere())) {
            let why = Why::Fullness { used: d.used_percent(0), bound };
            board.propose(v, p, to, n, MoveCause::Fullness, why);
            return;
        }
    }
}
