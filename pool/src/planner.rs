//! What is worth moving: from what is so of disks and volumes, and what is forecast of them, to proposals for the mover, each
//! with a reason that people can read.
//!
//! In this order: recall, spill, gravity, fullness. Every planner begins above one bound and stops within another
//! (hysteresis), and nothing goes to a disk that it would make give something away:
//! - a disk takes extents only if its owner's forecast need and a margin stay free ([`DiskFact::accepts`]), while a recall begins
//!   when the need itself is not free; so what takes never recalls;
//! - a disk spills from 70 % of what it can do on, and takes what it is not forced to take below 45 % only; what has spilled
//!   would bring its former disk back above 70 %, so nothing of it comes home before load has gone;
//! - recall takes only from lenders, gravity gives only to the volume's own node;
//! - what has moved stays for hours ([`MovePolicy::hold_s`]);
//! - what has left a disk lately counts as gone where it is asked whether that disk spills, and as still there where it is asked
//!   what the disk takes; what has come to one lately counts where it is asked what it takes. So a forecast that has not heard of a
//!   move yet leads to no other.
//!
//! Invariants: equal facts give equal plans, whatever their order; one piece of a volume at a time, one off and one onto a disk;
//! a plan that is carried out gives no plan that takes any of it back while all else is as it was. Must not know: clocks, records, how runs
//! are found on the disk that is chosen, budgets of bytes.

mod fullness;
mod gravity;
mod heat;
mod recall;
mod shifts;
mod spill;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use heat::{VolumeRates, spread};
pub use shifts::Shifts;

use crate::{
    ids::{DiskId, Epoch, NodeName, VolumeId},
    moving::MoveCause,
    policy::MovePolicy,
    units::{Bytes, ExtentSize, Extents},
    volume::Segment,
};

/// Thousandths of what a disk can do from which on it spills.
pub const SPILL: u64 = 700;
/// Thousandths up to which it takes what it is not forced to take.
pub const TAKE: u64 = 450;
/// The part of a disk, in thousandths, that stays free beyond the owner's need where extents are taken.
const MARGIN: u64 = 20;
/// So many disks that lend are looked at for one piece at most: whoever finds none of them fit will not be helped by more.
const LOOKED: usize = 512;
/// The part, as 1/n, of what is asked for that has to fit at the least where a disk cannot bear all of its I/O.
const SLIVER: u64 = 8;
/// Percent below the bound of fullness up to which a disk takes extents.
const BELOW_FULL: u64 = 5;

/// What is so of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFact {
    /// Which.
    pub disk: DiskId,
    /// Its node.
    pub node: NodeName,
    /// Its logical block size: never mixed within a volume.
    pub block: u32,
    /// Extents it has.
    pub extents: u64,
    /// Of them, free.
    pub free: u64,
    /// Of them, about to be free: given up and not wiped yet.
    pub coming: u64,
    /// Of the free ones, those that other nodes may have.
    pub lendable: u64,
    /// Extents that have to stay free for its owner: forecast growth until a recall is done, and the reserve.
    pub need: u64,
    /// Thousandths of I/Os a second that it can do and may be used; 0: not known.
    pub usable: u64,
    /// Thousandths of I/Os a second that it is forecast to do, at its peak, what it does for others included.
    pub load: u64,
    /// Of it, what has moved away lately: a forecast may not know yet.
    pub left: u64,
    /// What has moved here lately, beside what is forecast.
    pub come: u64,
    /// It serves, is well, and its node lives.
    pub serving: bool,
}

impl DiskFact {
    fn margin(&self) -> u64 {
        (self.extents * MARGIN / 1000).max(1)
    }

    fn used_percent(&self, more: u64) -> u64 {
        let used = self.extents.saturating_sub(self.free).saturating_add(more);
        (used * 100).checked_div(self.extents).unwrap_or(100)
    }

    /// Thousandths of what it can do that are asked of it at the least: what makes it give.
    fn busy(&self) -> u64 {
        self.load.saturating_sub(self.left).saturating_mul(1000).checked_div(self.usable).unwrap_or(0)
    }

