//! Messages of the node session <-> what the agent works with. Every field that comes from the wire is checked here
//! and nowhere else; a goal that does not make sense is refused as a whole, and the others go on.
//!
//! Must not know: the kernel, sessions.

use std::collections::BTreeMap;

use csi_proto::node as proto;
use kernel::{cgroup::IoMax, dm::dev_node_path};
use pool::{
    goals::{ExportState, Role},
    ids::{BadId, DiskId, Epoch, VolumeId},
    layout::params::Limits,
    moving::Mirror,
    names::DmRole,
    units::{BadExtentSize, Bytes, ExtentSize, Extents, Sectors},
    volume::{Leg, Map, MapFault, Segment, Spare, Stripe},
};

use crate::agent::model::{
    AttachmentGoal, AttachmentReport, ExportGoal, ExportKey, ExportReport, ExportStanding, Remote, Standing,
    VolumeMap,
};

/// Why a message is no goal.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// An id or a name.
    #[error(transparent)]
    Id(#[from] BadId),
    /// An extent size.
    #[error(transparent)]
    ExtentSize(#[from] BadExtentSize),
    /// A map.
    #[error("map: {0}")]
    Map(#[from] MapFault),
    /// A map whose numbers exceed what a device can have.
    #[error("map: extents beyond what can be addressed")]
    TooLarge,
    /// A number that stands for nothing.
    #[error("{what} {value} is not known to this version")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: i32,
    },
    /// A goal that needs a map and has none.
    #[error("the goal carries no map")]
    NoMap,
    /// An address.
    #[error("address {0:?} of a remote disk is not an IP address")]
    Address(String),
    /// A port.
    #[error("port {0} of a remote disk is out of range")]
    Port(u32),
    /// A spare without a place.
    #[error("a spare has no place")]
    NoPlace,
    /// A local disk in an otherwise remote place, or the like.
    #[error("disk {0} is listed as remote and is not in the map")]
    Stranger(DiskId),
}

/// Sectors of the largest device that the kernel addresses (2^63 bytes).
const MAX_SECTORS: u64 = 1 << 54;

/// A volume's map.
pub fn map_from_proto(m: &proto::VolumeMap) -> Result<VolumeMap, ConvertError> {
    let extent_size = ExtentSize::new(m.extent_size)?;
    let bound = MAX_SECTORS / extent_size.sectors().get();
    let within = |n: u64| if n <= bound { Ok(Extents::new(n)) } else { Err(ConvertError::TooLarge) };
    let mut segments = Vec::with_capacity(m.segments.len());
    for s in &m.segments {
        let legs = s
            .legs
            .iter()
            .map(|l| Ok(Leg { disk: l.disk.parse()?, first: within(l.first)? }))
            .collect::<Result<Vec<_>, ConvertError>>()?;
        let chunk = (s.stripe_chunk != 0).then(|| Stripe { chunk: Sectors::new(s.stripe_chunk) });
        let spare = s.spare.as_ref().map(|p| -> Result<Spare, ConvertError> {
            let l = p.place.as_ref().ok_or(ConvertError::NoPlace)?;
            let place = Leg { disk: l.disk.parse()?, first: within(l.first)? };
            Ok(Spare { leg: p.leg, place, filling: p.filling })
        });
        segments.push(Segment {
            start: within(s.start)?,
            count: within(s.count)?,
            legs,
            stripe: chunk,
            spare: spare.transpose()?,
        });
    }
    let map = Map(segments);
    map.check()?;
    Ok(VolumeMap { name: m.name.clone(), extent_size, map })
}

fn mirror_to_proto(m: Mirror) -> proto::Mirror {
    let (state, copied, total) = match m {
        Mirror::Gone => (proto::MirrorState::MirrorGone, Bytes::ZERO, Bytes::ZERO),
        Mirror::Copying(copied, total) => (proto::MirrorState::MirrorCopying, copied, total),
        Mirror::Whole => (proto::MirrorState::MirrorWhole, Bytes::ZERO, Bytes::ZERO),
        Mirror::Broken => (proto::MirrorState::MirrorBroken, Bytes::ZERO, Bytes::ZERO),
    };
    proto::Mirror { state: state.into(), copied_bytes: copied.get(), total_bytes: total.get() }
}

/// A map, for messages.
pub fn map_to_proto(m: &VolumeMap) -> proto::VolumeMap {
    let leg = |l: &Leg| proto::Leg { disk: l.disk.to_string(), first: l.first.get() };
    let segment = |s: &Segment| proto::Segment {
        start: s.start.get(),
        count: s.count.get(),
        legs: s.legs.iter().map(leg).collect(),
        stripe_chunk: s.stripe.map_or(0, |c| c.chunk.get()),
        spare: s.spare.map(|p| proto::Spare { leg: p.leg, place: Some(leg(&p.place)), filling: p.filling }),
    };
    proto::VolumeMap {
        name: m.name.clone(),
        extent_size: m.extent_size.bytes().get(),
        segments: m.map.0.iter().map(segment).collect(),
    }
}

/// An export goal.
pub fn export_goal(g: &proto::ExportGoal) -> Result<ExportGoal, ConvertError> {
    let state = match g.state() {
        proto::ExportState::ExportServing => ExportState::Serving,
        proto::ExportState::ExportFenced => ExportState::Fenced,
        proto::ExportState::ExportAbsent => ExportState::Absent,
        proto::ExportState::ExportUnknown => {
            return Err(ConvertError::Unknown { what: "export state", value: g.state });
        }
    };
    let map = g.map.as_ref().map(map_from_proto).transpose()?;
    if state == ExportState::Serving && map.as_ref().is_none_or(|m| m.map.extents().is_zero()) {
        return Err(ConvertError::NoMap);
    }
    let key = ExportKey { volume: g.volume.parse()?, disk: g.disk.parse()?, consumer: g.consumer.parse()? };
    Ok(ExportGoal { key, epoch: Epoch::new(g.epoch), state, map })
}

/// An attachment goal.
pub fn attachment_goal(g: &proto::AttachmentGoal) -> Result<AttachmentGoal, ConvertError> {
    let role = match g.role() {
        proto::AttachmentRole::RoleWriter => Role::Writer,
        proto::AttachmentRole::RoleReader => Role::Reader,
        proto::AttachmentRole::RoleGuard => Role::Guard,
        proto::AttachmentRole::RoleFenceIfQuiet => Role::FenceIfQuiet,
        proto::AttachmentRole::RoleAbsent => Role::Absent,
        proto::AttachmentRole::RoleUnknown => {
            return Err(ConvertError::Unknown { what: "attachment role", value: g.role });
        }
    };
    let map = g.map.as_ref().map(map_from_proto).transpose()?;
    let mut goal = AttachmentGoal {
        volume: g.volume.parse()?,
        epoch: Epoch::new(g.epoch),
        role,
        map,
        remotes: Default::default(),
    };
    for r in &g.remotes {
        let disk: DiskId = r.disk.parse()?;
        let address = r.address.parse().map_err(|_| ConvertError::Address(r.address.clone()))?;
        let port = u16::try_from(r.port).map_err(|_| ConvertError::Port(r.port))?;
        goal.remotes.insert(disk, Remote { host: r.host.parse()?, address, port, ready: r.ready });
    }
    if goal.builds() {
        let disks = match &goal.map {
            Some(m) if !m.map.extents().is_zero() => m.map.disks(),
            _ => return Err(ConvertError::NoMap),
        };
        if let Some(d) = goal.remotes.keys().find(|d| !disks.contains(d)) {
            return Err(ConvertError::Stranger(*d));
        }
    }
    Ok(goal)
}

/// What the users of a volume may do: 0 is no limit.
pub fn limits(g: &proto::AttachmentGoal) -> Limits {
    let l = g.limits.unwrap_or_default();
    let some = |n: u64| (n > 0).then_some(n);
    Limits { iops: some(l.iops), throughput: some(l.throughput).map(Bytes::new) }
}

/// What is bounded; a volume that is none is left out.
pub fn ceilings(c: &proto::Ceilings) -> BTreeMap<VolumeId, IoMax> {
    let one = |c: &proto::Ceiling| {
        // The kernel takes no limit of nothing.
        let some = |n: u64| Some(n.max(1));
        let max = IoMax {
            rbps: some(c.read_bytes),
            wbps: some(c.write_bytes),
            riops: some(c.reads),
            wiops: some(c.writes),
        };
        match c.volume.parse() {
            Ok(volume) => Some((volume, max)),
            Err(error) => {
                tracing::warn!(volume = c.volume, %error, "a ceiling of no volume");
                None
            }
        }
    };
    c.volumes.iter().filter_map(one).collect()
}

/// What is said about an export.
pub fn export_to_proto(r: &ExportReport) -> proto::ObservedExport {
    let state = match r.standing {
        ExportStanding::Unknown => proto::ExportState::ExportUnknown,
        ExportStanding::Serving => proto::ExportState::ExportServing,
        ExportStanding::Fenced => proto::ExportState::ExportFenced,
        ExportStanding::Absent => proto::ExportState::ExportAbsent,
    };
    proto::ObservedExport {
        volume: r.key.volume.to_string(),
        disk: r.key.disk.to_string(),
        consumer: r.key.consumer.to_string(),
        epoch: r.epoch.get(),
        state: state.into(),
        reason: r.reason.clone(),
    }
}

/// What is said about an attachment.
pub fn attachment_to_proto(r: &AttachmentReport) -> proto::ObservedAttachment {
    let state = match r.standing {
        Standing::Unknown => proto::AttachmentState::AttachmentUnknown,
        Standing::Absent => proto::AttachmentState::AttachmentAbsent,
        Standing::Fenced => proto::AttachmentState::AttachmentFenced,
        Standing::Guarded => proto::AttachmentState::AttachmentGuarded,
        Standing::Open => proto::AttachmentState::AttachmentOpen,
    };
    let device = match r.size.is_zero() {
        true => String::new(),
        false => dev_node_path(&DmRole::Top(r.volume).dm_name()).to_string_lossy().into_owned(),
    };
    proto::ObservedAttachment {
        volume: r.volume.to_string(),
        epoch: r.epoch.get(),
        state: state.into(),
        held: r.held,
        busy: r.busy,
        size_bytes: r.size.to_bytes().get(),
        queueing: r.queueing.iter().map(ToString::to_string).collect(),
        mirror: r.mirror.map(mirror_to_proto),
        reason: r.reason.clone(),
        device_path: device,
    }
}
