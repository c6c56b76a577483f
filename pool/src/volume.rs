//! Where a volume lies: ordered segments, each a run of logical extents with one leg a copy. Runs, not lists of
//! extents: a record stays small however large the volume.
//!
//! Invariants of a [`Map`]: segments are in logical order without gap or overlap, starting at extent 0; no segment
//! is empty; every segment has as many legs as the layout has copies, on distinct disks.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    ids::DiskId,
    units::{Extents, Sectors},
};

/// One copy of a segment: extents `first .. first + segment.count` of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Leg {
    /// The disk that holds it.
    pub disk: DiskId,
    /// Its first extent on that disk.
    pub first: Extents,
}

/// Contiguous logical extents of a volume that are contiguous on each leg's disk too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// First logical extent.
    pub start: Extents,
    /// Number of extents, never zero.
    pub count: Extents,
    /// The copies; one for linear layouts.
    pub legs: Vec<Leg>,
    /// For a striped segment: the number of stripes and the chunk; the legs are then the stripes in order, each
    /// holding `count / stripes` extents. `None` for everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stripe: Option<Stripe>,
    /// A second place of one leg, while a move goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<Spare>,
}

/// A second place of the extents of one leg, as long as the leg's own and never the truth: being filled, or being
/// given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spare {
    /// Whose place it is: an index of the segment's legs.
    pub leg: u32,
    /// Where.
    pub place: Leg,
    /// The consumer copies the leg there and writes to both. Otherwise nobody reads or writes it any more, once
    /// everybody has heard.
    pub filling: bool,
}

/// How a striped segment interleaves its legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stripe {
    /// Sectors written to one leg before the next has its turn; a power of two.
    pub chunk: Sectors,
}

/// A run of extents on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run {
    /// The disk.
    pub disk: DiskId,
    /// First extent.
    pub first: Extents,
    /// Number of extents, never zero.
    pub count: Extents,
}

impl Run {
    /// The extent after the last.
    pub fn end(&self) -> Extents {
        self.first.plus(self.count)
    }

    /// Whether both hold an extent in common.
    pub fn overlaps(&self, o: &Run) -> bool {
        self.disk == o.disk && self.first < o.end() && o.first < self.end()
    }
}

impl Segment {
    /// The logical extent after the last.
    pub fn end(&self) -> Extents {
        self.start.plus(self.count)
    }

    /// Extents that each leg occupies on its disk.
    pub fn leg_count(&self) -> Extents {
        match self.stripe {
            Some(_) => Extents::new(self.count.get() / self.legs.len() as u64),
            None => self.count,
        }
    }

    /// The places that it occupies: its legs', then its spare's.
    pub fn places(&self) -> impl Iterator<Item = Leg> + '_ {
        self.legs.iter().copied().chain(self.spare.map(|s| s.place))
    }

    /// The runs it occupies, one a place.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let count = self.leg_count();
        self.places().map(move |l| Run { disk: l.disk, first: l.first, count })
    }
}

/// The whole map of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Map(pub Vec<Segment>);

/// What is wrong with a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapFault {
    /// A segment starts before or after the end of the one before.
    #[error("segment {index} starts at extent {start}, expected {expected}")]
    Gap {
        /// Which segment.
        index: usize,
        /// Where it starts.
        start: Extents,
        /// Where it should.
        expected: Extents,
    },
    /// A segment without extents or legs.
    #[error("segment {0} is empty")]
    Empty(usize),
    /// A segment whose legs or spare share a disk, whose stripes do not divide it, or whose spare is of no leg.
    #[error("segment {0} has legs that do not fit together")]
    Legs(usize),
}

impl Map {
    /// Logical extents in all.
    pub fn extents(&self) -> Extents {
        self.0.last().map_or(Extents::ZERO, Segment::end)
    }

