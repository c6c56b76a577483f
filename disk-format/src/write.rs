//! Writing a label: the pages that changed and the header of the older copy, sync, then the same of the other
//! copy, sync. At any moment one copy is whole, so pages are written in place and no page is shadowed.
//!
//! Invariants: each update has a generation one higher than any that was read or written; after a failed write or
//! sync the handle refuses to write again, for what is on disk is then unknown: open the disk anew.

use pool::units::Bytes;

use crate::{
    header::{self, Header},
    layout::{BLOCK, HEADER_LEN, PAGES},
    model::{Identity, Label, LabelFault},
    page::{self, Full, Image},
    probe::{Signature, foreign_outside},
    read::{CopyId, FoundLabel, OtherCopy, ReadLabelError, SizeChange, read_label},
    storage::{Storage, StorageError},
};

/// Why a disk's label cannot be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum OpenLabelError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadLabelError),
    /// The device lost its end, and copy B or extents with it.
    #[error("the device is smaller by {by} than when it was claimed; its label is not written any more")]
    Shrank {
        /// By how much.
        by: Bytes,
    },
    /// Someone else wrote on the disk beside the data.
    #[error("the disk carries a Weir label and, beside its data, {}", crate::claim::list(.0))]
    Foreign(Vec<Signature>),
    /// The device failed while the other copy was repaired.
    #[error("the device failed")]
    Storage(#[from] StorageError),
}

/// Why a label was not updated.
#[derive(Debug, thiserror::Error)]
pub enum UpdateLabelError {
    /// The table has no room. Nothing was written.
    #[error("the run table is full: {PAGES} pages hold {bytes} bytes of records and {more} more do not fit")]
    TableFull {
        /// Bytes of records that fit.
        bytes: usize,
        /// Bytes of the record that did not.
        more: usize,
    },
    /// The new label is not valid. Nothing was written.
    #[error("the new label is not valid")]
    Invalid(#[from] LabelFault),
    /// The new label is of another disk, or made from another state than the one on disk. Nothing was written.
    #[error("the new label was not made from the one on the disk (generation {have}, made from {made_from})")]
    NotBasedOnThis {
        /// Generation on disk.
        have: u64,
        /// Generation of the label that was passed.
        made_from: u64,
    },
    /// The device failed: old and new state are both possible. Open the disk anew.
    #[error("the device failed while the label was written; which state it holds is unknown")]
    Storage(#[from] StorageError),
    /// An earlier write failed.
    #[error("an earlier write of this label failed; the disk must be opened anew")]
    Latched,
    /// The generation cannot grow any more.
    #[error("the label's generation is exhausted")]
    Exhausted,
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updated {
    /// Nothing: the label says so already.
    Unchanged,
    /// Both copies say so now.
    Written {
        /// Table pages written to each copy.
        pages: usize,
    },
}

/// A disk whose label is read and may be written. There is to be one a disk.
#[derive(Debug)]
pub struct LabelDisk<S> {
    storage: S,
    label: Label,
    image: Image,
    latched: bool,
}

impl<S: Storage> LabelDisk<S> {
    /// Reads the label, and repairs the copy that is older or damaged. Refused where a foreign signature stands
    /// beside the data: whoever wrote it may have meant to take the disk.
    pub fn open(mut storage: S) -> Result<Self, OpenLabelError> {
        let FoundLabel { label, copy, other, size, image } = read_label(&storage)?;
        if let SizeChange::Shrank(by) = size {
            return Err(OpenLabelError::Shrank { by });
        }
        let foreign = foreign_outside(&storage, &label.identity.geometry)?;
        if !foreign.is_empty() {
            return Err(OpenLabelError::Foreign(foreign));
        }
        if !matches!(other, OtherCopy::Same) {
            let all: Vec<usize> = (0..image.len()).collect();
            write_copy(&mut storage, copy.other(), &label, &image, &all)?;
        }
        Ok(Self { storage, label, image, latched: false })
    }

    /// Writes a first label: both copies, whole.
    pub(crate) fn create(mut storage: S, identity: Identity) -> Result<Self, StorageError> {
        let mut label = Label::new(identity);
        label.generation = 1;
        let image = Image::default();
        for copy in [CopyId::A, CopyId::B] {
            write_copy(&mut storage, copy, &label, &image, &[])?;
        }
        Ok(Self { storage, label, image, latched: false })
    }

    /// What the disk says.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Makes the disk say `next`, which was made from [`LabelDisk::label`]. When it returns, both copies are
    /// durable. Writes the changed pages and the header, twice.
    pub fn update(&mut self, mut next: Label) -> Result<Updated, UpdateLabelError> {
        if self.latched {
            return Err(UpdateLabelError::Latched);
        }
        if next.identity != self.label.identity || next.generation != self.label.generation {
            let (have, made_from) = (self.label.generation, next.generation);
            return Err(UpdateLabelError::NotBasedOnThis { have, made_from });
        }
        if next == self.label {
            return Ok(Updated::Unchanged);
        }
        next.check()?;
        let (image, dirty) = self
            .image
            .changed_to(&next)
            .map_err(|Full { bytes, more }| UpdateLabelError::TableFull { bytes, more })?;
        next.generation = next.generation.checked_add(1).ok_or(UpdateLabelError::Exhausted)?;
        self.latched = true;
        // Both copies have the same generation here (`open` repairs): either may go first.
        for copy in [CopyId::A, CopyId::B] {
            write_copy(&mut self.storage, copy, &next, &image, &dirty)?;
        }
        self.latched = false;
        (self.label, self.image) = (next, image);
        Ok(Updated::Written { pages: dirty.len() })
    }

    /// Gives the device back.
    pub fn into_storage(self) -> S {
        self.storage
    }
}

/// Writes the pages `dirty` and the header of one copy, and syncs. Neighbouring pages go in one write.
fn write_copy<S: Storage>(
    s: &mut S,
    copy: CopyId,
    label: &Label,
    image: &Image,
    dirty: &[usize],
) -> Result<(), StorageError> {
    let base = copy.offset(&label.identity.geometry).get();
    let pages: Vec<Vec<u8>> = (0..image.len()).map(|i| image.encode(i)).collect();
    for group in dirty.chunk_by(|a, b| a + 1 == *b) {
        let bytes: Vec<u8> = group.iter().flat_map(|i| pages[*i].iter().copied()).collect();
        s.write_at(Bytes::new(base + (HEADER_LEN + group[0] * BLOCK) as u64), &bytes)?;
    }
    let disk = label.identity.disk;
    let directory = pages.iter().enumerate().map(|(i, p)| page::crc(disk, i, p)).collect();
    let header = Header { identity: label.identity.clone(), generation: label.generation, directory };
    s.write_at(Bytes::new(base), &header::encode(&header, copy))?;
    s.sync()
}
