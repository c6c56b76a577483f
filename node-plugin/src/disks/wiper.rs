//! Wipes of one disk, on a thread of its own: zeroing takes minutes, and must keep neither the label nor another
//! disk waiting.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use pool::{
    ids::DiskId,
    units::{Bytes, ExtentSize, Extents},
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use observe::chain;

use super::{
    hardware::Hardware,
    room::Event,
    slot::{Ask, WipeJob, WipeStop},
};

/// Between two tries of a wipe whose extents are still mapped; nothing tells when a table goes.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// Between two words on the progress of one wipe.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How a wipe is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WipeNews {
    pub(super) wipe: u64,
    pub(super) done: bool,
    pub(super) extents_done: Extents,
    /// It will not be done as it was asked for.
    pub(super) refused: bool,
    pub(super) reason: String,
}

/// A wiper's surroundings.
pub(super) struct Wiper {
    pub(super) hardware: Arc<dyn Hardware>,
    pub(super) disk: DiskId,
    pub(super) path: PathBuf,
    pub(super) extent_size: ExtentSize,
    pub(super) label: Sender<Ask>,
    pub(super) room: UnboundedSender<Event>,
    /// Set when the disk is not served any more.
    pub(super) stop: Arc<AtomicBool>,
}

impl Wiper {
    /// Works until nobody sends jobs any more.
    pub(super) fn run(&self, jobs: &Receiver<WipeJob>) {
        let mut pending: VecDeque<WipeJob> = VecDeque::new();
        let mut pause = FIRST_PAUSE;
        loop {
            let next = if pending.is_empty() {
                jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                jobs.recv_timeout(pause)
            };
            match next {
                Ok(job) => {
                    pause = FIRST_PAUSE;
                    pending.push_back(job);
                }
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(LAST_PAUSE),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            pending.extend(jobs.try_iter());
            for _ in 0..pending.len() {
                let Some(job) = pending.pop_front() else { break };
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(job) = self.attempt(job) {
                    pending.push_back(job);
                }
            }
        }
    }

    /// One try; answers the job when it is to be tried again.
    fn attempt(&self, job: WipeJob) -> Option<WipeJob> {
        let mut done = Extents::ZERO;
        let all: Extents = job.runs.iter().map(|(_, n)| *n).sum();
        let out = self.wipe(&job, &mut done);
        let wipe = job.wipe;
        let news =
            |done, extents_done, refused, reason| WipeNews { wipe, done, extents_done, refused, reason };
        match out {
            Ok(()) => {
                tracing::info!(disk = %self.disk, wipe, extents = %all, "wiped");
                self.tell(news(true, all, false, String::new()));
                None
            }
            // Logged where it was refused. Nothing that comes by itself would change it.
            Err(WipeStop::Refused(why)) => {
                self.tell(news(false, done, true, why));
                None
            }
            Err(WipeStop::Wait(why) | WipeStop::Failed(why)) => {
                tracing::warn!(disk = %self.disk, wipe, "wipe waits: {why}");
                self.tell(news(false, done, false, why));
                Some(job)
            }
        }
    }

    fn wipe(&self, job: &WipeJob, done: &mut Extents) -> Result<(), WipeStop> {
        let ranges = self.ask(|reply| Ask::BeginWipe(job.clone(), reply))?;
        let zeroed = self.zero(job, &ranges, done);
        let struck = self.ask(|reply| Ask::EndWipe(job.clone(), zeroed.is_ok(), reply));
        zeroed.and(struck)
    }

    fn zero(&self, job: &WipeJob, ranges: &[(Bytes, Bytes)], done: &mut Extents) -> Result<(), WipeStop> {
        let mut told = Instant::now();
        let mut before = Bytes::ZERO;
        for (at, len) in ranges {
            let mut progress = |n: Bytes| {
                *done = self.extent_size.extents_round_down(before.plus(n));
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    let (wipe, extents_done) = (job.wipe, *done);
                    let reason = String::new();
                    self.tell(WipeNews { wipe, done: false, extents_done, refused: false, reason });
                }
            };
            self.hardware
                .zero(&self.path, *at, *len, &self.stop, &mut progress)
                .map_err(|e| WipeStop::Failed(chain(&e)))?;
            before = before.plus(*len);
        }
        Ok(())
    }

    fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, WipeStop>>) -> Ask) -> Result<T, WipeStop> {
        let gone = || WipeStop::Failed("the disk is not served any more".to_owned());
        let (reply, answer) = oneshot::channel();
        self.label.send(ask(reply)).map_err(|_| gone())?;
        answer.blocking_recv().unwrap_or_else(|_| Err(gone()))
    }

    fn tell(&self, news: WipeNews) {
        if self.room.send(Event::Wipe(self.disk, news)).is_err() {
            tracing::debug!("the disk room has ended");
        }
    }
}
