//! What the label needs of a device: its size, aligned reads and writes, and a sync that means it.
//!
//! Invariants: offsets and lengths are multiples of the logical block size and lie within the device; what a
//! successful [`Storage::sync`] follows survives a loss of power.

use std::io;

use pool::units::Bytes;

/// A device, or something that behaves like one.
pub trait Storage {
    /// Its size.
    fn size(&self) -> Bytes;

    /// Logical block size in bytes: 512 or 4096.
    fn block_size(&self) -> u32;

    /// Fills `buf` from `offset`.
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), StorageError>;

    /// Writes `buf` at `offset`. Until the next [`Storage::sync`] any subset of its blocks may get lost.
    fn write_at(&mut self, offset: Bytes, buf: &[u8]) -> Result<(), StorageError>;

    /// Makes all earlier writes durable. Not to be retried after it failed: what it lost is unknown.
    fn sync(&mut self) -> Result<(), StorageError>;
}

impl<S: Storage + ?Sized> Storage for &mut S {
    fn size(&self) -> Bytes {
        (**self).size()
    }
    fn block_size(&self) -> u32 {
        (**self).block_size()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), StorageError> {
        (**self).read_at(offset, buf)
    }
    fn write_at(&mut self, offset: Bytes, buf: &[u8]) -> Result<(), StorageError> {
        (**self).write_at(offset, buf)
    }
    fn sync(&mut self) -> Result<(), StorageError> {
        (**self).sync()
    }
}

/// Why the device did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The kernel said no.
    #[error("{op} of {len} bytes at offset {offset} failed")]
    Io {
        /// `read`, `write`, `sync`, `open`.
        op: &'static str,
        /// Byte offset.
        offset: u64,
        /// Bytes asked for.
        len: usize,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The range does not lie on logical blocks.
    #[error("{op} of {len} bytes at offset {offset} is not aligned to blocks of {block_size} bytes")]
    Misaligned {
        /// `read` or `write`.
        op: &'static str,
        /// Byte offset.
        offset: u64,
        /// Bytes asked for.
        len: usize,
        /// The device's logical block size.
        block_size: u32,
    },
    /// The range ends behind the device.
    #[error("{op} of {len} bytes at offset {offset} ends behind the device of {size} bytes")]
    OutOfRange {
        /// `read` or `write`.
        op: &'static str,
        /// Byte offset.
        offset: u64,
        /// Bytes asked for.
        len: usize,
        /// The device's size.
        size: u64,
    },
}

/// Holds the contract of ranges against a request; every implementation calls it first.
pub fn check_range(
    op: &'static str,
    size: Bytes,
    block_size: u32,
    offset: Bytes,
    len: usize,
) -> Result<(), StorageError> {
    let offset = offset.get();
    if !offset.is_multiple_of(u64::from(block_size)) || !(len as u64).is_multiple_of(u64::from(block_size)) {
        return Err(StorageError::Misaligned { op, offset, len, block_size });
    }
    match offset.checked_add(len as u64) {
        Some(end) if end <= size.get() => Ok(()),
        _ => Err(StorageError::OutOfRange { op, offset, len, size: size.get() }),
    }
}

/// Reads `len` bytes at any offset, by way of the blocks around them; `None` when the device ends before.
pub(crate) fn peek<S: Storage + ?Sized>(
    s: &S,
    offset: u64,
    len: usize,
) -> Result<Option<Vec<u8>>, StorageError> {
    let bs = u64::from(s.block_size());
    let Some(end) = offset.checked_add(len as u64).filter(|e| *e <= s.size().get()) else { return Ok(None) };
    let from = offset / bs * bs;
    let to = end.next_multiple_of(bs);
    if to > s.size().get() {
        return Ok(None);
    }
    let mut buf = vec![0; (to - from) as usize];
    s.read_at(Bytes::new(from), &mut buf)?;
    let at = (offset - from) as usize;
    buf.copy_within(at..at + len, 0);
    buf.truncate(len);
    Ok(Some(buf))
}
