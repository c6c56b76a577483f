//! Reading a label: both copies are read and verified, the newer good one is the truth.
//!
//! Invariants: what is answered is one copy that proves itself whole; two good copies that contradict each other,
//! a later format, or damage to both are refusals; a disk is called blank only where neither copy left a trace.

use pool::units::Bytes;

use crate::{
    header::{self, Header},
    layout::{self, BLOCK, HEADER_LEN},
    model::{Geometry, Label, VolumeEntry},
    page::{self, Image},
    record::Record,
    storage::{Storage, StorageError, peek},
};

/// Which of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyId {
    /// The one in front of the data.
    A,
    /// The one behind the data.
    B,
}

impl CopyId {
    pub(crate) fn index(self) -> u8 {
        match self {
            CopyId::A => 0,
            CopyId::B => 1,
        }
    }

    /// The other one.
    pub fn other(self) -> CopyId {
        match self {
            CopyId::A => CopyId::B,
            CopyId::B => CopyId::A,
        }
    }

    /// Where it lies.
    pub fn offset(self, g: &Geometry) -> Bytes {
        match self {
            CopyId::A => Bytes::new(layout::COPY_A),
            CopyId::B => g.copy_b,
        }
    }
}

/// Why a copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CopyFault {
    /// There is no trace of it.
    #[error("not there")]
    Absent,
    /// Its place lies behind the end of the device.
    #[error("its place lies behind the end of the device")]
    OutOfDevice,
    /// The device does not read.
    #[error("it cannot be read")]
    Unreadable(#[source] StorageError),
    /// The header's checksum is wrong.
    #[error("the header is damaged")]
    BadHeader,
    /// The header is whole but belongs elsewhere.
    #[error("it belongs at offset {says}")]
    Misplaced {
        /// Where it says it belongs.
        says: u64,
    },
    /// Written by a later version.
    #[error("format version {version} with incompat flags {incompat:#x} is not supported")]
    Unsupported {
        /// Its format version.
        version: u16,
        /// Its incompat flags.
        incompat: u64,
    },
    /// A page's checksum is wrong, as after a write that did not finish.
    #[error("page {page} of generation {generation} is damaged")]
    BadPage {
        /// Which page.
        page: usize,
        /// The generation that the header states.
        generation: u64,
    },
    /// Checksums are right, but the content makes no sense.
    #[error("its content is not valid: {why}")]
    Malformed {
        /// What is wrong.
        why: &'static str,
    },
}

/// How the copy that was not chosen compares.
#[derive(Debug)]
pub enum OtherCopy {
    /// The same.
    Same,
    /// Whole, but older: a write was interrupted between the copies.
    Stale {
        /// Its generation.
        generation: u64,
    },
    /// Not usable.
    Bad(CopyFault),
}

/// Whether the device still has the size that it was claimed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChange {
    /// It has.
    None,
    /// It is larger; what was added is not used.
    Grew(Bytes),
    /// It is smaller by so much: extents or copy B may be gone.
    Shrank(Bytes),
}

/// A label that was read.
#[derive(Debug)]
pub struct FoundLabel {
    /// What it says.
    pub label: Label,
    /// Which copy it is from.
    pub copy: CopyId,
    /// How the other copy compares; anything but `Same` wants a repair ([`crate::LabelDisk::open`] does it).
    pub other: OtherCopy,
    /// Whether the device changed its size.
    pub size: SizeChange,
    pub(crate) image: Image,
}

/// Why no label was read. All but `Unreadable` are permanent.
#[derive(Debug, thiserror::Error)]
pub enum ReadLabelError {
    /// No label of ours and no trace of one. Other signatures are [`crate::probe_signatures`]'s to find.
    #[error("there is no Weir label")]
    Blank,
    /// Too small for a label.
    #[error("the device has {size}; a label and one extent need {min}", min = layout::MIN_DEVICE)]
    TooSmall {
        /// The device's size.
        size: Bytes,
    },
    /// A later version wrote it: upgrade this node before it uses the disk.
    #[error(
        "the label has format version {version} with incompat flags {incompat:#x}, which this version cannot read"
    )]
    Unsupported {
        /// Its format version.
        version: u16,
        /// Its incompat flags.
        incompat: u64,
    },
    /// A label of ours was here and neither copy is whole.
    #[error("both copies of the label are unusable: copy A: {a}; copy B: {b}")]
    Corrupt {
        /// What is wrong with copy A.
        a: CopyFault,
        /// What is wrong with copy B.
        b: CopyFault,
    },
    /// Both copies are whole and contradict each other.
    #[error("the copies of the label contradict each other: {0}")]
    Disagree(&'static str),
    /// The device does not read where a copy should be, and the other copy is unusable.
    #[error("copy A: {a}; copy B: {b}; the device does not read")]
    Unreadable {
        /// What is wrong with copy A.
        a: CopyFault,
        /// What is wrong with copy B.
        b: CopyFault,
    },
}

struct WholeCopy {
    label: Label,
    image: Image,
}

/// Reads and verifies both copies.
pub fn read_label<S: Storage + ?Sized>(s: &S) -> Result<FoundLabel, ReadLabelError> {
    if s.size() < layout::MIN_DEVICE {
        return Err(ReadLabelError::TooSmall { size: s.size() });
    }
    let (a, hints) = read_a(s);
    let b = read_b(s, &hints);
    for c in [&a, &b] {
        if let Err(CopyFault::Unsupported { version, incompat }) = c {
            return Err(ReadLabelError::Unsupported { version: *version, incompat: *incompat });
        }
    }
    let (whole, copy, other) = match (a, b) {
        (Ok(a), Ok(b)) => choose(a, b)?,
        (Ok(a), Err(fault)) => (a, CopyId::A, OtherCopy::Bad(fault)),
        (Err(fault), Ok(b)) => (b, CopyId::B, OtherCopy::Bad(fault)),
        (Err(a), Err(b)) => return Err(neither(a, b)),
    };
    let (was, is) = (whole.label.identity.geometry.device_size, s.size());
    let size = match (is.checked_sub(was), was.checked_sub(is)) {
        (Some(n), _) if n.is_zero() => SizeChange::None,
        (Some(n), _) => SizeChange::Grew(n),
        (None, n) => SizeChange::Shrank(n.unwrap_or(Bytes::ZERO)),
    };
    Ok(FoundLabel { label: whole.label, copy, other, size, image: whole.image })
}

