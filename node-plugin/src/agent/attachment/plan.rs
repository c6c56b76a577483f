//! What to do next to bring a volume's device to its goal: a pure function of the goal and of what is seen, asked again
//! after every act. So a pass that is cut off anywhere, by a crash or a newer goal, is taken up where it stands.
//!
//! Invariants
//! - A guard's held writes are released by every suspend of the top device. The write leg therefore fails writes
//!   for as long as the top is a guard, except that under a writer's goal it is swapped for the real map right
//!   before the top is.
//! - Nothing that stands is taken down because something below it is missing.
//! - The legs and what they stand on here are somebody else's ([`super::legs`]) until the top is gone.
//!
//! Must not know: ioctls, threads, reports.

use std::collections::{BTreeMap, BTreeSet};

use kernel::{
    DevNo,
    dm::{Table, Target as Kt},
};
use pool::{
    goals::Role,
    ids::{DiskId, NodeName, VolumeId},
    moving::Mirror,
    names::DmRole,
    stack::{self, Dev, DmDevice, Row, StackInput, Target, TopState},
    units::Sectors,
    volume::Map,
};

use crate::{
    agent::{
        ground::{Found, Import},
        model::AttachmentGoal,
        resolve::{ResolveError, resolve, same_table},
    },
    disks_api::DataArea,
};

/// The devices of a volume as they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The top.
    pub top: Option<Found>,
    /// The real map behind a guard.
    pub map: Option<Found>,
    /// The write leg of a guard.
    pub write_leg: Option<Found>,
    /// The mirror that fills a spare.
    pub mirror: Option<Found>,
    /// The legs.
    pub legs: BTreeMap<DiskId, Found>,
    /// What legs stand on whose disks have come to this node.
    pub near: BTreeMap<DiskId, Found>,
}

/// What a plan is made from, besides what is seen.
#[derive(Clone, Debug)]
pub struct Input {
    /// The goal.
    pub goal: AttachmentGoal,
    /// This node.
    pub node: NodeName,
    /// Data areas of the map's disks that serve on this node.
    pub areas: BTreeMap<DiskId, DataArea>,
    /// Imported slices of the volume.
    pub imports: BTreeMap<DiskId, Import>,
    /// The goal's spare was whole once: a mirror that is not there any more is not made again for it. The controller
    /// may be switching to the spare, and a new mirror would take writes past it.
    pub was_whole: bool,
}

/// One act on the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make a device or swap its table.
    Set {
        /// Which.
        role: DmRole,
        /// Its table.
        table: Table,
        /// Whether it refuses writes itself.
        read_only: bool,
    },
    /// Drop a preloaded table.
    Clear(DmRole),
    /// Remove a device.
    Remove(DmRole),
    /// Swap the top for an error table if nothing writes through it.
    FenceIfQuiet(DmRole, Table),
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Do(Act),
    /// Nothing before something else has happened.
    Wait(String),
    /// Nothing: the goal is reached.
    Done,
}

/// Whether a table is a guard's.
pub fn is_guard(t: &Table) -> bool {
    t.lines().iter().any(|l| matches!(l.target, Kt::Delay { .. }))
}

/// Whether a table fails everything.
pub fn is_fence(t: &Table) -> bool {
    t.lines().iter().all(|l| l.target == Kt::Error)
}

fn fails_writes(t: &Table) -> bool {
    t.lines().iter().all(|l| matches!(l.target, Kt::FlakeyErrorWrites { .. } | Kt::Error))
}

impl Seen {
    /// The top's active table.
    pub fn top_table(&self) -> Option<&Table> {
        self.top.as_ref()?.table.as_ref()
    }

    fn find(&self, v: VolumeId, role: &DmRole) -> Option<&Found> {
        match role {
            DmRole::Top(_) => self.top.as_ref(),
            DmRole::Map(_) => self.map.as_ref(),
            DmRole::WriteLeg(_) => self.write_leg.as_ref(),
            DmRole::Mirror(_) => self.mirror.as_ref(),
            DmRole::Leg(w, d) if *w == v => self.legs.get(d),
            DmRole::Near(w, d) if *w == v => self.near.get(d),
            DmRole::Leg(..) | DmRole::Near(..) | DmRole::Slice(..) => None,
        }
    }

