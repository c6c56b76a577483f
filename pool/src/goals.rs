//! What nodes are told about a volume: a pure function of its record and of what has been confirmed. A goal carries
//! the record's epoch; a node brings it about and says so under that epoch.
//!
//! Goals may be sent only from a record that no deposed controller can change any more: its store refuses those, or
//! the sender has put its own term on the record first. Otherwise a node that forgot its epochs (its plugin was
//! restarted) could be told what the record has left behind already.
//!
//! A goal that is not given means "leave it as it is", never "take it away": taking away is always said (`Absent`).
//!
//! Must not know: how goals travel, what a node has to do for one.

use std::collections::BTreeMap;

use crate::{
    access::{Access, AccessState, Confirmations, Place},
    ids::{DiskId, Epoch, NodeName},
    record::Retired,
    volume::Map,
};

/// What a consumer's device should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The volume, to read and write.
    Writer,
    /// The volume, to read.
    Reader,
    /// The volume, to read; the first write is held and reported.
    Guard,
    /// As it is while writes arrive; fenced, for good under this epoch, once it is quiet.
    FenceIfQuiet,
    /// Fenced at once, and taken down as soon as nobody has it open.
    Absent,
}

/// What a host should do with a slice for a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExportState {
    /// Reachable.
    Serving,
    /// Reachable, and failing every I/O.
    Fenced,
    /// Fenced, then taken down.
    Absent,
}

/// A goal for a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentGoal {
    /// The consumer.
    pub node: NodeName,
    /// The record's epoch.
    pub epoch: Epoch,
    /// What its device should be.
    pub role: Role,
}

/// A goal for the host of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportGoal {
    /// The host.
    pub host: NodeName,
    /// The disk.
    pub disk: DiskId,
    /// For whom.
    pub consumer: NodeName,
    /// The record's epoch.
    pub epoch: Epoch,
    /// What it should be.
    pub state: ExportState,
}

/// All goals of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goals {
    /// For consumers, at most one a node.
    pub attachments: Vec<AttachmentGoal>,
    /// For hosts, at most one a (disk, consumer).
    pub exports: Vec<ExportGoal>,
}

/// What goals follow from.
pub struct View<'a> {
    /// Who has access.
    pub access: &'a AccessState,
    /// Where the volume lies.
    pub map: &'a Map,
    /// What the volume has given up and is still to be wiped.
    pub retired: &'a [Retired],
    /// Which node hosts each disk, those of `retired` too.
    pub disks: &'a BTreeMap<DiskId, NodeName>,
    /// What nodes have confirmed.
    pub confirmed: &'a Confirmations,
    /// Whether to wait for a leaver's own teardown before its exports are taken away under it. False once it is
    /// dead, or has had its time.
    pub patient: &'a dyn Fn(&NodeName) -> bool,
}

/// The goals of one volume.
pub fn plan_goals(v: &View<'_>) -> Goals {
    let mut g = Goals::default();
    let state = v.access;
    match &state.access {
        Access::Detached => {}
        Access::Granting { node, .. } => serve(v, node, &mut g),
        Access::Attached { holders } => {
            for (node, mode) in holders {
                serve(v, node, &mut g);
                attach(v, node, if mode.read_only { Role::Reader } else { Role::Writer }, &mut g);
            }
        }
        Access::Guarded { source, target, .. } => {
            for (node, role) in [(source, Role::Writer), (target, Role::Guard)] {
                serve(v, node, &mut g);
                attach(v, node, role, &mut g);
            }
        }
        Access::CuttingOver { source, target, source_left, since } => {
            serve(v, target, &mut g);
            attach(v, target, Role::Guard, &mut g);
            tell(v, source, if *source_left { Role::Absent } else { Role::FenceIfQuiet }, &mut g);
            let fenced = v.confirmed.gone(source, Place::Device, *since).is_some();
            if fenced || (*source_left && !(v.patient)(source)) {
                let disks = v.map.disks();
                export(v, source, disks.into_iter(), ExportState::Fenced, &mut g);
            }
        }
    }
    for (node, l) in &state.leaving {
        tell(v, node, Role::Absent, &mut g);
        if v.confirmed.gone(node, Place::Device, l.since).is_some() || !(v.patient)(node) {
            export(v, node, l.disks.iter().copied(), ExportState::Absent, &mut g);
        }
    }
    abandon(v, &mut g);
    g
}

/// Has slices taken away that nobody needs any more, since a move has left their disk: a wipe waits for that. What is
/// said of the slices of those who are on the way out is said elsewhere, also of a source that is being fenced.
fn abandon(v: &View<'_>, g: &mut Goals) {
    let (everyone, disks) = (v.access.everyone(), v.map.disks());
    for r in v.retired {
        for node in &r.consumers {
            let spoken_of = match v.access.leaving.get(node) {
                Some(l) => l.disks.contains(&r.disk),
                None => disks.contains(&r.disk) && everyone.contains(node),
            };
            if !spoken_of {
                export(v, node, std::iter::once(r.disk), ExportState::Absent, g);
            }
        }
    }
}

/// Has `node` open the volume, once nobody who is leaving could still write to the disks of its own: no export
/// stands between it and those.
fn attach(v: &View<'_>, node: &NodeName, role: Role, g: &mut Goals) {
    let mut own = v.map.disks().into_iter().filter(|d| v.disks.get(d) == Some(node));
    if own.all(|d| v.access.open_for(node, d, v.confirmed)) {
        tell(v, node, role, g);
    }
}

fn tell(v: &View<'_>, node: &NodeName, role: Role, g: &mut Goals) {
    g.attachments.push(AttachmentGoal { node: node.clone(), epoch: v.access.epoch, role });
}

fn serve(v: &View<'_>, node: &NodeName, g: &mut Goals) {
    let open = v.map.disks().into_iter().filter(|d| v.access.open_for(node, *d, v.confirmed));
    export(v, node, open, ExportState::Serving, g);
}

fn export(
    v: &View<'_>,
    node: &NodeName,
    disks: impl Iterator<Item = DiskId>,
    state: ExportState,
    g: &mut Goals,
) {
    for disk in disks {
        if let Some(host) = v.disks.get(&disk).filter(|h| *h != node) {
            g.exports.push(ExportGoal {
                host: host.clone(),
                disk,
                consumer: node.clone(),
                epoch: v.access.epoch,
                state,
            });
        }
    }
}
