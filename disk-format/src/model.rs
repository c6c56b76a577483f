//! What a label says, apart from how it is written: who the disk is, and which runs belong to which volume.
//!
//! Invariants of a [`Label`]: its geometry adds up; every run lies within the disk's extents; no two runs share an
//! extent; every volume has at least one run. [`Label::check`] holds them against it.

use std::{collections::BTreeMap, fmt};

use pool::{
    access::Sharing,
    ids::{DiskId, Epoch, PoolName, VolumeId},
    layout::Layout,
    units::{Bytes, ExtentSize, Extents},
    volume::{Run, Stripe},
};

use crate::layout;

mod runs;
pub use runs::{AddRunsError, LabelFault, RemoveRunsError, SummaryFault};

/// The identity of a pool across clusters: its name may occur twice in the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolUid(pub u128);

impl fmt::Display for PoolUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One spelling of 128-bit ids everywhere: that of the pool's ids.
        fmt::Display::fmt(&DiskId::from_u128(self.0), f)
    }
}

impl fmt::Debug for PoolUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where things lie on the disk; fixed when it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device at claim.
    pub device_size: Bytes,
    /// Logical block size of the device at claim.
    pub block_size: u32,
    /// Size of an extent.
    pub extent_size: ExtentSize,
    /// Where extent 0 begins.
    pub data_offset: Bytes,
    /// Number of extents.
    pub extents: Extents,
    /// Where copy B of the label lies.
    pub copy_b: Bytes,
}

/// Why a device cannot be laid out, or a layout does not add up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// No extent fits.
    #[error(
        "a device of {size} has no room for one extent of {extent_size} beside the label; {min} are needed"
    )]
    TooSmall {
        /// The device's size.
        size: Bytes,
        /// The pool's extent size.
        extent_size: Bytes,
        /// The least size.
        min: Bytes,
    },
    /// Not 512 or 4096.
    #[error("logical block size {0} is neither 512 nor 4096")]
    BlockSize(u32),
    /// Areas overlap or leave the device.
    #[error("the layout does not add up: {0}")]
    Inconsistent(&'static str),
}

impl Geometry {
    /// Lays out a device.
    pub fn plan(size: Bytes, block_size: u32, extent_size: ExtentSize) -> Result<Self, GeometryError> {
        let min =
            Bytes::new(layout::MIN_DEVICE.get() - ExtentSize::MIN.bytes().get() + extent_size.bytes().get());
        let small = GeometryError::TooSmall { size, extent_size: extent_size.bytes(), min };
        let data_offset = Bytes::new(layout::DATA_OFFSET);
        let copy_b = Bytes::new(layout::copy_b_for(size).ok_or(small.clone())?);
        let room = copy_b.checked_sub(data_offset).ok_or(small.clone())?;
        let extents = extent_size.extents_round_down(room);
        if extents.is_zero() {
            return Err(small);
        }
        let g = Self { device_size: size, block_size, extent_size, data_offset, extents, copy_b };
        g.check().map(|()| g)
    }

    /// Whether the areas lie one behind the other within the device.
    pub fn check(&self) -> Result<(), GeometryError> {
        if !matches!(self.block_size, 512 | 4096) {
            return Err(GeometryError::BlockSize(self.block_size));
        }
        let bad = |why| Err(GeometryError::Inconsistent(why));
        let (data, b) = (self.data_offset.get(), self.copy_b.get());
        if !data.is_multiple_of(layout::ALIGNMENT) || !b.is_multiple_of(layout::ALIGNMENT) {
            return bad("data or copy B is not aligned");
        }
        if data < layout::COPY_A + layout::AREA_LEN {
            return bad("data overlaps copy A");
        }
        if self.extents.is_zero() {
            return bad("no extents");
        }
        let end =
            self.extent_size.checked_bytes_of(self.extents).and_then(|n| n.checked_add(self.data_offset));
        if end.is_none_or(|e| e > self.copy_b) {
            return bad("data overlaps copy B");
        }
        if b.checked_add(layout::AREA_LEN + layout::TAIL).is_none_or(|e| e > self.device_size.get()) {
            return bad("copy B leaves the device");
        }
        Ok(())
    }