    fn is_empty(&self) -> bool {
        let inner = [&self.map, &self.write_leg, &self.mirror];
        self.top.is_none()
            && inner.iter().all(|f| f.is_none())
            && self.legs.is_empty()
            && self.near.is_empty()
    }
}

/// Where the rows of a volume find their devices.
pub fn lookup<'a>(i: &'a Input, seen: &'a Seen) -> impl Fn(&Dev) -> Option<(DevNo, Sectors)> + 'a {
    move |d| match d {
        Dev::Disk(d) => i.areas.get(d).map(|a| (a.dev, a.start)),
        Dev::Dm(r) => seen.find(i.goal.volume, r).map(|f| (f.dev, Sectors::ZERO)),
        Dev::Import(s) => i
            .imports
            .iter()
            .find(|(d, _)| pool::names::slice_id(i.goal.volume, **d, &i.node) == *s)
            .map(|(_, m)| (m.dev, Sectors::ZERO)),
    }
}

/// The devices that the goal's role asks for, from the bottom up; empty without a map.
pub fn wanted(i: &Input) -> Vec<DmDevice> {
    let Some(m) = &i.goal.map else { return vec![] };
    stack_of(i, &m.map, &|d| is_local(i, d))
}

fn is_local(i: &Input, disk: DiskId) -> bool {
    !i.goal.remotes.contains_key(&disk)
}

fn stack_of(i: &Input, map: &Map, is_local: &dyn Fn(DiskId) -> bool) -> Vec<DmDevice> {
    let state = match i.goal.role {
        Role::Writer => TopState::Open { read_only: false },
        Role::Reader => TopState::Open { read_only: true },
        Role::Guard => TopState::Guarded,
        Role::FenceIfQuiet | Role::Absent => TopState::Fenced,
    };
    stack_input(i, map, is_local).map_or(vec![], |input| stack::plan_consumer(&input, state))
}

fn stack_input<'a>(
    i: &'a Input,
    map: &'a Map,
    is_local: &'a dyn Fn(DiskId) -> bool,
) -> Option<StackInput<'a>> {
    let extent_size = i.goal.map.as_ref()?.extent_size;
    Some(StackInput { volume: i.goal.volume, extent_size, map, node: &i.node, is_local })
}

/// The next act, or why there is none.
pub fn plan(i: &Input, seen: &Seen) -> Next {
    match i.goal.role {
        Role::Writer | Role::Reader => plan_open(i, seen),
        Role::Guard => plan_guard(i, seen),
        Role::FenceIfQuiet => plan_fence_if_quiet(i, seen),
        Role::Absent => plan_absent(i, seen),
    }
}

/// What is missing below: disks of this node that do not serve, legs that are not there or too short.
fn missing(i: &Input, seen: &Seen) -> Option<String> {
    // A spare may come later, or never.
    let map = i.goal.map.as_ref()?.map.unfilled();
    let mut why = vec![];
    for d in map.used_disks().into_iter().filter(|d| is_local(i, *d)) {
        if !i.areas.contains_key(&d) {
            why.push(format!("disk {d} does not serve on this node"));
        }
    }
    for w in stack_of(i, &map, &|d| is_local(i, d)) {
        let DmRole::Leg(_, d) = w.role else { continue };
        let len = w.rows.iter().map(|r| r.len).sum::<Sectors>();
        let have = seen.legs.get(&d).and_then(|f| f.table.as_ref()).map(Table::len);
        if have.is_none_or(|h| h < len) {
            why.push(super::legs::why_no_leg(i, d));
        }
    }
    (!why.is_empty()).then(|| why.join("; "))
}

/// Brings one device to its rows; `None` when it is so.
fn settle(i: &Input, seen: &Seen, w: &DmDevice) -> Result<Option<Act>, ResolveError> {
    let table = resolve(&w.rows, &lookup(i, seen))?;
    let Some(f) = seen.find(i.goal.volume, &w.role) else {
        return Ok(Some(Act::Set { role: w.role.clone(), table, read_only: w.read_only }));
    };
    if f.preloaded {
        return Ok(Some(Act::Clear(w.role.clone())));
    }
    let same = f.table.as_ref().is_some_and(|t| same_table(t, &table));
    let fine = same
        && !f.suspended
        && f.read_only == w.read_only
        && (f.write_back || !lies_on_write_back(&table, seen));
    let node = f.node_ok || !matches!(w.role, DmRole::Top(_));
    Ok((!fine || !node).then(|| Act::Set { role: w.role.clone(), table, read_only: w.read_only }))
}

