//! Emptying disks, as people ask for it: beginning and ending, a dry run, and how it goes.
//!
//! Invariants: a dry run leaves the index as it found it and writes nothing; a request is answered once it is on record.
//! Must not know: how the mover goes about it.

use std::collections::{BTreeMap, BTreeSet};

use pool::{
    disk::{DiskEvent, DiskState, LastSeen},
    ids::{DiskId, VolumeId},
    record::VolumeRecord,
    units::{Bytes, Extents},
    volume::{Leg, Map, Run},
};

use super::{
    disks::{DiskSlot, Wish},
    engine::Engine,
    mover::{is_draining, piece_on},
    nodes::Node,
    pace,
    stays::Stays,
    volume::{Reply, answer},
};
use crate::api::{ApiError, Blocked, DrainPlan, DrainRow, MoveRow, Pace, Planned, Target};

/// Volumes that stay which are named, a disk.
const NAMED: usize = 16;
/// Pieces that one dry run plans for: some hundred milliseconds of the core at most.
const PLANNED: usize = 2048;

/// How the emptying of disks goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DrainProgress {
    /// The disks in question.
    pub disks: Vec<DrainRow>,
    /// Moves under way off them.
    pub moves: Vec<MoveRow>,
}

/// What was found out about a disk without moving anything.
#[derive(Default)]
struct Imagined {
    moves: BTreeMap<(VolumeId, DiskId), u64>,
    unplanned: u64,
    stay: BTreeMap<VolumeId, (Stays, u64)>,
}

impl Engine {
    /// Begins or ends the emptying of a disk, or of every disk of a node; answers once that is on record. `dry_run` only
    /// says what there is to do.
    pub(super) fn drain(&mut self, target: &Target, undo: bool, dry_run: bool, reply: Reply<Vec<DrainRow>>) {
        let disks = match self.drained_by(target, undo) {
            Ok(disks) => disks,
            Err(e) => return answer(reply, Err(e)),
        };
        if dry_run {
            let mut found = self.imagine(&disks);
            let rows = disks.iter().filter_map(|d| self.planned_row(*d, found.remove(d)?)).collect();
            return answer(reply, Ok(rows));
        }
        for d in &disks {
            self.wish(*d, if undo { Wish::Undrain } else { Wish::Drain });
            self.advance_disk(*d);
        }
        self.mover.asked.push((disks, reply));
        self.answer_drains();
    }

    /// Answers the requests to empty disks that are on record.
    pub(super) fn answer_drains(&mut self) {
        let (open, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.mover.asked)
            .into_iter()
            .partition(|(disks, _)| disks.iter().any(|d| self.disks.get(d).is_some_and(DiskSlot::has_wish)));
        self.mover.asked = open;
        for (disks, reply) in done {
            let rows = disks.iter().filter_map(|d| self.drain_row(*d)).collect();
            answer(reply, Ok(rows));
        }
    }

    /// How the emptying of a disk or a node goes, be it asked for or not.
    pub(super) fn drain_progress(&self, target: &Target) -> Result<DrainProgress, ApiError> {
        let disks = self.meant(target)?;
        let moves = self.move_rows().into_iter().filter(|m| disks.contains(&m.from)).collect();
        Ok(DrainProgress { disks: disks.iter().filter_map(|d| self.drain_row(*d)).collect(), moves })
    }

    /// Every disk that is being emptied.
    pub(super) fn drain_rows(&self) -> Vec<DrainRow> {
        let draining = self.disks.values().filter(|s| is_draining(s.record.disk.state));
        draining.filter_map(|s| self.drain_row(s.record.disk.id)).collect()
    }

    /// The disks of a target that something may lie on.
    fn meant(&self, target: &Target) -> Result<Vec<DiskId>, ApiError> {
        match target {
            Target::Disk(d) if self.disks.contains_key(d) => Ok(vec![*d]),
            Target::Disk(d) => Err(ApiError::NoDisk(*d)),
            Target::Node(n) => {
                if !self.nodes.get(n).is_some_and(Node::is_known) {
                    return Err(ApiError::NoNode(n.to_string()));
                }
                let serves = |s: &&DiskSlot| match s.record.disk.state {
                    DiskState::Serving
                    | DiskState::Draining
                    | DiskState::Claimed
                    | DiskState::Missing { was: LastSeen::Serving | LastSeen::Draining } => true,
                    DiskState::Missing { was: LastSeen::Claimed } | DiskState::Released => false,
                };
                let here = self.disks.values().filter(|s| s.record.disk.node == *n);
                Ok(here.filter(serves).map(|s| s.record.disk.id).collect())
            }
        }
    }

