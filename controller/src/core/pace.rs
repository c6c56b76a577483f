//! How fast a disk is emptied: what has left it, over the last minute.
//!
//! Invariants: bounded; a copy that is called off never makes a pace negative. Must not know: what moves.

use std::{collections::VecDeque, time::Duration};

use pool::{disk::DiskClass, units::Bytes};

/// What counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Marks are at least so far apart.
const APART: Duration = Duration::from_secs(1);
/// Less than this says nothing.
const LEAST: Duration = Duration::from_secs(3);

/// A disk that is being emptied.
#[derive(Clone, Debug, Default)]
pub(super) struct PaceLog {
    moved: Bytes,
    marks: VecDeque<(Duration, u64)>,
}

impl PaceLog {
    /// So much has left for good.
    pub(super) fn left(&mut self, bytes: Bytes) {
        self.moved = Bytes::new(self.moved.get().saturating_add(bytes.get()));
    }

    /// What has left in all.
    pub(super) fn moved(&self) -> Bytes {
        self.moved
    }

    /// Takes note of how far it is, with what of the present move is copied.
    pub(super) fn mark(&mut self, now: Duration, copied: u64) {
        if self.marks.back().is_some_and(|(at, _)| now < *at + APART) {
            return;
        }
        self.marks.push_back((now, self.moved.get().saturating_add(copied)));
        while self.marks.front().is_some_and(|(at, _)| *at + WINDOW < now) {
            self.marks.pop_front();
        }
    }

    /// Bytes a second, once there is something to go by.
    pub(super) fn bytes_s(&self) -> Option<f64> {
        let ((from, had), (to, has)) = (self.marks.front()?, self.marks.back()?);
        let span = to.saturating_sub(*from);
        let bytes = has.saturating_sub(*had);
        (span >= LEAST && bytes > 0).then(|| bytes as f64 / span.as_secs_f64())
    }
}

/// Bytes a second that a move is expected to make before any was measured: a disk's sequential throughput, or a network of
/// 1 Gbit/s, in competition with everything else (the same that offers reckon with).
pub(super) fn of_class(class: DiskClass) -> f64 {
    match class {
        DiskClass::Hdd => 60e6,
        DiskClass::Ssd | DiskClass::Nvme => 100e6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_counts() {
        let mut p = PaceLog::default();
        let s = Duration::from_secs;
        p.mark(s(0), 0);
        assert_eq!(p.bytes_s(), None);
        p.mark(s(10), 1000);
        assert_eq!(p.bytes_s(), Some(100.0));
        // The copy is called off: nothing is known, rather than something negative.
        p.mark(s(20), 0);
        assert_eq!(p.bytes_s(), None);
        for t in 21..200 {
            p.left(Bytes::new(500));
            p.mark(s(t), 0);
        }
        assert_eq!((p.bytes_s(), p.moved().get()), (Some(500.0), 179 * 500));
        assert!(p.marks.len() <= 62, "{}", p.marks.len());
    }
}