    /// Thousandths of what it can do that may be asked of it if `more` comes: what makes it refuse.
    fn busy_with(&self, more: u64) -> u64 {
        let all = self.load.saturating_add(self.come).saturating_add(more);
        all.saturating_mul(1000).checked_div(self.usable).unwrap_or(0)
    }

    /// How many extents it has room for, of a volume at `home`.
    fn room_for(&self, policy: &MovePolicy, home: &NodeName) -> u64 {
        let room = self.room(policy);
        if self.node == *home { room } else { room.min(self.lendable) }
    }

    /// Of `count` extents that do `peak`, how many it takes and stays below so many thousandths of what it can do; none where
    /// these are so few that they would not help.
    fn bears(&self, peak: u64, count: u64, most_busy: u64) -> u64 {
        if self.busy_with(peak) < most_busy {
            return count;
        }
        let below = u128::from(self.usable) * u128::from(most_busy);
        let has = u128::from(self.load.saturating_add(self.come)) * 1000;
        // Less than all of them, hence it fits.
        let n = (below.saturating_sub(has + 1) * u128::from(count) / (u128::from(peak.max(1)) * 1000)) as u64;
        if n >= count.div_ceil(SLIVER) { n.min(count) } else { 0 }
    }

    /// How many extents it takes at all, however busy it is.
    fn room(&self, policy: &MovePolicy) -> u64 {
        if !self.serving {
            return 0;
        }
        let spare = self.free.saturating_sub(self.need).saturating_sub(self.margin());
        let Some(full) = policy.fullness else { return spare };
        let used = self.extents.saturating_sub(self.free);
        let may = self.extents * u64::from(full).saturating_sub(BELOW_FULL) / 100;
        spare.min(may.saturating_sub(used))
    }

    /// Extents that its owner lacks.
    fn lacks(&self) -> u64 {
        self.need.saturating_sub(self.free).saturating_sub(self.coming)
    }

    /// Extents above so many percent.
    fn over(&self, bound: u32) -> u64 {
        let used = self.extents.saturating_sub(self.free).saturating_sub(self.coming);
        used.saturating_sub(self.extents * u64::from(bound) / 100)
    }

    /// Whether it may have to give something away for its own sake: volumes on it are looked at.
    pub fn may_give(&self, policy: &MovePolicy) -> bool {
        (policy.recall && self.lacks() > 0)
            || (policy.spill && self.usable > 0 && self.busy() >= SPILL)
            || policy.fullness.is_some_and(|bound| self.over(bound) > 0)
    }
}

/// A run of a volume on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceFact {
    /// Its first logical extent; of a striped segment, the segment's.
    pub start: Extents,
    /// Extents on the disk.
    pub count: u64,
    /// Which leg of its segment.
    pub leg: u32,
    /// On which disk.
    pub disk: DiskId,
    /// Thousandths of I/Os a second that go there, over hours.
    pub io: u64,
    /// The same at its peak, as a disk's load is reckoned: what leaves one disk and comes to another with it.
    pub peak: u64,
    /// It moves as a whole, and not onto these disks: the legs of its segment.
    pub whole: Option<BTreeSet<DiskId>>,
}

impl PieceFact {
    /// I/O of `n` of its extents, over hours.
    fn io_of(&self, n: u64) -> u64 {
        self.io.saturating_mul(n).checked_div(self.count).unwrap_or(0)
    }

    /// I/O of `n` of its extents at its peak.
    fn peak_of(&self, n: u64) -> u64 {
        self.peak.saturating_mul(n).checked_div(self.count).unwrap_or(0)
    }

    /// What of it moves at a time, if so many extents can: all of it or none where it is whole.
    fn part(&self, most: u64) -> Option<u64> {
        let n = if self.whole.is_some() { self.count } else { self.count.min(most) };
        (n > 0 && n <= most).then_some(n)
    }
}

