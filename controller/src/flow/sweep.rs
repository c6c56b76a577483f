//! The timer that keeps offers and ceilings fresh: asks the core for facts, weighs them, sets and tells what is news, a few hundred
//! disks at a time, so that whoever wants a volume never waits for it.
//!
//! Must not know: how offers come about.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use forecast::{DeviceClass, Strength};
use pool::ids::PoolName;

use super::Flow;
use crate::{api::ApiError, core::Handle};

/// Between the beginnings of two sweeps.
pub const EVERY: Duration = Duration::from_secs(10);
/// Disks of one question to the core: some hundred microseconds of it.
const CHUNK: usize = 256;

/// Seconds since 1970.
#[must_use]
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Weighs every disk once. How many offers were set.
///
/// # Errors
/// The core is stopping.
pub async fn sweep(flow: &Arc<Flow>, core: &Handle, now_s: u64) -> Result<usize, ApiError> {
    let (mut after, mut known, mut set) = (None, BTreeSet::new(), 0);
    let mut pools: BTreeMap<PoolName, Vec<(DeviceClass, f64)>> = BTreeMap::new();
    loop {
        let facts = core.disk_facts(after, CHUNK).await?;
        let Some(last) = facts.last().map(|f| f.disk) else { break };
        known.extend(facts.iter().map(|f| f.disk));
        let flow = flow.clone();
        // The first time forecasts are made of a week of hours: milliseconds a disk, not on the threads of sessions.
        let weighed = tokio::task::spawn_blocking(move || {
            let serving = facts.iter().filter(|f| f.serving);
            let able: Vec<_> = serving.filter_map(|f| Some((f.pool.clone(), flow.able(f.disk)?))).collect();
            (flow.weigh(now_s, &facts), able)
        });
        let (news, able) =
            weighed.await.map_err(|e| ApiError::Internal(format!("offers were not weighed: {e}")))?;
        for (pool, able) in able {
            pools.entry(pool).or_default().push(able);
        }
        set += news.len();
        if !news.is_empty() {
            core.set_offers(news).await?;
        }
        after = Some(last);
    }
    flow.forget(now_s, &known);
    let strengths = pools.into_iter().filter_map(|(pool, able)| Some((pool, Strength::median(able)?)));
    core.set_strengths(strengths.collect()).await?;
    let ceilings = flow.tell_ceilings(now_s);
    if ceilings > 0 {
        tracing::debug!(ceilings, "owners of lent disks wait");
    }
    Ok(set)
}

/// Sweeps until the core stops.
pub async fn keep_sweeping(flow: Arc<Flow>, core: Handle) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match sweep(&flow, &core, unix_s()).await {
            Ok(0) => {}
            Ok(n) => tracing::debug!(offers = n, "offers set"),
            Err(e) => return tracing::debug!(error = %e, "no more sweeps"),
        }
    }
}
