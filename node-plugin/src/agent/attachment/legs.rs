//! The legs of a volume: a multipath device above each imported slice. They are looked after apart from the top,
//! because a swap of the top can wait for I/O that only a leg's path can let go on.
//!
//! Invariants: a leg queues while it has no path, except when its volume is to go, or when nothing of its disk is used
//! any more. A leg is never made shorter and never removed here; what it stood on here is.
//!
//! Must not know: what stands on the legs.

use std::collections::{BTreeMap, BTreeSet};

use kernel::{
    DevNo,
    dm::{Table, Target as Kt},
};
use pool::{
    goals::Role,
    ids::DiskId,
    names::DmRole,
    stack::{self, Row, Target},
    units::Sectors,
};

use super::plan::{Input, Seen, lookup, wanted};
use crate::agent::{ground::Found, resolve::resolve};

/// One act on a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegAct {
    /// Make it, lengthen it, or put it on another path.
    Set(DmRole, Table),
    /// Drop a preloaded table.
    Clear(DmRole),
    /// Try its path again.
    Reinstate(DmRole, DevNo),
    /// Fail what it queues.
    FailQueued(DmRole),
    /// Remove what it stood on.
    Remove(DmRole),
}

/// Whether each path of each leg works, where that is known.
pub type Paths = BTreeMap<DiskId, Vec<(DevNo, bool)>>;

/// Everything to be done to the legs now. `arrived`: disks that have come to this node and whose labels have the map.
/// `reinstate` allows trying failed paths again: not at every look, or a path that fails at once would be tried without end.
pub fn plan_legs(
    i: &Input,
    seen: &Seen,
    paths: &Paths,
    arrived: &BTreeSet<DiskId>,
    reinstate: bool,
) -> Vec<LegAct> {
    let queues = |t: &Table| {
        t.lines().iter().any(|l| matches!(l.target, Kt::MultipathBio { queue_if_no_path: true, .. }))
    };
    let dead = |d| paths.get(d).is_some_and(|p: &Vec<_>| p.iter().all(|(_, up)| !up));
    let queued = seen
        .legs
        .iter()
        .filter(|(d, f)| f.table.as_ref().is_some_and(queues) && dead(d))
        .map(|(d, _)| LegAct::FailQueued(DmRole::Leg(i.goal.volume, *d)));
    if i.goal.role == Role::Absent {
        return queued.collect();
    }
    let devices = wanted(i);
    let lengths: BTreeMap<DiskId, Sectors> = devices
        .iter()
        .filter_map(|w| match w.role {
            DmRole::Leg(_, d) => Some((d, w.rows.iter().map(|r| r.len).sum())),
            _ => None,
        })
        .collect();
    // A spare that is given up while its host is away: the mirror above waits for what its leg queues. What is queued for
    // a disk that the map has goes on in the end.
    let used = i.goal.map.as_ref().map(|m| m.map.used_disks()).unwrap_or_default();
    let unused = |a: &LegAct| i.goal.builds() && !used.iter().any(|d| a.is_about(*d));
    let given_up: Vec<LegAct> = queued.filter(unused).collect();
    let mut acts: Vec<LegAct> = lengths.iter().filter_map(|(d, len)| leg_act(i, seen, *d, *len)).collect();
    acts.extend(given_up);
    acts.extend(arrived.iter().filter_map(|d| near_act(i, seen, *d)));
    let left = |d: &DiskId, near: &Found| {
        seen.legs.get(d).is_none_or(|l| path_of(l.table.as_ref()) != Some(near.dev))
    };
    let left: Vec<DiskId> = seen.near.iter().filter(|(d, f)| left(d, f)).map(|(d, _)| *d).collect();
    for d in left {
        if !acts.iter().any(|a| a.is_about(d)) {
            acts.push(LegAct::Remove(DmRole::Near(i.goal.volume, d)));
        }
    }
    // Legs under a goal that says nothing about them (a fence that waits for quiet) keep their paths too.
    for (d, f) in &seen.legs {
        let now = path_of(f.table.as_ref());
        let live = i.imports.get(d).filter(|m| m.live).map(|m| m.dev);
        let near = seen.near.get(d).map(|f| f.dev);
        if acts.iter().any(|a| a.is_about(*d)) || now.is_none() || (live != now && near != now) {
            continue;
        }
        let failed = paths.get(d).into_iter().flatten().find(|(p, up)| !up && Some(*p) == now);
        if let (true, Some((p, _))) = (reinstate, failed) {
            acts.push(LegAct::Reinstate(DmRole::Leg(i.goal.volume, *d), *p));
        }
    }
    acts
}

