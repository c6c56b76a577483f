//! What the pieces of a volume do, from what its parts do: runs are cut where heat changes, so that what is hot can move without
//! the rest.
//!
//! Invariants: the pieces of a volume do together what it does; what lies where stays as it is. Must not know: how heat is measured.

use super::{PieceFact, VolumeFact};
use crate::units::Extents;

/// What is so many times as hot as its neighbour may move without it.
const TELLS: f64 = 2.0;
/// A volume of so many pieces is not cut further.
const MOST_PIECES: usize = 64;

/// What a volume does.
#[derive(Clone, Copy, Debug)]
pub struct VolumeRates<'a> {
    /// Bytes of each of its parts; 0: nothing is known of parts.
    pub part_bytes: u64,
    /// What each part does, in any unit: what counts is how much of all it is.
    pub parts: &'a [f64],
    /// I/Os a second, over hours.
    pub mean: f64,
    /// I/Os a second at its peak.
    pub peak: f64,
}

/// Thousandths of I/Os a second.
fn thousandths(io: f64) -> u64 {
    // Saturates; no number is 0.
    (io * 1000.0).round() as u64
}

/// Logical extents that a piece is part of: a stripe's are shared by its legs.
fn span(p: &PieceFact) -> (u64, u64, u64) {
    let legs = p.whole.as_ref().map_or(1, |w| w.len().max(1) as u64);
    (p.start.get(), p.start.get().saturating_add(p.count.saturating_mul(legs)), legs)
}

/// Where a volume's I/O goes: parts of equal length, and what each does. Where nothing is known it is one part.
struct Parts<'a> {
    bytes: f64,
    ios: &'a [f64],
    sum: f64,
    /// Of the volume, and of an extent.
    size: f64,
    extent: f64,
}

impl<'a> Parts<'a> {
    fn of(rates: &VolumeRates<'a>, fact: &VolumeFact) -> Self {
        let extent = fact.extent_size.bytes().get() as f64;
        let size = fact.pieces.iter().map(|p| span(p).1).max().unwrap_or(0) as f64 * extent;
        let sum: f64 = rates.parts.iter().sum();
        if rates.part_bytes > 0 && sum > 0.0 {
            Self { bytes: rates.part_bytes as f64, ios: rates.parts, sum, size, extent }
        } else {
            Self { bytes: size, ios: &[1.0], sum: 1.0, size, extent }
        }
    }

    /// The share of all I/O that goes to these extents.
    fn share(&self, from: u64, to: u64) -> f64 {
        let (from, to) = (from as f64 * self.extent, to as f64 * self.extent);
        let common = |(i, io): (usize, &f64)| {
            let (begin, end) = (i as f64 * self.bytes, ((i + 1) as f64 * self.bytes).min(self.size));
            let common = to.min(end) - from.max(begin);
            if common > 0.0 { io * common / (end - begin) } else { 0.0 }
        };
        self.ios.iter().enumerate().map(common).sum::<f64>() / self.sum
    }

    /// Extents between which I/O may change, of a run of them.
    fn bounds(&self, from: u64, to: u64) -> Vec<u64> {
        let between = (1..self.ios.len()).map(|i| (i as f64 * self.bytes / self.extent).round() as u64);
        let mut all: Vec<u64> = between.filter(|e| from < *e && *e < to).collect();
        all.dedup();
        all.push(to);
        all
    }

    /// A run, cut where its neighbours are [`TELLS`] times as hot: `(from, to, share)`. What is alike stays together, since every cut
    /// may be one in the map.
    fn cut(&self, from: u64, to: u64) -> Vec<(u64, u64, f64)> {
        let mut out: Vec<(u64, u64, f64)> = vec![];
        let mut begin = from;
        for end in self.bounds(from, to) {
            let share = self.share(begin, end);
            let rate = |from: u64, to: u64, share: f64| share / (to - from) as f64;
            let (new, alike) = (rate(begin, end, share), out.last().map(|(f, t, s)| rate(*f, *t, *s)));
            match out.last_mut() {
                Some(last) if alike.is_some_and(|old| old <= new * TELLS && new <= old * TELLS) => {
                    (last.1, last.2) = (end, last.2 + share);
                }
                Some(_) | None => out.push((begin, end, share)),
            }
            begin = end;
        }
        out
    }
}

