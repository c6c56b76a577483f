//! What is said about a volume's device: a pure function of the goal and of what is seen.

use std::collections::BTreeSet;

use pool::{
    goals::Role,
    ids::DiskId,
    moving::Mirror,
    units::{Bytes, Sectors},
};

use super::plan::{Input, Next, Seen, is_fence, is_guard, plan};
use crate::agent::model::{AttachmentReport, Standing};

/// What the worker knows beyond the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// The guard has seen a write.
    pub held: bool,
    /// The source was not quiet.
    pub busy: bool,
    /// Legs without a path.
    pub queueing: BTreeSet<DiskId>,
    /// Why the last pass did not reach the goal; empty when it did.
    pub trouble: String,
}

/// The report.
pub fn status(i: &Input, seen: &Seen, x: &Extra) -> AttachmentReport {
    let standing = standing(i, seen);
    let size = seen.top_table().map_or(Sectors::ZERO, kernel::dm::Table::len);
    let reached = match i.goal.role {
        Role::Writer | Role::Reader => Standing::Open,
        Role::Guard => Standing::Guarded,
        Role::FenceIfQuiet => Standing::Fenced,
        Role::Absent => Standing::Absent,
    };
    let short = i.goal.builds() && i.goal.map.as_ref().is_some_and(|m| m.size() != size);
    let reason = match (standing == reached && !short, x.trouble.is_empty()) {
        (true, _) => String::new(),
        (false, false) => x.trouble.clone(),
        (false, true) if x.busy => "writes still arrive".into(),
        (false, true) => "in progress".into(),
    };
    AttachmentReport {
        volume: i.goal.volume,
        epoch: i.goal.epoch,
        standing,
        held: x.held && standing == Standing::Guarded,
        busy: x.busy && standing != Standing::Fenced,
        size,
        queueing: x.queueing.iter().copied().collect(),
        mirror: Some(mirror(i, seen)),
        reason,
    }
}

/// What is said about the mirror. One that is none yet has copied nothing; one that is none any more and still there has
/// not let go.
fn mirror(i: &Input, seen: &Seen) -> Mirror {
    let filling = i.goal.map.as_ref().is_some_and(|m| m.map.spare().is_some_and(|(_, p)| p.filling));
    match &seen.mirror {
        None if i.was_whole => Mirror::Broken,
        None => Mirror::Gone,
        Some(f) => f.mirror.unwrap_or(match filling && !i.was_whole {
            true => Mirror::Copying(Bytes::ZERO, Bytes::ZERO),
            false => Mirror::Broken,
        }),
    }
}

fn standing(i: &Input, seen: &Seen) -> Standing {
    if seen.mirror.as_ref().is_some_and(|f| f.table.as_ref().is_some_and(|t| !is_fence(t)))
        && seen.top_table().is_none_or(is_fence)
    {
        // It still copies.
        return Standing::Unknown;
    }
    let Some(table) = seen.top_table() else { return without_top(i, seen) };
    let suspended = seen.top.as_ref().is_some_and(|f| f.suspended);
    if is_fence(table) {
        return if suspended { Standing::Unknown } else { Standing::Fenced };
    }
    if is_guard(table) {
        let through =
            seen.write_leg.as_ref().and_then(|f| f.table.as_ref()).is_some_and(|t| {
                t.lines().iter().any(|l| matches!(l.target, kernel::dm::Target::Linear { .. }))
            });
        return if through || suspended { Standing::Unknown } else { Standing::Guarded };
    }
    match i.goal.role {
        // It was open and is as it was: the goal is not reached, and it is not closed either.
        Role::FenceIfQuiet | Role::Absent | Role::Guard => Standing::Open,
        Role::Writer | Role::Reader if suspended => Standing::Unknown,
        // A device that serves an older, shorter map serves; what is left over is the remains of a guard or a leg.
        Role::Writer | Role::Reader => match plan(i, seen) {
            Next::Do(super::plan::Act::Set { role: pool::names::DmRole::Top(_), .. })
                if !same_size(i, seen) =>
            {
                Standing::Open
            }
            Next::Do(super::plan::Act::Set { role: pool::names::DmRole::Top(_), .. }) => Standing::Unknown,
            Next::Do(_) | Next::Wait(_) | Next::Done => Standing::Open,
        },
    }
}

fn same_size(i: &Input, seen: &Seen) -> bool {
    i.goal.map.as_ref().map(|m| m.size()) == seen.top_table().map(kernel::dm::Table::len)
}

/// Without a top nothing can reach the disks: what is left of legs under it fails or is unused.
fn without_top(i: &Input, seen: &Seen) -> Standing {
    if i.goal.builds() {
        return Standing::Unknown;
    }
    let nothing = seen.top.is_none()
        && seen.map.is_none()
        && seen.write_leg.is_none()
        && seen.mirror.is_none()
        && seen.legs.is_empty()
        && seen.near.is_empty();
    match i.goal.role {
        Role::Absent if nothing => Standing::Absent,
        Role::Writer | Role::Reader | Role::Guard | Role::FenceIfQuiet | Role::Absent => Standing::Fenced,
    }
}
