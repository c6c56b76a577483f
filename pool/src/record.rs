//! What must survive the controller: one record a volume, a disk, a node. Every decision that must be atomic fits in
//! one of them.
//!
//! Invariants: a run is in at most one of a volume's map and its retired runs, and in those of one volume only; a
//! wipe id is drawn once and names one set of runs for ever; a record that no longer says whose an extent is has
//! seen it wiped. Must not know: how records are stored, what time it is (times are arguments).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    access::{AccessState, Notice},
    alloc::Explanation,
    disk::{Disk, DiskState, Domain},
    free::FreeRun,
    ids::{DiskId, Epoch, NodeName, PoolName, VolumeId},
    layout::params::{ClaimRef, Limits, VolumeParams},
    moving::Moving,
    units::{Bytes, ExtentSize, Extents},
    volume::{Map, Run},
};

/// Lines of history that a record keeps: enough for the last few migrations, and a record stays small.
pub const HISTORY: usize = 24;

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lifecycle {
    /// It can be used.
    #[default]
    Active,
    /// It is on its way out: nobody gets it any more, its extents are wiped and become free.
    Deleting,
}

/// Extents `first .. first + count` of a disk that stands beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stretch {
    /// First extent.
    pub first: Extents,
    /// Number of extents, never zero.
    pub count: Extents,
}

/// Runs on one disk that nobody gets before they are wiped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retired {
    /// Names this set of runs, and never another one.
    pub wipe: u64,
    /// The disk.
    pub disk: DiskId,
    /// The runs.
    pub runs: Vec<Stretch>,
    /// Who may still have a slice that maps them, though the volume's map has them no more: to be taken away first.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub consumers: BTreeSet<NodeName>,
    /// The epoch of the record that gave them up. What the disk's label has of the volume there from a later one has
    /// come back since, and is not wiped for this; and whoever was told of the wipe serves nothing of the volume by
    /// goals that are older. Zero for a fresh disk, whose runs are no volume's.
    #[serde(default)]
    pub epoch: Epoch,
}

impl Retired {
    /// The runs with their disk.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|s| Run { disk: self.disk, first: s.first, count: s.count })
    }
}

/// Something that happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryLine {
    /// Counts the volume's lines, the dropped ones too.
    pub sequence: u64,
    /// Milliseconds since 1970, by the controller's clock.
    pub unix_ms: u64,
    /// What, for people.
    pub text: String,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// The name under which it was asked for: the key of idempotence among active volumes.
    pub name: String,
    /// The pool that it lies in.
    pub pool: PoolName,
    /// Bytes of an extent.
    pub extent_size: ExtentSize,
    /// What was asked for, as parsed; the pool is filled in.
    pub params: VolumeParams,
    /// For whom, where the caller said so.
    #[serde(default)]
    pub claim: ClaimRef,
    /// Where it lies. Empty once it is deleted and its extents are retired.
    pub map: Map,
    /// Who has access.
    pub access: AccessState,
    /// Where it is in its life.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// The move under way: there is one exactly while the map has a spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// What is still to be wiped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Retired>,
    /// What happened, the newest last, at most [`HISTORY`] lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryLine>,
    /// Why it lies where it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

impl VolumeRecord {
    /// Its size.
    pub fn size(&self) -> Bytes {
        self.extent_size.checked_bytes_of(self.map.extents()).unwrap_or_default()
    }

    /// Every run that is its own, in use or awaiting a wipe.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.map.runs().chain(self.retired.iter().flat_map(Retired::runs))
    }

    /// Every disk that it has to do with: its map's, its retired runs', and those of nodes that are leaving.
    pub fn disks(&self) -> BTreeSet<DiskId> {
        let mut all = self.map.disks();
        all.extend(self.retired.iter().map(|r| r.disk));
        all.extend(self.access.leaving.values().flat_map(|l| l.disks.iter().copied()));
        all
    }

    /// In what a request for a volume differs from this one, or `None` when this is the volume it asks for.
    pub fn difference(
        &self,
        pool: &PoolName,
        params: &VolumeParams,
        required: Bytes,
        limit: Option<Bytes>,
    ) -> Option<String> {
        if self.pool != *pool {
            return Some(format!("it lies in pool {}, not {pool}", self.pool));
        }
        // Limits change while a volume lives: the request that made it may have had others.
        let fixed = |p: &VolumeParams| VolumeParams { pool: None, limits: Limits::default(), ..p.clone() };
        if fixed(&self.params) != fixed(params) {
            return Some("its parameters are others".to_owned());
        }
        let size = self.size();
        if size < required {
            return Some(format!("it has {} bytes, {} are required", size.get(), required.get()));
        }
        limit
            .filter(|l| size > *l)
            .map(|l| format!("it has {} bytes, at most {} are allowed", size.get(), l.get()))
    }

    /// Notes what happened; the oldest lines make room.
    pub fn note(&mut self, unix_ms: u64, text: impl Into<String>) {
        let sequence = self.history.last().map_or(0, |l| l.sequence.saturating_add(1));
        self.history.push(HistoryLine { sequence, unix_ms, text: text.into() });
        let excess = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..excess);
    }

    /// The record whose extents nobody uses any more: all of them retired, a wipe a disk, its id from `draw`.
    #[must_use]
    pub fn retire_all(&self, mut draw: impl FnMut() -> u64) -> Self {
        let mut by_disk: BTreeMap<DiskId, Vec<Stretch>> = BTreeMap::new();
        for r in self.map.runs() {
            by_disk.entry(r.disk).or_default().push(Stretch { first: r.first, count: r.count });
        }
        let mut next = Self { map: Map::default(), moving: None, ..self.clone() };
        for (disk, mut runs) in by_disk {
            runs.sort();
            let (consumers, epoch) = (BTreeSet::new(), self.access.epoch);
            next.retired.push(Retired { wipe: draw(), disk, runs, consumers, epoch });
        }
        next
    }

    /// Deleted, nobody's, and wiped: the record itself may go.
    pub fn is_spent(&self) -> bool {
        self.lifecycle == Lifecycle::Deleting
            && self.access.is_idle()
            && self.map.0.is_empty()
            && self.retired.is_empty()
    }
}

