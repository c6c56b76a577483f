//! Moves that somebody found worth while, made here: each is held against what is so now, against the pool's policy and against
//! its budget, and begins as a move like any other, with its reason in the volume's history.
//!
//! Invariants: a proposal is for the record that was looked at, and void for any other; a drain comes first. Must not know: what
//! makes a move worth while (`pool::planner`).

use std::collections::BTreeMap;

use pool::{
    ids::{DiskId, PoolName, VolumeId},
    moving::{MoveCause, Piece},
    planner::Proposal,
    policy::{MovePolicy, Spending, is_budgeted},
    record::{Lifecycle, VolumeRecord},
    units::{Bytes, Extents},
    volume::Leg,
};

use super::{
    engine::Engine,
    mover::is_draining,
    stays::Stays,
    volume::{Reply, answer},
};

impl Engine {
    /// Begins the moves that are proposed, as far as they may begin; answers with those that may not, and why.
    pub(super) fn take_proposals(&mut self, all: &[Proposal], reply: Reply<Vec<(VolumeId, String)>>) {
        let mut refused = Vec::new();
        let mut sizes: BTreeMap<PoolName, Extents> = BTreeMap::new();
        for d in self.pool.disks() {
            let n = sizes.entry(d.pool.clone()).or_default();
            *n = n.plus(d.extents);
        }
        for p in all {
            let begun = self.begin_proposed(p, &sizes);
            self.measures.proposed(p.cause, begun.is_ok());
            if let Err(why) = begun {
                tracing::debug!(volume = %p.volume, from = %p.from, to = %p.to, cause = %p.cause, %why, "a proposed move does not begin");
                refused.push((p.volume, why.to_string()));
            }
        }
        answer(reply, Ok(refused));
    }

    fn begin_proposed(&mut self, p: &Proposal, sizes: &BTreeMap<PoolName, Extents>) -> Result<(), Stays> {
        let r = self.may_move(p)?;
        let policy = self.moving_policy(r);
        let piece = self.piece_to(r, p)?;
        let load = self.move_load();
        if load.off(p.from) >= policy.budget.per_disk {
            return Err(Stays::SourceBusy);
        }
        load.admits(self, r, p.from, p.to)?;
        let bytes = r.extent_size.checked_bytes_of(piece.count).unwrap_or(Bytes::new(u64::MAX));
        let pool = r.pool.clone();
        let pool_extents = sizes.get(&pool).copied().unwrap_or_default();
        let extents = piece.count;
        let spending = Spending { pool: &pool, pool_extents, from: p.from, to: p.to, extents, bytes };
        let now_s = self.now.mono.as_secs();
        if is_budgeted(p.cause) {
            self.mover.spent.check(now_s, &policy.budget, &spending).map_err(Stays::Over)?;
        }
        self.begin_move(p.volume, piece, p.cause, &p.why.to_string()).map_err(Stays::Other)?;
        self.note_mover(p.volume);
        if is_budgeted(p.cause) {
            self.mover.spent.spend(now_s, &spending);
        }
        Ok(())
    }

    fn moving_policy(&self, r: &VolumeRecord) -> MovePolicy {
        self.specs.get(&r.pool).map(|s| s.moving).unwrap_or_default()
    }

    /// The record that a proposal is for, if it still stands, and its pool wants such moves.
    fn may_move(&self, p: &Proposal) -> Result<&VolumeRecord, Stays> {
        let v = self.volumes.get(&p.volume).ok_or(Stays::Gone)?;
        let r = &v.record;
        if r.lifecycle == Lifecycle::Deleting {
            return Err(Stays::Deleting);
        }
        if v.pending.is_some() || r.moving.is_some() || r.access.epoch != p.epoch {
            return Err(Stays::Changing);
        }
        if r.access.users().len() != 1 || r.access.sole_holder().is_none() {
            return Err(Stays::Turning);
        }
        if let Some((times, wait)) = self.backs_off(p.volume) {
            return Err(Stays::CalledOff { times, wait });
        }
        let drained = self.disks.get(&p.from).is_some_and(|s| is_draining(s.record.disk.state));
        if p.cause == MoveCause::Drain || !self.moving_policy(r).allows(p.cause) || drained {
            return Err(Stays::Unwanted(p.cause));
        }
        match self.bound(r, p.from) {
            Some(why) => Err(why),
            None => Ok(r),
        }
    }

    /// The piece with a run on the disk that was chosen, if that may have it.
    fn piece_to(&self, r: &VolumeRecord, p: &Proposal) -> Result<Piece, Stays> {
        let s = r.map.0.iter().find(|s| s.start <= p.start && p.start < s.end()).ok_or(Stays::Changing)?;
        let leg = s.legs.get(p.leg as usize).filter(|l| l.disk == p.from).ok_or(Stays::Changing)?;
        let whole = s.stripe.is_some();
        let most = if whole { s.leg_count() } else { s.end().saturating_sub(p.start) };
        if p.count.is_zero() || p.count > most || (whole && (p.count != most || p.start != s.start)) {
            return Err(Stays::Changing);
        }
        let to = self.pool.disk(p.to).ok_or(Stays::Missing(p.to))?;
        let block = self.pool.disk(leg.disk).map(|d| d.logical_block);
        let taken = s.places().any(|l| l.disk == p.to) || r.retired.iter().any(|r| r.disk == p.to);
        if to.pool != r.pool || Some(to.logical_block) != block || !to.takes_new_data() || taken {
            return Err(Stays::TargetTaken);
        }
        let home = r.access.sole_holder() == Some(&to.node);
        if !home && self.lenders_with(r, p.to) > r.params.max_lenders as usize + 1 {
            return Err(Stays::TargetTaken);
        }
        let room = if home { self.pool.usage(p.to).map(|u| u.free) } else { self.pool.lendable(p.to) };
        let free = self.pool.free_of(p.to).ok_or(Stays::Missing(p.to))?;
        let run = free.best_fit(p.count).or_else(|| free.longest_first().next().filter(|_| !whole));
        let run = run.ok_or(Stays::TargetTaken)?;
        let count = run.count.min(p.count).min(room.unwrap_or_default());
        if count.is_zero() || (whole && count < p.count) {
            return Err(Stays::TargetTaken);
        }
        Ok(Piece { start: p.start, count, leg: p.leg, to: Leg { disk: p.to, first: run.first } })
    }

    /// Lenders that a volume would have with this disk.
    fn lenders_with(&self, r: &VolumeRecord, to: DiskId) -> usize {
        let holder = r.access.sole_holder();
        let disks = r.map.disks().into_iter().chain([to]);
        let hosts: std::collections::BTreeSet<_> = disks.filter_map(|d| self.host_of(d)).collect();
        hosts.iter().filter(|n| Some(*n) != holder).count()
    }
}