    /// The disks that a request to empty means, if all of them may be.
    fn drained_by(&self, target: &Target, undo: bool) -> Result<Vec<DiskId>, ApiError> {
        let mut disks = self.meant(target)?;
        let event = if undo { DiskEvent::Undrain } else { DiskEvent::Drain };
        let claimed = |d: &DiskId| {
            let state = self.disks.get(d).map(|s| s.record.disk.state);
            state == Some(DiskState::Claimed) && matches!(target, Target::Node(_))
        };
        if undo {
            disks.retain(|d| !claimed(d));
        }
        for d in &disks {
            let state = self.disks.get(d).map(|s| s.record.disk.state);
            if claimed(d) {
                return Err(ApiError::Busy(format!(
                    "disk {d} of it is being claimed: try again in a moment"
                )));
            }
            if let Some(Err(e)) = state.map(|s| s.after(event)) {
                return Err(ApiError::Precondition(format!("disk {d}: {e}")));
            }
        }
        Ok(disks)
    }

    /// Bytes that each volume has on a disk.
    fn bytes_on(&self, disk: DiskId) -> BTreeMap<VolumeId, u64> {
        let mut out: BTreeMap<VolumeId, u64> = BTreeMap::new();
        let Some(size) = self.disks.get(&disk).map(|s| s.record.disk.extent_size) else { return out };
        for (v, run) in self.pool.owners(disk) {
            *out.entry(v).or_default() += size.checked_bytes_of(run.count).map_or(0, Bytes::get);
        }
        out
    }

    /// What is left to do on a disk.
    fn drain_row(&self, disk: DiskId) -> Option<DrainRow> {
        let stay = self.mover.stay.get(&disk).into_iter().flatten();
        let stay = stay.map(|(v, why)| (*v, (why.clone(), 0))).collect();
        self.row(disk, &stay)
    }

    fn planned_row(&self, disk: DiskId, found: Imagined) -> Option<DrainRow> {
        let mut row = self.row(disk, &found.stay)?;
        let planned = |((v, to), bytes): ((VolumeId, DiskId), u64)| {
            let name = self.volumes.get(&v)?.record.name.clone();
            let to_node = self.disks.get(&to)?.record.disk.node.clone();
            Some(Planned { volume: v, name, to, to_node, bytes })
        };
        let moves: Vec<Planned> = found.moves.into_iter().filter_map(planned).collect();
        let bytes = moves.iter().map(|m| m.bytes).sum();
        row.plan = Some(DrainPlan { moves, bytes, unplanned_bytes: found.unplanned });
        Some(row)
    }

