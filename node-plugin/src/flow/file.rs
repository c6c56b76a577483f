//! The file in which histories outlive the plugin and the machine's restart.
//!
//! `weir-rec`, a version, then entries: kind, id, and parts, each with its length; each part that matters carries its own
//! checksum (crate forecast's encodings). Invariants: written whole beside the old one and renamed over it, so it is one or
//! the other; an entry that cannot be read is left out and said, the rest counts. Must not know: when it is written.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use forecast::{DecodeError, DeviceClass, DeviceModel, Series};
use pool::ids::{DiskId, VolumeId};

use super::rows::{DiskRow, Heat, Rows, VolumeRow};

const MAGIC: &[u8; 8] = b"weir-rec";
const VERSION: u8 = 1;
const DISK: u8 = 1;
const VOLUME: u8 = 2;
/// Longer parts are none of ours.
const LONGEST: usize = 64 << 10;

/// Why the file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// Which call.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is of another version or something else altogether.
    #[error("{} is no recording that this version knows", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It ends within an entry.
    #[error("{} ends early: what came before is used", path.display())]
    Short {
        /// The file.
        path: PathBuf,
    },
}

fn part(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(0);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&bytes[..len as usize]);
}

/// Media errors at the first look: 8 bytes, or none.
fn errors_bytes(n: Option<u64>) -> Vec<u8> {
    n.map(|n| n.to_le_bytes().to_vec()).unwrap_or_default()
}

/// The bytes of a part, then each I/O rate.
fn heat_bytes(h: &Heat) -> Vec<u8> {
    let rates = h.ios.iter().flat_map(|r| r.to_le_bytes());
    h.part_bytes.to_le_bytes().into_iter().chain(rates).collect()
}

fn heat_of(bytes: &[u8]) -> Heat {
    let Some((size, rates)) = bytes.split_first_chunk::<8>() else { return Heat::default() };
    let (rates, _) = rates.as_chunks::<4>();
    let ios =
        rates.iter().map(|r| f32::from_le_bytes(*r)).map(|r| if r.is_finite() { r.max(0.0) } else { 0.0 });
    Heat { part_bytes: u64::from_le_bytes(*size), ios: ios.collect() }
}

/// The persistent form.
pub(super) fn encode(rows: &Rows) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    for (id, r) in &rows.disks {
        out.push(DISK);
        out.extend_from_slice(&id.to_bytes());
        for p in [r.series.encode(), r.model.encode(), r.kept.clone(), errors_bytes(r.errors_before)] {
            part(&mut out, &p);
        }
    }
    for (id, r) in &rows.volumes {
        out.push(VOLUME);
        out.extend_from_slice(&id.to_bytes());
        for p in [r.series.encode(), heat_bytes(&r.heat)] {
            part(&mut out, &p);
        }
    }
    out
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn part(&mut self) -> Option<&'a [u8]> {
        let len = u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize;
        if len > LONGEST { None } else { self.take(len) }
    }

    fn id(&mut self) -> Option<u128> {
        Some(u128::from_be_bytes(self.take(16)?.try_into().ok()?))
    }
}

fn disk_row(series: &[u8], model: &[u8], kept: &[u8], errors: &[u8]) -> Result<DiskRow, DecodeError> {
    let mut row = DiskRow::new(DeviceClass::Unknown);
    row.series = Series::decode(series)?;
    row.model = DeviceModel::decode(model)?;
    row.kept = kept.to_vec();
    row.errors_before = errors.try_into().ok().map(u64::from_le_bytes);
    Ok(row)
}

fn volume_row(series: &[u8], heat: &[u8]) -> Result<VolumeRow, DecodeError> {
    let mut row = VolumeRow::new();
    row.series = Series::decode(series)?;
    row.heat = heat_of(heat);
    Ok(row)
}

/// Every entry that can be read; whether the bytes end where an entry ends.
fn decode(bytes: &[u8]) -> Option<(Rows, bool)> {
    let mut from = Reader(bytes.strip_prefix(MAGIC)?.strip_prefix(&[VERSION])?);
    let mut rows = Rows::default();
    while !from.0.is_empty() {
        let mut one = || -> Option<Result<(), DecodeError>> {
            let kind = *from.take(1)?.first()?;
            let id = from.id()?;
            Some(match kind {
                DISK => {
                    let (series, model, kept, errors) =
                        (from.part()?, from.part()?, from.part()?, from.part()?);
                    let row = disk_row(series, model, kept, errors);
                    row.map(|r| drop(rows.disks.insert(DiskId::from_u128(id), r)))
                }
                VOLUME => {
                    let (series, heat) = (from.part()?, from.part()?);
                    volume_row(series, heat).map(|r| drop(rows.volumes.insert(VolumeId::from_u128(id), r)))
                }
                _ => return None,
            })
        };
        match one() {
            Some(Ok(())) => {}
            Some(Err(e)) => tracing::warn!(error = %e, "a history cannot be read and begins anew"),
            None => return Some((rows, false)),
        }
    }
    Some((rows, true))
}

/// Reads what was written; nothing if nothing was.
pub(super) fn read(path: &Path) -> Result<Rows, FileError> {
    let bytes = match fs::read(path) {
        Ok(b) => b,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Rows::default()),
        Err(source) => return Err(FileError::Io { op: "read", path: path.to_owned(), source }),
    };
    let (rows, whole) = decode(&bytes).ok_or_else(|| FileError::Foreign { path: path.to_owned() })?;
    if !whole {
        tracing::warn!(error = %FileError::Short { path: path.to_owned() }, "some histories begin anew");
    }
    Ok(rows)
}

/// Replaces the file.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let fail = |op, path: &Path| {
        let path = path.to_owned();
        move |source| FileError::Io { op, path, source }
    };
    let new = path.with_extension("new");
    let mut f = File::create(&new).map_err(fail("make", &new))?;
    f.write_all(bytes).map_err(fail("write", &new))?;
    f.sync_all().map_err(fail("sync", &new))?;
    fs::rename(&new, path).map_err(fail("rename to", path))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|d| d.sync_all()).map_err(fail("sync", dir))
}