/// The pieces of a segment; what I/O they do is not known.
pub fn pieces(s: &Segment) -> impl Iterator<Item = PieceFact> + '_ {
    let whole = s.stripe.map(|_| s.legs.iter().map(|l| l.disk).collect::<BTreeSet<_>>());
    s.legs.iter().enumerate().map(move |(i, l)| PieceFact {
        start: s.start,
        count: s.leg_count().get(),
        // A segment has 64 legs at most.
        leg: i as u32,
        disk: l.disk,
        io: 0,
        peak: 0,
        whole: whole.clone(),
    })
}

/// What is so of a volume that one node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFact {
    /// Which.
    pub volume: VolumeId,
    /// Its record's epoch: a proposal is for this record.
    pub epoch: Epoch,
    /// The node that holds it.
    pub home: NodeName,
    /// Bytes of an extent.
    pub extent_size: ExtentSize,
    /// Seconds since anything happened to it.
    pub still_s: u64,
    /// Seconds since something of it moved by itself.
    pub moved_s: Option<u64>,
    /// It is coming home: the next piece need not wait.
    pub coming_home: bool,
    /// It must lie on one node.
    pub bound: bool,
    /// Its logical block size.
    pub block: u32,
    /// Disks that it cannot go to now: on which it has runs that await a wipe.
    pub not: BTreeSet<DiskId>,
    /// Where it lies.
    pub pieces: Vec<PieceFact>,
    /// Lenders that it may have.
    pub max_lenders: usize,
}

/// Why something is to move, with the figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The lender's owner needs the room.
    Recall {
        /// Free on it, and about to be.
        free: Bytes,
        /// What its owner may need.
        need: Bytes,
    },
    /// The disk is forecast to be overloaded.
    Spill {
        /// Percent of what it can do.
        busy: u64,
    },
    /// The volume's node has room.
    Gravity {
        /// I/Os a second that need not go over the network any more.
        io: u64,
        /// Seconds that its users wait less in a day.
        gain_s: u64,
        /// Seconds that the copy costs others.
        cost_s: u64,
    },
    /// The disk is too full.
    Fullness {
        /// Percent.
        used: u64,
        /// The bound.
        bound: u32,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Recall { free, need } => {
                write!(f, "its lender has {free} free and may need {need} itself")
            }
            Why::Spill { busy } => {
                write!(f, "the disk is forecast to do {busy} % of what it can")
            }
            Why::Gravity { io, gain_s, cost_s } => write!(
                f,
                "its node has room; {io} I/Os a second become local, {gain_s} s less waiting a day for a copy that costs {cost_s} s"
            ),
            Why::Fullness { used, bound } => write!(f, "the disk is {used} % full, the bound is {bound} %"),
        }
    }
}

/// A move that is worth while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Whose extents.
    pub volume: VolumeId,
    /// By this record.
    pub epoch: Epoch,
    /// First logical extent of the piece.
    pub start: Extents,
    /// Extents on the disk.
    pub count: Extents,
    /// Which leg.
    pub leg: u32,
    /// Off this disk.
    pub from: DiskId,
    /// Onto this one.
    pub to: DiskId,
    /// Thousandths of I/Os a second that go with it, at their peak.
    pub io: u64,
    /// For what.
    pub cause: MoveCause,
    /// Why.
    pub why: Why,
}

/// What is planned with: the facts as they will be once what was proposed so far is done.
struct Board<'a> {
    policy: &'a MovePolicy,
    /// Extents that move at a time.
    most: u64,
    disks: BTreeMap<DiskId, DiskFact>,
    volumes: BTreeMap<VolumeId, &'a VolumeFact>,
    /// Disks of each node.
    nodes: BTreeMap<NodeName, Vec<DiskId>>,
    /// Disks that lend, by how many extents they take from others; of equals the lesser id is greater.
    lenders: BTreeSet<(u64, Reverse<DiskId>)>,
    /// Pieces on each disk, by volume and place in it.
    on: BTreeMap<DiskId, Vec<(VolumeId, usize)>>,
    /// Disks that give, disks that take, volumes that move.
    giving: BTreeSet<DiskId>,
    taking: BTreeSet<DiskId>,
    moving: BTreeSet<VolumeId>,
    out: Vec<Proposal>,
}

