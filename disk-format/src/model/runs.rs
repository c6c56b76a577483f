//! Changes of the run table. Adding a run that meets another volume's is refused: an independent guard against an
//! allocator that grants an extent twice. Every change either happens whole or leaves the label as it was.

use std::collections::BTreeMap;

use pool::{
    ids::{Epoch, VolumeId},
    units::Extents,
};

use super::{GeometryError, Label, RunEntry, RunState, VolumeEntry, VolumeSummary};
use crate::{layout, record};

/// Why a volume's summary cannot be recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SummaryFault {
    /// The name is empty or longer than 255 bytes.
    #[error("the name is empty or longer than 255 bytes")]
    Name,
    /// A key is empty or longer than 255 bytes.
    #[error("a parameter's key is empty or longer than 255 bytes")]
    Key,
    /// The record exceeds its limit.
    #[error("the record would take {0} bytes, {max} at most", max = layout::VOLUME_RECORD_MAX)]
    TooLarge(usize),
}

/// Why runs were not added. Permanent: the same request fails again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddRunsError {
    /// An extent would belong to two runs.
    #[error(
        "extents {first}..{end} for volume {volume} overlap extents {other_first}..{other_end} of volume {other}; \
         the volume that stands in the label keeps them"
    )]
    RunConflict {
        /// For whom the run was to be added.
        volume: VolumeId,
        /// Its first extent.
        first: Extents,
        /// The extent after its last.
        end: Extents,
        /// Whose it is (the same volume, when its own run maps the extent to another place).
        other: VolumeId,
        /// That run's first extent.
        other_first: Extents,
        /// The extent after that run's last.
        other_end: Extents,
    },
    /// A run leaves the disk or does not make sense.
    #[error("run {first}+{count} of volume {volume} is not valid: {why}")]
    BadRun {
        /// For whom.
        volume: VolumeId,
        /// Its first extent.
        first: Extents,
        /// Its extents.
        count: Extents,
        /// What is wrong.
        why: &'static str,
    },
    /// The label has seen a later epoch.
    #[error("epoch {got} of volume {volume} is older than {have}, which the label has seen")]
    StaleEpoch {
        /// The volume.
        volume: VolumeId,
        /// What came.
        got: Epoch,
        /// What stands in the label.
        have: Epoch,
    },
    /// The summary has no room.
    #[error("volume {volume} cannot be recorded: {fault}")]
    Summary {
        /// The volume.
        volume: VolumeId,
        /// Why.
        fault: SummaryFault,
    },
    /// Nothing to add.
    #[error("no runs were given for volume {0}, and the label has none")]
    NoRuns(VolumeId),
}

/// Why runs were not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveRunsError {
    /// Part of a stripe was to be removed.
    #[error("extents {first}+{count} of volume {volume} are part of a striped run, which goes as a whole")]
    PartOfStripe {
        /// The volume.
        volume: VolumeId,
        /// First extent.
        first: Extents,
        /// Extents.
        count: Extents,
    },
}

/// Which invariant a label breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelFault {
    /// The areas do not add up.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A run is wrong by itself or meets another.
    #[error(transparent)]
    Run(#[from] AddRunsError),
}

impl RunEntry {
    fn fault(&self, extents: Extents) -> Option<&'static str> {
        if self.count.is_zero() {
            return Some("it is empty");
        }
        if self.first.checked_add(self.count).is_none_or(|e| e > extents) {
            return Some("it ends behind the disk's last extent");
        }
        if self.leg >= self.legs {
            return Some("its leg's number is not below the number of legs");
        }
        let logical = match self.stripe {
            Some(_) => self.count.get().checked_mul(u64::from(self.legs)),
            None => Some(self.count.get()),
        };
        if logical.and_then(|n| n.checked_add(self.start.get())).is_none() {
            return Some("it ends behind the last logical extent there can be");
        }
        match self.stripe {
            Some(s) if !s.chunk.get().is_power_of_two() || s.chunk.get() > 1 << 31 => {
                Some("its chunk is not a power of two up to 2^31 sectors")
            }
            _ => None,
        }
    }

    fn same_place(&self, o: &Self) -> bool {
        (self.start, self.first, self.count, self.leg, self.legs, self.stripe)
            == (o.start, o.first, o.count, o.leg, o.legs, o.stripe)
    }

    /// Whether both map extents that they share to the same logical place, so that they can be one.
    fn continues(&self, o: &Self) -> bool {
        let skew = |r: &Self| i128::from(r.start.get()) - i128::from(r.first.get());
        self.stripe.is_none()
            && o.stripe.is_none()
            && (self.leg, self.legs, self.state) == (o.leg, o.legs, o.state)
            && skew(self) == skew(o)
    }
}

