//! Draining, as the Operator service says it. Must not know: how anything moves.

use csi_proto::operator as wire;

use crate::{
    api::{Api as _, ApiError, Blocked, DrainPlan, DrainRow, MoveRow, Parting, Target},
    core::{DrainProgress, Handle},
};

fn blocked(b: Blocked) -> wire::Blocked {
    let Blocked { volume, name, bytes, missing_bytes, why, advice, passing } = b;
    wire::Blocked { volume: volume.to_string(), name, bytes, missing_bytes, why, advice, passing }
}

fn plan(p: DrainPlan) -> wire::DrainPlan {
    let moves = p.moves.into_iter().map(|m| wire::PlannedMove {
        volume: m.volume.to_string(),
        name: m.name,
        to_disk: m.to.to_string(),
        to_node: m.to_node.to_string(),
        bytes: m.bytes,
    });
    wire::DrainPlan { moves: moves.collect(), bytes: p.bytes, unplanned_bytes: p.unplanned_bytes }
}

fn row(r: DrainRow) -> wire::DrainingDisk {
    wire::DrainingDisk {
        disk: r.disk.to_string(),
        node: r.node.to_string(),
        path: r.path,
        state: r.state,
        draining: r.draining,
        volumes: r.volumes as u64,
        left_bytes: r.left_bytes,
        wiping_bytes: r.wiping_bytes,
        moved_bytes: r.moved_bytes,
        bytes_s: r.pace.bytes_s,
        measured: r.pace.measured,
        eta_s: r.eta_s,
        blocked: r.blocked.into_iter().map(blocked).collect(),
        more_blocked: r.more_blocked as u64,
        plan: r.plan.map(plan),
    }
}

fn under_way(m: MoveRow) -> wire::Move {
    wire::Move {
        volume: m.volume.to_string(),
        name: m.name,
        from_disk: m.from.to_string(),
        to_disk: m.to.to_string(),
        to_node: m.to_node.to_string(),
        by: m.by.to_string(),
        cause: m.cause.to_string(),
        bytes: m.bytes,
        copied_bytes: m.copied,
        switched: !m.filling,
    }
}

/// A node's name, or else a disk's id.
fn named(target: &Target) -> (String, String) {
    match target {
        Target::Node(n) => (n.to_string(), String::new()),
        Target::Disk(d) => (String::new(), d.to_string()),
    }
}

/// Has what is named leave, or says what is left of it.
pub(super) async fn part(core: &Handle, text: String, forget: bool) -> Result<wire::PartResponse, ApiError> {
    let target = core.find_target(text).await?;
    let (node, disk) = named(&target);
    let Parting { disks, volumes, done } = core.part(target, forget).await?;
    Ok(wire::PartResponse { node, disk, disks_left: disks as u64, volumes_left: volumes as u64, done })
}

fn response(target: &Target, p: DrainProgress, unchanged: bool) -> wire::DrainResponse {
    let (node, disk) = named(target);
    wire::DrainResponse {
        node,
        disk,
        disks: p.disks.into_iter().map(row).collect(),
        moves: p.moves.into_iter().map(under_way).collect(),
        unchanged,
    }
}

/// Begins to empty what is named, or says what that would come to.
pub(super) async fn drain(core: &Handle, r: wire::DrainRequest) -> Result<wire::DrainResponse, ApiError> {
    let target = core.find_target(r.target).await?;
    let before = core.drain_progress(target.clone()).await?;
    let disks = core.drain(target.clone(), false, r.dry_run).await?;
    if r.dry_run {
        return Ok(response(&target, DrainProgress { disks, moves: before.moves }, true));
    }
    let unchanged = before.disks.iter().all(|d| d.draining);
    let now = core.drain_progress(target.clone()).await?;
    Ok(response(&target, now, unchanged))
}

/// Ends the emptying of what is named.
pub(super) async fn undrain(core: &Handle, text: String) -> Result<wire::DrainResponse, ApiError> {
    let target = core.find_target(text).await?;
    let before = core.drain_progress(target.clone()).await?;
    if !before.disks.iter().any(|d| d.draining) {
        let what = match &target {
            Target::Node(n) => format!("node {n}"),
            Target::Disk(d) => format!("disk {d}"),
        };
        return Err(ApiError::Precondition(format!("{what} is not being drained: there is nothing to undo")));
    }
    core.drain(target.clone(), true, false).await?;
    let now = core.drain_progress(target.clone()).await?;
    Ok(response(&target, now, false))
}

/// How the emptying of what is named goes.
pub(super) async fn progress(core: &Handle, text: String) -> Result<wire::DrainResponse, ApiError> {
    let target = core.find_target(text).await?;
    let now = core.drain_progress(target.clone()).await?;
    Ok(response(&target, now, true))
}
