//! What to do next with a slice's device: a pure function of the goal and of what is seen.
//!
//! Must not know: nvmet, ioctls, threads.

use kernel::{DevNo, dm::Table};
use pool::{
    goals::ExportState,
    names::{self, DmRole},
    stack::{Dev, plan_slice_rows},
    units::Sectors,
};

use crate::{
    agent::{
        attachment::plan::is_fence,
        ground::Found,
        model::{ExportGoal, ExportKey},
        resolve::{resolve, same_table},
    },
    disks_api::DataArea,
};

/// One act on the slice's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make it or swap its table.
    Set(Table),
    /// Drop a preloaded table.
    Clear,
    /// Remove it.
    Remove,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Do(Act),
    /// Nothing before something else has happened.
    Wait(String),
    /// Nothing: the device is as it should be.
    Done,
}

/// The slice's device.
pub fn role(k: &ExportKey) -> DmRole {
    DmRole::Slice(k.volume, k.disk, names::consumer_tag(&k.consumer))
}

/// Whether nothing can be done through the device.
pub fn is_fenced(seen: Option<&Found>) -> bool {
    match seen {
        None => true,
        Some(f) => !f.suspended && !f.preloaded && f.table.as_ref().is_none_or(is_fence),
    }
}

/// The next act. `unexported`: the namespace is known to be gone, so that the device may go too.
pub fn plan(goal: &ExportGoal, seen: Option<&Found>, area: Option<&DataArea>, unexported: bool) -> Next {
    match goal.state {
        ExportState::Serving => plan_serving(goal, seen, area),
        ExportState::Fenced => fence(seen).map_or(Next::Done, Next::Do),
        ExportState::Absent => match (fence(seen), seen) {
            (Some(a), _) => Next::Do(a),
            (None, Some(_)) if unexported => Next::Do(Act::Remove),
            (None, _) => Next::Done,
        },
    }
}

fn fence(seen: Option<&Found>) -> Option<Act> {
    let f = seen?;
    // A device without a table has never served anything.
    let table = f.table.as_ref()?;
    match is_fence(table) && !f.suspended {
        true => f.preloaded.then_some(Act::Clear),
        false => Table::error(table.len()).ok().map(Act::Set),
    }
}

fn plan_serving(goal: &ExportGoal, seen: Option<&Found>, area: Option<&DataArea>) -> Next {
    let Some(m) = &goal.map else { return Next::Wait("the goal carries no map".into()) };
    let Some(area) = area else {
        return Next::Wait(format!("disk {} does not serve on this node", goal.key.disk));
    };
    let rows = plan_slice_rows(&m.map, m.extent_size, goal.key.disk);
    let at = |d: &Dev| -> Option<(DevNo, Sectors)> {
        (*d == Dev::Disk(goal.key.disk)).then_some((area.dev, area.start))
    };
    let table = match resolve(&rows, &at) {
        Ok(t) => t,
        Err(e) => return Next::Wait(e.to_string()),
    };
    let Some(f) = seen else { return Next::Do(Act::Set(table)) };
    if f.preloaded && !f.suspended {
        return Next::Do(Act::Clear);
    }
    let same = f.table.as_ref().is_some_and(|t| same_table(t, &table));
    if same && !f.suspended && f.node_ok { Next::Done } else { Next::Do(Act::Set(table)) }
}
