//! Devices as they are reported: who they are, and what is on them.

use std::collections::BTreeMap;

use csi_proto::node::{self as proto, DeviceContent};
use disk_format::{Identity, OpenMode, ReadLabelError, Storage, probe_signatures, read_label};
use kernel::block::Rejected;
use observe::chain;
use pool::ids::DiskId;

use super::hardware::{Found, Hardware};

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It is being read for the first time.
    Reading,
    /// No signature of anything.
    Blank,
    /// A label of ours.
    Weir(Box<Identity>, u64),
    /// Somebody else's.
    Foreign(Vec<String>),
    /// In use.
    Busy(Vec<String>),
    /// It does not read, or its label is damaged in both copies.
    Unreadable(Vec<String>),
}

impl Content {
    /// The disk whose label it is.
    pub(super) fn disk(&self) -> Option<DiskId> {
        match self {
            Content::Weir(i, _) => Some(i.disk),
            Content::Reading
            | Content::Blank
            | Content::Foreign(_)
            | Content::Busy(_)
            | Content::Unreadable(_) => None,
        }
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        match self {
            Content::Reading => "it has not answered a read yet".to_owned(),
            Content::Blank => "it is blank".to_owned(),
            Content::Weir(i, _) => format!("it carries the label of disk {} of pool {}", i.disk, i.pool),
            Content::Foreign(f) => format!("it carries {}", f.join(", ")),
            Content::Busy(f) => format!("it is in use: {}", f.join(", ")),
            Content::Unreadable(f) => format!("it cannot be read: {}", f.join(", ")),
        }
    }
}

/// Disks by their stable names. Hardware that shares a serial number with another is named by its path.
pub(super) fn by_id(found: Vec<Found>) -> BTreeMap<String, Found> {
    let name = |f: &Found| {
        let own = [&f.serial, &f.wwn].into_iter().find(|s| !s.is_empty());
        own.cloned().unwrap_or_else(|| f.path.display().to_string())
    };
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for f in &found {
        *count.entry(name(f)).or_default() += 1;
    }
    found
        .into_iter()
        .map(|f| {
            let n = name(&f);
            (if count[&n] == 1 { n } else { f.path.display().to_string() }, f)
        })
        .collect()
}

/// Whether a device is reported at all.
pub(super) fn is_reported(f: &Found) -> bool {
    match &f.rejected {
        Some(
            Rejected::Kind | Rejected::Empty | Rejected::Removable | Rejected::ReadOnly | Rejected::Remote,
        ) => false,
        Some(
            Rejected::Partitioned(_)
            | Rejected::Held(_)
            | Rejected::Ours(_)
            | Rejected::Mounted
            | Rejected::InUse,
        )
        | None => true,
    }
}

/// Reads what is on a device. Blocks for as long as the device does.
pub(super) fn read_content(hardware: &dyn Hardware, f: &Found) -> Content {
    if let Some(Rejected::Held(by)) = &f.rejected {
        // A path of a multipath device, say: the label is visible here too, and the disk is the device above.
        return Content::Busy(vec![format!("held by {}", by.join(", "))]);
    }
    let s = match hardware.open(&f.path, OpenMode::Read) {
        Ok(s) => s,
        Err(e) => return Content::Unreadable(vec![chain(&e)]),
    };
    // The label first: a disk of ours is held by our own tables, and data may look like anything.
    let label = match read_label(&*s) {
        Ok(found) => {
            return Content::Weir(Box::new(found.label.identity().clone()), found.label.generation());
        }
        Err(e) => e,
    };
    // A damaged label says more than who holds the device: our own hold outlives a plugin.
    match label {
        ReadLabelError::Unsupported { .. } => return Content::Foreign(vec![chain(&label)]),
        ReadLabelError::Corrupt { .. } | ReadLabelError::Disagree(_) | ReadLabelError::Unreadable { .. } => {
            return Content::Unreadable(vec![chain(&label)]);
        }
        ReadLabelError::Blank | ReadLabelError::TooSmall { .. } => {}
    }
    match &f.rejected {
        Some(Rejected::Partitioned(parts)) => {
            Content::Foreign(vec![format!("partitions {}", parts.join(", "))])
        }
        Some(Rejected::Held(by) | Rejected::Ours(by)) => {
            Content::Busy(vec![format!("held by {}", by.join(", ")), "no label of ours".to_owned()])
        }
        Some(Rejected::Mounted) => Content::Busy(vec!["mounted, or swap".to_owned()]),
        Some(Rejected::InUse) => Content::Busy(vec!["opened exclusively by a process".to_owned()]),
        Some(
            Rejected::Kind | Rejected::Empty | Rejected::Removable | Rejected::ReadOnly | Rejected::Remote,
        )
        | None => content_without_label(&*s),
    }
}

fn content_without_label(s: &dyn Storage) -> Content {
    match probe_signatures(s) {
        Ok(sigs) if sigs.is_empty() => Content::Blank,
        Ok(sigs) => Content::Foreign(sigs.iter().map(ToString::to_string).collect()),
        Err(e) => Content::Unreadable(vec![chain(&e)]),
    }
}

/// As the session carries it.
pub(super) fn report(id: &str, f: &Found, content: &Content) -> proto::Device {
    let (kind, findings) = match content {
        Content::Reading => (DeviceContent::Unreadable, vec![content.describe()]),
        Content::Blank => (DeviceContent::Blank, Vec::new()),
        Content::Weir(..) => (DeviceContent::Weir, Vec::new()),
        Content::Foreign(f) => (DeviceContent::Foreign, f.clone()),
        Content::Busy(f) => (DeviceContent::Busy, f.clone()),
        Content::Unreadable(f) => (DeviceContent::Unreadable, f.clone()),
    };
    let label = match content {
        Content::Weir(i, generation) => Some(proto::Label {
            disk: i.disk.to_string(),
            pool: i.pool.to_string(),
            extent_size: i.geometry.extent_size.bytes().get(),
            extents: i.geometry.extents.get(),
            generation: *generation,
        }),
        _ => None,
    };
    proto::Device {
        device_id: id.to_owned(),
        path: f.path.display().to_string(),
        serial: f.serial.clone(),
        model: f.model.clone(),
        size_bytes: f.size.get(),
        logical_block: f.logical_block,
        physical_block: f.physical_block,
        disk_class: f.class as i32,
        content: kind as i32,
        label,
        findings,
        gone: false,
    }
}