    /// Every run of every leg and spare, in the map's order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.0.iter().flat_map(Segment::runs)
    }

    /// The disks it lies on.
    pub fn disks(&self) -> BTreeSet<DiskId> {
        self.0.iter().flat_map(|s| s.places().map(|l| l.disk)).collect()
    }

    /// The disks that its consumer reads or writes: not those of a spare that is given up.
    pub fn used_disks(&self) -> BTreeSet<DiskId> {
        let filled = |s: &Segment| s.spare.filter(|p| p.filling).map(|p| p.place.disk);
        self.0.iter().flat_map(|s| s.legs.iter().map(|l| l.disk).chain(filled(s))).collect()
    }

    /// Holds the invariants against it.
    pub fn check(&self) -> Result<(), MapFault> {
        let mut expected = Extents::ZERO;
        for (index, s) in self.0.iter().enumerate() {
            if s.start != expected {
                return Err(MapFault::Gap { index, start: s.start, expected });
            }
            if s.count.is_zero() || s.legs.is_empty() {
                return Err(MapFault::Empty(index));
            }
            let distinct: BTreeSet<_> = s.places().map(|l| l.disk).collect();
            let of_a_leg = s.spare.is_none_or(|p| (p.leg as usize) < s.legs.len());
            let divides = match s.stripe {
                Some(st) => {
                    s.count.get().is_multiple_of(s.legs.len() as u64) && st.chunk.get().is_power_of_two()
                }
                None => true,
            };
            if distinct.len() != s.places().count() || !divides || !of_a_leg {
                return Err(MapFault::Legs(index));
            }
            expected = s.end();
        }
        Ok(())
    }

    /// The segment with a spare, of which a map has one at most.
    pub fn spare(&self) -> Option<(&Segment, Spare)> {
        self.0.iter().find_map(|s| Some((s, s.spare?)))
    }

    /// The map with a spare for `count` extents from `start` on, of leg `leg`: a linear segment is cut for it, a
    /// striped one gives a whole leg. `None` when the extents are not of one such segment, or a spare is there already.
    #[must_use]
    pub fn with_spare(&self, start: Extents, count: Extents, leg: u32, place: Leg) -> Option<Map> {
        if count.is_zero() || self.spare().is_some() {
            return None;
        }
        let at = self.0.iter().position(|s| s.start <= start && start < s.end())?;
        let s = &self.0[at];
        let end = start.checked_add(count).filter(|e| *e <= s.end())?;
        let spare = Some(Spare { leg, place, filling: true });
        let mut parts = vec![];
        match s.stripe {
            Some(_) if start != s.start || count != s.leg_count() => return None,
            Some(_) => parts.push(Segment { spare, ..s.clone() }),
            None => {
                let part = |from: Extents, to: Extents, spare| {
                    let skip = from.minus(s.start);
                    let legs =
                        s.legs.iter().map(|l| Leg { disk: l.disk, first: l.first.plus(skip) }).collect();
                    Segment { start: from, count: to.minus(from), legs, stripe: None, spare }
                };
                if s.start < start {
                    parts.push(part(s.start, start, None));
                }
                parts.push(part(start, end, spare));
                if end < s.end() {
                    parts.push(part(end, s.end(), None));
                }
            }
        }
        let mut next = self.clone();
        next.0.splice(at..=at, parts);
        next.check().is_ok().then_some(next)
    }

    /// The map in which the filled spare is the leg, and the leg's former place the spare that is given up; as it is
    /// without a spare that is being filled.
    #[must_use]
    pub fn switched(&self) -> Map {
        let mut next = self.clone();
        for s in &mut next.0 {
            if let Some(p) = s.spare.as_mut().filter(|p| p.filling)
                && let Some(leg) = s.legs.get_mut(p.leg as usize)
            {
                std::mem::swap(leg, &mut p.place);
                p.filling = false;
            }
        }
        next
    }

    /// The map in which a spare that was being filled is given up.
    #[must_use]
    pub fn unfilled(&self) -> Map {
        let mut next = self.clone();
        for s in &mut next.0 {
            if let Some(p) = s.spare.as_mut() {
                p.filling = false;
            }
        }
        next
    }

    /// The map without its spare, and the run that it gave up.
    pub fn without_spare(&self) -> (Map, Option<Run>) {
        let run =
            self.spare().map(|(s, p)| Run { disk: p.place.disk, first: p.place.first, count: s.leg_count() });
        let mut next = Map::default();
        for s in &self.0 {
            next.push(Segment { spare: None, ..s.clone() });
        }
        (next, run)
    }

    /// Appends `s`, merging it into the last segment where it continues it on the same disk.
    pub fn push(&mut self, s: Segment) {
        if let Some(last) = self.0.last_mut()
            && last.stripe.is_none()
            && s.stripe.is_none()
            && last.spare.is_none()
            && s.spare.is_none()
            && last.end() == s.start
            && last.legs.len() == s.legs.len()
            && last
                .legs
                .iter()
                .zip(&s.legs)
                .all(|(a, b)| a.disk == b.disk && a.first.plus(last.count) == b.first)
        {
            last.count = last.count.plus(s.count);
            return;
        }
        self.0.push(s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(start: u64, count: u64, disk: u128, first: u64) -> Segment {
        Segment {
            start: Extents::new(start),
            count: Extents::new(count),
            legs: vec![Leg { disk: DiskId::from_u128(disk), first: Extents::new(first) }],
            stripe: None,
            spare: None,
        }
    }

    #[test]
    fn a_spare_comes_switches_and_goes() {
        let d = DiskId::from_u128;
        let m = Map(vec![seg(0, 8, 1, 10), seg(8, 4, 2, 0)]);
        let place = Leg { disk: d(3), first: Extents::new(50) };
        let with = m.with_spare(Extents::new(2), Extents::new(4), 0, place).expect("it fits");
        assert_eq!(with.check(), Ok(()));
        assert_eq!(with.0.iter().map(|s| s.count.get()).collect::<Vec<_>>(), [2, 4, 2, 4]);
        assert_eq!(with.runs().map(|r| r.count.get()).sum::<u64>(), 16);
        assert_eq!(
            with.unfilled().without_spare(),
            (m.clone(), Some(Run { disk: d(3), first: Extents::new(50), count: Extents::new(4) }))
        );
        let (done, left) = with.switched().without_spare();
        assert_eq!(left, Some(Run { disk: d(1), first: Extents::new(12), count: Extents::new(4) }));
        assert_eq!(done.0[1].legs, [place]);
        assert_eq!(done.check(), Ok(()));
        // Back home, the map is as it was.
        let home = Leg { disk: d(1), first: Extents::new(12) };
        let back = done.with_spare(Extents::new(2), Extents::new(4), 0, home).expect("it fits");
        assert_eq!(back.switched().without_spare().0, m);
        for (start, count, leg, disk) in
            [(2, 4, 1, 3), (2, 4, 0, 1), (6, 4, 0, 3), (2, 0, 0, 3), (20, 1, 0, 3)]
        {
            let place = Leg { disk: d(disk), first: Extents::new(50) };
            assert_eq!(m.with_spare(Extents::new(start), Extents::new(count), leg, place), None);
        }
        assert_eq!(with.with_spare(Extents::new(9), Extents::new(1), 0, place), None, "one at a time");
    }

    #[test]
    fn neighbours_merge_and_strangers_do_not() {
        let mut m = Map::default();
        m.push(seg(0, 4, 1, 10));
        m.push(seg(4, 2, 1, 14));
        m.push(seg(6, 2, 1, 40));
        m.push(seg(8, 2, 2, 42));
        assert_eq!(m.0.len(), 3);
        assert_eq!(m.extents(), Extents::new(10));
        assert_eq!(m.check(), Ok(()));
    }

    #[test]
    fn faults_are_found() {
        assert!(matches!(Map(vec![seg(1, 1, 1, 0)]).check(), Err(MapFault::Gap { index: 0, .. })));
        assert_eq!(Map(vec![seg(0, 0, 1, 0)]).check(), Err(MapFault::Empty(0)));
        let mut s = seg(0, 2, 1, 0);
        s.legs.push(s.legs[0]);
        assert_eq!(Map(vec![s]).check(), Err(MapFault::Legs(0)));
    }
}