    fn row(&self, disk: DiskId, stay: &BTreeMap<VolumeId, (Stays, u64)>) -> Option<DrainRow> {
        let slot = self.disks.get(&disk)?;
        let d = &slot.record.disk;
        let left = self.bytes_on(disk);
        let left_bytes: u64 = left.values().sum();
        let blocked = |(v, (why, missing)): (&VolumeId, &(Stays, u64))| {
            let bytes = left.get(v).copied()?;
            let missing = if why.is_room() && *missing == 0 { bytes } else { *missing };
            Some(Blocked {
                volume: *v,
                name: self.volumes.get(v)?.record.name.clone(),
                bytes,
                missing_bytes: if why.is_room() { missing } else { 0 },
                why: why.to_string(),
                advice: why.advice().to_owned(),
                passing: why.passes(),
            })
        };
        let mut blocked: Vec<Blocked> = stay.iter().filter_map(blocked).collect();
        blocked.sort_by_key(|b| (b.passing, std::cmp::Reverse(b.bytes), b.volume));
        let stuck = |b: &Blocked| if b.missing_bytes > 0 { b.missing_bytes } else { b.bytes };
        let stuck: u64 = blocked.iter().filter(|b| !b.passing).map(stuck).sum();
        let more_blocked = blocked.len().saturating_sub(NAMED);
        blocked.truncate(NAMED);
        let log = self.mover.paces.get(&disk);
        let measured = log.and_then(pace::PaceLog::bytes_s);
        let bytes_s = measured.unwrap_or_else(|| pace::of_class(d.class));
        let movable = left_bytes.saturating_sub(stuck);
        // Fresh extents that were never given out wait for nobody.
        let fresh = d.extents.saturating_sub(slot.record.clean_through);
        let wiping = self.pool.usage(disk).map_or(Extents::ZERO, |u| u.set_aside.saturating_sub(fresh));
        Some(DrainRow {
            disk,
            node: d.node.clone(),
            path: slot.record.path.clone(),
            state: d.state.to_string(),
            draining: is_draining(d.state),
            volumes: left.len(),
            left_bytes,
            wiping_bytes: d.extent_size.checked_bytes_of(wiping).map_or(0, Bytes::get),
            moved_bytes: log.map_or(0, |l| l.moved().get()),
            pace: Pace { bytes_s, measured: measured.is_some() },
            eta_s: (movable > 0).then(|| (movable as f64 / bytes_s.max(1.0)).ceil() as u64),
            blocked,
            more_blocked,
            plan: None,
        })
    }

    /// Plans where everything on these disks would go, one piece after the other, and gives all that it took back.
    fn imagine(&mut self, disks: &[DiskId]) -> BTreeMap<DiskId, Imagined> {
        let not: BTreeSet<DiskId> = disks.iter().copied().collect();
        let (mut out, mut taken) = (BTreeMap::new(), Vec::new());
        // A volume's pieces on several of the disks: where the first ones went counts for the next.
        let mut maps: BTreeMap<VolumeId, Map> = BTreeMap::new();
        for d in disks {
            let mut found = Imagined::default();
            for (v, bytes) in self.bytes_on(*d) {
                let Some(mut r) = self.volumes.get(&v).map(|v| v.record.clone()) else { continue };
                let map = maps.remove(&v).unwrap_or_else(|| r.map.unfilled().without_spare().0);
                r.map = map;
                self.imagine_one(&mut r, *d, &not, &mut found, &mut taken, bytes);
                maps.insert(v, r.map);
            }
            out.insert(*d, found);
        }
        if let Err(e) = self.pool.release_runs(&taken) {
            tracing::error!(error = %e, "what a dry run took cannot be given back: extents stay set aside");
        }
        out
    }

    /// The same for one volume on one disk, on which it has so many bytes.
    fn imagine_one(
        &mut self,
        r: &mut VolumeRecord,
        disk: DiskId,
        not: &BTreeSet<DiskId>,
        found: &mut Imagined,
        taken: &mut Vec<Run>,
        bytes: u64,
    ) {
        let size = |n: Extents| r.extent_size.checked_bytes_of(n).map_or(0, Bytes::get);
        let mut rest = bytes;
        if let Some(why) = self.bound(r, disk) {
            found.stay.insert(r.id, (why, 0));
        }
        while let Some(piece) = piece_on(&r.map, disk, Extents::new(u64::MAX)) {
            if taken.len() >= PLANNED {
                found.unplanned += rest;
                return;
            }
            let run = match self.new_place(r, piece, disk, not) {
                Ok(run) => run,
                Err(why) => {
                    found.stay.insert(r.id, (why, rest));
                    return;
                }
            };
            let to = Leg { disk: run.disk, first: run.first };
            let next = r.map.with_spare(piece.start, run.count, piece.leg, to);
            let Some(next) = next.map(|m| m.switched().without_spare().0) else { return };
            if let Err(e) = self.pool.reserve_runs(&[run]) {
                tracing::error!(error = %e, "the index does not agree with its own plan");
                return;
            }
            taken.push(run);
            r.map = next;
            rest = rest.saturating_sub(size(run.count));
            *found.moves.entry((r.id, run.disk)).or_default() += size(run.count);
        }
    }
}
