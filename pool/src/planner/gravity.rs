//! Borrowed extents come home to the node that uses them, the hottest first, where that node has room and it pays: what users
//! wait less within a day is more than twice what the copy costs others (the model's rule). A disk of which nothing is known
//! takes nothing home: it may be overloaded. Nor does one that would spill if it took a piece as a whole: a part of what it has
//! spilled would fit again.

use super::{Board, Fit, PieceFact, SPILL, TAKE, VolumeFact, Why};
use crate::{moving::MoveCause, units::Extents};

/// Microseconds that an I/O to another node takes longer: the round trip and both ends of nvme-tcp on a common network.
const AWAY_US: u64 = 80;
/// Seconds in which it has to pay.
const WITHIN_S: u64 = 24 * 3600;
/// Bytes a second of a copy (a network of 1 Gbit/s, as offers reckon).
const COPY_BYTES_S: u64 = 100_000_000;
/// Gain has to be so many times the cost.
const TIMES: u64 = 2;

/// Seconds gained in a day and seconds that the copy takes, for `n` extents.
fn figures(v: &VolumeFact, p: &PieceFact, n: u64) -> (u64, u64) {
    let waits_us = p.io_of(n).saturating_mul(AWAY_US).saturating_mul(WITHIN_S) / 1000;
    let size = v.extent_size.checked_bytes_of(Extents::new(n)).map_or(u64::MAX, |b| b.get());
    (waits_us / 1_000_000, size.div_ceil(COPY_BYTES_S))
}

fn pays(v: &VolumeFact, p: &PieceFact, n: u64) -> bool {
    let (gain, cost) = figures(v, p, n);
    gain > TIMES.saturating_mul(cost)
}

pub(super) fn plan(board: &mut Board<'_>) {
    let mut away: Vec<(&VolumeFact, &PieceFact)> = Vec::new();
    let (still_s, hold_s) = (board.policy.still_s, board.policy.hold_s);
    for v in board.volumes.values() {
        let settled = v.coming_home || (v.still_s >= still_s && v.moved_s.is_none_or(|s| s >= hold_s));
        if settled && board.is_free(v) {
            let lent = |p: &&PieceFact| board.node_of(p.disk).is_some_and(|n| *n != v.home);
            away.extend(v.pieces.iter().filter(lent).filter(|p| pays(v, p, p.count)).map(|p| (*v, p)));
        }
    }
    away.sort_by(|(v, p), (w, q)| {
        let of = |io: u64, n: u64| u128::from(io) * u128::from(n);
        of(q.io, p.count).cmp(&of(p.io, q.count)).then((v.volume, p.start).cmp(&(w.volume, q.start)))
    });
    for (v, p) in away {
        if !board.is_free(v) || board.giving.contains(&p.disk) {
            continue;
        }
        let count = if p.whole.is_some() { p.count } else { p.count.min(board.most) };
        let found = board.target(v, p, count, TAKE, &Fit::on(&v.home).rated().whole_below(SPILL));
        if let Some((to, n)) = found.filter(|(_, n)| pays(v, p, *n)) {
            let (gain_s, cost_s) = figures(v, p, n);
            let why = Why::Gravity { io: p.io_of(n) / 1000, gain_s, cost_s };
            board.propose(v, p, to, n, MoveCause::Gravity, why);
        }
    }
}