/// What a notice says to people.
pub fn render_notice(n: &Notice) -> String {
    match n {
        Notice::Attached(node) => format!("attached to {node}"),
        Notice::Detached(node) => format!("detached from {node}"),
        Notice::Evicted(node) => format!("taken from {node}, whose lease had run out"),
        Notice::MigrationStarted { source, target } => format!("migration {source} -> {target} began"),
        Notice::CutOverStarted { source, target } => format!("cut-over {source} -> {target} began"),
        Notice::Migrated { source, target } => format!("migrated {source} -> {target}"),
        Notice::MigrationAborted { source, target } => {
            format!("migration to {target} given up; {source} goes on")
        }
        Notice::Conflict { source, target } => {
            format!(
                "{target} wrote while {source} still writes: {source} goes on, the write of {target} is failed"
            )
        }
    }
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskRecord {
    /// What it is. Until its label is written its extents are zero: only the node knows how many there will be.
    pub disk: Disk,
    /// The device's stable name on its node.
    pub device_id: String,
    /// The device's path when last seen.
    pub path: String,
    /// The fencing number of its goals.
    pub epoch: Epoch,
    /// Extents from the first on that have been wiped since the claim, or are trusted to be blank.
    pub clean_through: Extents,
    /// The wipe under way beyond that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh: Option<Retired>,
}

impl DiskRecord {
    /// Whether its label has been written and its extents are known.
    pub fn is_labelled(&self) -> bool {
        !self.disk.extents.is_zero() && !matches!(self.disk.state, DiskState::Claimed | DiskState::Released)
    }

    /// What of it is clean and used by none of `used`.
    pub fn free_runs(&self, mut used: Vec<Stretch>) -> Vec<FreeRun> {
        used.sort();
        let mut out = Vec::new();
        let mut at = Extents::ZERO;
        for s in used {
            let first = s.first.min(self.clean_through);
            if at < first {
                out.push(FreeRun { first: at, count: first.minus(at) });
            }
            at = at.max(s.first.get().checked_add(s.count.get()).map_or(self.clean_through, Extents::new));
        }
        if at < self.clean_through {
            out.push(FreeRun { first: at, count: self.clean_through.minus(at) });
        }
        out
    }

    /// The next stretch of a freshly claimed disk to wipe, at most `chunk` extents of it.
    pub fn next_fresh(&self, chunk: Extents) -> Option<Stretch> {
        let left = self.disk.extents.saturating_sub(self.clean_through);
        (!left.is_zero()).then(|| Stretch { first: self.clean_through, count: left.min(chunk) })
    }
}

/// A node that has reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// Its topology labels, the node itself left out.
    pub domain: Domain,
    /// Where its exports are reached.
    pub address: String,
    /// At which port.
    pub port: u32,
    /// Its kernel's id of the boot in which it reported last; empty where it has said none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// A person has said that it never comes back: nothing that it would have to confirm is waited for, and until it has been
    /// booted anew it is not heard.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

impl NodeRecord {
    /// Whether a node that says that this is its boot may still have what it was forgotten with: it is the same one, or nobody
    /// knows.
    pub fn is_barred(&self, boot_id: &str) -> bool {
        self.forgotten && (self.boot_id.is_empty() || self.boot_id == boot_id)
    }
}

/// What a record is found under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A volume.
    Volume(VolumeId),
    /// A disk.
    Disk(DiskId),
    /// A node.
    Node(NodeName),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Volume(v) => write!(f, "volume {v}"),
            Key::Disk(d) => write!(f, "disk {d}"),
            Key::Node(n) => write!(f, "node {n}"),
        }
    }
}

