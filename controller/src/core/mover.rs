//! What moves and when: disks that are being emptied give their extents to others, a few runs at a time.
//!
//! Invariants: a disk is source of no more moves at a time than its pool says, and target of no more, likewise a node; a volume has
//! one move at a time; what cannot
//! move now is left for later with a reason that people can read. Everything that must survive is in the records of
//! disks (draining) and volumes (the move); the mover itself forgets. Must not know: how a move goes
//! (`moves`), what people ask (`drains`).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use pool::{
    access::{Access, Event, Mode, Outcome},
    disk::{DiskState, LastSeen},
    ids::{DiskId, NodeName, VolumeId},
    layout::Locality,
    moving::{Mirror, MoveCause, Piece},
    policy::Spent,
    record::{Lifecycle, VolumeRecord},
    units::Extents,
    volume::{Leg, Map, Run, Segment},
};

use super::{
    engine::{Engine, Timer},
    grow::placement,
    load::MoveLoad,
    pace::PaceLog,
    stays::Stays,
    volume::{After, Pending, Reply, Volume},
};
use crate::{
    api::{DrainRow, MoveRow},
    fault::Cause,
};

/// How often the mover looks for work while there is any.
const LOOK: Duration = Duration::from_millis(500);
/// How long a volume is left alone after a move of it was called off, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Volumes of a disk that are looked at in one go.
const LOOKED_AT: usize = 256;

/// The mover's memory.
#[derive(Default)]
pub(super) struct Mover {
    /// When it looks next.
    at: Option<Duration>,
    /// Volumes with a move, or held for one.
    pub(super) busy: BTreeSet<VolumeId>,
    /// Volumes whose last move was called off: not before then, and how often in a row.
    again: BTreeMap<VolumeId, (Duration, u32)>,
    /// Why volumes on a disk that is being emptied stay for now.
    pub(super) stay: BTreeMap<DiskId, BTreeMap<VolumeId, Stays>>,
    /// The volume on each disk with which the next look begins.
    looked: BTreeMap<DiskId, VolumeId>,
    /// Requests to empty disks that are not on record yet.
    pub(super) asked: Vec<(Vec<DiskId>, Reply<Vec<DrainRow>>)>,
    /// How fast disks are emptied.
    pub(super) paces: BTreeMap<DiskId, PaceLog>,
    /// What moves that can wait have used of their budgets since this controller began.
    pub(super) spent: Spent,
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
                let cause = old.moving.as_ref().map(|m| m.cause).filter(|c| *c != MoveCause::Drain);
                if let (Some(cause), Some(v)) = (cause, self.volumes.get_mut(&id)) {
                    v.live.moved = Some((self.now.unix_ms, cause));
                }
                if let Some(p) = self.mover.paces.get_mut(&from) {
                    p.left(bytes);
                }
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
            .filter(|s| is_draining(s.record.disk.state))
            .map(|s| s.record.disk.id)
            .collect();
        self.keep_pace(&draining);
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

    /// Takes note of how fast the disks are emptied, and forgets the others.
    fn keep_pace(&mut self, draining: &[DiskId]) {
        let known: BTreeSet<DiskId> = draining.iter().copied().collect();
        self.mover.stay.retain(|d, _| known.contains(d));
        self.mover.looked.retain(|d, _| known.contains(d));
        self.mover.paces.retain(|d, _| known.contains(d));
        let mut copied: BTreeMap<DiskId, u64> = BTreeMap::new();
        for m in self.move_rows().into_iter().filter(|m| m.filling) {
            *copied.entry(m.from).or_default() += m.copied;
        }
        for d in known {
            let copied = copied.get(&d).copied().unwrap_or(0);
            self.mover.paces.entry(d).or_default().mark(self.now.mono, copied);
        }
    }

