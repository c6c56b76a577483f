//! One pass over a volume's devices, on a thread that may block: look, plan, act, look again, until there is nothing
//! to do, something has to be waited for, or a newer goal has come.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kernel::Class;
use pool::{
    ids::{DiskId, VolumeId},
    names::DmRole,
};

use super::{
    legs::{LegAct, Paths, plan_legs},
    plan::{Act, Input, Next, Seen, plan},
};
use crate::agent::ground::{Ground, GroundError};

/// Samples of a source's counters before it counts as quiet, and the pause between two: 16 ms in all. A writer that
/// goes on was seen within 3-14 ms of its last write.
const QUIET_SAMPLES: u32 = 9;
const QUIET_PAUSE: Duration = Duration::from_millis(2);
/// Acts in one pass at most; a stack of 64 legs needs far fewer in one go.
const MAX_ACTS: usize = 256;
/// Looks after the legs in one go: what one is to stand on, the leg, and how they are then.
const ROUNDS: u32 = 3;

/// How a pass over the top ended.
#[derive(Debug)]
pub enum End {
    /// The goal is reached.
    Done,
    /// Something has to happen first.
    Wait(String),
    /// The source still writes.
    Busy,
    /// A device is in use: try again.
    InUse(String),
    /// A call failed.
    Failed(GroundError),
    /// The kernel does not show what was set: a defect of this program, or a kernel that prints it otherwise.
    Unsettled(String),
    /// There is a newer goal.
    Superseded,
}

/// Tells whether the goal of a pass is still the newest.
#[derive(Debug)]
pub struct Ticket {
    /// Number of the newest goal.
    pub newest: Arc<AtomicU64>,
    /// Number of the pass's goal.
    pub mine: u64,
}

impl Ticket {
    /// Whether there is a newer goal.
    pub fn is_stale(&self) -> bool {
        self.newest.load(Ordering::Acquire) != self.mine
    }
}

/// Reads a volume's devices. `legs`: the disks that may have one.
pub fn look(g: &dyn Ground, v: VolumeId, legs: &BTreeSet<DiskId>) -> Result<Seen, GroundError> {
    let mut seen = Seen {
        top: g.device(&DmRole::Top(v))?,
        map: g.device(&DmRole::Map(v))?,
        write_leg: g.device(&DmRole::WriteLeg(v))?,
        mirror: g.device(&DmRole::Mirror(v))?,
        ..Seen::default()
    };
    for d in legs {
        if let Some(f) = g.device(&DmRole::Leg(v, *d))? {
            seen.legs.insert(*d, f);
        }
        if let Some(f) = g.device(&DmRole::Near(v, *d))? {
            seen.near.insert(*d, f);
        }
    }
    Ok(seen)
}

/// Reads again what an act may have changed.
fn look_again(g: &dyn Ground, act: &Act, seen: &mut Seen) -> Result<(), GroundError> {
    let role = match act {
        Act::Set { role, .. } | Act::Clear(role) | Act::Remove(role) | Act::FenceIfQuiet(role, _) => role,
    };
    let now = g.device(role)?;
    match role {
        DmRole::Top(_) => seen.top = now,
        DmRole::Map(_) => seen.map = now,
        DmRole::WriteLeg(_) => seen.write_leg = now,
        DmRole::Mirror(_) => seen.mirror = now,
        DmRole::Leg(_, d) | DmRole::Near(_, d) => {
            let all = if matches!(role, DmRole::Leg(..)) { &mut seen.legs } else { &mut seen.near };
            match now {
                Some(f) => all.insert(*d, f),
                None => all.remove(d),
            };
        }
        DmRole::Slice(..) => {}
    }
    Ok(())
}

/// Brings the top (and what of the stack is not a leg) to the goal. `tell` hears what is seen after every act.
pub fn run_top(
    g: &dyn Ground,
    i: &Input,
    legs: &BTreeSet<DiskId>,
    ticket: &Ticket,
    tell: &dyn Fn(&Seen),
) -> (Option<Seen>, End) {
    let mut last: Option<Act> = None;
    let mut seen: Option<Seen> = None;
    for _ in 0..MAX_ACTS {
        let looked = match (seen.clone(), &last) {
            (Some(mut s), Some(act)) => look_again(g, act, &mut s).map(|()| s),
            (_, _) => look(g, i.goal.volume, legs),
        };
        let now = match looked {
            Ok(s) => s,
            Err(e) => return (seen, End::Failed(e)),
        };
        tell(&now);
        let next = plan(i, &now);
        seen = Some(now);
        let act = match next {
            Next::Done => return (seen, End::Done),
            Next::Wait(why) => return (seen, End::Wait(why)),
            Next::Do(a) => a,
        };
        if ticket.is_stale() {
            return (seen, End::Superseded);
        }
        if last.as_ref() == Some(&act) {
            return (seen, End::Unsettled(format!("{act:?}")));
        }
        tracing::debug!(volume = %i.goal.volume, epoch = %i.goal.epoch, act = ?act, "act");
        match perform(g, &act, seen.as_ref()) {
            Ok(true) => {}
            Ok(false) => return (seen, End::Busy),
            Err(e) if e.class() == Class::Busy => return (seen, End::InUse(e.to_string())),
            Err(e) => return (seen, End::Failed(e)),
        }
        last = Some(act);
    }
    (seen, End::Unsettled("too many acts in one pass".into()))
}

