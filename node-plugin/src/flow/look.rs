//! One look at the kernel's counters. Every call may block; callers run it on a thread of its own.
//!
//! Invariants: disks are known by the devices that hold them, volumes and slices by their UUIDs: no state of ours is asked.
//! Must not know: what was seen before.

use std::collections::BTreeMap;

use csi_proto::node::DiskClass;
use kernel::{
    DevNo,
    block::{BlockDevice, BlockError, DiskStat, parse_diskstats},
    dm::{Control, DmError},
    health::Health,
};
use pool::{
    ids::{DiskId, VolumeId},
    names::{self, DmRole},
};

use super::areas::{self, Areas};

/// What is to be looked at beside the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The areas of volumes.
    pub areas: bool,
    /// The devices' health.
    pub health: bool,
}

/// A disk of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLook {
    /// What it is made of.
    pub class: DiskClass,
    /// Its counters.
    pub stat: DiskStat,
    /// What it says of its health, where it was asked and answers.
    pub health: Option<Health>,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Disks that serve.
    pub disks: BTreeMap<DiskId, DiskLook>,
    /// What other nodes do on them: by disk, volume and the consumer's tag.
    pub slices: BTreeMap<(DiskId, VolumeId, u64), DiskStat>,
    /// Volumes with a device on this node.
    pub volumes: BTreeMap<VolumeId, DiskStat>,
    /// Their areas, where they were asked for.
    pub areas: BTreeMap<VolumeId, Areas>,
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Device-mapper.
    #[error(transparent)]
    Dm(#[from] DmError),
    /// A device's attributes.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The kernel's list of counters.
    #[error("/proc/diskstats: {0}")]
    Stats(#[from] std::io::Error),
}

/// Looks at the counters.
pub trait Eye: Send + Sync + 'static {
    /// Everything at this moment.
    ///
    /// # Errors
    /// See [`LookError`].
    fn look(&self, wants: Wants) -> Result<Look, LookError>;
}

/// The running kernel's.
#[derive(Debug)]
pub struct KernelEye {
    control: Control,
}

impl KernelEye {
    /// Opens the device-mapper's control device.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open() -> Result<Self, LookError> {
        Ok(Self { control: Control::open()? })
    }

    /// The device that a hold stands on.
    fn held(&self, hold: &str) -> Result<Option<DevNo>, LookError> {
        match self.control.deps(hold) {
            Ok(below) => Ok(below.first().copied()),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl Eye for KernelEye {
    fn look(&self, wants: Wants) -> Result<Look, LookError> {
        let devices = self.control.list()?;
        let stats: BTreeMap<DevNo, (String, DiskStat)> =
            parse_diskstats(&std::fs::read_to_string("/proc/diskstats")?)
                .into_iter()
                .map(|(dev, name, stat)| (dev, (name, stat)))
                .collect();
        let mut look = Look::default();
        for d in &devices {
            let Some(uuid) = d.uuid.as_deref() else { continue };
            if let Some(disk) = names::parse_disk_hold(uuid) {
                let Some(dev) = self.held(uuid)? else { continue };
                let Some((name, stat)) = stats.get(&dev) else { continue };
                let seen = disk_look(dev, name, *stat, wants.health)?;
                look.disks.extend(seen.map(|s| (disk, s)));
                continue;
            }
            let Some((_, stat)) = stats.get(&d.dev) else { continue };
            match DmRole::parse(uuid) {
                Some(DmRole::Top(v)) => drop(look.volumes.insert(v, *stat)),
                Some(DmRole::Slice(v, disk, tag)) => drop(look.slices.insert((disk, v, tag), *stat)),
                Some(_) | None => {}
            }
        }
        if wants.areas {
            look.areas = areas::read(&self.control, look.volumes.keys().copied())?;
        }
        Ok(look)
    }
}

/// `None` where the device has gone meanwhile.
fn disk_look(dev: DevNo, name: &str, stat: DiskStat, health: bool) -> Result<Option<DiskLook>, LookError> {
    let class = if name.starts_with("nvme") {
        DiskClass::Nvme
    } else {
        match BlockDevice::new(dev).and_then(|b| b.limits()) {
            Ok(l) if l.rotational => DiskClass::Hdd,
            Ok(_) => DiskClass::Ssd,
            Err(BlockError::NoDevice(_)) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    };
    // Emulated ones and old ones refuse: what is not said is not held against them.
    let health = health.then(|| Health::read(name).ok()).flatten();
    Ok(Some(DiskLook { class, stat, health }))
}
