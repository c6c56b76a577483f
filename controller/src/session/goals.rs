//! Goals as messages. Must not know: where goals come from.

use std::collections::BTreeMap;

use csi_proto::node as wire;
use pool::goals::{ExportState, Role};

use crate::core::told::{DiskRole, Goal, GoalKey, VolumeMap};

/// The message that states these goals.
pub(super) fn render(full: bool, goals: BTreeMap<GoalKey, Goal>) -> wire::Goals {
    let mut out = wire::Goals { full, ..wire::Goals::default() };
    for (key, goal) in goals {
        match (key, goal) {
            (GoalKey::Disk(disk), Goal::Disk { epoch, role, device_id, pool, extent_size }) => {
                let role = match role {
                    DiskRole::Claim => wire::DiskRole::Claim,
                    DiskRole::Serve => wire::DiskRole::Serve,
                    DiskRole::Release => wire::DiskRole::Release,
                };
                out.disks.push(wire::DiskGoal {
                    disk: disk.to_string(),
                    epoch: epoch.get(),
                    role: role.into(),
                    device_id,
                    pool: pool.to_string(),
                    extent_size: extent_size.bytes().get(),
                    force: false,
                });
            }
            (GoalKey::Wipe(disk, wipe), Goal::Wipe { volume, runs, extent_size, epoch }) => {
                let run = |s: pool::record::Stretch| wire::Run { first: s.first.get(), count: s.count.get() };
                out.wipes.push(wire::WipeGoal {
                    disk: disk.to_string(),
                    wipe,
                    volume: volume.map(|v| v.to_string()).unwrap_or_default(),
                    runs: runs.into_iter().map(run).collect(),
                    extent_size: extent_size.bytes().get(),
                    epoch: epoch.get(),
                });
            }
            (GoalKey::Export(volume, disk, consumer), Goal::Export { epoch, state, map }) => {
                let state = match state {
                    ExportState::Serving => wire::ExportState::ExportServing,
                    ExportState::Fenced => wire::ExportState::ExportFenced,
                    ExportState::Absent => wire::ExportState::ExportAbsent,
                };
                out.exports.push(wire::ExportGoal {
                    volume: volume.to_string(),
                    disk: disk.to_string(),
                    consumer: consumer.to_string(),
                    epoch: epoch.get(),
                    state: state.into(),
                    map: map.map(|m| render_map(&m)),
                });
            }
            (GoalKey::Attachment(volume), Goal::Attachment { epoch, role, map, remotes, limits }) => {
                let role = match role {
                    Role::Writer => wire::AttachmentRole::RoleWriter,
                    Role::Reader => wire::AttachmentRole::RoleReader,
                    Role::Guard => wire::AttachmentRole::RoleGuard,
                    Role::FenceIfQuiet => wire::AttachmentRole::RoleFenceIfQuiet,
                    Role::Absent => wire::AttachmentRole::RoleAbsent,
                };
                let remote = |r: crate::core::told::Remote| wire::Remote {
                    disk: r.disk.to_string(),
                    host: r.host.to_string(),
                    address: r.address,
                    port: r.port,
                    ready: r.ready,
                };
                out.attachments.push(wire::AttachmentGoal {
                    volume: volume.to_string(),
                    epoch: epoch.get(),
                    role: role.into(),
                    map: Some(render_map(&map)),
                    remotes: remotes.into_iter().map(remote).collect(),
                    limits: Some(wire::Limits {
                        iops: limits.iops.unwrap_or(0),
                        throughput: limits.throughput.map_or(0, |b| b.get()),
                    }),
                });
            }
            (key, goal) => tracing::error!(?key, ?goal, "a goal stands under a key of another kind"),
        }
    }
    out
}

fn render_map(m: &VolumeMap) -> wire::VolumeMap {
    let leg = |l: &pool::volume::Leg| wire::Leg { disk: l.disk.to_string(), first: l.first.get() };
    let spare =
        |p: pool::volume::Spare| wire::Spare { leg: p.leg, place: Some(leg(&p.place)), filling: p.filling };
    let segment = |s: &pool::volume::Segment| wire::Segment {
        start: s.start.get(),
        count: s.count.get(),
        legs: s.legs.iter().map(leg).collect(),
        stripe_chunk: s.stripe.map_or(0, |st| st.chunk.get()),
        spare: s.spare.map(spare),
    };
    wire::VolumeMap {
        name: m.name.clone(),
        extent_size: m.extent_size.bytes().get(),
        segments: m.map.0.iter().map(segment).collect(),
    }
}
