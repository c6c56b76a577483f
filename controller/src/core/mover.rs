//! What moves and when: disks that are being emptied give their extents to others, a few runs at a time.
//!
//! Invariants: a disk is source of one move at a time and target of one; a volume has one move at a time; what cannot
//! move now is left for later with a reason that people can read. Everything that must survive is in the records of
//! disks (draining) and volumes (the move); the mover itself forgets. Must not know: how a move goes (`moves`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pool::{
    access::{Event, Mode, Outcome},
    disk::{DiskEvent, DiskState},
    ids::{DiskId, NodeName, VolumeId},
    layout::Locality,
    moving::{Mirror, MoveCause, Piece},
    record::{Lifecycle, VolumeRecord},
    units::{Bytes, Extents},
    volume::{Leg, Map, Run, Segment},
};

use super::{
    engine::{Engine, Timer},
    grow::placement,
    volume::{After, Pending, Reply, answer},
};
use crate::{
    api::{ApiError, DrainRow, DrainTarget, MoveRow},
    fault::Cause,
};

/// How often the mover looks for work while there is any.
const LOOK: Duration = Duration::from_millis(500);
/// How long a volume is left alone after a move of it was called off, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Volumes of a disk that are looked at in one go.
const LOOKED_AT: usize = 256;
/// Reasons that are kept for people, a disk.
const REASONS: usize = 16;

/// The mover's memory.
#[derive(Default)]
pub(super) struct Mover {
    /// When it looks next.
    at: Option<Duration>,
    /// Volumes with a move, or held for one.
    busy: BTreeSet<VolumeId>,
    /// Volumes whose last move was called off: not before then, and how often in a row.
    again: BTreeMap<VolumeId, (Duration, u32)>,
    /// Why volumes on a disk that is being emptied stay for now.
    stay: BTreeMap<DiskId, BTreeMap<VolumeId, String>>,
    /// Requests to empty disks that are not on record yet.
    asked: Vec<(Vec<DiskId>, Reply<Vec<DrainRow>>)>,
    /// Bytes moved off each disk since this controller began, and since when.
    moved: BTreeMap<DiskId, (Duration, Bytes)>,
}

impl Engine {
    /// Has the mover look soon.
    pub(super) fn wake_mover(&mut self) {
        self.look_at(self.now.mono);
    }

    /// Has the mover look at this time, or before.
    fn look_at(&mut self, at: Duration) {
        if self.mover.at.is_none_or(|t| at < t) {
            if let Some(t) = self.mover.at.replace(at) {
                self.disarm(t, Timer::Mover);
            }
            self.arm(at, Timer::Mover);
        }
    }

    /// Takes note that a volume's move, or its hold for one, changed.
    pub(super) fn note_mover(&mut self, id: VolumeId) {
        let Some(v) = self.volumes.get(&id) else { return };
        let busy = v.record.moving.is_some() || v.record.access.upkeeper().is_some();
        if busy && self.mover.busy.insert(id) {
            self.look_at(self.now.mono + LOOK);
        }
    }

    /// Takes note of how a move went: `old` is the record before the write for `cause`.
    pub(super) fn note_move(&mut self, id: VolumeId, cause: Cause, old: &VolumeRecord) {
        let Some((s, spare)) = old.map.spare() else { return };
        match cause {
            Cause::MoveEnd => return self.wake_mover(),
            Cause::MoveSwitch => {
                let Some(from) = s.legs.get(spare.leg as usize).map(|l| l.disk) else { return };
                let bytes = old.extent_size.checked_bytes_of(s.leg_count()).unwrap_or_default();
                self.mover.again.remove(&id);
                self.wake_mover();
                let (_, sum) = self.mover.moved.entry(from).or_insert((self.now.mono, Bytes::ZERO));
                *sum = Bytes::new(sum.get().saturating_add(bytes.get()));
                return;
            }
            Cause::MoveAbort => {}
            _ => return,
        }
        let n = self.mover.again.get(&id).map_or(0, |(_, n)| *n);
        let pause = AGAIN.0.saturating_mul(1 << n.min(8)).min(AGAIN.1);
        self.mover.again.insert(id, (self.now.mono + pause, n + 1));
    }

