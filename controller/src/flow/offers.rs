//! From histories and the core's facts to offers, and to what the allocator needs of them.
//!
//! Invariants: an offer is recomputed from facts that are newer than the loans it leads to, and not set if the disk has been
//! allocated from meanwhile; small changes are not set at all, so the index stays quiet. Must not know: the core.

use std::collections::BTreeMap;

use forecast::{DeviceClass, Facts, HealthReport, Offer, Reason, Resolution};
use pool::{
    alloc,
    disk::DiskClass,
    ids::{DiskId, NodeName, PoolName, VolumeId},
    units::{Bytes, ExtentSize, Extents},
};

use super::{
    Flow, ToNode,
    ceilings::{Borrowed, Loans},
    class_index,
};

/// Bytes a second at which lent space is taken back: a move copies at the speed of one disk or of a 1 Gbit/s network, in
/// competition with everything else.
const RECALL_BYTES_S: f64 = 100e6;
/// Changes of what can be lent by less than this share are not news.
const QUIET: f64 = 0.02;
/// The same for the score.
const QUIET_SCORE: u32 = 25;

/// What the core knows of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// Which.
    pub disk: DiskId,
    /// Its node.
    pub node: NodeName,
    /// Its pool.
    pub pool: PoolName,
    /// Its class on record.
    pub class: DiskClass,
    /// Bytes of an extent.
    pub extent_size: ExtentSize,
    /// Extents it has.
    pub extents: Extents,
    /// Of them, free.
    pub free: Extents,
    /// Of them, volumes'.
    pub owned: Extents,
    /// Of these, of volumes held at other nodes.
    pub loans: BTreeMap<VolumeId, Borrowed>,
    /// It neither wipes nor copies: what it does is its users'.
    pub still: bool,
    /// Kept for its own node.
    pub reserve: Extents,
    /// It serves and takes new data.
    pub serving: bool,
    /// The offer that stands in the index.
    pub offer: Option<alloc::Offer>,
}

/// An offer for the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetOffer {
    /// Of which disk.
    pub disk: DiskId,
    /// What was free when it was weighed: if that has changed, it is void.
    pub free_then: Extents,
    /// The offer; `None`: none.
    pub offer: Option<alloc::Offer>,
}

/// A reason in a word, for metrics.
#[must_use]
pub fn reason_word(reason: &Reason) -> &'static str {
    match reason {
        Reason::Lends => "lends",
        Reason::NotServing => "not_serving",
        Reason::NeverSampled => "never_sampled",
        Reason::Stale { .. } => "stale",
        Reason::Unhealthy(_) => "unhealthy",
        Reason::LoadUnknown => "load_unknown",
        Reason::NoSpace => "no_space",
        Reason::Busy => "busy",
    }
}

impl DiskFacts {
    fn lent(&self) -> Extents {
        self.loans.values().fold(Extents::ZERO, |n, b| n.plus(b.extents))
    }

    fn bytes(&self, n: Extents) -> u64 {
        self.extent_size.checked_bytes_of(n).map_or(0, Bytes::get)
    }

    fn facts(&self, now_s: u64, row: &super::DiskRow) -> Facts {
        let (health, errors) = row.health.unwrap_or((HealthReport::default(), 0));
        let lent_io = row.sample.as_ref().map_or(0.0, |s| s.lent);
        Facts {
            now_s,
            sampled_s: row.sampled_s,
            serving: self.serving,
            health,
            media_errors_before: errors,
            size: self.bytes(self.extents),
            used: self.bytes(self.extents.saturating_sub(self.free)),
            lent: self.bytes(self.lent()),
            // One copy: there is nothing to rebuild.
            rebuild_bytes: 0,
            watermark: self.bytes(self.reserve),
            recall_bytes_s: RECALL_BYTES_S,
            lent_io,
            rebuild_io: 0.0,
        }
    }
}

/// How gladly a disk lends: half of it for I/O that it can spare, by how sure that is; what is not known is neutral.
fn score(o: &Offer) -> u32 {
    let neutral = alloc::Offer::NEUTRAL;
    let spare = match o.io_reason {
        Reason::LoadUnknown => return neutral,
        Reason::Lends | Reason::Busy if o.ledger.usable_io > 0.0 => o.io / o.ledger.usable_io,
        _ => return 0,
    };
    let sure = o.confidence.clamp(0.0, 1.0);
    let believed = sure * spare.clamp(0.0, 1.0) + (1.0 - sure) * 0.5;
    // Between 0 and 1000.
    (believed * 1000.0).round() as u32
}