    /// Begins the next move off a disk, unless as many as may are under way. `wanted`: volumes that are to be held for it.
    fn empty(&mut self, disk: DiskId, wanted: &mut BTreeSet<VolumeId>) {
        let owners: BTreeSet<VolumeId> = self.pool.owners(disk).map(|(v, _)| v).collect();
        let load = self.move_load();
        let under_way = self.mover.busy.iter().filter(|v| {
            let touches = |v: &Volume| v.record.moving.is_some() && v.record.map.disks().contains(&disk);
            owners.contains(*v) && self.volumes.get(v).is_some_and(touches)
        });
        let before = wanted.len();
        wanted.extend(under_way.copied());
        if wanted.len() - before >= load.limits(self, disk).per_disk as usize {
            return;
        }
        let mut stay = self.mover.stay.remove(&disk).unwrap_or_default();
        stay.retain(|v, _| owners.contains(v));
        // On from where the last look ended: a disk may have more volumes that cannot move than one look sees.
        let from = self.mover.looked.remove(&disk).map_or(Bound::Unbounded, Bound::Included);
        let on = owners.range((from, Bound::Unbounded));
        let round: Vec<VolumeId> =
            on.chain(owners.iter()).take(LOOKED_AT.min(owners.len())).copied().collect();
        for id in round {
            self.mover.looked.insert(disk, id);
            match self.try_move(id, disk, &load) {
                Ok(()) => {
                    stay.remove(&id);
                    wanted.insert(id);
                    break;
                }
                Err(why) => drop(stay.insert(id, why)),
            }
        }
        self.mover.stay.insert(disk, stay);
    }

    /// Begins to move a piece of `id` off `disk`, or to hold the volume for it.
    fn try_move(&mut self, id: VolumeId, disk: DiskId, load: &MoveLoad) -> Result<(), Stays> {
        if let Some((times, wait)) = self.backs_off(id) {
            return Err(Stays::CalledOff { times, wait });
        }
        let v = self.volumes.get(&id).ok_or(Stays::Gone)?;
        let r = &v.record;
        if r.lifecycle == Lifecycle::Deleting {
            return Err(Stays::Deleting);
        }
        if v.pending.is_some() || r.moving.is_some() {
            return Err(Stays::Changing);
        }
        let piece = self.plan_piece(r, disk, load)?;
        if r.access.is_idle() {
            return self.hold(id, disk);
        }
        self.begin_move(id, piece, MoveCause::Drain, "the disk is being emptied").map_err(Stays::Other)?;
        self.note_mover(id);
        Ok(())
    }

    /// How often in a row moves of a volume were called off, and for how long it is left alone now.
    pub(super) fn backs_off(&self, id: VolumeId) -> Option<(u32, Duration)> {
        let now = self.now.mono;
        self.mover.again.get(&id).filter(|(at, _)| *at > now).map(|(at, n)| (*n, at.saturating_sub(now)))
    }

    /// Extents of a volume that are moved at a time.
    fn most(&self, r: &VolumeRecord) -> Extents {
        r.extent_size.extents_round_down(self.config.move_piece).max(Extents::new(1))
    }

    /// The next piece of a volume to leave a disk, with its new place; or why there is none now.
    fn plan_piece(&self, r: &VolumeRecord, disk: DiskId, load: &MoveLoad) -> Result<Piece, Stays> {
        let piece = piece_on(&r.map, disk, self.most(r)).ok_or(Stays::Wiping)?;
        if let Some(why) = self.bound(r, disk) {
            return Err(why);
        }
        let to = self.new_place(r, piece, disk, &BTreeSet::new())?;
        load.admits(self, r, disk, to.disk)?;
        Ok(Piece { count: to.count, to: Leg { disk: to.disk, first: to.first }, ..piece })
    }

