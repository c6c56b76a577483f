//! Who owns which runs of one disk. Invariants: runs are disjoint; adjacent runs of one volume are one run; the
//! total is their sum. Must not know: which of the other extents are free.

use std::collections::BTreeMap;

use crate::ids::VolumeId;

/// The owned runs of a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Owned {
    by_first: BTreeMap<u64, (u64, VolumeId)>,
    total: u64,
}

impl Owned {
    /// Owned extents in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The runs as (first, count, owner), in the order of the disk.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64, VolumeId)> + '_ {
        self.by_first.iter().map(|(f, (c, v))| (*f, *c, *v))
    }

    /// The owner of any of these extents.
    pub(super) fn owner_in(&self, first: u64, count: u64) -> Option<VolumeId> {
        let (f, (c, v)) = self.by_first.range(..first.saturating_add(count)).next_back()?;
        if f + c > first { Some(*v) } else { None }
    }

    /// Gives extents that nobody owns (the caller has looked) to `volume`.
    pub(super) fn insert(&mut self, first: u64, count: u64, volume: VolumeId) {
        let (mut f, mut e) = (first, first + count);
        let before = self.by_first.range(..f).next_back().map(|(a, r)| (*a, *r));
        if let Some((a, (n, v))) = before
            && a + n == f
            && v == volume
        {
            self.by_first.remove(&a);
            f = a;
        }
        if let Some((n, v)) = self.by_first.get(&e).copied()
            && v == volume
        {
            self.by_first.remove(&e);
            e += n;
        }
        self.by_first.insert(f, (e - f, volume));
        self.total += count;
    }

    /// Takes extents from `volume`; `false`, and nothing changed, unless it owns them all.
    pub(super) fn remove(&mut self, first: u64, count: u64, volume: VolumeId) -> bool {
        let Some(end) = first.checked_add(count).filter(|_| count > 0) else { return false };
        let Some((a, (n, v))) = self.by_first.range(..=first).next_back().map(|(a, r)| (*a, *r)) else {
            return false;
        };
        if v != volume || a + n < end {
            return false;
        }
        self.by_first.remove(&a);
        if a < first {
            self.by_first.insert(a, (first - a, v));
        }
        if end < a + n {
            self.by_first.insert(end, (a + n - end, v));
        }
        self.total -= count;
        true
    }

    /// Holds the invariants against it.
    pub(super) fn check(&self, extents: u64) -> Result<(), String> {
        let mut last: Option<(u64, VolumeId)> = None;
        let mut sum = 0;
        for (f, c, v) in self.iter() {
            if c == 0 || f + c > extents {
                return Err(format!("owned run at {f} is empty or outside the disk"));
            }
            if last.is_some_and(|(e, lv)| f < e || (f == e && v == lv)) {
                return Err(format!("owned run at {f} overlaps the one before or should be one with it"));
            }
            last = Some((f + c, v));
            sum += c;
        }
        if sum == self.total {
            Ok(())
        } else {
            Err(format!("owned total {} but runs sum to {sum}", self.total))
        }
    }
}
