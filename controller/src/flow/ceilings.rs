//! Loans held within bounds while a lender's owner waits: from samples of the lender's disk to what the borrower's users may do.
//!
//! The kernel gives a node no way to hold back what it serves by NVMe over TCP: that I/O is in no control group. So the lender's need
//! is enforced where the I/O begins, on the control group of the volume's users: all of the volume is slowed by as much as the loan
//! has to be. Spill moves such extents elsewhere within minutes; this is for the time until then.
//!
//! Invariants: each sample of a disk counts once; while a disk wipes or copies, nobody can tell whose waiting it is, and ceilings stay; a
//! disk that is not heard of has none; a node is told all of its ceilings every time, and once that it has none any more. Must
//! not know: the core, how a ceiling is enforced.

use std::collections::BTreeMap;

use forecast::Ceilings;
use pool::{
    ids::{DiskId, NodeName, VolumeId},
    units::Extents,
};

use super::{DiskRow, Flow, Rates, State, ToNode, VolumeRow, loads::is_fresh, offers::DiskFacts};

/// The part of all its I/Os, or bytes, that a volume may do as reads, and as writes, at the least: what it does now it may do the
/// other way round in the next moment.
const EITHER: f64 = 0.25;
/// A loan that does less than this part of its ceiling is nothing that a volume is slowed for.
const BINDS: f64 = 0.5;
/// A volume whose own sample has less than this part of what its lender's has was sampled while it did something else: the two nodes
/// look at other times. From such a sample nothing follows, or a burst would be held to what was done in the lull before it.
const AGREES: f64 = 0.25;
/// Bytes of a reference I/O.
const REFERENCE: f64 = 4096.0;

/// What a volume has of a disk that is not its holder's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Borrowed {
    /// Its holder.
    pub by: NodeName,
    /// How much.
    pub extents: Extents,
}

/// A loan's I/O: reference I/Os a second, as the lender counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoanIo {
    /// What it did.
    pub load: f64,
    /// What it is never kept from.
    pub floor: f64,
    /// What it may do now; `None`: as much as it can.
    pub ceiling: Option<f64>,
}

/// The loans of a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Loans {
    ceilings: Ceilings<VolumeId>,
    rows: BTreeMap<VolumeId, (NodeName, LoanIo)>,
    /// The sample that counted last.
    counted_s: Option<u64>,
}

/// What a volume's users may do, a second: as [`Rates`], whole and never nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

/// By how much a loan has to be slowed.
#[derive(Clone, Copy, Debug)]
struct Slow {
    /// So many times what it does.
    times: f64,
    /// What it does, and what it is never kept from.
    load: f64,
    floor: f64,
}

impl Ceiling {
    /// So many times what is done now, and never less than the floor.
    fn of(now: &Rates, slow: &Slow) -> Self {
        let either = |one: f64, other: f64, floor: f64| {
            let some = EITHER * (one + other);
            // Saturates; no number is 0.
            ((one.max(some) * slow.times).max(floor).ceil() as u64).max(1)
        };
        let bytes = REFERENCE * slow.floor;
        Self {
            reads: either(now.reads, now.writes, slow.floor),
            writes: either(now.writes, now.reads, slow.floor),
            read_bytes: either(now.read_bytes, now.write_bytes, bytes),
            write_bytes: either(now.write_bytes, now.read_bytes, bytes),
        }
    }
}

