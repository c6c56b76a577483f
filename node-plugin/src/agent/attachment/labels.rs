//! What the labels of this node's disks have of a volume, and the lane that writes what a leg waits for: a disk that has come to
//! this node is to have the map on its label before the leg goes on there. The top's pass writes labels too, but may be waiting
//! for that very leg.
//!
//! Invariants: a newer goal's label is never overtaken by an older one's; what was heard of labels before the goal or the disks
//! changed counts no more; a label that cannot be written keeps no other from being written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pool::ids::DiskId;
use tokio::time::Instant;
use tracing::warn;

use super::{FAILED, Lane, lane, pass::Ticket};
use crate::{
    agent::{Ctx, retry::Backoff},
    disks_api::{RecordError, RunRecord},
};

/// What became of writing a label.
pub struct Written {
    era: u64,
    record: RunRecord,
    done: Result<(), RecordError>,
}

/// Labels with what they have of one volume.
pub struct Labels {
    /// What they are known to have.
    known: Vec<RunRecord>,
    /// What they will be known to have when the pass over the top has looked.
    promised: Vec<RunRecord>,
    /// Disks whose labels did not get it, where a leg waits for that: not tried again yet.
    unlabelled: BTreeSet<DiskId>,
    /// Why, as it was last said.
    refused: BTreeMap<DiskId, String>,
    /// Counts what makes the outcome of a write say nothing: another goal, other disks.
    era: u64,
    lane: Lane<Written>,
    wanted: bool,
    retry: Option<Instant>,
    pause: Backoff,
}

impl Default for Labels {
    fn default() -> Self {
        Self {
            known: vec![],
            promised: vec![],
            unlabelled: BTreeSet::new(),
            refused: BTreeMap::new(),
            era: 0,
            lane: None,
            wanted: true,
            retry: None,
            pause: Backoff::new(FAILED.0, FAILED.1),
        }
    }
}

impl Labels {
    /// There is another goal: all are looked after anew.
    pub fn renew(&mut self) {
        self.era += 1;
        self.unlabelled.clear();
        self.pause.reset();
        (self.wanted, self.retry) = (true, None);
    }

    /// Disks came or went. One that was opened again may have another label.
    pub fn forget(&mut self) {
        self.known.clear();
        self.promised.clear();
        self.renew();
    }

    /// There may be a leg more that waits.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether a disk's label is known to have this. It is written for a new map, not for a new epoch.
    pub fn have(&self, r: &RunRecord) -> bool {
        self.known.iter().any(|known| known.disk == r.disk && known.map == r.map)
    }

    /// The top's pass is to see to these; gives those that it has to write.
    pub fn promise(&mut self, records: Vec<RunRecord>) -> Vec<RunRecord> {
        let missing = records.iter().filter(|r| !self.have(r)).cloned().collect();
        self.promised = records;
        missing
    }

    /// The top's pass has written what it was to write.
    pub fn keep_promise(&mut self) {
        self.known = std::mem::take(&mut self.promised);
    }

    /// Whether a look for the next label to be written is due.
    pub fn is_due(&self) -> bool {
        self.lane.is_none() && self.wanted
    }

    /// Starts writing the first of the records for which a leg waits.
    pub fn start(&mut self, mut waiting: impl Iterator<Item = RunRecord>, ctx: &Arc<Ctx>, ticket: Ticket) {
        self.wanted = false;
        let open = |r: &RunRecord| !self.have(r) && !self.unlabelled.contains(&r.disk);
        let Some(record) = waiting.find(open) else { return };
        let (ctx, era) = (ctx.clone(), self.era);
        self.lane = Some(Box::pin(async move {
            // Nothing comes between this and the label's queue.
            let done = if ticket.is_stale() { Ok(()) } else { ctx.disks.record_runs(record.clone()).await };
            Written { era, record, done }
        }));
    }

    /// Waits for the label that is being written.
    pub async fn written(&mut self) -> Written {
        let w = lane(&mut self.lane).await;
        self.lane = None;
        w
    }

    /// Takes in what became of it. True when a leg can go on.
    pub fn on_written(&mut self, w: Written) -> bool {
        self.wanted = true;
        if w.era != self.era {
            return false;
        }
        let disk = w.record.disk;
        let Err(e) = w.done else {
            self.known.retain(|known| known.disk != disk);
            self.known.push(w.record);
            return true;
        };
        let why = e.to_string();
        if self.refused.get(&disk) != Some(&why) {
            warn!(%disk, why, "a leg cannot go on on its disk, which has come here; will try again");
            self.refused.insert(disk, why);
        }
        self.unlabelled.insert(disk);
        self.retry.get_or_insert_with(|| Instant::now() + self.pause.pause());
        false
    }

    /// When those that failed are to be tried again.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry
    }

    /// Time has passed.
    pub fn on_timer(&mut self, now: Instant) {
        if self.retry.is_some_and(|t| t <= now) {
            (self.retry, self.wanted) = (None, true);
            self.unlabelled.clear();
        }
    }
}