impl<'a> Board<'a> {
    fn node_of(&self, disk: DiskId) -> Option<&NodeName> {
        self.disks.get(&disk).map(|d| &d.node)
    }

    /// The disk that takes most of `count` extents of a piece, of those that `fit`; of equals the one with most spare room. Away
    /// from the volume's nodes only the [`LOOKED`] disks with most room are looked at.
    fn target(
        &self,
        v: &VolumeFact,
        p: &PieceFact,
        count: u64,
        most_busy: u64,
        fit: &Fit<'_>,
    ) -> Option<(DiskId, u64)> {
        let rate = |d: &DiskFact| {
            let open = d.disk != p.disk
                && d.block == v.block
                && !v.not.contains(&d.disk)
                && !self.taking.contains(&d.disk)
                && p.whole.as_ref().is_none_or(|legs| !legs.contains(&d.disk))
                && (d.usable > 0 || !fit.rated)
                && d.busy_with(p.peak_of(count)) < fit.whole_below;
            let room = d.room_for(self.policy, &v.home);
            let n = p.part(d.bears(p.peak_of(count), count, most_busy).min(room)).filter(|_| open)?;
            Some((n, room, Reverse(d.disk)))
        };
        let of = |node: &NodeName| {
            let disks = self.nodes.get(node).into_iter().flatten();
            disks.filter_map(|d| self.disks.get(d)).filter_map(rate).max()
        };
        let best = match fit.place {
            Place::On(node) => of(node),
            Place::Off(node) => {
                let known: BTreeSet<&NodeName> =
                    v.pieces.iter().filter_map(|p| self.node_of(p.disk)).collect();
                let near =
                    known.iter().copied().chain([&v.home]).filter(|n| Some(*n) != node).filter_map(of).max();
                let lenders = known.iter().filter(|n| ***n != v.home).count();
                // One more lender, if it may have one.
                let far = if lenders < v.max_lenders { self.most_room(node, count, rate) } else { None };
                near.max(far)
            }
        };
        best.map(|(n, _, d)| (d.0, n))
    }

    /// The best of the disks that lend, which are looked at from the one with most room on: nobody is better than the first that
    /// takes all.
    fn most_room(
        &self,
        but: Option<&NodeName>,
        count: u64,
        rate: impl Fn(&DiskFact) -> Option<(u64, u64, Reverse<DiskId>)>,
    ) -> Option<(u64, u64, Reverse<DiskId>)> {
        let disks = self.lenders.iter().rev().take(LOOKED).filter_map(|(_, d)| self.disks.get(&d.0));
        let mut best = None;
        for rated in disks.filter(|d| Some(&d.node) != but).filter_map(rate) {
            best = best.max(Some(rated));
            if rated.0 == count {
                break;
            }
        }
        best
    }

    /// Takes a proposal up, if nothing of it is taken yet.
    fn propose(&mut self, v: &VolumeFact, p: &PieceFact, to: DiskId, n: u64, cause: MoveCause, why: Why) {
        let io = p.peak_of(n);
        if let Some(d) = self.disks.get_mut(&p.disk) {
            d.coming = d.coming.saturating_add(n);
            d.left = d.left.saturating_add(io);
        }
        if let Some(d) = self.disks.get_mut(&to) {
            self.lenders.remove(&lender(d, self.policy));
            d.free = d.free.saturating_sub(n);
            d.lendable = d.lendable.saturating_sub(n);
            d.come = d.come.saturating_add(io);
        }
        self.giving.insert(p.disk);
        self.taking.insert(to);
        self.moving.insert(v.volume);
        self.out.push(Proposal {
            io,
            volume: v.volume,
            epoch: v.epoch,
            start: p.start,
            count: Extents::new(n),
            leg: p.leg,
            from: p.disk,
            to,
            cause,
            why,
        });
    }

    /// Whether a volume may move for something that can wait.
    fn is_free(&self, v: &VolumeFact) -> bool {
        !v.bound && !self.moving.contains(&v.volume)
    }