impl Loans {
    /// Takes the newest sample in.
    pub(super) fn look(row: &mut DiskRow, f: &DiskFacts, now_s: u64) {
        let me = &mut row.loans;
        let Some(sample) = row.sample.as_ref().filter(|_| is_fresh(row.sampled_s, now_s)) else {
            *me = Self::default();
            return;
        };
        let all = f.extents.get().max(1) as f64;
        let rows: Vec<_> = f
            .loans
            .iter()
            .map(|(v, b)| forecast::Loan {
                who: *v,
                share: b.extents.get() as f64 / all,
                load: sample.loans.get(v).copied().unwrap_or(0.0),
            })
            .collect();
        me.ceilings.keep(|v| f.loans.contains_key(v));
        if std::mem::replace(&mut me.counted_s, row.sampled_s) != row.sampled_s && f.still {
            me.ceilings.look(&row.model, &sample.all, &rows);
        }
        let of = |l: forecast::Loan<VolumeId>| {
            let io = LoanIo {
                load: l.load,
                floor: forecast::floor(&row.model, l.share),
                ceiling: me.ceilings.of(&l.who),
            };
            Some((l.who, (f.loans.get(&l.who)?.by.clone(), io)))
        };
        me.rows = rows.into_iter().filter_map(of).collect();
    }

    /// Which loans have to be slowed: of which volume, with its holder.
    fn slowed(&self) -> impl Iterator<Item = (VolumeId, &NodeName, Slow)> {
        self.rows.iter().filter_map(|(v, (by, io))| {
            let binds = io.ceiling.filter(|c| io.load > BINDS * c)?;
            Some((*v, by, Slow { times: binds / io.load, load: io.load, floor: io.floor }))
        })
    }
}

impl VolumeRow {
    fn ceiling(&self, now_s: u64, slow: &Slow) -> Option<Ceiling> {
        let agrees = self.series.latest().is_some_and(|(_, load)| load >= AGREES * slow.load);
        (agrees && is_fresh(self.sampled_s, now_s)).then(|| Ceiling::of(&self.rates, slow))
    }
}

impl State {
    /// All ceilings, by node.
    fn ceilings(&self, now_s: u64) -> BTreeMap<NodeName, BTreeMap<VolumeId, Ceiling>> {
        let mut most: BTreeMap<(&NodeName, VolumeId), Slow> = BTreeMap::new();
        for (volume, by, slow) in self.disks.values().flat_map(|r| r.loans.slowed()) {
            // The lender whose owner waits most says how much.
            let one = most.entry((by, volume)).or_insert(slow);
            if slow.times < one.times {
                *one = slow;
            }
        }
        let mut out: BTreeMap<NodeName, BTreeMap<VolumeId, Ceiling>> = BTreeMap::new();
        for ((by, volume), slow) in most {
            if let Some(c) = self.volumes.get(&volume).and_then(|r| r.ceiling(now_s, &slow)) {
                out.entry(by.clone()).or_default().insert(volume, c);
            }
        }
        out
    }
}

impl Flow {
    /// Tells nodes their ceilings; how many there are.
    pub fn tell_ceilings(&self, now_s: u64) -> usize {
        let mut s = self.lock();
        let mut all = s.ceilings(now_s);
        let count = all.values().map(BTreeMap::len).sum();
        for (name, node) in &mut s.nodes {
            let ceilings = all.remove(name).unwrap_or_default();
            if ceilings.is_empty() && !node.bounded {
                continue;
            }
            let bounded = !ceilings.is_empty();
            match node.to_node.as_ref().map(|k| k.try_send(ToNode::Ceilings(ceilings))) {
                Some(Ok(())) => node.bounded = bounded,
                // The next round says it again; what is not said again the node lifts by itself.
                Some(Err(e)) => tracing::debug!(k8s_node = %name, error = %e, "ceilings were not told"),
                None => {}
            }
        }
        count
    }

    /// The I/O of a disk's loans, by volume; a disk that is not heard of has none.
    pub fn loans(&self, disk: DiskId) -> BTreeMap<VolumeId, LoanIo> {
        let s = self.lock();
        let rows = s.disks.get(&disk).map(|r| &r.loans.rows);
        rows.into_iter().flatten().map(|(v, (_, io))| (*v, *io)).collect()
    }

    /// How many loans have a ceiling.
    pub fn bounded(&self) -> u64 {
        let s = self.lock();
        let rows = s.disks.values().flat_map(|r| r.loans.rows.values());
        rows.filter(|(_, io)| io.ceiling.is_some()).count() as u64
    }
}
