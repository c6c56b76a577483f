//! Words of the simulation: small numbers for nodes, disks and volumes, what travels between controller and node,
//! and the rules that can be broken on purpose.

use std::{collections::BTreeMap, rc::Rc};

use pool::{
    goals::{ExportState, Role},
    ids::{DiskId, Epoch, NodeName, Term},
    moving::Mirror,
    volume::{Map, Run},
};

/// A volume; never used again.
pub(crate) type V = u32;
/// A node.
pub(crate) type N = usize;
/// A disk.
pub(crate) type D = usize;

/// Extents a disk has.
pub(crate) const DISK_EXTENTS: usize = 6;
/// Steps without a word after which a node counts as dead.
pub(crate) const LEASE: u64 = 60;
/// Steps that a living leaver gets before its exports are taken away under it.
pub(crate) const PATIENCE: u64 = 120;
/// Steps without a write after which a device is quiet.
pub(crate) const QUIET: u64 = 12;

/// What went wrong: an invariant and where it broke.
#[derive(Clone, Debug)]
pub(crate) struct Violation(pub(crate) String);

pub(crate) type Checked<T = ()> = Result<T, Violation>;

pub(crate) fn name_of(n: N) -> NodeName {
    format!("n{n}").parse().expect("is a node name")
}

pub(crate) fn number_of(name: &NodeName) -> N {
    name.as_str()[1..].parse().expect("was made by name_of")
}

pub(crate) fn disk_id(d: D) -> DiskId {
    DiskId::from_u128(d as u128)
}

pub(crate) fn disk_number(d: DiskId) -> D {
    d.as_u128() as D
}

/// Where each logical extent of a map lies.
pub(crate) fn places(map: &Map) -> Vec<(D, usize)> {
    map.0
        .iter()
        .flat_map(|s| {
            let l = s.legs[0];
            (0..s.count.get()).map(move |i| (disk_number(l.disk), (l.first.get() + i) as usize))
        })
        .collect()
}

/// The extents of a run.
pub(crate) fn extents_of(r: &Run) -> impl Iterator<Item = (D, usize)> + use<> {
    let d = disk_number(r.disk);
    (r.first.get()..r.end().get()).map(move |e| (d, e as usize))
}

/// The extents of a map that have a second place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spared {
    /// First logical extent.
    pub(crate) first: usize,
    /// The leg's place, and the spare's.
    pub(crate) sides: [Vec<(D, usize)>; 2],
    pub(crate) filling: bool,
}

impl Spared {
    pub(crate) fn of(map: &Map) -> Option<Self> {
        let (s, p) = map.spare()?;
        let side = |disk, first| extents_of(&Run { disk, first, count: s.count }).collect::<Vec<_>>();
        let sides = [side(s.legs[0].disk, s.legs[0].first), side(p.place.disk, p.place.first)];
        Some(Self { first: s.start.get() as usize, sides, filling: p.filling })
    }
}

/// A goal as it travels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Goal {
    /// `start`: a mirror that the map asks for may be made, not only kept.
    Attachment {
        v: V,
        epoch: Epoch,
        role: Role,
        map: Rc<Map>,
        start: bool,
    },
    Export {
        v: V,
        disk: D,
        consumer: N,
        epoch: Epoch,
        state: ExportState,
        map: Rc<Map>,
    },
    Wipe {
        v: V,
        wipe: u64,
        disk: D,
        extents: Vec<usize>,
        epoch: Epoch,
    },
}

/// Goals under a term.
#[derive(Clone, Debug)]
pub(crate) struct Goals {
    pub(crate) term: Term,
    pub(crate) goals: Vec<Goal>,
}

/// What a consumer's device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachmentSeen {
    Absent,
    Fenced,
    Guarded { held: bool },
    Open,
}

/// What a host's slice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExportSeen {
    Absent,
    Fenced,
    Serving,
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Attachment {
        v: V,
        epoch: Epoch,
        state: AttachmentSeen,
        busy: bool,
        mirror: Mirror,
    },
    Export {
        v: V,
        disk: D,
        consumer: N,
        epoch: Epoch,
        state: ExportSeen,
    },
    Wiped {
        v: V,
        wipe: u64,
    },
    /// A wipe is refused: what it asks for is somebody's by now.
    WipeRefused {
        wipe: u64,
    },
}