/// False when a source was not quiet.
fn perform(g: &dyn Ground, act: &Act, seen: Option<&Seen>) -> Result<bool, GroundError> {
    match act {
        Act::Set { role, table, read_only } => g.set_table(role, table, *read_only).map(|()| true),
        Act::Clear(role) => g.clear(role).map(|()| true),
        Act::Remove(role) => g.remove(role).map(|()| true),
        Act::FenceIfQuiet(role, table) => {
            if let Some(top) = seen.and_then(|s| s.top.as_ref())
                && !is_quiet(g, top.dev)?
            {
                return Ok(false);
            }
            g.set_table(role, table, false).map(|()| true)
        }
    }
}

/// Whether nothing that changes data completes while the samples are taken, and nothing is in flight at the end. A
/// flush alone (QEMU sends one when it hands a disk over) may be in flight at the beginning.
fn is_quiet(g: &dyn Ground, dev: kernel::DevNo) -> Result<bool, GroundError> {
    let first = g.write_activity(dev)?;
    let mut idle = u32::from(first.in_flight == 0);
    for _ in 1..2 * QUIET_SAMPLES {
        if idle >= QUIET_SAMPLES {
            return Ok(true);
        }
        std::thread::sleep(QUIET_PAUSE);
        let now = g.write_activity(dev)?;
        if now.completed != first.completed {
            return Ok(false);
        }
        idle = if now.in_flight == 0 { idle + 1 } else { 0 };
    }
    Ok(idle >= QUIET_SAMPLES)
}

/// What a look after the legs brought.
#[derive(Debug, Default)]
pub struct LegsSeen {
    /// Legs that exist.
    pub legs: BTreeSet<DiskId>,
    /// Legs without a working path.
    pub queueing: BTreeSet<DiskId>,
    /// Whether anything was changed: the top may have been waiting for it.
    pub acted: bool,
    /// Legs whose path was put back to use: it may fail again at once.
    pub reinstated: BTreeSet<DiskId>,
    /// Whether something is left to be done that nothing else will call for.
    pub unfinished: bool,
    /// The first failure.
    pub failed: Option<GroundError>,
}

/// Looks after the legs once. `arrived`: disks that have come to this node and whose labels have the map.
pub fn run_legs(
    g: &dyn Ground,
    i: &Input,
    legs: &BTreeSet<DiskId>,
    arrived: &BTreeSet<DiskId>,
    ticket: &Ticket,
    reinstate: bool,
) -> LegsSeen {
    let mut out = LegsSeen::default();
    // What a leg is to stand on comes first, and has its number when it has been looked at.
    for round in 0..ROUNDS {
        // What was acted on is read again: a path that was put back may have failed already.
        let (seen, paths) = match look_legs(g, i.goal.volume, legs) {
            Ok(x) => x,
            Err(e) => return LegsSeen { failed: out.failed.or(Some(e)), ..out },
        };
        out.legs = seen.legs.keys().chain(seen.near.keys()).copied().collect();
        let dead = |p: &Vec<(kernel::DevNo, bool)>| p.iter().all(|(_, up)| !up);
        out.queueing = paths.iter().filter(|(_, p)| dead(p)).map(|(d, _)| *d).collect();
        let acts = plan_legs(i, &seen, &paths, arrived, reinstate && round == 0);
        // A disk of this node says nothing when its path is to be tried again.
        out.unfinished = !acts.is_empty() || out.queueing.iter().any(|d| seen.near.contains_key(d));
        if acts.is_empty() || round + 1 == ROUNDS {
            break;
        }
        for act in acts {
            // The top may have gone on meanwhile: what a leg stood on can be something else by now.
            if ticket.is_stale() {
                return out;
            }
            tracing::debug!(volume = %i.goal.volume, act = ?act, "act on a leg");
            let done = match &act {
                LegAct::Set(role, table) => g.set_table(role, table, false),
                LegAct::Clear(role) => g.clear(role),
                LegAct::Reinstate(role, path) => g.reinstate(role, *path),
                LegAct::FailQueued(role) => g.fail_queued(role),
                LegAct::Remove(role) => g.remove(role),
            };
            match done {
                Ok(()) => out.acted = true,
                Err(e) => out.failed = out.failed.or(Some(e)),
            }
            if let LegAct::Reinstate(DmRole::Leg(_, d), _) = act {
                out.reinstated.insert(d);
            }
        }
        if out.failed.is_some() {
            break;
        }
    }
    out
}

fn look_legs(g: &dyn Ground, v: VolumeId, legs: &BTreeSet<DiskId>) -> Result<(Seen, Paths), GroundError> {
    let (mut seen, mut paths) = (Seen::default(), Paths::new());
    for d in legs {
        if let Some(f) = g.device(&DmRole::Near(v, *d))? {
            seen.near.insert(*d, f);
        }
        let role = DmRole::Leg(v, *d);
        let Some(f) = g.device(&role)? else { continue };
        if f.table.is_some() {
            paths.insert(*d, g.paths(&role)?);
        }
        seen.legs.insert(*d, f);
    }
    Ok((seen, paths))
}