    /// Pieces on a disk that may move, with their volumes.
    fn pieces_on(&self, disk: DiskId) -> Vec<(&'a VolumeFact, &'a PieceFact)> {
        let all = self.on.get(&disk).into_iter().flatten();
        let piece = |(v, i): &(VolumeId, usize)| {
            let v: &'a VolumeFact = self.volumes.get(v)?;
            Some((v, v.pieces.get(*i)?))
        };
        all.filter_map(piece).filter(|(v, _)| self.is_free(v)).collect()
    }
}

/// Where a piece may go.
enum Place<'a> {
    /// To this node only.
    On(&'a NodeName),
    /// Anywhere but to this node.
    Off(Option<&'a NodeName>),
}

/// What a disk has to be to take a piece.
struct Fit<'a> {
    place: Place<'a>,
    /// What it can do is known.
    rated: bool,
    /// Thousandths of what it can do that all of what is asked for would keep it below, though it take but a part.
    whole_below: u64,
}

impl<'a> Fit<'a> {
    fn at(place: Place<'a>) -> Self {
        Self { place, rated: false, whole_below: u64::MAX }
    }

    fn on(node: &'a NodeName) -> Self {
        Self::at(Place::On(node))
    }

    fn off(node: &'a NodeName) -> Self {
        Self::at(Place::Off(Some(node)))
    }

    fn anywhere() -> Self {
        Self::at(Place::Off(None))
    }

    fn rated(self) -> Self {
        Self { rated: true, ..self }
    }

    fn whole_below(self, whole_below: u64) -> Self {
        Self { whole_below, ..self }
    }
}

/// A disk's place among those that lend.
fn lender(d: &DiskFact, policy: &MovePolicy) -> (u64, Reverse<DiskId>) {
    (d.room(policy).min(d.lendable), Reverse(d.disk))
}

/// Bytes of so many extents, for people.
fn bytes(v: &VolumeFact, n: u64) -> Bytes {
    v.extent_size.checked_bytes_of(Extents::new(n)).unwrap_or(Bytes::new(u64::MAX))
}

/// What is worth moving now, at most `most` extents of a volume at a time; `busy`: disks that give or take something
/// already, volumes that move.
pub fn plan(
    policy: &MovePolicy,
    most: Extents,
    disks: &[DiskFact],
    volumes: &[VolumeFact],
    busy: &Busy,
) -> Vec<Proposal> {
    let mut on: BTreeMap<DiskId, Vec<(VolumeId, usize)>> = BTreeMap::new();
    for v in volumes {
        for (i, p) in v.pieces.iter().enumerate() {
            on.entry(p.disk).or_default().push((v.volume, i));
        }
    }
    on.values_mut().for_each(|p| p.sort_unstable());
    let mut nodes: BTreeMap<NodeName, Vec<DiskId>> = BTreeMap::new();
    for d in disks {
        nodes.entry(d.node.clone()).or_default().push(d.disk);
    }
    let lenders = disks.iter().filter(|d| !busy.taking.contains(&d.disk)).map(|d| lender(d, policy));
    let mut board = Board {
        policy,
        most: most.get().max(1),
        nodes,
        lenders: lenders.filter(|(room, _)| *room > 0).collect(),
        disks: disks.iter().map(|d| (d.disk, d.clone())).collect(),
        volumes: volumes.iter().map(|v| (v.volume, v)).collect(),
        on,
        giving: busy.giving.clone(),
        taking: busy.taking.clone(),
        moving: busy.moving.clone(),
        out: Vec::new(),
    };
    let order: [(MoveCause, Planner); 4] = [
        (MoveCause::Recall, recall::plan),
        (MoveCause::Spill, spill::plan),
        (MoveCause::Gravity, gravity::plan),
        (MoveCause::Fullness, fullness::plan),
    ];
    for (cause, planner) in order {
        if policy.allows(cause) {
            planner(&mut board);
        }
    }
    board.out
}

/// Adds what one cause asks for.
type Planner = fn(&mut Board<'_>);

/// What has something to do already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Busy {
    /// Disks that give extents.
    pub giving: BTreeSet<DiskId>,
    /// Disks that take some.
    pub taking: BTreeSet<DiskId>,
    /// Volumes that move.
    pub moving: BTreeSet<VolumeId>,
}
