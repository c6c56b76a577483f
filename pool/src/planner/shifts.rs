//! What has moved lately: forecasts learn of it slowly, plans know it at once.
//!
//! Invariants: what is older than a day counts no more. Must not know: what forecasts are.

use std::collections::BTreeMap;

use super::{DiskFact, Proposal};
use crate::ids::DiskId;

/// Seconds for which a forecast may not know of a move: a day, then every hour of the day has been seen without it.
const LEARNS_S: u64 = 24 * 3600;

/// I/O that went from one disk to another lately.
#[derive(Clone, Debug, Default)]
pub struct Shifts(Vec<Shift>);

#[derive(Clone, Copy, Debug)]
struct Shift {
    at_s: u64,
    from: DiskId,
    to: DiskId,
    io: u64,
}

impl Shifts {
    /// Remembers a move that begins at this time, in seconds since whenever.
    pub fn note(&mut self, at_s: u64, p: &Proposal) {
        if p.io > 0 {
            self.0.push(Shift { at_s, from: p.from, to: p.to, io: p.io });
        }
    }

    /// Forgets what forecasts know by now.
    pub fn forget(&mut self, now_s: u64) {
        self.0.retain(|s| s.at_s.saturating_add(LEARNS_S) > now_s);
    }

    /// Says to disks what has left them and come to them.
    pub fn apply<'a>(&self, disks: impl Iterator<Item = &'a mut DiskFact>) {
        let mut moved: BTreeMap<DiskId, (u64, u64)> = BTreeMap::new();
        for s in &self.0 {
            let left = &mut moved.entry(s.from).or_default().0;
            *left = left.saturating_add(s.io);
            let come = &mut moved.entry(s.to).or_default().1;
            *come = come.saturating_add(s.io);
        }
        for d in disks {
            if let Some((left, come)) = moved.get(&d.disk) {
                d.left = d.left.saturating_add(*left);
                d.come = d.come.saturating_add(*come);
            }
        }
    }
}
