//! Moving a run of a volume's extents from one disk to another while it is in use. One mechanism for every reason:
//! the volume's one holder mirrors the run into a spare place, the record switches, the former place becomes the
//! spare and is given up, and once the holder has let go of it, it is wiped and free.
//!
//! Invariants
//! - Until the record switches, the leg is the truth: the holder writes to both, so a move can be called off at any
//!   moment and nothing is lost. The record switches only on the holder's word that every region is copied and no
//!   leg of the mirror has failed. From that word on the mirror acknowledges no write that is not in both places (a
//!   write that fails in one is held), so the word stays true for as long as that mirror stands.
//! - Therefore, while the record that switches is being written, nobody may ask the holder to fill the spare: after a
//!   reboot it would start a mirror anew, with the spare incomplete. Who sends goals sees to that.
//! - A spare is given up (wiped, and given to others) only when the node that filled it says that its mirror is gone,
//!   or when nothing is left of that node's access: a mirror copies on its own.
//! - Nothing comes to a disk on which the volume has a run that awaits its wipe: a slice that has not heard yet may
//!   still lead to that run under the same address.
//! - A move is of a volume with one writer. Whatever brings a second node into play calls it off in the same record.
//!
//! Must not know: what is worth moving, how fast, the kernel.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DiskId, Epoch, NodeName},
    record::{Retired, Stretch, VolumeRecord},
    units::{Bytes, Extents},
    volume::{Leg, Run},
};

/// Why extents move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MoveCause {
    /// The disk is being emptied.
    Drain,
    /// The lender needs the room itself.
    Recall,
    /// The volume comes home to the node that uses it.
    Gravity,
    /// The disk is forecast to be overloaded.
    Spill,
    /// The disk is too full.
    Fullness,
}

impl MoveCause {
    /// One word, for people and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            MoveCause::Drain => "drain",
            MoveCause::Recall => "recall",
            MoveCause::Gravity => "gravity",
            MoveCause::Spill => "spill",
            MoveCause::Fullness => "fullness",
        }
    }
}

impl fmt::Display for MoveCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A move on record. The map's spare says of what and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moving {
    /// The node that has the mirror.
    pub by: NodeName,
    /// The epoch at which the spare began to be filled, or to be given up.
    pub since: Epoch,
    /// Why.
    pub cause: MoveCause,
}

/// What is to be moved where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First logical extent of it; of a striped segment, the segment's first.
    pub start: Extents,
    /// Extents on the disk.
    pub count: Extents,
    /// Which leg.
    pub leg: u32,
    /// Where to.
    pub to: Leg,
}

/// The mirror as its node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// There is none.
    Gone,
    /// Bytes copied, and bytes in all.
    Copying(Bytes, Bytes),
    /// Everything is copied and nothing has failed.
    Whole,
    /// One side has failed.
    Broken,
}

/// What the world looks like to a move.
#[derive(Clone, Copy, Debug)]
pub struct MoveFacts {
    /// The newest word of [`Moving::by`] in its present session, with its epoch; `None` when it has not said.
    pub mirror: Option<(Epoch, Mirror)>,
    /// Why the spare cannot be reached or is not wanted any more.
    pub obstacle: bool,
}

/// What is next for a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveStep {
    /// Nothing yet.
    Wait,
    /// The spare becomes the leg: this record.
    Switch(Box<VolumeRecord>),
    /// The move is called off: this record.
    CallOff(Box<VolumeRecord>),
    /// The spare is nobody's any more: this record, in which the run stands among the retired.
    End(Box<VolumeRecord>, Run),
}

/// Why a move does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotMove {
    /// One is under way.
    #[error("another run of it is being moved")]
    Moving,
    /// It has no single writer.
    #[error("it is not held by exactly one node that may write")]
    Holders,
    /// The disk has a run of it that awaits a wipe.
    #[error("a run of it on disk {0} awaits its wipe")]
    Wiping(DiskId),
    /// The piece is not one.
    #[error("the extents are not of one segment, or the target does not fit it")]
    Piece,
}

impl VolumeRecord {
    /// The record in which `piece` begins to move; its target must be reserved.
    ///
    /// # Errors
    /// When the volume is not in a state in which extents move.
    pub fn begin_move(&self, piece: Piece, cause: MoveCause) -> Result<Self, CannotMove> {
        if self.moving.is_some() {
            return Err(CannotMove::Moving);
        }
        if self.retired.iter().any(|r| r.disk == piece.to.disk) {
            return Err(CannotMove::Wiping(piece.to.disk));
        }
        let by = self.access.sole_holder().ok_or(CannotMove::Holders)?.clone();
        let map =
            self.map.with_spare(piece.start, piece.count, piece.leg, piece.to).ok_or(CannotMove::Piece)?;
        let mut next = Self { map, ..self.clone() };
        next.access.epoch = next.access.epoch.next();
        next.moving = Some(Moving { by, since: next.access.epoch, cause });
        Ok(next)
    }

    /// Whether the spare is being filled.
    pub fn is_filling(&self) -> bool {
        self.map.spare().is_some_and(|(_, p)| p.filling)
    }

    /// The record after a change of its access: a spare is filled only for the one writer that began it.
    #[must_use]
    pub fn with_spare_settled(mut self) -> Self {
        let writer = self.access.sole_holder();
        if let Some(m) = self.moving.as_mut()
            && self.map.spare().is_some_and(|(_, p)| p.filling)
            && writer != Some(&m.by)
        {
            m.since = self.access.epoch;
            self.map = self.map.unfilled();
        }
        self
    }

    /// What is next for the move; `draw` gives the number of a wipe.
    pub fn step_move(&self, facts: &MoveFacts, draw: impl FnOnce() -> u64) -> MoveStep {
        let Some(m) = &self.moving else { return MoveStep::Wait };
        let word = facts.mirror.filter(|(e, _)| *e >= m.since).map(|(_, w)| w);
        let settled = |map, epoch| Self {
            map,
            moving: Some(Moving { since: epoch, ..m.clone() }),
            ..self.bumped(epoch)
        };
        let epoch = self.access.epoch.next();
        if self.is_filling() {
            let stays = self.access.sole_holder() == Some(&m.by);
            return match word {
                // Not onto a disk that is away: where it lies now, it is there.
                Some(Mirror::Whole) if stays && !facts.obstacle => {
                    MoveStep::Switch(Box::new(settled(self.map.switched(), epoch)))
                }
                Some(Mirror::Broken) => MoveStep::CallOff(Box::new(settled(self.map.unfilled(), epoch))),
                _ if facts.obstacle || !stays => {
                    MoveStep::CallOff(Box::new(settled(self.map.unfilled(), epoch)))
                }
                Some(Mirror::Whole | Mirror::Copying(..) | Mirror::Gone) | None => MoveStep::Wait,
            };
        }
        let let_go = !self.access.concerns(&m.by)
            || (word == Some(Mirror::Gone) && !self.access.leaving.contains_key(&m.by));
        let (map, Some(run)) = self.map.without_spare() else { return MoveStep::Wait };
        if !let_go {
            return MoveStep::Wait;
        }
        let mut next = Self { map, moving: None, ..self.bumped(epoch) };
        let runs = vec![Stretch { first: run.first, count: run.count }];
        let consumers = self.access.everyone();
        next.retired.push(Retired { wipe: draw(), disk: run.disk, runs, consumers, epoch });
        MoveStep::End(Box::new(next), run)
    }

    fn bumped(&self, epoch: Epoch) -> Self {
        let mut next = self.clone();
        next.access.epoch = epoch;
        next
    }
}
