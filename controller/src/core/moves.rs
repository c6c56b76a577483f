//! The steps of one move: what `pool::moving` says is next for a volume's record, looked at whenever something about
//! the volume may have changed. Must not know: what is worth moving (`mover`).

use std::time::Duration;

use pool::{
    ids::{DiskId, VolumeId},
    moving::{Mirror, MoveCause, MoveFacts, MoveStep, Piece},
    record::VolumeRecord,
    volume::Run,
};

use super::{
    engine::{Engine, Timer},
    steps::Step,
    volume::{After, Pending, Volume},
};
use crate::fault::Cause;

/// A mirror that has not got on for so long is taken down again: writes to what it copies may be waiting.
const STALLED: Duration = Duration::from_secs(60);

impl Engine {
    /// The next write of a volume's move.
    pub(super) fn plan_move_step(&mut self, id: VolumeId) -> Option<Pending> {
        self.volumes.get(&id)?.record.moving.as_ref()?;
        self.note_progress(id);
        let facts = self.move_facts(self.volumes.get(&id)?)?;
        self.move_step(id, &facts)
    }

    /// The write that calls a volume's move off; `None` when no spare of it is being filled.
    pub(super) fn called_off(&mut self, id: VolumeId) -> Option<Pending> {
        self.volumes.get(&id).filter(|v| v.record.is_filling())?;
        self.move_step(id, &MoveFacts { mirror: None, obstacle: true })
    }

    fn move_step(&mut self, id: VolumeId, facts: &MoveFacts) -> Option<Pending> {
        let wipe = self.draw_wipe();
        let v = self.volumes.get(&id)?;
        let (cause, mut next, retire, text) = match v.record.step_move(facts, || wipe) {
            MoveStep::Wait => return None,
            MoveStep::Switch(r) => (Cause::MoveSwitch, r, vec![], "the new place holds everything"),
            MoveStep::CallOff(r) => (Cause::MoveAbort, r, vec![], "called off: the old place stays"),
            MoveStep::End(r, run) => (Cause::MoveEnd, r, vec![run], "what was left behind is being wiped"),
        };
        let what = describe(&v.record)?;
        tracing::info!(volume = %id, epoch = %next.access.epoch, "{what}: {text}");
        if cause != Cause::MoveEnd {
            next.note(self.now.unix_ms, format!("{what}: {text}"));
        }
        Some(Pending { retire, ..Step { next: *next, cause, after: After::Nothing }.into() })
    }

    fn move_facts(&self, v: &Volume) -> Option<MoveFacts> {
        let by = &v.record.moving.as_ref()?.by;
        let (_, spare) = v.record.map.spare()?;
        // What was said in an earlier session may be about a kernel that is no more.
        let heard = self.nodes.get(by).is_some_and(|n| n.has_reported());
        let seen = v.live.attachments.get(by).filter(|_| heard);
        let cut = seen.is_some_and(|a| a.queueing.contains(&spare.place.disk));
        let stalled = v.live.progress.is_some_and(|(_, since)| since + STALLED <= self.now.mono);
        Some(MoveFacts {
            mirror: seen.and_then(|a| Some((a.epoch, a.mirror?))),
            obstacle: cut || stalled || self.unreachable(spare.place.disk),
        })
    }

    /// Whether nothing can be put on a disk, or should be.
    fn unreachable(&self, disk: DiskId) -> bool {
        self.disks
            .get(&disk)
            .is_none_or(|s| !s.record.disk.takes_new_data() || !self.alive(&s.record.disk.node))
    }

    /// Keeps the time at which a mirror last got on.
    fn note_progress(&mut self, id: VolumeId) {
        let now = self.now.mono;
        let Some(v) = self.volumes.get_mut(&id) else { return };
        let by = v.record.moving.as_ref().filter(|_| v.record.is_filling()).map(|m| &m.by);
        let Some(by) = by else {
            v.live.progress = None;
            return;
        };
        let said = v.live.attachments.get(by).and_then(|a| a.mirror).unwrap_or(Mirror::Gone);
        if v.live.progress.is_none_or(|(last, _)| last != said) {
            v.live.progress = Some((said, now));
            self.arm(now + STALLED, Timer::Volume(id));
        }
    }

    /// Begins to move a piece of a volume; its target is free. `why` is for people.
    pub(super) fn begin_move(
        &mut self,
        id: VolumeId,
        piece: Piece,
        cause: MoveCause,
        why: &str,
    ) -> Result<(), String> {
        let v = self.volumes.get(&id).filter(|v| v.pending.is_none()).ok_or("a write is under way")?;
        let mut next = v.record.begin_move(piece, cause).map_err(|e| e.to_string())?;
        let run = Run { disk: piece.to.disk, first: piece.to.first, count: piece.count };
        let what = describe(&next).unwrap_or_default();
        next.note(self.now.unix_ms, format!("{what}: begins ({cause}: {why})"));
        tracing::info!(volume = %id, epoch = %next.access.epoch, %cause, why, "{what}: begins");
        self.pool.take_run(id, run).map_err(|e| e.to_string())?;
        let step = Step { next, cause: Cause::MoveBegin, after: After::Nothing };
        self.write_volume(id, Pending { reserved: vec![run], ..step.into() });
        self.publish(id);
        Ok(())
    }
}

/// The move that stands in a record, for people.
fn describe(r: &VolumeRecord) -> Option<String> {
    let (s, spare) = r.map.spare()?;
    let leg = s.legs.get(spare.leg as usize)?;
    let size = r.extent_size.checked_bytes_of(s.leg_count())?;
    let (from, to) = if spare.filling { (leg.disk, spare.place.disk) } else { (spare.place.disk, leg.disk) };
    Some(format!("move of {size} from extent {} on, disk {from} -> {to}", s.start))
}