/// What the index is to have for an offer.
fn for_index(f: &DiskFacts, o: &Offer) -> alloc::Offer {
    let lendable = f.extent_size.extents_round_down(Bytes::new(o.bytes)).min(f.free);
    alloc::Offer { lendable, score: score(o) }
}

/// Whether an offer differs from the one that stands by enough to be set.
fn is_news(stands: Option<alloc::Offer>, next: alloc::Offer) -> bool {
    let Some(s) = stands else { return true };
    let (was, is) = (s.lendable.get(), next.lendable.get());
    let most = was.max(is) as f64;
    let moved = was.abs_diff(is) as f64 > QUIET * most || (was == 0) != (is == 0);
    moved || s.score.abs_diff(next.score) >= QUIET_SCORE
}

impl Flow {
    /// Weighs what these disks can lend now; gives what is news for the index.
    pub fn weigh(&self, now_s: u64, all: &[DiskFacts]) -> Vec<SetOffer> {
        all.iter().filter_map(|f| self.weigh_one(now_s, f)).collect()
    }

    fn weigh_one(&self, now_s: u64, f: &DiskFacts) -> Option<SetOffer> {
        // One disk at a time: nodes that report wait for a forecast of one disk at most.
        let mut s = self.lock();
        let state = &mut *s;
        let set = |offer| Some(SetOffer { disk: f.disk, free_then: f.free, offer });
        let Some(row) = state.disks.get_mut(&f.disk).filter(|r| r.node == f.node) else {
            // Its node has never recorded anything: nothing is known, which is not "nothing can be lent".
            return f.offer.and_then(|_| set(None));
        };
        let hour = now_s / 3600;
        row.growth.observe(hour, f.bytes(f.owned.saturating_sub(f.lent())));
        if row.load.newest_hour().is_none_or(|h| h + 1 < row.series.kept(Resolution::Hour).end) {
            let class = &mut state.classes[class_index(row.model.class())];
            row.load.catch_up(&row.series, class);
        }
        if row.sampled_s.is_none() {
            row.offer = None;
            return f.offer.and_then(|_| set(None));
        }
        Loans::look(row, f, now_s);
        let offer = forecast::offer(&f.facts(now_s, row), &row.model, &row.load, &row.growth);
        row.offer = Some(offer);
        if row.kept_hour < hour {
            row.kept_hour = hour;
            let to_node = state.nodes.get(&f.node).and_then(|n| n.to_node.as_ref());
            // A session that is stuck misses an hour, the next one has it.
            let keep = ToNode::Keep(vec![(f.disk, row.growth.encode())]);
            if let Some(Err(e)) = to_node.map(|to| to.try_send(keep)) {
                tracing::debug!(disk = %f.disk, error = %e, "growth was not given into keeping");
                row.kept_hour = hour - 1;
            }
        }
        let next = for_index(f, &offer);
        if is_news(f.offer, next) { set(Some(next)) } else { None }
    }

    /// What a disk is and can do, in reference I/Os a second, if it was sampled.
    pub fn able(&self, disk: DiskId) -> Option<(DeviceClass, f64)> {
        let s = self.lock();
        let row = s.disks.get(&disk).filter(|r| r.sampled_s.is_some())?;
        Some((row.model.class(), row.model.capability()))
    }

    /// Forgets disks that the core does not know any more, and volumes of which nothing was heard for a week.
    pub fn forget(&self, now_s: u64, known: &std::collections::BTreeSet<DiskId>) {
        const WEEK_S: u64 = 7 * 24 * 3600;
        let mut s = self.lock();
        // A disk that is being claimed is sampled before it is on record.
        let fresh = |at: Option<u64>| at.is_some_and(|at| now_s.saturating_sub(at) < 600);
        s.disks.retain(|d, r| known.contains(d) || fresh(r.sampled_s));
        s.volumes.retain(|_, r| r.series.latest().is_some_and(|(at, _)| at.saturating_add(WEEK_S) > now_s));
    }
}