/// A record of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Record {
    /// A volume's.
    Volume(Box<VolumeRecord>),
    /// A disk's.
    Disk(Box<DiskRecord>),
    /// A node's.
    Node(Box<NodeRecord>),
}

impl Record {
    /// Whether nodes may be told anything because of it as it stands, or may be told no more.
    pub fn has_goals(&self) -> bool {
        match self {
            Record::Volume(v) => !v.access.is_idle() || !v.retired.is_empty() || v.moving.is_some(),
            Record::Disk(_) | Record::Node(_) => true,
        }
    }

    /// What it is found under.
    pub fn key(&self) -> Key {
        match self {
            Record::Volume(v) => Key::Volume(v.id),
            Record::Disk(d) => Key::Disk(d.disk.id),
            Record::Node(n) => Key::Node(n.name.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        disk::DiskClass,
        volume::{Leg, Segment},
    };

    fn stretch(first: u64, count: u64) -> Stretch {
        Stretch { first: Extents::new(first), count: Extents::new(count) }
    }

    fn disk(extents: u64, clean: u64) -> DiskRecord {
        DiskRecord {
            disk: Disk {
                id: DiskId::from_u128(1),
                node: "n1".parse().expect("a name"),
                pool: "p".parse().expect("a name"),
                extents: Extents::new(extents),
                extent_size: ExtentSize::DEFAULT,
                logical_block: 512,
                physical_block: 4096,
                class: DiskClass::Ssd,
                state: DiskState::Serving,
                health: crate::disk::Health::Good,
                domain: Domain::default(),
                reserve: Extents::ZERO,
            },
            device_id: "d".into(),
            path: "/dev/vdb".into(),
            epoch: Epoch::ZERO,
            clean_through: Extents::new(clean),
            fresh: None,
        }
    }

    fn volume() -> VolumeRecord {
        let seg = |start, count, disk, first| Segment {
            start: Extents::new(start),
            count: Extents::new(count),
            legs: vec![Leg { disk: DiskId::from_u128(disk), first: Extents::new(first) }],
            stripe: None,
            spare: None,
        };
        VolumeRecord {
            id: VolumeId::from_u128(1),
            name: "v".into(),
            pool: "p".parse().expect("a name"),
            extent_size: ExtentSize::DEFAULT,
            params: VolumeParams::default(),
            claim: ClaimRef::default(),
            map: Map(vec![seg(0, 4, 1, 10), seg(4, 2, 2, 0), seg(6, 1, 1, 3)]),
            access: AccessState::default(),
            lifecycle: Lifecycle::Deleting,
            moving: None,
            retired: vec![],
            history: vec![],
            explanation: None,
        }
    }

    #[test]
    fn free_runs_are_the_clean_ones_that_nobody_has() {
        let runs = |clean, used: &[(u64, u64)]| {
            let used = used.iter().map(|(f, c)| stretch(*f, *c)).collect();
            disk(20, clean).free_runs(used).iter().map(|r| (r.first.get(), r.count.get())).collect::<Vec<_>>()
        };
        assert_eq!(runs(20, &[]), [(0, 20)]);
        assert_eq!(runs(0, &[]), []);
        assert_eq!(runs(10, &[(8, 4), (0, 2)]), [(2, 6)]);
        assert_eq!(runs(10, &[(2, 2), (12, 2)]), [(0, 2), (4, 6)]);
        assert_eq!(runs(20, &[(0, 20)]), []);
    }

    #[test]
    fn retiring_keeps_every_run() {
        let (v, mut n) = (volume(), 0);
        let r = v.retire_all(|| {
            n += 1;
            n
        });
        let sorted = |v: &VolumeRecord| {
            let mut runs: Vec<Run> = v.runs().collect();
            runs.sort();
            runs
        };
        assert_eq!(sorted(&r), sorted(&v));
        assert_eq!(r.retired.len(), 2);
        assert!(!r.is_spent());
        let text = serde_json::to_string(&Record::Volume(Box::new(r.clone()))).expect("serializes");
        let back: Record = serde_json::from_str(&text).expect("parses");
        assert_eq!(back, Record::Volume(Box::new(r)));
    }

    #[test]
    fn history_is_bounded_and_counts_on() {
        let mut v = volume();
        for i in 0..(HISTORY as u64 + 5) {
            v.note(i, format!("line {i}"));
        }
        assert_eq!(v.history.len(), HISTORY);
        assert_eq!(v.history.last().map(|l| l.sequence), Some(HISTORY as u64 + 4));
    }

    #[test]
    fn another_size_or_pool_is_another_request() {
        let v = volume();
        let p = VolumeParams::default();
        let size = v.size();
        assert_eq!(v.difference(&v.pool, &p, size, Some(size)), None);
        assert!(v.difference(&v.pool, &p, size.plus(Bytes::new(1)), None).is_some());
        assert!(v.difference(&v.pool, &p, Bytes::ZERO, Some(Bytes::new(1))).is_some());
        assert!(v.difference(&"q".parse().expect("a name"), &p, size, None).is_some());
    }
}