/// Whether a leg below has a volatile cache: then flushes must pass, and a device that was loaded before the leg had
/// one drops them.
fn lies_on_write_back(t: &Table, seen: &Seen) -> bool {
    let below = || seen.legs.values().chain(&seen.map).chain(&seen.mirror).filter(|f| f.write_back);
    t.lines().iter().any(|l| below().any(|f| stands_on(&l.target, f.dev)))
}

fn or_wait(r: Result<Option<Act>, ResolveError>) -> Option<Next> {
    match r {
        Ok(Some(a)) => Some(Next::Do(a)),
        Ok(None) => None,
        Err(e) => Some(Next::Wait(e.to_string())),
    }
}

fn plan_open(i: &Input, seen: &Seen) -> Next {
    let v = i.goal.volume;
    let fills = wanted(i).iter().any(|w| w.role == DmRole::Mirror(v));
    // What a mirror holds goes on whatever else is missing.
    if let Some(act) = unmirror(i, seen).filter(|_| !fills) {
        return Next::Do(act);
    }
    if let Some(why) = missing(i, seen) {
        return Next::Wait(why);
    }
    let (mirror, top) = match mirror(i, seen) {
        Ok(m) => m,
        Err(n) => return n,
    };
    let Some(top) = top else { return Next::Wait("the goal carries no map".into()) };
    if seen.top_table().is_some_and(is_guard) {
        // The write leg becomes the real map before the top does: what the guard held goes there.
        let map = DmDevice { role: DmRole::Map(v), rows: top.rows.clone(), read_only: false };
        let through = Target::Linear { dev: Dev::Dm(DmRole::Map(v)), offset: Sectors::ZERO };
        let len = seen.write_leg.as_ref().and_then(|f| f.table.as_ref()).map_or(Sectors::ZERO, Table::len);
        let leg = DmDevice {
            role: DmRole::WriteLeg(v),
            rows: vec![Row { start: Sectors::ZERO, len, target: through }],
            read_only: false,
        };
        for w in [map, leg] {
            if let Some(n) = or_wait(settle(i, seen, &w)) {
                return n;
            }
        }
    }
    if let Some(n) = or_wait(settle(i, seen, &top)) {
        return n;
    }
    if seen.mirror.is_some() && !mirror {
        return Next::Do(Act::Remove(DmRole::Mirror(v)));
    }
    if seen.write_leg.is_some() {
        return Next::Do(Act::Remove(DmRole::WriteLeg(v)));
    }
    if seen.map.is_some() {
        return Next::Do(Act::Remove(DmRole::Map(v)));
    }
    stale_leg(i, seen).map_or(Next::Done, |d| Next::Do(Act::Remove(DmRole::Leg(v, d))))
}