fn choose(a: WholeCopy, b: WholeCopy) -> Result<(WholeCopy, CopyId, OtherCopy), ReadLabelError> {
    if a.label.identity != b.label.identity {
        return Err(ReadLabelError::Disagree("they name different disks"));
    }
    let (ga, gb) = (a.label.generation, b.label.generation);
    if ga == gb && a.image != b.image {
        return Err(ReadLabelError::Disagree("they have the same generation and different tables"));
    }
    Ok(match ga.cmp(&gb) {
        std::cmp::Ordering::Equal => (a, CopyId::A, OtherCopy::Same),
        std::cmp::Ordering::Greater => (a, CopyId::A, OtherCopy::Stale { generation: gb }),
        std::cmp::Ordering::Less => (b, CopyId::B, OtherCopy::Stale { generation: ga }),
    })
}

fn neither(a: CopyFault, b: CopyFault) -> ReadLabelError {
    match (&a, &b) {
        (CopyFault::Absent, CopyFault::Absent) => ReadLabelError::Blank,
        (CopyFault::Unreadable(_), _) | (_, CopyFault::Unreadable(_)) => ReadLabelError::Unreadable { a, b },
        _ => ReadLabelError::Corrupt { a, b },
    }
}

/// Copy A, and where it says, however damaged it is, that copy B lies.
fn read_a<S: Storage + ?Sized>(s: &S) -> (Result<WholeCopy, CopyFault>, Vec<u64>) {
    match peek(s, layout::COPY_A, HEADER_LEN) {
        Ok(Some(raw)) => {
            let hints = if header::seen(&raw) { header::copy_b_hints(&raw).to_vec() } else { Vec::new() };
            (read_copy(s, CopyId::A, layout::COPY_A, &raw), hints)
        }
        Ok(None) => (Err(CopyFault::OutOfDevice), Vec::new()),
        Err(e) => (Err(CopyFault::Unreadable(e)), Vec::new()),
    }
}

/// Copy B: where copy A says, else where it lies if the device kept its size. The first place with a whole copy
/// counts, else the first with a trace of one.
fn read_b<S: Storage + ?Sized>(s: &S, hints: &[u64]) -> Result<WholeCopy, CopyFault> {
    let mut places: Vec<u64> = hints.iter().copied().chain(layout::copy_b_for(s.size())).collect();
    places.retain(|p| p.is_multiple_of(layout::ALIGNMENT) && *p >= layout::COPY_A + layout::AREA_LEN);
    places.dedup();
    let mut fault = CopyFault::Absent;
    for p in places {
        let found = match p.checked_add(layout::AREA_LEN).filter(|end| *end <= s.size().get()) {
            None => Err(CopyFault::OutOfDevice),
            Some(_) => match peek(s, p, HEADER_LEN) {
                Ok(Some(raw)) => read_copy(s, CopyId::B, p, &raw),
                Ok(None) => Err(CopyFault::OutOfDevice),
                Err(e) => Err(CopyFault::Unreadable(e)),
            },
        };
        match found {
            Err(f) if matches!(fault, CopyFault::Absent) => fault = f,
            Err(f) if matches!(fault, CopyFault::OutOfDevice) && !matches!(f, CopyFault::Absent) => fault = f,
            Err(f @ CopyFault::Unsupported { .. }) => fault = f,
            Err(_) => {}
            ok => return ok,
        }
    }
    Err(fault)
}

fn read_copy<S: Storage + ?Sized>(
    s: &S,
    copy: CopyId,
    offset: u64,
    raw: &[u8],
) -> Result<WholeCopy, CopyFault> {
    let Header { identity, generation, directory } = header::decode(raw, copy, offset)?;
    let table = peek(s, offset + HEADER_LEN as u64, directory.len() * BLOCK)
        .map_err(CopyFault::Unreadable)?
        .ok_or(CopyFault::OutOfDevice)?;
    let mut image = Image::default();
    let mut label = Label::new(identity);
    label.generation = generation;
    let (mut summaries, mut runs) = (Vec::new(), Vec::new());
    for (i, (bytes, want)) in table.chunks_exact(BLOCK).zip(&directory).enumerate() {
        if page::crc(label.identity.disk, i, bytes) != *want {
            return Err(CopyFault::BadPage { page: i, generation });
        }
        for r in image.push_decoded(i, bytes).map_err(|why| CopyFault::Malformed { why })? {
            match r {
                Record::Volume(v, s) => summaries.push((v, s)),
                Record::Run(v, r) => runs.push((v, r)),
            }
        }
    }
    for (v, summary) in summaries {
        label.volumes.insert(v, VolumeEntry { summary, runs: Default::default() });
    }
    for (v, r) in runs {
        let e =
            label.volumes.get_mut(&v).ok_or(CopyFault::Malformed { why: "a run's volume has no record" })?;
        e.runs.insert(r.first, r);
    }
    label
        .check()
        .map_err(|_| CopyFault::Malformed { why: "runs overlap, leave the disk or do not make sense" })?;
    Ok(WholeCopy { label, image })
}