    /// What keeps a volume's extents on a disk, room elsewhere or not.
    pub(super) fn bound(&self, r: &VolumeRecord, disk: DiskId) -> Option<Stays> {
        let d = &self.disks.get(&disk)?.record.disk;
        if let DiskState::Missing { .. } = d.state {
            return Some(Stays::Missing(disk));
        }
        let silent = |n: &NodeName, part| {
            let silence = self.silence(n);
            (!self.alive(n)).then(|| Stays::Silent { node: n.clone(), part, silence })
        };
        if let Some(s) = silent(&d.node, "has the disk") {
            return Some(s);
        }
        if r.access.is_idle() {
            return None;
        }
        if let Some(holder) = r.access.sole_holder() {
            return silent(holder, "holds it");
        }
        let holders = r.access.holders();
        match (&r.access.access, holders.as_slice()) {
            (Access::Attached { holders }, [only]) if holders.values().any(|m| m.read_only) => {
                Some(Stays::ReadOnly(only.clone()))
            }
            (_, [] | [_]) => Some(Stays::Turning),
            (_, [_, _, ..]) => Some(Stays::Several(holders)),
        }
    }

    /// Where a piece goes: one run of at most its extents, and on none of the disks in `not`.
    pub(super) fn new_place(
        &self,
        r: &VolumeRecord,
        piece: Piece,
        from: DiskId,
        not: &BTreeSet<DiskId>,
    ) -> Result<Run, Stays> {
        let user = r.access.users().first().cloned();
        let host = self.disks.get(&from).map(|s| s.record.disk.node.clone());
        let segment = r.map.0.iter().find(|s| s.start <= piece.start && piece.start < s.end());
        let places = segment.into_iter().flat_map(Segment::places).map(|l| l.disk);
        let whole = segment.is_some_and(|s| s.stripe.is_some());
        let mut request = placement(&r.params, &r.pool, Extents::new(1));
        // The lender that is left goes, in time, for the one that comes.
        request.max_lenders = request.max_lenders.saturating_add(1);
        request.existing = r.map.clone();
        request.avoid = places.chain(r.retired.iter().map(|r| r.disk)).chain(not.iter().copied()).collect();
        request.seed = piece.start.get();
        request.home = match r.params.locality {
            Locality::Prefer => user.or(host.filter(|_| r.access.users().is_empty())),
            Locality::Require | Locality::None => None,
        };
        let run = self.pool.plan_run(&request, piece.count).map_err(Stays::NoRoom)?;
        if whole && run.count < piece.count {
            return Err(Stays::NoStripe(r.extent_size.checked_bytes_of(piece.count).unwrap_or_default()));
        }
        Ok(run)
    }

    /// Has the host of `disk` hold a volume that nobody uses, so that it can move.
    fn hold(&mut self, id: VolumeId, disk: DiskId) -> Result<(), Stays> {
        let node = self.disks.get(&disk).map(|s| s.record.disk.node.clone()).ok_or(Stays::Missing(disk))?;
        self.turn(id, &Event::Attach { node, mode: Mode::UPKEEP }).map_err(Stays::Other)
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
                name: v.record.name.clone(),
                from: from.disk,
                to: to.disk,
                to_node: self.disks.get(&to.disk)?.record.disk.node.clone(),
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

/// Whether a disk is to be emptied, be it there or not.
pub(super) fn is_draining(state: DiskState) -> bool {
    match state {
        DiskState::Draining | DiskState::Missing { was: LastSeen::Draining } => true,
        DiskState::Claimed
        | DiskState::Serving
        | DiskState::Missing { was: LastSeen::Claimed | LastSeen::Serving }
        | DiskState::Released => false,
    }
}

/// The first piece of a map on a disk, its target open: a linear segment's first `most` extents, or a whole leg of a
/// striped one.
pub(super) fn piece_on(map: &Map, disk: DiskId, most: Extents) -> Option<Piece> {
    map.0.iter().find_map(|s| {
        let leg = s.legs.iter().position(|l| l.disk == disk)?;
        let count = if s.stripe.is_some() { s.leg_count() } else { s.count.min(most) };
        Some(Piece { start: s.start, count, leg: leg as u32, to: Leg { disk, first: Extents::ZERO } })
    })
}