    /// Looks for work, and begins what may begin.
    pub(super) fn on_mover(&mut self) {
        self.mover.at = None;
        let volumes = &self.volumes;
        let busy = |id: &VolumeId| {
            volumes.get(id).is_some_and(|v| v.record.moving.is_some() || v.record.access.upkeeper().is_some())
        };
        self.mover.busy.retain(busy);
        let draining: Vec<DiskId> = self
            .disks
            .values()
            .filter(|s| s.record.disk.state == DiskState::Draining)
            .map(|s| s.record.disk.id)
            .collect();
        self.mover.stay.retain(|d, _| draining.contains(d));
        let mut wanted = BTreeSet::new();
        for disk in &draining {
            self.empty(*disk, &mut wanted);
        }
        self.let_go(&wanted);
        let more = draining.iter().any(|d| self.pool.owners(*d).next().is_some());
        if more || !self.mover.busy.is_empty() {
            self.look_at(self.now.mono + LOOK);
        }
    }

    /// Begins the next move off a disk, unless one is under way. `wanted`: volumes that are to be held for it.
    fn empty(&mut self, disk: DiskId, wanted: &mut BTreeSet<VolumeId>) {
        let owners: BTreeSet<VolumeId> = self.pool.owners(disk).map(|(v, _)| v).take(LOOKED_AT).collect();
        let is_busy = |d: DiskId, map: &Map| map.spare().is_some() && map.disks().contains(&d);
        if let Some(v) = owners.iter().find(|v| {
            self.volumes.get(v).is_some_and(|v| v.record.moving.is_some() && is_busy(disk, &v.record.map))
        }) {
            wanted.insert(*v);
            return;
        }
        let mut stay = BTreeMap::new();
        for id in owners {
            match self.try_move(id, disk) {
                Ok(()) => {
                    wanted.insert(id);
                    break;
                }
                Err(why) => {
                    if stay.len() < REASONS {
                        stay.insert(id, why);
                    }
                }
            }
        }
        self.mover.stay.insert(disk, stay);
    }

    /// Begins to move a piece of `id` off `disk`, or to hold the volume for it.
    fn try_move(&mut self, id: VolumeId, disk: DiskId) -> Result<(), String> {
        let now = self.now.mono;
        if let Some((at, n)) = self.mover.again.get(&id).filter(|(at, _)| *at > now) {
            let wait = at.saturating_sub(now).as_secs() + 1;
            return Err(format!("its last {n} moves were called off: again in {wait} s"));
        }
        let v = self.volumes.get(&id).ok_or("it is gone")?;
        let r = &v.record;
        if r.lifecycle == Lifecycle::Deleting {
            return Err("it is being deleted".to_owned());
        }
        if v.pending.is_some() || r.moving.is_some() {
            return Err("it is being changed".to_owned());
        }
        let piece = self.plan_piece(r, disk)?;
        if r.access.is_idle() {
            return self.hold(id, disk);
        }
        self.begin_move(id, piece, MoveCause::Drain)?;
        self.note_mover(id);
        Ok(())
    }

    /// Extents of a volume that are moved at a time.
    fn most(&self, r: &VolumeRecord) -> Extents {
        r.extent_size.extents_round_down(self.config.move_piece).max(Extents::new(1))
    }

    /// The next piece of a volume to leave a disk, with its new place; or why there is none now.
    fn plan_piece(&self, r: &VolumeRecord, disk: DiskId) -> Result<Piece, String> {
        let piece = piece_on(&r.map, disk, self.most(r)).ok_or("its extents there wait to be wiped")?;
        let to = self.new_place(r, piece, disk)?;
        if !r.access.is_idle() && r.access.sole_holder().is_none() {
            return Err(match r.access.holders().len() {
                0 => "it is being detached".to_owned(),
                1 => "it is held to read only, or is being attached".to_owned(),
                _ => "it is held by several nodes: when it is held by one again".to_owned(),
            });
        }
        Ok(Piece { count: to.count, to: Leg { disk: to.disk, first: to.first }, ..piece })
    }

