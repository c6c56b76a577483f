//! What nodes are told, in the core's own words, and the box through which goals reach a session.
//!
//! Invariants: a box holds at most one goal an object, the newest; a session that is slow never makes the core wait
//! or the box grow beyond the node's own objects. Must not know: messages, streams.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pool::{
    goals::{ExportState, Role},
    ids::{DiskId, Epoch, NodeName, PoolName, VolumeId},
    layout::params::Limits,
    record::Stretch,
    units::ExtentSize,
    volume::Map,
};
use tokio::sync::Notify;

/// The object that a goal is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GoalKey {
    /// A disk.
    Disk(DiskId),
    /// A wipe.
    Wipe(DiskId, u64),
    /// An export.
    Export(VolumeId, DiskId, NodeName),
    /// An attachment.
    Attachment(VolumeId),
}

/// What is to be done with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRole {
    /// Label a blank device, then serve.
    Claim,
    /// Find it by its label and serve.
    Serve,
    /// Erase the label.
    Release,
}

/// A volume's map as nodes need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMap {
    /// The volume's name, for its label.
    pub name: String,
    /// Bytes of an extent.
    pub extent_size: ExtentSize,
    /// Where it lies.
    pub map: Map,
}

/// A disk of a volume that is another node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The disk.
    pub disk: DiskId,
    /// Its host.
    pub host: NodeName,
    /// Where the host's exports are reached.
    pub address: String,
    /// At which port.
    pub port: u32,
    /// The host has said that the export stands.
    pub ready: bool,
}

/// A goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// For a disk.
    Disk {
        /// Fencing number.
        epoch: Epoch,
        /// What to do.
        role: DiskRole,
        /// Where it was last seen.
        device_id: String,
        /// Its pool.
        pool: PoolName,
        /// Bytes of an extent.
        extent_size: ExtentSize,
    },
    /// For a wipe.
    Wipe {
        /// Whose data it was; `None` for a fresh disk.
        volume: Option<VolumeId>,
        /// What to zero.
        runs: Vec<Stretch>,
        /// Bytes of an extent.
        extent_size: ExtentSize,
        /// Epoch of the volume's record that gave them up.
        epoch: Epoch,
    },
    /// For an export.
    Export {
        /// Fencing number.
        epoch: Epoch,
        /// What it should be.
        state: ExportState,
        /// The volume's map, where it is to be served.
        map: Option<Arc<VolumeMap>>,
    },
    /// For an attachment.
    Attachment {
        /// Fencing number.
        epoch: Epoch,
        /// What it should be.
        role: Role,
        /// The volume's map.
        map: Arc<VolumeMap>,
        /// The disks of the map that are not the node's own.
        remotes: Vec<Remote>,
        /// What its users may do of I/O.
        limits: Limits,
    },
}

/// Why a session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The node has opened another one.
    Replaced,
    /// The node is forgotten.
    Forgotten,
    /// The controller stops.
    Stopping,
}

/// What a session is to send next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// These goals.
    Goals {
        /// Whether they are all there are.
        full: bool,
        /// The goals.
        goals: BTreeMap<GoalKey, Goal>,
    },
    /// Nothing more.
    Close(Close),
}

#[derive(Debug, Default)]
struct Slot {
    full: bool,
    goals: BTreeMap<GoalKey, Goal>,
    close: Option<Close>,
}

/// Between the core and one session: goals that have not been sent yet.
#[derive(Debug, Default)]
pub struct Outbox {
    slot: Mutex<Slot>,
    wake: Notify,
}

impl Outbox {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        // Every critical section below leaves the slot whole, so a panic elsewhere poisons nothing.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts all goals of the node in: the first of a session.
    pub(super) fn fill(&self, goals: BTreeMap<GoalKey, Goal>) {
        let mut s = self.slot();
        s.full = true;
        s.goals = goals;
        drop(s);
        self.wake.notify_one();
    }

    /// Puts a goal in, in place of an older one about the same object.
    pub(super) fn put(&self, key: GoalKey, goal: Goal) {
        self.slot().goals.insert(key, goal);
        self.wake.notify_one();
    }

    /// Takes back a goal that has not been sent and no longer holds.
    pub(super) fn withdraw(&self, key: &GoalKey) {
        self.slot().goals.remove(key);
    }

    /// Ends the session.
    pub(super) fn close(&self, why: Close) {
        self.slot().close = Some(why);
        self.wake.notify_one();
    }

    /// Waits for something to send.
    pub async fn next(&self) -> Next {
        loop {
            let woken = self.wake.notified();
            {
                let mut s = self.slot();
                if let Some(why) = s.close {
                    return Next::Close(why);
                }
                if s.full || !s.goals.is_empty() {
                    let full = std::mem::take(&mut s.full);
                    return Next::Goals { full, goals: std::mem::take(&mut s.goals) };
                }
            }
            woken.await;
        }
    }
}
