//! From a volume's map to the runs of one disk, and from the runs of all disks back to the map.
//!
//! Invariant: [`rebuild_map`] of what [`runs_of_map`] gave for every disk of a map is that map, up to segments
//! that [`Map::push`] would have merged. Must not know: where labels are read from.

use std::collections::BTreeMap;

use pool::{
    ids::{DiskId, Epoch},
    units::Extents,
    volume::{Leg, Map, MapFault, Segment},
};

use crate::model::{RunEntry, RunState};

/// The runs of `map` on `disk`, as its label is to hold them.
pub fn runs_of_map(map: &Map, disk: DiskId, epoch: Epoch, state: RunState) -> Vec<RunEntry> {
    let mut out = Vec::new();
    for s in &map.0 {
        for (leg, l) in s.legs.iter().enumerate().filter(|(_, l)| l.disk == disk) {
            out.push(RunEntry {
                start: s.start,
                first: l.first,
                count: s.leg_count(),
                leg: leg as u16,
                legs: s.legs.len() as u16,
                stripe: s.stripe,
                epoch,
                state,
            });
        }
    }
    out
}

/// Why a map cannot be made from runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// A leg is on no disk that was read.
    #[error("leg {leg} of the segment at extent {start} is on no disk that was read")]
    MissingLeg {
        /// The segment's first logical extent.
        start: Extents,
        /// Which leg.
        leg: u16,
    },
    /// Two live runs claim to be the same extents of the same leg.
    #[error("disks {a} and {b} both hold leg {leg} of the segment at extent {start}")]
    TwoHolders {
        /// The segment's first logical extent.
        start: Extents,
        /// Which leg.
        leg: u16,
        /// One disk.
        a: DiskId,
        /// The other.
        b: DiskId,
    },
    /// Legs of one segment say different things of it.
    #[error("the legs of the segment at extent {0} do not fit together")]
    Unlike(Extents),
    /// What results is no map.
    #[error("the runs make no map: {0}")]
    Map(#[from] MapFault),
}

/// The map of a volume from its live runs on all of its disks.
pub fn rebuild_map(runs: impl IntoIterator<Item = (DiskId, RunEntry)>) -> Result<Map, RebuildError> {
    let mut segments: BTreeMap<Extents, BTreeMap<u16, (DiskId, RunEntry)>> = BTreeMap::new();
    for (disk, r) in runs.into_iter().filter(|(_, r)| r.state == RunState::Live) {
        if let Some((a, _)) = segments.entry(r.start).or_default().insert(r.leg, (disk, r)) {
            return Err(RebuildError::TwoHolders { start: r.start, leg: r.leg, a, b: disk });
        }
    }
    let mut map = Map::default();
    for (start, legs) in segments {
        let Some((_, one)) = legs.values().next().copied() else { continue };
        if let Some(leg) = (0..one.legs).find(|l| !legs.contains_key(l)) {
            return Err(RebuildError::MissingLeg { start, leg });
        }
        let like = |r: &RunEntry| (r.legs, r.count, r.stripe) == (one.legs, one.count, one.stripe);
        if legs.len() != usize::from(one.legs) || !legs.values().all(|(_, r)| like(r)) {
            return Err(RebuildError::Unlike(start));
        }
        let whole = one.count.get().checked_mul(one.stripe.map_or(1, |_| u64::from(one.legs)));
        let count = Extents::new(whole.ok_or(RebuildError::Unlike(start))?);
        start.checked_add(count).ok_or(RebuildError::Unlike(start))?;
        let legs = legs.into_values().map(|(disk, r)| Leg { disk, first: r.first }).collect();
        map.push(Segment { start, count, legs, stripe: one.stripe, spare: None });
    }
    map.check()?;
    Ok(map)
}
