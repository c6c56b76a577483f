//! Messages of nodes as the core's observations. What cannot be understood is logged and left out: it is then
//! unknown, and unknown changes nothing. Must not know: what follows from an observation.

use csi_proto::node as wire;
use pool::{
    disk::DiskClass,
    goals::ExportState,
    ids::{BadId, Epoch, NodeName, Term},
    moving::Mirror,
    units::{Bytes, Extents},
};

use crate::core::seen::{
    Attachment, AttachmentSeen, Condition, Content, Device, DiskSeen, ExportSeen, Hello, Report, WipeSeen,
};

/// A node's introduction.
pub(super) fn parse_hello(node: NodeName, h: wire::Hello) -> Hello {
    Hello {
        node,
        boot_id: h.boot_id,
        version: h.plugin_version,
        address: h.storage_address,
        port: h.storage_port,
        topology: h.topology.into_iter().collect(),
        term_seen: Term::new(h.term_seen),
    }
}

/// Everything in a list that can be understood.
fn each<T, U>(what: &str, list: Vec<T>, parse: fn(T) -> Result<U, BadId>) -> Vec<U> {
    let one = |t| match parse(t) {
        Ok(u) => Some(u),
        Err(e) => {
            tracing::error!(what, error = %e, "a node reports something that cannot be understood: left out");
            None
        }
    };
    list.into_iter().filter_map(one).collect()
}

/// What a node reports.
pub(super) fn parse_report(r: wire::Report) -> Report {
    Report {
        full: r.full,
        devices: r.devices.into_iter().map(parse_device).collect(),
        disks: each("disk", r.disks, parse_disk),
        exports: each("export", r.exports, parse_export),
        attachments: each("attachment", r.attachments, parse_attachment),
        wipes: each("wipe", r.wipes, parse_wipe),
    }
}

fn parse_device(d: wire::Device) -> (String, Option<Device>) {
    if d.gone {
        return (d.device_id, None);
    }
    let class = match d.disk_class() {
        wire::DiskClass::Hdd => DiskClass::Hdd,
        wire::DiskClass::Nvme => DiskClass::Nvme,
        // What does not say that it rotates does not.
        wire::DiskClass::Ssd | wire::DiskClass::Unknown => DiskClass::Ssd,
    };
    let label = d.label.as_ref().and_then(|l| l.disk.parse().ok().map(|disk| (disk, l.pool.clone())));
    let content = match (d.content(), label) {
        (wire::DeviceContent::Blank, _) => Content::Blank,
        (wire::DeviceContent::Weir, Some((disk, pool))) => Content::Weir { disk, pool },
        (wire::DeviceContent::Foreign, _) => Content::Foreign,
        (wire::DeviceContent::Busy, _) => Content::Busy,
        (wire::DeviceContent::Weir, None)
        | (wire::DeviceContent::Unreadable | wire::DeviceContent::ContentUnknown, _) => Content::Unreadable,
    };
    let device = Device {
        path: d.path,
        serial: d.serial,
        size: Bytes::new(d.size_bytes),
        logical_block: d.logical_block,
        physical_block: d.physical_block,
        class,
        content,
        findings: d.findings,
    };
    (d.device_id, Some(device))
}

fn parse_disk(d: wire::ObservedDisk) -> Result<DiskSeen, BadId> {
    Ok(DiskSeen {
        disk: d.disk.parse()?,
        condition: match d.condition() {
            wire::DiskCondition::Serving => Some(Condition::Serving),
            wire::DiskCondition::Missing => Some(Condition::Missing),
            wire::DiskCondition::Failed => Some(Condition::Failed),
            wire::DiskCondition::Released => Some(Condition::Released),
            wire::DiskCondition::Unknown => None,
        },
        extents: Extents::new(d.extents),
        device_id: d.device_id,
        path: d.path,
        reason: d.reason,
    })
}

fn parse_export(e: wire::ObservedExport) -> Result<ExportSeen, BadId> {
    Ok(ExportSeen {
        volume: e.volume.parse()?,
        disk: e.disk.parse()?,
        consumer: e.consumer.parse()?,
        epoch: Epoch::new(e.epoch),
        state: match e.state() {
            wire::ExportState::ExportServing => Some(ExportState::Serving),
            wire::ExportState::ExportFenced => Some(ExportState::Fenced),
            wire::ExportState::ExportAbsent => Some(ExportState::Absent),
            wire::ExportState::ExportUnknown => None,
        },
        reason: e.reason,
    })
}

fn parse_attachment(a: wire::ObservedAttachment) -> Result<AttachmentSeen, BadId> {
    Ok(AttachmentSeen {
        volume: a.volume.parse()?,
        epoch: Epoch::new(a.epoch),
        state: match a.state() {
            wire::AttachmentState::AttachmentAbsent => Some(Attachment::Absent),
            wire::AttachmentState::AttachmentFenced => Some(Attachment::Fenced),
            wire::AttachmentState::AttachmentGuarded => Some(Attachment::Guarded),
            wire::AttachmentState::AttachmentOpen => Some(Attachment::Open),
            wire::AttachmentState::AttachmentUnknown => None,
        },
        held: a.held,
        busy: a.busy,
        size: Bytes::new(a.size_bytes),
        queueing: a.queueing.iter().map(|d| d.parse()).collect::<Result<_, _>>()?,
        mirror: a.mirror.as_ref().and_then(parse_mirror),
        reason: a.reason,
    })
}

fn parse_mirror(m: &wire::Mirror) -> Option<Mirror> {
    match m.state() {
        wire::MirrorState::MirrorUnknown => None,
        wire::MirrorState::MirrorGone => Some(Mirror::Gone),
        wire::MirrorState::MirrorCopying => {
            Some(Mirror::Copying(Bytes::new(m.copied_bytes), Bytes::new(m.total_bytes)))
        }
        wire::MirrorState::MirrorWhole => Some(Mirror::Whole),
        wire::MirrorState::MirrorBroken => Some(Mirror::Broken),
    }
}

fn parse_wipe(w: wire::ObservedWipe) -> Result<WipeSeen, BadId> {
    let (disk, refused) = (w.disk.parse()?, w.refused);
    Ok(WipeSeen { disk, wipe: w.wipe, done: w.done, refused, reason: w.reason })
}
