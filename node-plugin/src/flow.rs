//! Recording: what this node's disks and volumes do, every 10 s, from the kernel's own counters.
//!
//! One timer, one short-lived thread a look. Samples go to the controller over the session, and into histories that this
//! node keeps on its own disk and sends again at the start of every session: a controller that starts anew, or another
//! one, needs no store of its own for them. Invariants: nothing here is on the I/O path or changes a device; a counter that
//! went back, or a look that failed, is no sample and never a zero. Must not know: goals, epochs, maps.

pub mod areas;
mod file;
pub mod look;
mod rows;
mod wire;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use csi_proto::node as proto;
use pool::ids::DiskId;
use tokio::sync::watch;
use tracing::warn;

use self::{
    look::{Eye, Wants},
    rows::Rows,
};
use crate::agent::calls::Calls;

/// Between two looks.
pub const EVERY: Duration = Duration::from_secs(forecast::SAMPLE_S);
/// Every how many looks the areas of volumes are read: they serve decisions about hours.
const AREAS_EVERY: u64 = 6;
/// Every how many looks devices are asked for their health: they keep count themselves.
const HEALTH_EVERY: u64 = 30;
/// Every how many looks histories are written down: that much is lost with the machine.
const SAVE_EVERY: u64 = 30;

/// What is recorded on this node. Cheap to share.
#[derive(Debug)]
pub struct Recorder {
    file: PathBuf,
    state: Mutex<State>,
    news: watch::Sender<Option<Arc<proto::Recording>>>,
}

#[derive(Debug, Default)]
struct State {
    rows: Rows,
    sequence: u64,
    /// Disks that were asked for their health when that was last asked.
    asked: BTreeSet<DiskId>,
    /// There are others by now.
    unasked: bool,
}

fn unix_s() -> u64 {
    // A clock before 1970 is as wrong as one at 1970.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Recorder {
    /// Reads what was recorded before; what cannot be read begins anew.
    #[must_use]
    pub fn open(state_dir: &Path) -> Arc<Self> {
        let file = state_dir.join("recording");
        let rows = match file::read(&file) {
            Ok(rows) => rows,
            Err(e) => {
                warn!(error = %e, "what was recorded before cannot be read: histories begin anew");
                Rows::default()
            }
        };
        let state = Mutex::new(State { rows, sequence: 0, asked: BTreeSet::new(), unasked: false });
        Arc::new(Self { file, state, news: watch::Sender::new(None) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A history is sound after every step, so a panic elsewhere spoils none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks every `every` until `stop` says so, then writes down what it has.
    pub async fn run(
        self: Arc<Self>,
        eye: Arc<dyn Eye>,
        calls: Calls,
        every: Duration,
        mut stop: watch::Receiver<bool>,
    ) {
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = String::new();
        for n in 0_u64.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stop.wait_for(|s| *s) => break,
            }
            let health = n % HEALTH_EVERY == 0 || self.lock().unasked;
            let wants = Wants { areas: n % AREAS_EVERY == 0, health };
            let (eye, me) = (eye.clone(), self.clone());
            let save = n % SAVE_EVERY == SAVE_EVERY - 1;
            let one = move || -> Result<(), String> {
                let look = eye.look(wants).map_err(|e| e.to_string())?;
                me.note_asked(wants, &look);
                me.take(begun.elapsed(), unix_s(), look);
                if save { me.save().map_err(|e| e.to_string()) } else { Ok(()) }
            };
            // A look that does not return is waited for: a second one would not return either.
            let why = match calls.run("look at the counters".into(), one).await {
                Ok(Ok(())) => String::new(),
                Ok(Err(e)) => e,
                Err(e) => e.to_string(),
            };
            // The same again and again is said once.
            if !why.is_empty() && why != trouble {
                warn!(why, "nothing was recorded; lenders of which nothing is heard lend nothing");
            }
            trouble = why;
        }
        let saved = calls.run("write the histories down".into(), move || self.save());
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!(error = %e, "the histories of the last minutes are not written down"),
            Err(e) => warn!(error = %e, "the histories of the last minutes are not written down"),
        }
    }

    /// A disk that has just come is asked for its health at the next look, not minutes later.
    fn note_asked(&self, wants: Wants, look: &look::Look) {
        let mut s = self.lock();
        if wants.health {
            s.asked = look.disks.keys().copied().collect();
        }
        s.unasked = look.disks.keys().any(|d| !s.asked.contains(d));
    }

    /// Takes one look in and makes it news.
    fn take(&self, mono: Duration, at_s: u64, look: look::Look) {
        let recording = {
            let mut s = self.lock();
            s.sequence += 1;
            let sequence = s.sequence;
            let samples = s.rows.take(mono, at_s, look);
            wire::recording(sequence, at_s, samples)
        };
        self.news.send_replace(Some(Arc::new(recording)));
    }

    /// The newest recording and those to come; a listener that is slow misses some.
    pub fn listen(&self) -> watch::Receiver<Option<Arc<proto::Recording>>> {
        self.news.subscribe()
    }

    /// Everything that is kept, in messages of moderate size.
    pub fn histories(&self) -> Vec<proto::Recording> {
        let s = self.lock();
        wire::histories(s.sequence, unix_s(), &s.rows)
    }

    /// Keeps what the controller gives into this node's keeping.
    pub fn keep(&self, keep: proto::Keep) {
        let mut s = self.lock();
        for k in keep.disks {
            match k.disk.parse() {
                Ok(disk) => s.rows.keep(disk, k.state),
                Err(e) => warn!(disk = k.disk, error = %e, "a disk that is none: not kept"),
            }
        }
    }

    /// Writes the histories down.
    ///
    /// # Errors
    /// The file system's; what was written before stays.
    pub fn save(&self) -> Result<(), FileError> {
        let bytes = file::encode(&self.lock().rows);
        file::write(&self.file, &bytes)
    }

    /// How many disks and volumes have a history.
    pub fn counts(&self) -> (u64, u64) {
        self.lock().rows.counts()
    }
}

pub use file::FileError;

#[cfg(test)]
mod tests;