/// Puts `r` among a volume's runs; on conflict answers the run that is in its way.
fn merge(runs: &mut BTreeMap<Extents, RunEntry>, mut r: RunEntry) -> Result<(), RunEntry> {
    let met: Vec<RunEntry> =
        runs.range(..r.end()).map(|(_, e)| *e).rev().take_while(|e| e.end() > r.first).collect();
    for e in &met {
        if !e.same_place(&r) && !e.continues(&r) {
            return Err(*e);
        }
        r.epoch = r.epoch.max(e.epoch);
    }
    for e in &met {
        runs.remove(&e.first);
        let (first, end) = (r.first.min(e.first), r.end().max(e.end()));
        r.start = r.start.min(e.start);
        r.first = first;
        r.count = end.minus(first);
    }
    runs.insert(r.first, r);
    Ok(())
}

impl Label {
    /// Records that `volume` has `runs` on this disk and what is known of it; answers whether anything changed.
    /// The same again changes nothing; a run that continues or covers one that is there (a volume that has grown)
    /// becomes one with it; the same place with another state takes that state.
    pub fn add_runs(
        &mut self,
        volume: VolumeId,
        summary: &VolumeSummary,
        runs: &[RunEntry],
    ) -> Result<bool, AddRunsError> {
        record::check_summary(summary).map_err(|fault| AddRunsError::Summary { volume, fault })?;
        let old = self.volumes.get(&volume);
        if let Some(have) = old.map(|e| e.summary.epoch).filter(|have| summary.epoch < *have) {
            return Err(AddRunsError::StaleEpoch { volume, got: summary.epoch, have });
        }
        let others = self.owners(Some(volume));
        let mut next = old.map(|e| e.runs.clone()).unwrap_or_default();
        for r in runs {
            if let Some(why) = r.fault(self.identity.geometry.extents) {
                return Err(AddRunsError::BadRun { volume, first: r.first, count: r.count, why });
            }
            if let Some((other, o)) = others.range(..r.end()).next_back().map(|(_, o)| *o)
                && o.end() > r.first
            {
                return Err(conflict(volume, r, other, &o));
            }
            merge(&mut next, *r).map_err(|o| conflict(volume, r, volume, &o))?;
        }
        if next.is_empty() {
            return Err(AddRunsError::NoRuns(volume));
        }
        let entry = VolumeEntry { summary: summary.clone(), runs: next };
        if old == Some(&entry) {
            return Ok(false);
        }
        self.volumes.insert(volume, entry);
        Ok(true)
    }

    /// Records that `runs` are all that the map of `volume` has on this disk, by an epoch not older than the label's. As
    /// [`Label::add_runs`], but what the label has of the volume elsewhere waits to be wiped from now on, and keeps
    /// the epoch at which it was the volume's last; and a part of a run takes another state.
    pub fn set_runs(
        &mut self,
        volume: VolumeId,
        summary: &VolumeSummary,
        runs: &[RunEntry],
    ) -> Result<bool, AddRunsError> {
        let mut next = self.clone();
        if let Some(e) = next.volumes.get_mut(&volume) {
            let old = std::mem::take(&mut e.runs);
            e.runs = old.values().flat_map(|r| cut(r, runs)).map(|r| (r.first, r)).collect();
        }
        next.add_runs(volume, summary, runs)?;
        let changed = next.volumes != self.volumes;
        self.volumes = next.volumes;
        Ok(changed)
    }

    /// Takes note that `volume` has had `epoch`, if it has runs here: nothing older is recorded any more.
    pub fn raise_epoch(&mut self, volume: VolumeId, epoch: Epoch) {
        if let Some(e) = self.volumes.get_mut(&volume) {
            e.summary.epoch = e.summary.epoch.max(epoch);
        }
    }

    /// A copy of the label to which runs were added; see [`Label::add_runs`].
    pub fn with_runs_added(
        &self,
        volume: VolumeId,
        summary: &VolumeSummary,
        runs: &[RunEntry],
    ) -> Result<Self, AddRunsError> {
        let mut next = self.clone();
        next.add_runs(volume, summary, runs)?;
        Ok(next)
    }

    /// Forgets all of a volume's runs, after they were wiped; answers whether there were any.
    pub fn remove_volume(&mut self, volume: VolumeId) -> bool {
        self.volumes.remove(&volume).is_some()
    }

    /// A copy of the label without a volume.
    #[must_use]
    pub fn without_volume(&self, volume: VolumeId) -> Self {
        let mut next = self.clone();
        next.remove_volume(volume);
        next
    }

