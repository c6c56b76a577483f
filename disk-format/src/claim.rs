//! Taking a disk into a pool, and letting it go.
//!
//! Invariants: a disk with any signature that [`probe_signatures`] knows, another pool's label included, is not
//! claimed unless forced; a disk that holds volumes is not released. A disk without a signature is claimed
//! whatever bytes it holds: released and wiped disks are full of leftovers, and no content proves itself unused.
//! A claim that power loss interrupts within the first header leaves a damaged label, which wants force.

use pool::{
    ids::{DiskId, PoolName},
    units::{Bytes, ExtentSize},
};

use crate::{
    layout::{self, HEADER_LEN},
    model::{Geometry, GeometryError, Identity, PoolUid},
    probe::{Signature, probe_signatures},
    read::{CopyId, ReadLabelError, read_label},
    storage::{Storage, StorageError},
    write::{LabelDisk, OpenLabelError},
};

/// Who claims a disk, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The pool.
    pub pool: PoolName,
    /// The pool's identity.
    pub pool_uid: PoolUid,
    /// The id that the disk is to have.
    pub disk: DiskId,
    /// The pool's extent size.
    pub extent_size: ExtentSize,
    /// Now, in seconds since 1970.
    pub now: u64,
}

/// What to do about signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Refuse.
    No,
    /// Wipe those that were found, then claim. What they stood for is lost.
    WipeSignatures,
}

/// A claimed disk.
#[derive(Debug)]
pub enum Claimed<S> {
    /// It is now.
    Created(LabelDisk<S>),
    /// It was already, with the same pool and id.
    Identity(LabelDisk<S>),
}

impl<S> Claimed<S> {
    /// The disk.
    pub fn into_disk(self) -> LabelDisk<S> {
        match self {
            Claimed::Created(d) | Claimed::Identity(d) => d,
        }
    }
}

/// Why a disk was not claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is not empty.
    #[error("the device carries {}; wipe it, or force the claim", list(.0))]
    Signatures(Vec<Signature>),
    /// Signatures are still there after they were overwritten.
    #[error("the device still carries {} after it was wiped", list(.0))]
    NotWiped(Vec<Signature>),
    /// It cannot be laid out.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// It is ours already, but cannot be opened.
    #[error("the device is claimed already, and its label cannot be opened")]
    Open(#[from] OpenLabelError),
    /// The device failed.
    #[error("the device failed")]
    Storage(#[from] StorageError),
}

/// Why a disk was not released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Its label cannot be read.
    #[error(transparent)]
    Read(#[from] ReadLabelError),
    /// It is another disk.
    #[error("the label is that of disk {disk} of pool {pool} ({pool_uid})")]
    NotThisDisk {
        /// Whose it is.
        pool: PoolName,
        /// That pool's identity.
        pool_uid: PoolUid,
        /// Which disk it is.
        disk: DiskId,
    },
    /// Volumes lie on it.
    #[error("{0} volumes still have extents on the disk")]
    HoldsVolumes(usize),
    /// The device failed.
    #[error("the device failed")]
    Storage(#[from] StorageError),
}

/// Signatures for people: `ext4 at 1080, GPT at 512`.
pub(crate) fn list(all: &[Signature]) -> String {
    all.iter().map(Signature::to_string).collect::<Vec<_>>().join(", ")
}

/// Claims a disk: lays it out and writes a label without volumes. A second time changes nothing.
pub fn claim<S: Storage>(mut s: S, req: &ClaimRequest, force: Force) -> Result<Claimed<S>, ClaimError> {
    let geometry = Geometry::plan(s.size(), s.block_size(), req.extent_size)?;
    if let Ok(found) = read_label(&s) {
        let i = found.label.identity();
        if i.pool_uid == req.pool_uid && i.disk == req.disk {
            return Ok(Claimed::Identity(LabelDisk::open(s)?));
        }
    }
    let found = probe_signatures(&s)?;
    if !found.is_empty() {
        if force == Force::No {
            return Err(ClaimError::Signatures(found));
        }
        wipe(&mut s, &found)?;
        let left = probe_signatures(&s)?;
        if !left.is_empty() {
            return Err(ClaimError::NotWiped(left));
        }
    }
    let identity = Identity {
        pool: req.pool.clone(),
        pool_uid: req.pool_uid,
        disk: req.disk,
        claimed_at: req.now,
        geometry,
        compat: 0,
    };
    Ok(Claimed::Created(LabelDisk::create(s, identity)?))
}

/// Overwrites the blocks that hold the signatures with zeros.
fn wipe<S: Storage>(s: &mut S, found: &[Signature]) -> Result<(), StorageError> {
    let bs = u64::from(s.block_size());
    for sig in found {
        let from = sig.offset / bs * bs;
        let to = (sig.offset + sig.len as u64).next_multiple_of(bs);
        s.write_at(Bytes::new(from), &vec![0; (to - from) as usize])?;
    }
    s.sync()
}

/// Erases both copies of the label, after it was found to be that of this disk of this pool and to hold no
/// volumes. Copy B goes first: a release that is interrupted leaves copy A, and can be done again.
pub fn release<S: Storage>(mut s: S, pool_uid: PoolUid, disk: DiskId) -> Result<S, ReleaseError> {
    let found = read_label(&s)?;
    let i = found.label.identity();
    if i.pool_uid != pool_uid || i.disk != disk {
        return Err(ReleaseError::NotThisDisk { pool: i.pool.clone(), pool_uid: i.pool_uid, disk: i.disk });
    }
    if !found.label.volumes().is_empty() {
        return Err(ReleaseError::HoldsVolumes(found.label.volumes().len()));
    }
    for copy in [CopyId::B, CopyId::A] {
        let at = copy.offset(&i.geometry);
        if at.get() + layout::AREA_LEN <= s.size().get() {
            s.write_at(at, &[0; HEADER_LEN])?;
            s.sync()?;
        }
    }
    Ok(s)
}