    /// Where an extent begins on the device; `None` when the disk has no such extent.
    pub fn offset_of(&self, extent: Extents) -> Option<Bytes> {
        (extent < self.extents).then(|| self.data_offset.plus(self.extent_size.bytes_of(extent)))
    }
}

/// Who the disk is; fixed when it is claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pool it belongs to.
    pub pool: PoolName,
    /// The pool's identity.
    pub pool_uid: PoolUid,
    /// The disk's id.
    pub disk: DiskId,
    /// When it was claimed, in seconds since 1970.
    pub claimed_at: u64,
    /// Where things lie.
    pub geometry: Geometry,
    /// Compat flags: kept as found.
    pub compat: u64,
}

/// What of a volume's record each of its disks keeps, so that the record can be made again from disks alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSummary {
    /// Its name (CSI's volume name), at most 255 bytes.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// Its layout.
    pub layout: Layout,
    /// Who may use it at once.
    pub sharing: Sharing,
    /// Epoch of the record that this label last saw.
    pub epoch: Epoch,
    /// Other parameters of the volume (provisioning, file system, locality and so on).
    pub params: BTreeMap<String, String>,
}

/// Whether a run is part of the volume's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunState {
    /// It is.
    Live,
    /// It will be: the target of a move whose copy is not known to be whole.
    Filling,
    /// It was: waits to be wiped.
    Retired,
}

/// A run of extents on this disk, and its place in the volume's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunEntry {
    /// First logical extent of the segment it is a leg of.
    pub start: Extents,
    /// First extent on this disk.
    pub first: Extents,
    /// Extents on this disk, never zero.
    pub count: Extents,
    /// Which leg of the segment: the stripe's number, the mirror's copy, or 0.
    pub leg: u16,
    /// Legs of the segment.
    pub legs: u16,
    /// For a stripe: its chunk.
    pub stripe: Option<Stripe>,
    /// The volume's epoch when this run was last recorded.
    pub epoch: Epoch,
    /// Whether it is part of the map.
    pub state: RunState,
}

impl RunEntry {
    /// The extent after its last, on this disk. Saturates: a run of a checked label cannot reach that far.
    pub fn end(&self) -> Extents {
        Extents::new(self.first.get().saturating_add(self.count.get()))
    }

    /// As the pool knows it.
    pub fn to_run(&self, disk: DiskId) -> Run {
        Run { disk, first: self.first, count: self.count }
    }
}

/// A volume on this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// What is known of it.
    pub summary: VolumeSummary,
    /// Its runs by their first extent on this disk.
    pub runs: BTreeMap<Extents, RunEntry>,
}

/// All that a label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub(crate) identity: Identity,
    pub(crate) generation: u64,
    pub(crate) volumes: BTreeMap<VolumeId, VolumeEntry>,
}

impl Label {
    /// A label without volumes.
    pub fn new(identity: Identity) -> Self {
        Self { identity, generation: 0, volumes: BTreeMap::new() }
    }

    /// Who the disk is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How many times it has been written.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The volumes on this disk.
    pub fn volumes(&self) -> &BTreeMap<VolumeId, VolumeEntry> {
        &self.volumes
    }

    /// The runs of one volume, in the disk's order.
    pub fn runs_of(&self, volume: VolumeId) -> impl Iterator<Item = &RunEntry> {
        self.volumes.get(&volume).into_iter().flat_map(|e| e.runs.values())
    }

    /// Extents that belong to no volume.
    pub fn free_extents(&self) -> Extents {
        let used = self.volumes.values().flat_map(|e| e.runs.values()).map(|r| r.count).sum();
        self.identity.geometry.extents.saturating_sub(used)
    }
}