/// A rule broken on purpose, to show that the oracle notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Nothing is broken.
    None,
    /// A node obeys goals of any epoch.
    NodeIgnoresEpochs,
    /// A node obeys controllers of any term.
    NodeIgnoresTerms,
    /// A node comes up with the exports that it ever had.
    NodeExportsAtBoot,
    /// A node says "fenced" to FenceIfQuiet without doing so.
    NodeLiesAboutFence,
    /// A guard lets writes through.
    GuardLeaks,
    /// A node wipes what was wiped before, whoever owns it now.
    NodeWipesAgain,
    /// A node wipes what its label gives to the volume, whenever that came.
    NodeWipesWhatCameBack,
    /// A node serves, and puts on its label, what goals say that are older than a wipe.
    NodeServesWhatIsWiped,
    /// A grant does not wait for fences, and disks are given before them.
    GrantWithoutFence,
    /// A cut-over is committed before the lenders have confirmed.
    CommitBeforeLenders,
    /// A leaver is forgotten when its exports are fenced, though its device may stand and hold queued writes.
    LeaverForgottenEarly,
    /// Confirmations count whatever epoch they were made under.
    OldConfirmationsCount,
    /// Goals are sent although the record could not be written.
    GoalsWithoutRecord,
    /// A consumer is told to open before strangers are fenced at its own disks.
    OwnDiskTooEarly,
    /// A volume is deleted while somebody is leaving, and its extents are wiped whoever maps them.
    DeleteUnderADevice,
    /// Extents are free before their wipe was reported.
    FreeBeforeWipe,
    /// The store looks at versions only, and goals are sent about records that were only read.
    RecordsNotAdopted,
    /// A move switches although not everything is copied.
    SwitchBeforeWhole,
    /// What a node said of its mirror counts after it has come back.
    OldWordsOnMirrors,
    /// Goals are sent while the record that switches is being written.
    GoalsWhileSwitching,
    /// A spare is given up before its node says that the mirror is gone.
    SpareGivenUpEarly,
    /// A mirror acknowledges a write that one side has.
    MirrorAnswersEarly,
    /// A spare is filled on after others have come into play.
    SpareFilledForMany,
    /// The spare that is being given up is wiped before the move has ended.
    WipeBeforeEnd,
    /// A mirror copies before the volume writes through it.
    MirrorBeforeTop,
}

impl Mutation {
    /// Those that chance brings to light; the others have stories of their own.
    pub(crate) const ALL: [Mutation; 23] = [
        Mutation::NodeIgnoresEpochs,
        Mutation::NodeIgnoresTerms,
        Mutation::NodeExportsAtBoot,
        Mutation::NodeLiesAboutFence,
        Mutation::GuardLeaks,
        Mutation::NodeWipesAgain,
        Mutation::GrantWithoutFence,
        Mutation::CommitBeforeLenders,
        Mutation::LeaverForgottenEarly,
        Mutation::OldConfirmationsCount,
        Mutation::GoalsWithoutRecord,
        Mutation::OwnDiskTooEarly,
        Mutation::DeleteUnderADevice,
        Mutation::FreeBeforeWipe,
        Mutation::RecordsNotAdopted,
        Mutation::SwitchBeforeWhole,
        Mutation::OldWordsOnMirrors,
        Mutation::GoalsWhileSwitching,
        Mutation::SpareGivenUpEarly,
        Mutation::MirrorAnswersEarly,
        Mutation::SpareFilledForMany,
        Mutation::WipeBeforeEnd,
        Mutation::MirrorBeforeTop,
    ];
}

/// How often something happened.
#[derive(Default)]
pub(crate) struct Coverage(pub(crate) BTreeMap<String, u64>);

impl Coverage {
    pub(crate) fn hit(&mut self, what: &str) {
        if let Some(n) = self.0.get_mut(what) {
            *n += 1;
        } else {
            self.0.insert(what.to_owned(), 1);
        }
    }

    pub(crate) fn merge(&mut self, o: Coverage) {
        for (k, n) in o.0 {
            *self.0.entry(k).or_default() += n;
        }
    }
}