/// Whether the volume is to be served through a mirror, with its top device; or what comes before either. A mirror that
/// is not to be is replaced in place by the place that the map has for it, so that what it holds goes there, before
/// the top leaves it.
fn mirror(i: &Input, seen: &Seen) -> Result<(bool, Option<DmDevice>), Next> {
    let v = i.goal.volume;
    let mut devices = wanted(i);
    let top = devices.pop();
    let want = devices.pop().filter(|d| d.role == DmRole::Mirror(v));
    // What a guard holds goes on first, and in no other way than it does without a mirror.
    let Some(want) = want.filter(|_| !seen.top_table().is_some_and(is_guard)) else {
        return without_mirror(i, seen);
    };
    // One that stands is this move's: no other begins before the node has said that it is gone. The controller may be switching to
    // the spare on its word, so nothing but a goal that does not want it takes it down, whatever became of what it stands on.
    if let Some(f) = seen.mirror.as_ref().filter(|f| is_mirror(f) && !f.suspended) {
        if f.preloaded {
            return Err(Next::Do(Act::Clear(want.role)));
        }
        let top = top.and_then(|t| top_above_mirror(i, seen, t));
        let stands = seen.top_table().is_some_and(|t| t.lines().iter().any(|l| stands_on(&l.target, f.dev)));
        if stands
            && f.mirror == Some(Mirror::Broken)
            && top.as_ref().is_some_and(|t| settle(i, seen, t) != Ok(None))
        {
            // A swap would wait for the writes that it holds. The move is about to be called off.
            return Err(Next::Wait("one side of the mirror has failed".into()));
        }
        return Ok((true, top));
    }
    // Without the spare's device there is nothing to fill yet.
    let Ok(table) = resolve(&want.rows, &lookup(i, seen)) else {
        return without_mirror(i, seen);
    };
    let is = |t: &Table| seen.mirror.as_ref().is_some_and(|f| !f.suspended && f.table.as_ref() == Some(t));
    let set = |table| Next::Do(Act::Set { role: want.role.clone(), table, read_only: false });
    // It copies from the moment that it is made: what the top then still wrote past it would be missing in the spare.
    // So it begins as a plain way to the leg, and becomes the mirror when the top stands on it.
    let Some(plain) = unmirrored_table(i, seen).filter(|_| !i.was_whole) else {
        return without_mirror(i, seen);
    };
    if seen.mirror.is_none() {
        return Err(set(plain));
    }
    match &top {
        Some(t) if is(&plain) => match settle(i, seen, t) {
            Ok(Some(act)) => Err(Next::Do(act)),
            Ok(None) => Err(set(table)),
            Err(e) => Err(Next::Wait(e.to_string())),
        },
        Some(_) | None => without_mirror(i, seen),
    }
}

fn is_mirror(f: &Found) -> bool {
    f.table.as_ref().is_some_and(|t| t.lines().iter().any(|l| matches!(l.target, Kt::Mirror { .. })))
}

/// The top above a mirror that stands. A swap of it would wait for writes that the mirror may come to hold, so it stays on the legs of
/// disks that have come to this node for as long.
fn top_above_mirror(i: &Input, seen: &Seen, top: DmDevice) -> Option<DmDevice> {
    let by_legs = |d| is_local(i, d) && !seen.legs.contains_key(&d);
    let stands = stack_of(i, &i.goal.map.as_ref()?.map, &by_legs).pop()?;
    let is_so = matches!(settle(i, seen, &stands), Ok(None));
    Some(if is_so { stands } else { top })
}

/// What stands in a mirror's stead.
fn unmirrored_table(i: &Input, seen: &Seen) -> Option<Table> {
    let local = |d| is_local(i, d);
    let row = stack_input(i, &i.goal.map.as_ref()?.map, &local)?.unmirrored_row()?;
    resolve(&[row], &lookup(i, seen)).ok()
}

/// The act that puts the place that the map has in the stead of a mirror that stands; `None` without one, and while that place is
/// not to be found.
fn unmirror(i: &Input, seen: &Seen) -> Option<Act> {
    seen.mirror.as_ref().filter(|f| is_mirror(f))?;
    let table = unmirrored_table(i, seen)?;
    Some(Act::Set { role: DmRole::Mirror(i.goal.volume), table, read_only: false })
}

fn without_mirror(i: &Input, seen: &Seen) -> Result<(bool, Option<DmDevice>), Next> {
    if let Some(act) = unmirror(i, seen) {
        return Err(Next::Do(act));
    }
    if seen.mirror.as_ref().is_some_and(is_mirror) {
        return Err(Next::Wait(
            "a mirror stands, and what the map has in its stead is not to be found".into(),
        ));
    }
    let map = i.goal.map.as_ref().map(|m| m.map.unfilled());
    Ok((false, map.and_then(|m| stack_of(i, &m, &|d| is_local(i, d)).pop())))
}

/// The act that keeps a mirror from copying on and fails what it holds.
fn stop_mirror(i: &Input, seen: &Seen) -> Option<Act> {
    let f = seen.mirror.as_ref()?;
    let table = f.table.as_ref()?;
    let role = DmRole::Mirror(i.goal.volume);
    if is_fence(table) && !f.suspended {
        return f.preloaded.then_some(Act::Clear(role));
    }
    Some(Act::Set { role, table: Table::error(table.len()).ok()?, read_only: false })
}