    /// Where a piece goes: one run of at most its extents.
    fn new_place(&self, r: &VolumeRecord, piece: Piece, from: DiskId) -> Result<Run, String> {
        let user = r.access.users().first().cloned();
        let host = self.disks.get(&from).map(|s| s.record.disk.node.clone());
        let segment = r.map.0.iter().find(|s| s.start <= piece.start && piece.start < s.end());
        let places = segment.into_iter().flat_map(Segment::places).map(|l| l.disk);
        let avoid = places.chain(r.retired.iter().map(|r| r.disk)).collect();
        let whole = segment.is_some_and(|s| s.stripe.is_some());
        let mut request = placement(&r.params, &r.pool, Extents::new(1));
        // The lender that is left goes, in time, for the one that comes.
        request.max_lenders = request.max_lenders.saturating_add(1);
        request.existing = r.map.clone();
        request.avoid = avoid;
        request.seed = piece.start.get();
        request.home = match r.params.locality {
            Locality::Prefer => user.or(host.filter(|_| r.access.users().is_empty())),
            Locality::Require | Locality::None => None,
        };
        let run = self.pool.plan_run(&request, piece.count).map_err(|e| e.to_string())?;
        if whole && run.count < piece.count {
            return Err(format!("no disk has room for a whole stripe of {} extents", piece.count));
        }
        let busy = self.mover.busy.iter().filter_map(|id| self.volumes.get(id)?.record.map.spare());
        let mut targets = busy.filter(|(_, p)| p.filling).map(|(_, p)| p.place.disk);
        if targets.any(|d| d == run.disk) {
            return Err("the disk that it would go to is taking something else at the moment".to_owned());
        }
        Ok(run)
    }

    /// Has the host of `disk` hold a volume that nobody uses, so that it can move.
    fn hold(&mut self, id: VolumeId, disk: DiskId) -> Result<(), String> {
        let node =
            self.disks.get(&disk).map(|s| s.record.disk.node.clone()).ok_or("its disk is not on record")?;
        if !self.alive(&node) {
            return Err(format!("node {node} has not been heard of for {}", self.silence(&node)));
        }
        self.turn(id, &Event::Attach { node, mode: Mode::UPKEEP })
    }

    /// Has an event of the controller's own happen to a volume's access.
    fn turn(&mut self, id: VolumeId, event: &Event) -> Result<(), String> {
        let v = self.volumes.get(&id).ok_or("it is gone")?;
        let outcome = self.with_facts(v, |facts| v.record.access.on(event, facts));
        if let Outcome::Changed(state, _) = outcome.map_err(|e| e.to_string())? {
            let pending: Pending = self.step(v, state, &[], After::Nothing).into();
            self.write_volume(id, pending);
            self.publish(id);
        }
        Ok(())
    }

    /// Lets go of volumes that are held for moves and have none to come.
    fn let_go(&mut self, wanted: &BTreeSet<VolumeId>) {
        let held: Vec<(VolumeId, NodeName)> = self
            .mover
            .busy
            .iter()
            .filter(|id| !wanted.contains(*id))
            .filter_map(|id| {
                let v = self.volumes.get(id).filter(|v| v.pending.is_none() && v.record.moving.is_none())?;
                Some((*id, v.record.access.upkeeper()?.clone()))
            })
            .collect();
        for (id, node) in held {
            if let Err(why) = self.turn(id, &Event::Detach { node }) {
                tracing::warn!(volume = %id, why, "a volume that was held for moves is not let go");
            }
        }
    }

    /// Begins or ends the emptying of a disk, or of every disk of a node; answers once that is on record. `dry_run` only
    /// says what there is to do.
    pub(super) fn drain(
        &mut self,
        target: &DrainTarget,
        undo: bool,
        dry_run: bool,
        reply: Reply<Vec<DrainRow>>,
    ) {
        let disks = match self.drained_by(target, undo) {
            Ok(disks) => disks,
            Err(e) => return answer(reply, Err(e)),
        };
        if dry_run {
            let rows = disks.iter().filter_map(|d| self.drain_row(*d, true)).collect();
            return answer(reply, Ok(rows));
        }
        for d in &disks {
            self.wish(*d, !undo);
            self.advance_disk(*d);
        }
        self.mover.asked.push((disks, reply));
        self.answer_drains();
    }