    /// Forgets `count` extents from `first` on, where they are `volume`'s, after they were wiped; what is left of
    /// a run on either side stays. Answers whether there were any. The volume's last run takes the volume along.
    pub fn remove_runs(
        &mut self,
        volume: VolumeId,
        first: Extents,
        count: Extents,
    ) -> Result<bool, RemoveRunsError> {
        let end = Extents::new(first.get().saturating_add(count.get()));
        let Some(entry) = self.volumes.get_mut(&volume) else { return Ok(false) };
        let met: Vec<RunEntry> =
            entry.runs.range(..end).map(|(_, r)| *r).rev().take_while(|r| r.end() > first).collect();
        if met.iter().any(|r| r.stripe.is_some() && (r.first < first || r.end() > end)) {
            return Err(RemoveRunsError::PartOfStripe { volume, first, count });
        }
        for r in &met {
            entry.runs.remove(&r.first);
            if r.first < first {
                entry.runs.insert(r.first, RunEntry { count: first.minus(r.first), ..*r });
            }
            if r.end() > end {
                let cut = end.minus(r.first);
                let rest = RunEntry { start: r.start.plus(cut), first: end, count: r.count.minus(cut), ..*r };
                entry.runs.insert(end, rest);
            }
        }
        if entry.runs.is_empty() {
            self.volumes.remove(&volume);
        }
        Ok(!met.is_empty())
    }

    /// Every run by its first extent, but for those of one volume.
    fn owners(&self, but: Option<VolumeId>) -> BTreeMap<Extents, (VolumeId, RunEntry)> {
        let of = |(v, e): (&VolumeId, &VolumeEntry)| {
            let v = *v;
            e.runs.values().map(move |r| (r.first, (v, *r))).collect::<Vec<_>>()
        };
        self.volumes.iter().filter(|(v, _)| Some(**v) != but).flat_map(of).collect()
    }

    /// Holds the invariants against it.
    pub fn check(&self) -> Result<(), LabelFault> {
        self.identity.geometry.check()?;
        let mut seen: BTreeMap<Extents, (VolumeId, RunEntry)> = BTreeMap::new();
        for (volume, e) in &self.volumes {
            let volume = *volume;
            record::check_summary(&e.summary).map_err(|fault| AddRunsError::Summary { volume, fault })?;
            if e.runs.is_empty() {
                return Err(AddRunsError::NoRuns(volume).into());
            }
            for r in e.runs.values() {
                if let Some(why) = r.fault(self.identity.geometry.extents) {
                    return Err(AddRunsError::BadRun { volume, first: r.first, count: r.count, why }.into());
                }
                if let Some((other, o)) = seen.insert(r.first, (volume, *r)) {
                    return Err(conflict(volume, r, other, &o).into());
                }
            }
        }
        let mut last: Option<(VolumeId, RunEntry)> = None;
        for (v, r) in seen.into_values() {
            if let Some((other, o)) = last
                && o.end() > r.first
            {
                return Err(conflict(v, &r, other, &o).into());
            }
            last = Some((v, r));
        }
        Ok(())
    }
}

/// What is left of a run beside newer ones: outside of them it is given up, inside it makes room for another state.
fn cut(old: &RunEntry, newer: &[RunEntry]) -> Vec<RunEntry> {
    let mut met: Vec<&RunEntry> =
        newer.iter().filter(|r| r.first < old.end() && old.first < r.end()).collect();
    met.sort_by_key(|r| r.first);
    if old.stripe.is_some() || met.is_empty() {
        let makes_room = met.iter().any(|r| makes_room(old, r));
        let state = if met.is_empty() { RunState::Retired } else { old.state };
        return if makes_room { vec![] } else { vec![RunEntry { state, ..*old }] };
    }
    let part = |from: Extents, to: Extents, state| {
        let start = old.start.plus(from.minus(old.first));
        RunEntry { start, first: from, count: to.minus(from), state, ..*old }
    };
    let (mut out, mut at) = (vec![], old.first);
    for r in met {
        let (from, to) = (r.first.max(at), r.end().min(old.end()));
        if at < from {
            out.push(part(at, from, RunState::Retired));
        }
        if from < to && !makes_room(old, r) {
            out.push(part(from, to, old.state));
        }
        at = at.max(to);
    }
    if at < old.end() {
        out.push(part(at, old.end(), RunState::Retired));
    }
    out
}

/// Whether a run gives way to one with another state. One that waits to be wiped does not come back before that.
fn makes_room(old: &RunEntry, new: &RunEntry) -> bool {
    let skew = |r: &RunEntry| i128::from(r.start.get()) - i128::from(r.first.get());
    match (old.state, new.state) {
        (_, RunState::Retired) => true,
        (RunState::Filling, RunState::Live) => skew(old) == skew(new),
        (RunState::Live | RunState::Retired, RunState::Live) | (_, RunState::Filling) => false,
    }
}

fn conflict(volume: VolumeId, r: &RunEntry, other: VolumeId, o: &RunEntry) -> AddRunsError {
    AddRunsError::RunConflict {
        volume,
        first: r.first,
        end: r.end(),
        other,
        other_first: o.first,
        other_end: o.end(),
    }
}
