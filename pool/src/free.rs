//! The free runs of one disk: an interval set with best fit in O(log n).
//!
//! Invariants, held by every method and checkable with [`FreeRuns::check`]: runs are non-empty, inside the disk,
//! disjoint, and never adjacent (neighbours are one run); both indexes hold the same runs; the total is their sum.
//! Must not know: whose the extents are that are not free.

use std::collections::{BTreeMap, BTreeSet};

use crate::units::Extents;

/// Extents `first .. first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FreeRun {
    /// First extent.
    pub first: Extents,
    /// Number of extents, never zero.
    pub count: Extents,
}

impl FreeRun {
    /// The extent after the last.
    pub fn end(&self) -> Extents {
        self.first.plus(self.count)
    }
}

/// Why a change of the free runs was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreeError {
    /// A run without extents.
    #[error("a run of no extents at {first}")]
    Empty {
        /// Where.
        first: Extents,
    },
    /// A run that reaches beyond the disk.
    #[error("{count} extents from {first} reach beyond the disk's {extents}")]
    Outside {
        /// First extent.
        first: Extents,
        /// Number of extents.
        count: Extents,
        /// Extents of the disk.
        extents: Extents,
    },
    /// An extent that is free was freed.
    #[error("of {count} extents from {first} some are free already")]
    AlreadyFree {
        /// First extent.
        first: Extents,
        /// Number of extents.
        count: Extents,
    },
    /// An extent that is not free was taken.
    #[error("of {count} extents from {first} some are not free")]
    NotFree {
        /// First extent.
        first: Extents,
        /// Number of extents.
        count: Extents,
    },
}

/// The free runs of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeRuns {
    extents: u64,
    by_first: BTreeMap<u64, u64>,
    by_count: BTreeSet<(u64, u64)>,
    total: u64,
}

fn run(first: u64, count: u64) -> FreeRun {
    FreeRun { first: Extents::new(first), count: Extents::new(count) }
}

impl FreeRuns {
    /// A disk of so many extents, none of them free.
    pub fn none_of(extents: Extents) -> Self {
        Self { extents: extents.get(), by_first: BTreeMap::new(), by_count: BTreeSet::new(), total: 0 }
    }

    /// Free extents in all.
    pub fn total(&self) -> Extents {
        Extents::new(self.total)
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.by_first.len()
    }

    /// Whether nothing is free.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Whether every extent of the disk is free.
    pub fn is_whole(&self) -> bool {
        self.extents > 0 && self.total == self.extents
    }

    /// The runs in the order of the disk.
    pub fn iter(&self) -> impl Iterator<Item = FreeRun> + '_ {
        self.by_first.iter().map(|(f, c)| run(*f, *c))
    }

    /// The runs, longest first; of equal ones the last on the disk first.
    pub fn longest_first(&self) -> impl Iterator<Item = FreeRun> + '_ {
        self.by_count.iter().rev().map(|(c, f)| run(*f, *c))
    }

    /// The shortest run that holds `count` extents in one piece; of equal ones the first on the disk.
    pub fn best_fit(&self, count: Extents) -> Option<FreeRun> {
        self.fits(count).next()
    }

    /// The runs that hold `count` extents in one piece, shortest first; of equal ones the first on the disk.
    pub fn fits(&self, count: Extents) -> impl Iterator<Item = FreeRun> + '_ {
        self.by_count.range((count.get(), 0)..).map(|(c, f)| run(*f, *c))
    }

    /// The run that starts exactly there.
    pub fn starting_at(&self, first: Extents) -> Option<FreeRun> {
        self.by_first.get(&first.get()).map(|c| run(first.get(), *c))
    }

    /// How many extents are free from `first` on, in one piece.
    pub fn free_from(&self, first: Extents) -> Extents {
        let at = first.get();
        match self.by_first.range(..=at).next_back() {
            Some((f, c)) if f + c > at => Extents::new(f + c - at),
            Some(_) | None => Extents::ZERO,
        }
    }

    /// Whether any of these extents is free.
    pub fn overlaps(&self, first: Extents, count: Extents) -> bool {
        let end = first.get().saturating_add(count.get());
        self.by_first.range(..end).next_back().is_some_and(|(f, c)| f + c > first.get())
    }

    fn bounded(&self, first: Extents, count: Extents) -> Result<u64, FreeError> {
        if count.is_zero() {
            return Err(FreeError::Empty { first });
        }
        match first.get().checked_add(count.get()) {
            Some(end) if end <= self.extents => Ok(end),
            Some(_) | None => Err(FreeError::Outside { first, count, extents: Extents::new(self.extents) }),
        }
    }

    fn link(&mut self, first: u64, count: u64) {
        self.by_first.insert(first, count);
        self.by_count.insert((count, first));
    }

    fn unlink(&mut self, first: u64, count: u64) {
        self.by_first.remove(&first);
        self.by_count.remove(&(count, first));
    }

    /// Makes these extents free, joined with free neighbours.
    pub fn insert(&mut self, first: Extents, count: Extents) -> Result<(), FreeError> {
        let end = self.bounded(first, count)?;
        if self.overlaps(first, count) {
            return Err(FreeError::AlreadyFree { first, count });
        }
        let (mut f, mut e) = (first.get(), end);
        let before = self.by_first.range(..f).next_back().map(|(a, n)| (*a, *n));
        if let Some((a, n)) = before
            && a + n == f
        {
            self.unlink(a, n);
            f = a;
        }
        if let Some(n) = self.by_first.get(&e).copied() {
            self.unlink(e, n);
            e += n;
        }
        self.link(f, e - f);
        self.total += count.get();
        Ok(())
    }

    /// Takes these extents out of the free ones; they must lie in one free run.
    pub fn take(&mut self, first: Extents, count: Extents) -> Result<(), FreeError> {
        let end = self.bounded(first, count)?;
        if self.free_from(first) < count {
            return Err(FreeError::NotFree { first, count });
        }
        let f = first.get();
        let Some((a, n)) = self.by_first.range(..=f).next_back().map(|(a, n)| (*a, *n)) else {
            return Err(FreeError::NotFree { first, count });
        };
        self.unlink(a, n);
        if a < f {
            self.link(a, f - a);
        }
        if end < a + n {
            self.link(end, a + n - end);
        }
        self.total -= count.get();
        Ok(())
    }

    /// Holds the invariants against the set; the text says which one is broken.
    pub fn check(&self) -> Result<(), String> {
        let mut last_end = None;
        let mut sum = 0;
        for (f, c) in &self.by_first {
            if *c == 0 {
                return Err(format!("empty run at {f}"));
            }
            if last_end.is_some_and(|e| *f <= e) {
                return Err(format!("run at {f} overlaps or touches the one before"));
            }
            if f + c > self.extents {
                return Err(format!("run at {f} reaches beyond the disk"));
            }
            if !self.by_count.contains(&(*c, *f)) {
                return Err(format!("run at {f} is not indexed by length"));
            }
            last_end = Some(f + c);
            sum += c;
        }
        if self.by_count.len() != self.by_first.len() {
            return Err("the indexes differ in size".to_owned());
        }
        if sum != self.total {
            return Err(format!("total {} but the runs sum to {sum}", self.total));
        }
        Ok(())
    }
}
