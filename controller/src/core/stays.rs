//! Why a volume stays on a disk for now, and what a person can do about it. Must not know: how that is found out.

use std::time::Duration;

use pool::{
    alloc::Refusal,
    ids::{DiskId, NodeName},
    moving::MoveCause,
    policy::Over,
    units::Bytes,
};

/// Why a volume stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stays {
    /// Its record is gone.
    #[error("it is gone")]
    Gone,
    /// Its extents are about to be wiped.
    #[error("it is being deleted")]
    Deleting,
    /// A write of its record, or a move, is under way.
    #[error("it is being changed")]
    Changing,
    /// Moves of it were called off.
    #[error("its last {times} moves were called off: again in {} s", wait.as_secs() + 1)]
    CalledOff {
        /// How often in a row.
        times: u32,
        /// Until the next one.
        wait: Duration,
    },
    /// Nothing is left there but runs that it gave up.
    #[error("its extents there wait to be wiped")]
    Wiping,
    /// Nobody has room for it.
    #[error("{0}")]
    NoRoom(Refusal),
    /// Nobody has room for a piece that must stay whole.
    #[error("no disk has room for a whole stripe of {0}")]
    NoStripe(Bytes),
    /// The one disk with room has something else to do.
    #[error("the disk that it would go to is taking something else at the moment")]
    TargetTaken,
    /// The disk that it would leave gives something else away.
    #[error("the disk that it would leave is giving something else away at the moment")]
    SourceBusy,
    /// The pool does not want it, or a drain comes first.
    #[error("the pool's policy has no {0}, or the disk is being drained anyway")]
    Unwanted(MoveCause),
    /// The budget is spent.
    #[error("the budget is spent: {0}")]
    Over(Over),
    /// A node has moves enough.
    #[error(
        "node {node} has to do with {most} moves already, as many as its pool allows (moving.movesPerNode)"
    )]
    NodeBusy {
        /// Which.
        node: NodeName,
        /// How many it may have.
        most: u32,
    },
    /// Its last holder is not gone yet, or its next one is not there yet.
    #[error("it is being attached or detached")]
    Turning,
    /// It is held to be read.
    #[error("it is held read-only by {0}: only what one node writes is moved")]
    ReadOnly(NodeName),
    /// It is held by several.
    #[error("it is held by {}: only what one node holds is moved", .0.iter().map(NodeName::as_str).collect::<Vec<_>>().join(" and "))]
    Several(Vec<NodeName>),
    /// Nobody can read the disk.
    #[error("node {node}, which {part}, has not been heard of for {silence}")]
    Silent {
        /// The node.
        node: NodeName,
        /// What it does.
        part: &'static str,
        /// For how long.
        silence: String,
    },
    /// The disk is not there.
    #[error("disk {0} is missing")]
    Missing(DiskId),
    /// Something that the mover does not know by name.
    #[error("{0}")]
    Other(String),
}

impl Stays {
    /// Whether it passes without anybody doing anything.
    pub(super) fn passes(&self) -> bool {
        match self {
            Stays::Gone
            | Stays::Deleting
            | Stays::Changing
            | Stays::CalledOff { .. }
            | Stays::Wiping
            | Stays::TargetTaken
            | Stays::NodeBusy { .. }
            | Stays::SourceBusy
            | Stays::Unwanted(_)
            | Stays::Over(_)
            | Stays::Turning
            | Stays::Other(_) => true,
            Stays::NoRoom(_)
            | Stays::NoStripe(_)
            | Stays::ReadOnly(_)
            | Stays::Several(_)
            | Stays::Silent { .. }
            | Stays::Missing(_) => false,
        }
    }

    /// Whether there is no room for it.
    pub(super) fn is_room(&self) -> bool {
        matches!(self, Stays::NoRoom(_) | Stays::NoStripe(_))
    }

    /// What a person can do; empty where nothing has to be done.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Stays::Gone
            | Stays::Deleting
            | Stays::Changing
            | Stays::Wiping
            | Stays::TargetTaken
            | Stays::NodeBusy { .. }
            | Stays::SourceBusy
            | Stays::Unwanted(_)
            | Stays::Over(_)
            | Stays::Turning
            | Stays::Other(_) => "",
            Stays::CalledOff { .. } => "weir explain VOLUME says why they were",
            Stays::NoRoom(Refusal::LocalityUnsatisfiable { .. }) => {
                "its locality is `require`: give its node another disk, or delete volumes there"
            }
            Stays::NoRoom(Refusal::TooManyLenders { .. }) => {
                "free room on the nodes that it lies on, or delete volumes elsewhere"
            }
            Stays::NoRoom(_) => "add a disk to the pool, or delete volumes",
            Stays::NoStripe(_) => "add a disk with that much room and the same block size to the pool",
            Stays::ReadOnly(_) => "detach it; it moves while nobody holds it",
            Stays::Several(_) => "it moves once one node holds it: end the migration, or detach the others",
            Stays::Silent { .. } => "bring the node back: without it the data cannot be reached",
            Stays::Missing(_) => "bring the disk back",
        }
    }
}
