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

    /// The runs it occupies, one a leg.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let count = self.leg_count();
        self.legs.iter().map(move |l| Run { disk: l.disk, first: l.first, count })
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
    /// A segment whose legs share a disk, or whose stripes do not divide it.
    #[error("segment {0} has legs that do not fit together")]
    Legs(usize),
}

impl Map {
    /// Logical extents in all.
    pub fn extents(&self) -> Extents {
        self.0.last().map_or(Extents::ZERO, Segment::end)
    }

    /// Every run of every leg, in the map's order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.0.iter().flat_map(Segment::runs)
    }

    /// The disks it lies on.
    pub fn disks(&self) -> BTreeSet<DiskId> {
        self.0.iter().flat_map(|s| s.legs.iter().map(|l| l.disk)).collect()
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
            let distinct: BTreeSet<_> = s.legs.iter().map(|l| l.disk).collect();
            let divides = match s.stripe {
                Some(st) => {
                    s.count.get().is_multiple_of(s.legs.len() as u64) && st.chunk.get().is_power_of_two()
                }
                None => true,
            };
            if distinct.len() != s.legs.len() || !divides {
                return Err(MapFault::Legs(index));
            }
            expected = s.end();
        }
        Ok(())
    }

    /// Appends `s`, merging it into the last segment where it continues it on the same disk.
    pub fn push(&mut self, s: Segment) {
        if let Some(last) = self.0.last_mut()
            && last.stripe.is_none()
            && s.stripe.is_none()
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
        }
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