/// A leg that nothing stands on and nothing is to stand on.
fn stale_leg(i: &Input, seen: &Seen) -> Option<DiskId> {
    let disks: BTreeSet<DiskId> = i.goal.map.as_ref()?.map.used_disks();
    let tables = || [&seen.top, &seen.mirror].into_iter().flatten().filter_map(|f| f.table.as_ref());
    let carries = |dev: DevNo| tables().any(|t| t.lines().iter().any(|l| stands_on(&l.target, dev)));
    let stale = |(d, f): &(&DiskId, &Found)| (!disks.contains(d) || is_local(i, **d)) && !carries(f.dev);
    seen.legs.iter().find(stale).map(|(d, _)| *d)
}

fn stands_on(t: &Kt, on: DevNo) -> bool {
    match t {
        Kt::Linear { dev, .. } => *dev == on,
        Kt::Striped { stripes, .. } => stripes.iter().any(|s| s.dev == on),
        Kt::Mirror { legs, .. } => legs.iter().any(|l| l.dev == on),
        _ => false,
    }
}

fn plan_guard(i: &Input, seen: &Seen) -> Next {
    if let Some(why) = missing(i, seen) {
        return Next::Wait(why);
    }
    // A guard that stands is not touched but for its map: a swap of the top would fail what it holds. Its size
    // follows when it is opened.
    let stands = seen.top.as_ref().is_some_and(|f| !f.suspended && !f.preloaded && f.node_ok)
        && seen.top_table().is_some_and(is_guard)
        && seen.write_leg.as_ref().and_then(|f| f.table.as_ref()).is_some_and(fails_writes);
    for w in wanted(i).into_iter().filter(|w| !matches!(w.role, DmRole::Leg(..))) {
        if stands && !matches!(w.role, DmRole::Map(_)) {
            continue;
        }
        if let Some(n) = or_wait(settle(i, seen, &w)) {
            return n;
        }
    }
    Next::Done
}

/// The act that makes the top fail everything, held writes included; `None` when it does, or is not there.
fn fence(i: &Input, seen: &Seen) -> Option<Act> {
    let top = seen.top.as_ref()?;
    let table = top.table.as_ref()?;
    if is_fence(table) && !top.suspended {
        return top.preloaded.then_some(Act::Clear(DmRole::Top(i.goal.volume)));
    }
    if let (true, Some(leg)) = (is_guard(table), seen.write_leg.as_ref())
        && let Some(t) = leg.table.as_ref().filter(|t| !fails_writes(t))
    {
        // A commit was cut off. Under this goal the held writes must not go through after all.
        let table = Table::error(t.len()).ok()?;
        return Some(Act::Set { role: DmRole::WriteLeg(i.goal.volume), table, read_only: false });
    }
    let table = Table::error(table.len()).ok()?;
    Some(Act::Set { role: DmRole::Top(i.goal.volume), table, read_only: false })
}

fn plan_fence_if_quiet(i: &Input, seen: &Seen) -> Next {
    // No swap above a mirror: it would wait for what a mirror with a failed side holds.
    if let Some(act) = unmirror(i, seen) {
        return Next::Do(act);
    }
    match fence(i, seen) {
        Some(Act::Set { role: role @ DmRole::Top(_), table, .. })
            if !seen.top_table().is_some_and(is_guard) =>
        {
            Next::Do(Act::FenceIfQuiet(role, table))
        }
        Some(a) => Next::Do(a),
        None => stop_mirror(i, seen).map_or(Next::Done, Next::Do),
    }
}

fn plan_absent(i: &Input, seen: &Seen) -> Next {
    let v = i.goal.volume;
    // The mirror first: the top would wait for what it holds.
    if let Some(a) = stop_mirror(i, seen).or_else(|| fence(i, seen)) {
        return Next::Do(a);
    }
    let roles = [
        seen.top.is_some().then_some(DmRole::Top(v)),
        seen.mirror.is_some().then_some(DmRole::Mirror(v)),
        seen.write_leg.is_some().then_some(DmRole::WriteLeg(v)),
        seen.map.is_some().then_some(DmRole::Map(v)),
        seen.legs.keys().next().map(|d| DmRole::Leg(v, *d)),
        seen.near.keys().next().map(|d| DmRole::Near(v, *d)),
    ];
    debug_assert!(seen.is_empty() || roles.iter().any(Option::is_some));
    roles.into_iter().flatten().next().map_or(Next::Done, |r| Next::Do(Act::Remove(r)))
}
