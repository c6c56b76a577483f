//! What is to be told, in the order in which it came up, each thing once.
//!
//! Invariant: what could not be told is tried again behind what has not been tried, and only a few of it at a time. Must not
//! know: what is told, to whom.

use std::collections::{BTreeSet, VecDeque};

/// Things of a round that have failed before: much that fails takes little from the rest.
const AGAIN: usize = 8;

/// What is to be told.
#[derive(Debug)]
pub(super) struct Todo<T> {
    fresh: VecDeque<T>,
    failed: VecDeque<T>,
    all: BTreeSet<T>,
}

impl<T> Default for Todo<T> {
    fn default() -> Self {
        Self { fresh: VecDeque::new(), failed: VecDeque::new(), all: BTreeSet::new() }
    }
}

impl<T: Ord + Clone> Todo<T> {
    /// So many things wait.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// There is something to tell.
    pub(super) fn add(&mut self, t: T) {
        if self.all.insert(t.clone()) {
            self.fresh.push_back(t);
        }
    }

    /// It could not be told.
    pub(super) fn put_off(&mut self, t: T) {
        if self.all.insert(t.clone()) {
            self.failed.push_back(t);
        }
    }

    /// Drops what has failed for the longest, where anything has.
    pub(super) fn drop_failed(&mut self) -> bool {
        let dropped = self.failed.pop_front();
        dropped.is_some_and(|t| self.all.remove(&t))
    }

    /// Takes out what is to be told now.
    pub(super) fn round(&mut self, most: usize) -> Vec<T> {
        let fresh = self.fresh.len().min(most);
        let failed = self.failed.len().min(AGAIN);
        let round: Vec<T> = self.fresh.drain(..fresh).chain(self.failed.drain(..failed)).collect();
        for t in &round {
            self.all.remove(t);
        }
        round
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_keeps_nothing_else_waiting() {
        let mut todo = Todo::default();
        (0..100).for_each(|n| todo.put_off(n));
        (100..110).for_each(|n| todo.add(n));
        todo.add(5);
        todo.add(101);
        assert_eq!(todo.len(), 110, "each once");
        let first = todo.round(4);
        assert_eq!(first, [100, 101, 102, 103, 0, 1, 2, 3, 4, 5, 6, 7], "in order, failures last");
        (0..8).for_each(|n| todo.put_off(n));
        assert_eq!(todo.round(4)[4..], [8, 9, 10, 11, 12, 13, 14, 15], "failures take turns");
        assert!(todo.drop_failed());
        assert_eq!(todo.round(0)[0], 17);
    }
}