/// Gives each piece its share of what the volume does, by heat, evenly where there is none, and cuts runs where heat changes.
pub fn spread(rates: &VolumeRates<'_>, fact: &mut VolumeFact) {
    let parts = Parts::of(rates, fact);
    let may_cut = fact.pieces.len() < MOST_PIECES;
    let mut pieces = Vec::with_capacity(fact.pieces.len());
    for p in std::mem::take(&mut fact.pieces) {
        let (from, to, legs) = span(&p);
        let runs = if p.whole.is_none() && may_cut && from < to {
            parts.cut(from, to)
        } else {
            vec![(from, to, parts.share(from, to))]
        };
        pieces.extend(runs.into_iter().map(|(from, to, share)| {
            let share = share / legs as f64;
            PieceFact {
                start: Extents::new(from),
                count: (to - from) / legs,
                io: thousandths(rates.mean * share),
                peak: thousandths(rates.peak * share),
                ..p.clone()
            }
        }));
    }
    fact.pieces = pieces;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        ids::{DiskId, Epoch, VolumeId},
        units::ExtentSize,
    };

    fn piece(start: u64, count: u64, legs: &[u128], leg: u32) -> PieceFact {
        let all: BTreeSet<DiskId> = legs.iter().map(|d| DiskId::from_u128(*d)).collect();
        PieceFact {
            start: Extents::new(start),
            count,
            leg,
            disk: DiskId::from_u128(legs[leg as usize]),
            io: 0,
            peak: 0,
            whole: (legs.len() > 1).then_some(all),
        }
    }

    fn volume(pieces: Vec<PieceFact>) -> VolumeFact {
        VolumeFact {
            volume: VolumeId::from_u128(1),
            epoch: Epoch::ZERO,
            home: "n1".parse().expect("a name"),
            extent_size: ExtentSize::MIN,
            still_s: 0,
            moved_s: None,
            coming_home: false,
            bound: false,
            block: 512,
            not: BTreeSet::new(),
            pieces,
            max_lenders: 8,
        }
    }

    fn rates(part_extents: u64, parts: &[f64], mean: f64) -> VolumeRates<'_> {
        VolumeRates { part_bytes: ExtentSize::MIN.bytes().get() * part_extents, parts, mean, peak: mean }
    }

    fn ios(rates: &VolumeRates<'_>, pieces: Vec<PieceFact>) -> Vec<u64> {
        let mut v = volume(pieces);
        spread(rates, &mut v);
        v.pieces.iter().map(|p| p.io).collect()
    }

    #[test]
    fn heat_goes_to_the_pieces_that_have_it() {
        let linear = || vec![piece(0, 3, &[1], 0), piece(3, 5, &[2], 0)];
        // Parts of two extents, eight extents in all.
        assert_eq!(ios(&rates(2, &[10.0, 20.0, 16.0, 14.0], 60.0), linear()), [20_000, 40_000]);
        assert_eq!(ios(&rates(2, &[10.0, 20.0, 16.0, 14.0], 120.0), linear()), [40_000, 80_000]);
        // Nothing is known of where, or of anything.
        assert_eq!(ios(&rates(0, &[], 16.0), linear()), [6000, 10_000]);
        assert_eq!(ios(&rates(2, &[0.0, 0.0], 16.0), linear()), [6000, 10_000]);
        assert_eq!(ios(&rates(0, &[], 0.0), linear()), [0, 0]);
        // The last part is a short one.
        assert_eq!(ios(&rates(3, &[3.0, 3.0, 2.0], 8.0), linear()), [3000, 5000]);
        let stripes = vec![piece(0, 4, &[1, 2], 0), piece(0, 4, &[1, 2], 1)];
        assert_eq!(ios(&rates(4, &[10.0, 4.0], 14.0), stripes), [7000, 7000]);
        assert_eq!(ios(&rates(4, &[10.0, 4.0], f64::NAN), linear()), [0, 0, 0]);
    }

    #[test]
    fn what_is_hot_can_move_without_the_rest() {
        let of = |r: &VolumeRates<'_>, pieces: Vec<PieceFact>| {
            let mut v = volume(pieces);
            spread(r, &mut v);
            v.pieces.iter().map(|p| (p.start.get(), p.count, p.disk.as_u128(), p.io)).collect::<Vec<_>>()
        };
        let r = rates(2, &[0.0, 30.0, 1.0, 1.0], 32.0);
        assert_eq!(of(&r, vec![piece(0, 8, &[1], 0)]), [(0, 2, 1, 0), (2, 2, 1, 30_000), (4, 4, 1, 2000)]);
        let two = vec![piece(0, 3, &[1], 0), piece(3, 5, &[2], 0)];
        let cut = [(0, 2, 1, 0), (2, 1, 1, 15_000), (3, 1, 2, 15_000), (4, 4, 2, 2000)];
        assert_eq!(of(&r, two), cut);
        let striped = vec![piece(0, 4, &[1, 2], 0), piece(0, 4, &[1, 2], 1)];
        assert_eq!(of(&r, striped), [(0, 4, 1, 16_000), (0, 4, 2, 16_000)], "a stripe moves as a whole");
        let many: Vec<_> = (0..MOST_PIECES as u64).map(|i| piece(i, 1, &[1], 0)).collect();
        assert_eq!(of(&r, many).len(), MOST_PIECES);
        // Parts that are shorter than an extent.
        let parts = [1.0, 9.0, 0.0, 0.0];
        let odd = VolumeRates {
            part_bytes: ExtentSize::MIN.bytes().get() / 2,
            parts: &parts,
            mean: 10.0,
            peak: 10.0,
        };
        assert_eq!(of(&odd, vec![piece(0, 2, &[1], 0)]), [(0, 1, 1, 10_000), (1, 1, 1, 0)]);
    }
}