impl LegAct {
    fn is_about(&self, disk: DiskId) -> bool {
        let (LegAct::Set(r, _)
        | LegAct::Clear(r)
        | LegAct::Reinstate(r, _)
        | LegAct::FailQueued(r)
        | LegAct::Remove(r)) = self;
        matches!(r, DmRole::Leg(_, d) | DmRole::Near(_, d) if *d == disk)
    }
}

fn path_of(t: Option<&Table>) -> Option<DevNo> {
    match t?.lines() {
        [one] => match one.target {
            Kt::MultipathBio { path, .. } => path,
            _ => None,
        },
        _ => None,
    }
}

fn leg_act(i: &Input, seen: &Seen, disk: DiskId, len: Sectors) -> Option<LegAct> {
    let role = DmRole::Leg(i.goal.volume, disk);
    let found = seen.legs.get(&disk);
    if found.is_some_and(|f| f.preloaded && !f.suspended) {
        return Some(LegAct::Clear(role));
    }
    // Without a long enough import there is nothing that could be loaded.
    let import = i.imports.get(&disk).filter(|m| m.size >= len)?;
    let have = found.and_then(|f| f.table.as_ref());
    // What lies beyond the map is kept while the path has it: a shorter map comes with its own swap of the top.
    let len = have.map_or(len, |t| t.len().max(len).min(import.size));
    let row = wanted(i).into_iter().find(|w| w.role == role)?.rows.into_iter().next()?;
    let table = resolve(&[Row { len, ..row }], &lookup(i, seen)).ok()?;
    let same = have == Some(&table) && found.is_some_and(|f| !f.suspended);
    (!same).then_some(LegAct::Set(role, table))
}

/// What brings a leg to a disk that has come to this node. The top is to leave it, but waits for what the leg queues; and a
/// multipath device is never anything else. So it gets a path to the slice that a lender would export, and a failure
/// there is the disk's.
fn near_act(i: &Input, seen: &Seen, disk: DiskId) -> Option<LegAct> {
    let m = i.goal.map.as_ref().filter(|_| i.goal.builds())?;
    if i.goal.remotes.contains_key(&disk) || !m.map.used_disks().contains(&disk) {
        return None;
    }
    let leg = seen.legs.get(&disk)?;
    let len = leg.table.as_ref()?.len();
    let (near, leg_role) = (DmRole::Near(i.goal.volume, disk), DmRole::Leg(i.goal.volume, disk));
    let mut rows = stack::plan_slice_rows(&m.map, m.extent_size, disk);
    let mapped = rows.iter().map(|r| r.len).sum::<Sectors>();
    if mapped < len {
        let left = Sectors::new(len.get() - mapped.get());
        rows.push(Row { start: mapped, len: left, target: Target::Hole });
    }
    let table = resolve(&rows, &lookup(i, seen)).ok()?;
    let found = match seen.near.get(&disk) {
        Some(f) if f.preloaded && !f.suspended => return Some(LegAct::Clear(near)),
        Some(f) if f.table.as_ref() == Some(&table) && !f.suspended => f,
        Some(_) | None => return Some(LegAct::Set(near, table)),
    };
    if leg.preloaded && !leg.suspended {
        return Some(LegAct::Clear(leg_role));
    }
    let path = Kt::MultipathBio { path: Some(found.dev), queue_if_no_path: false };
    let table = Table::single(len, path).ok()?;
    let same = leg.table.as_ref() == Some(&table) && !leg.suspended;
    (!same).then_some(LegAct::Set(leg_role, table))
}

/// Why a leg is not there, for people.
pub fn why_no_leg(i: &Input, disk: DiskId) -> String {
    let Some(r) = i.goal.remotes.get(&disk) else { return format!("disk {disk} is not reachable from here") };
    let import = i.imports.get(&disk);
    match (r.ready, import) {
        (false, None) => format!("node {} does not export disk {disk} yet", r.host),
        (true, None) => {
            format!(
                "slice on disk {disk} has not been imported from node {} at {}:{} yet",
                r.host, r.address, r.port
            )
        }
        (_, Some(m)) => {
            let shows = m.size.to_bytes();
            format!("slice on disk {disk} of node {}: its leg is not made; it shows {shows}", r.host)
        }
    }
}