    /// Answers the requests to empty disks that are on record.
    pub(super) fn answer_drains(&mut self) {
        let (open, done): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.mover.asked).into_iter().partition(|(disks, _)| {
                disks.iter().any(|d| self.disks.get(d).is_some_and(super::disks::DiskSlot::has_wish))
            });
        self.mover.asked = open;
        for (disks, reply) in done {
            let rows = disks.iter().filter_map(|d| self.drain_row(*d, false)).collect();
            answer(reply, Ok(rows));
        }
    }

    /// The disks that a request to empty means, if all of them may be.
    fn drained_by(&self, target: &DrainTarget, undo: bool) -> Result<Vec<DiskId>, ApiError> {
        let disks: Vec<DiskId> = match target {
            DrainTarget::Disk(d) if self.disks.contains_key(d) => vec![*d],
            DrainTarget::Disk(d) => return Err(ApiError::NoDisk(*d)),
            DrainTarget::Node(n) => {
                if self.nodes.get(n).is_none_or(|n| n.record.is_none()) {
                    return Err(ApiError::NoNode(n.to_string()));
                }
                self.disks.values().map(|s| &s.record.disk).filter(|d| d.node == *n).map(|d| d.id).collect()
            }
        };
        let event = if undo { DiskEvent::Undrain } else { DiskEvent::Drain };
        for d in &disks {
            let state = self.disks.get(d).map(|s| s.record.disk.state);
            if let Some(Err(e)) = state.map(|s| s.after(event)) {
                return Err(ApiError::Precondition(format!("disk {d}: {e}")));
            }
        }
        Ok(disks)
    }

    /// What is left to do on a disk that is being emptied; `all`: on any disk, with what would keep volumes there.
    pub(super) fn drain_row(&self, disk: DiskId, all: bool) -> Option<DrainRow> {
        let d = &self.disks.get(&disk)?.record.disk;
        if d.state != DiskState::Draining && !all {
            return None;
        }
        let mut left: BTreeMap<VolumeId, u64> = BTreeMap::new();
        for (v, run) in self.pool.owners(disk) {
            let bytes = d.extent_size.checked_bytes_of(run.count).map_or(0, Bytes::get);
            *left.entry(v).or_default() += bytes;
        }
        let usage = self.pool.usage(disk);
        let wiping = usage.and_then(|u| d.extent_size.checked_bytes_of(u.set_aside)).map_or(0, Bytes::get);
        let mut blocked: BTreeMap<VolumeId, String> = self.mover.stay.get(&disk).cloned().unwrap_or_default();
        if all && d.state != DiskState::Draining {
            blocked =
                left.keys().take(LOOKED_AT).filter_map(|v| Some((*v, self.would_stay(*v, disk)?))).collect();
        }
        let left_bytes: u64 = left.values().sum();
        let rate = self.mover.moved.get(&disk).map(|(since, bytes)| {
            bytes.get() as f64 / self.now.mono.saturating_sub(*since).as_secs_f64().max(1.0)
        });
        let eta_s = rate.filter(|r| *r > 0.0).map(|r| (left_bytes as f64 / r).ceil() as u64);
        Some(DrainRow {
            disk,
            node: d.node.clone(),
            volumes: left.len(),
            left_bytes,
            wiping_bytes: wiping,
            eta_s,
            blocked: blocked.into_iter().map(|(v, why)| (v.to_string(), why)).collect(),
        })
    }

    /// Why a volume would stay on a disk that is to be emptied, as things are.
    fn would_stay(&self, id: VolumeId, disk: DiskId) -> Option<String> {
        self.plan_piece(&self.volumes.get(&id)?.record, disk).err()
    }

    /// Moves under way.
    pub(super) fn move_rows(&self) -> Vec<MoveRow> {
        let row = |id: &VolumeId| {
            let v = self.volumes.get(id)?;
            let (m, (s, spare)) = (v.record.moving.as_ref()?, v.record.map.spare()?);
            let leg = s.legs.get(spare.leg as usize)?;
            let (from, to) = if spare.filling { (leg, &spare.place) } else { (&spare.place, leg) };
            let bytes = v.record.extent_size.checked_bytes_of(s.leg_count())?.get();
            let copied = match v.live.attachments.get(&m.by).and_then(|a| a.mirror) {
                Some(Mirror::Copying(done, _)) if spare.filling => done.get(),
                Some(Mirror::Whole) => bytes,
                Some(Mirror::Gone | Mirror::Broken | Mirror::Copying(..)) | None if spare.filling => 0,
                Some(Mirror::Gone | Mirror::Broken | Mirror::Copying(..)) | None => bytes,
            };
            Some(MoveRow {
                volume: *id,
                from: from.disk,
                to: to.disk,
                by: m.by.clone(),
                cause: m.cause,
                bytes,
                copied,
                filling: spare.filling,
            })
        };
        self.mover.busy.iter().filter_map(row).collect()
    }
}

/// The first piece of a map on a disk, its target open: a linear segment's first `most` extents, or a whole leg of a
/// striped one.
fn piece_on(map: &Map, disk: DiskId, most: Extents) -> Option<Piece> {
    map.0.iter().find_map(|s| {
        let leg = s.legs.iter().position(|l| l.disk == disk)?;
        let count = if s.stripe.is_some() { s.leg_count() } else { s.count.min(most) };
        Some(Piece { start: s.start, count, leg: leg as u32, to: Leg { disk, first: Extents::ZERO } })
    })
}
