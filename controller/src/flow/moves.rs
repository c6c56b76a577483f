//! The timer that finds moves worth while: asks the core for facts a few hundred at a time, fills in loads and forecasts,
//! plans pool by pool, and proposes.
//!
//! Invariants: nothing is proposed before this controller has reigned for a while and has heard every node that is
//! connected; what is proposed rests on facts of this round, and the core holds it against what is so by then. What was moved
//! within a day is remembered beside the forecasts, which learn of it slowly ([`Shifts`]); a controller that starts does not know
//! it, and its pools' budgets of a day bound what follows from that. Must not know: what makes a move worth while
//! (`pool::planner`), how it goes (the core).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pool::{
    ids::{PoolName, VolumeId},
    planner::{self, Busy, DiskFact, Proposal, Shifts, VolumeFact},
};

use super::{Flow, sweep::unix_s};
use crate::{
    api::ApiError,
    core::{Handle, PoolToPlan, Wanted},
};

/// Disks, and volumes, of one question to the core: some hundred microseconds of it.
const CHUNK: usize = 256;
/// Proposals of one command to the core.
const AT_A_TIME: usize = 64;

/// When moves are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long a controller has to have reigned before it proposes any.
    pub settle: Duration,
    /// Between the beginnings of two rounds.
    pub every: Duration,
}

impl Default for Pace {
    /// After five minutes every node has come back that comes back at all, and minutes of samples stand for the disks whose
    /// forecasts do not count yet; loads and growth are means of minutes, so more than one look a minute finds nothing new.
    fn default() -> Self {
        Self { settle: Duration::from_secs(300), every: Duration::from_secs(60) }
    }
}

/// The facts of one pool.
struct Facts {
    rules: PoolToPlan,
    disks: Vec<DiskFact>,
    volumes: Vec<VolumeFact>,
    busy: Busy,
}

impl Facts {
    fn of(rules: PoolToPlan) -> Self {
        Self { rules, disks: vec![], volumes: vec![], busy: Busy::default() }
    }

    fn plan(&self) -> Vec<Proposal> {
        planner::plan(&self.rules.policy, self.rules.most, &self.disks, &self.volumes, &self.busy)
    }
}

/// How a round went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// It is too early for any.
    pub settling: bool,
    /// What was proposed.
    pub proposed: Vec<Proposal>,
    /// Of it, what did not begin, and why.
    pub refused: Vec<(VolumeId, String)>,
}

/// Looks for moves, round by round.
pub struct Moves {
    core: Handle,
    flow: Arc<Flow>,
    pace: Pace,
    settled: bool,
    shifts: Shifts,
}

impl Moves {
    /// For a reign that begins.
    #[must_use]
    pub fn new(core: Handle, pace: Pace) -> Self {
        let flow = core.flow().clone();
        Self { core, flow, pace, settled: false, shifts: Shifts::default() }
    }

    /// What is worth moving at the time `now_s`, in seconds since 1970; `None` while it is too early to say. `reigned` is how long
    /// this controller has reigned.
    ///
    /// # Errors
    /// The core is stopping.
    pub async fn plan(&mut self, now_s: u64, reigned: Duration) -> Result<Option<Vec<Proposal>>, ApiError> {
        let planning = self.core.planning().await?;
        if !self.settled {
            if reigned < self.pace.settle || planning.unheard > 0 {
                tracing::debug!(?reigned, unheard = planning.unheard, "too early for moves");
                return Ok(None);
            }
            self.settled = true;
            tracing::info!(pools = planning.pools.len(), "settled: extents may move from now on");
        }
        self.shifts.forget(now_s);
        let mut pools: BTreeMap<PoolName, Facts> =
            planning.pools.into_iter().map(|(name, rules)| (name, Facts::of(rules))).collect();
        if pools.is_empty() {
            return Ok(Some(vec![]));
        }
        self.ask_disks(now_s, &mut pools).await?;
        self.ask_volumes(now_s, &mut pools).await?;
        let planned = tokio::task::spawn_blocking(move || pools.values().flat_map(Facts::plan).collect());
        planned.await.map(Some).map_err(|e| ApiError::Internal(format!("moves were not planned: {e}")))
    }

