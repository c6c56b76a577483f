//! The core: one task owns all state. Requests, reports and time come in; records are written before anything follows
//! from them; goals go out. Invariants: no lock is held across anything but a map insertion (the goal boxes); the
//! core never waits for a node or for the store while others could be served. Must not know: CSI, gRPC.

mod boot;
pub mod config;
mod devices;
mod disks;
mod drains;
mod engine;
mod facts;
mod grow;
mod handle;
mod lending;
mod load;
mod measures;
mod mover;
mod moves;
mod nodes;
mod operate;
mod pace;
mod parting;
mod proposals;
mod publish;
mod query;
mod report;
pub mod seen;
mod stays;
mod steps;
pub mod told;
mod volume;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::Instant};

pub use boot::StartError;
pub use config::{CoreConfig, DeviceSelector, FreshDisks, NodeSelector, PoolSpec};
pub use drains::DrainProgress;
pub use facts::{DiskToPlan, Planning, PoolToPlan, VolumeToPlan, Wanted};
pub use handle::{Handle, OpenError, Session};
pub use measures::{Measures, Tally};
pub use operate::{DiskLine, VolumeDetail, VolumeLine};
pub use report::{DiskReport, Fleet, News, Standing, VolumeReport};

use crate::{
    fault::{Fault, Side},
    store::{Reign, Store, StoreError},
};
use engine::{Engine, Now, Write, Written};
use handle::Command;

/// Commands that may wait for the core: beyond that, whoever asks waits.
const COMMANDS: usize = 1024;
/// Commands taken in before the writes that they led to are handed out.
const BATCH: usize = 64;

/// Why the core ended.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// What is durable is not known, or somebody else writes: a new start has to load everything again.
    #[error("the core cannot go on")]
    Store(#[from] StoreError),
}

/// Tells milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

fn system_clock() -> u64 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(unix.as_millis()).unwrap_or(u64::MAX)
}

/// The core, loaded and ready to run.
pub struct Core {
    engine: Engine,
    store: Arc<dyn Store>,
    fault: Fault,
    commands: mpsc::Receiver<Command>,
    started: Instant,
    clock: Clock,
}

impl Core {
    /// Loads every record and begins a new reign.
    pub async fn start(
        config: CoreConfig,
        store: Arc<dyn Store>,
        fault: Fault,
    ) -> Result<(Core, Handle), StartError> {
        Self::start_with(config, store, fault, Box::new(|| uuid::Uuid::new_v4().as_u128())).await
    }

    /// The same with another source of ids: they must never repeat.
    pub async fn start_with(
        config: CoreConfig,
        store: Arc<dyn Store>,
        fault: Fault,
        draw: Box<dyn FnMut() -> u128 + Send>,
    ) -> Result<(Core, Handle), StartError> {
        let begun = Instant::now();
        let Reign { term, system } = store.begin().await?;
        let (heartbeat, lease) = (config.heartbeat, config.lease);
        let mut engine = Engine::new(config, term, draw);
        engine.load(store.as_ref()).await?;
        let (volumes, disks, nodes) = (engine.volumes.len(), engine.disks.len(), engine.nodes.len());
        tracing::info!(%term, %system, volumes, disks, nodes, took = ?begun.elapsed(), "records loaded");
        let (tx, commands) = mpsc::channel(COMMANDS);
        let reign = Reign { term, system };
        let handle = Handle::new(tx, reign, engine.measures.clone(), heartbeat, lease);
        let clock: Clock = Arc::new(system_clock);
        Ok((Core { engine, store, fault, commands, started: Instant::now(), clock }, handle))
    }

    /// The same by another calendar; leases and deadlines are not told by it.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    fn now(&self) -> Now {
        Now { mono: self.started.elapsed(), unix_ms: (self.clock)() }
    }

    /// Runs until every handle is dropped, or until the store has failed: then the process should end, and the next
    /// one learns the truth by loading it.
    pub async fn run(mut self) -> Result<(), CoreError> {
        let mut writes: FuturesUnordered<BoxFuture<'static, Written>> = FuturesUnordered::new();
        self.engine.now = self.now();
        self.engine.resume();
        let mut batch = Vec::with_capacity(BATCH);
        let result = loop {
            for w in self.engine.take_writes() {
                writes.push(perform(self.store.clone(), self.fault.clone(), w).boxed());
            }
            if let Some(e) = self.engine.fatal.take() {
                break Err(e.into());
            }
            let due = self.engine.next_timer().map(|at| self.started + at);
            tokio::select! {
                biased;
                Some(done) = writes.next(), if !writes.is_empty() => {
                    self.engine.now = self.now();
                    self.engine.on_written(done);
                }
                n = self.commands.recv_many(&mut batch, BATCH) => {
                    if n == 0 {
                        break Ok(());
                    }
                    self.engine.now = self.now();
                    for command in batch.drain(..) {
                        self.engine.on_command(command);
                    }
                }
                () = sleep_until(due) => {
                    self.engine.now = self.now();
                    self.engine.on_time();
                }
            }
        };
        self.engine.close_sessions();
        // What was handed to the store is finished, so that its outcome is durable or the store says otherwise.
        while let Some(done) = writes.next().await {
            if let Err(e) = &done.result {
                tracing::warn!(key = %done.key, error = %e, "a last write failed");
            }
        }
        result
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn perform(store: Arc<dyn Store>, fault: Fault, w: Write) -> Written {
    fault.point(w.cause, Side::Before);
    let result = match (w.record, w.expected) {
        (Some(record), expected) => store.put(expected, record).await.map(Some),
        (None, Some(expected)) => store.delete(expected, w.key.clone()).await.map(|()| None),
        // What was never stored needs no deletion.
        (None, None) => Ok(None),
    };
    if result.is_ok() {
        fault.point(w.cause, Side::After);
    }
    Written { key: w.key, result }
}