    async fn ask_disks(&self, now_s: u64, pools: &mut BTreeMap<PoolName, Facts>) -> Result<(), ApiError> {
        let mut after = None;
        loop {
            let (rows, last) = self.core.disks_to_plan(after, CHUNK).await?;
            for mut d in rows {
                let Some(facts) = pools.get_mut(&d.pool) else { continue };
                self.flow.rate_disk(now_s, facts.rules.by_forecast, d.extent_size, &mut d.fact);
                if d.gives {
                    facts.busy.giving.insert(d.fact.disk);
                }
                if d.takes {
                    facts.busy.taking.insert(d.fact.disk);
                }
                facts.disks.push(d.fact);
            }
            if last.is_none() {
                break;
            }
            after = last;
        }
        self.shifts.apply(pools.values_mut().flat_map(|f| f.disks.iter_mut()));
        Ok(())
    }

    async fn ask_volumes(&self, now_s: u64, pools: &mut BTreeMap<PoolName, Facts>) -> Result<(), ApiError> {
        let wanted = Arc::new(wanted(pools));
        if wanted.disks.is_empty() && wanted.away.is_empty() {
            return Ok(());
        }
        let mut after = None;
        loop {
            let (rows, last) = self.core.volumes_to_plan(after, CHUNK, wanted.clone()).await?;
            for mut v in rows {
                self.flow.rate_volume(now_s, &mut v.fact);
                // Of a million idle volumes none is kept in memory.
                let matters = v.fact.pieces.iter().any(|p| p.peak > 0 || wanted.disks.contains(&p.disk));
                if let Some(facts) = pools.get_mut(&v.pool).filter(|_| matters) {
                    facts.volumes.push(v.fact);
                }
            }
            if last.is_none() {
                return Ok(());
            }
            after = last;
        }
    }

    /// Plans, and proposes what came out of it.
    ///
    /// # Errors
    /// The core is stopping.
    pub async fn round(&mut self, now_s: u64, reigned: Duration) -> Result<Round, ApiError> {
        let Some(proposed) = self.plan(now_s, reigned).await? else {
            return Ok(Round { settling: true, ..Round::default() });
        };
        let mut refused = Vec::new();
        for some in proposed.chunks(AT_A_TIME) {
            let not: Vec<(VolumeId, String)> = self.core.propose(some.to_vec()).await?;
            let names: BTreeSet<VolumeId> = not.iter().map(|(v, _)| *v).collect();
            // A plan has one piece of a volume.
            some.iter().filter(|p| !names.contains(&p.volume)).for_each(|p| self.shifts.note(now_s, p));
            refused.extend(not);
        }
        Ok(Round { settling: false, proposed, refused })
    }

    /// Looks for moves until the core stops.
    pub async fn keep_looking(mut self) {
        let begun = tokio::time::Instant::now();
        let mut ticks = tokio::time::interval(self.pace.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.round(unix_s(), begun.elapsed()).await {
                Ok(r) if r.proposed.is_empty() => {}
                Ok(r) => tracing::debug!(proposed = r.proposed.len(), refused = r.refused.len(), "moves"),
                Err(ApiError::Unavailable(why)) => return tracing::debug!(why, "no more moves"),
                // A planner that failed once may do better on other facts.
                Err(e) => tracing::error!(error = %e, "no moves were planned"),
            }
        }
    }
}

/// Which volumes matter: those on disks that may have to give, and those away from home where they may come back.
fn wanted(pools: &BTreeMap<PoolName, Facts>) -> Wanted {
    let gives = |f: &Facts, d: &DiskFact| d.may_give(&f.rules.policy) && !f.busy.giving.contains(&d.disk);
    let disks = pools.values().flat_map(|f| f.disks.iter().filter(|d| gives(f, d)).map(|d| d.disk));
    let away = pools.iter().filter(|(_, f)| f.rules.policy.gravity).map(|(name, _)| name.clone());
    Wanted { disks: disks.collect(), away: away.collect() }
}
