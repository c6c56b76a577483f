//! A sparse disk in memory, for simulations and tests of whoever stores labels. Must not know: the format.

use std::collections::BTreeMap;

use pool::units::{Bytes, SECTOR};

use crate::storage::{Storage, StorageError, check_range};

const SECTOR_LEN: usize = SECTOR as usize;

/// A disk of which only written sectors take memory; the rest reads as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemDisk {
    size: Bytes,
    block_size: u32,
    sectors: BTreeMap<u64, [u8; SECTOR_LEN]>,
}

impl MemDisk {
    /// An empty disk. `size` is rounded down to whole blocks.
    pub fn new(size: Bytes, block_size: u32) -> Self {
        let bs = u64::from(block_size);
        Self { size: Bytes::new(size.get() / bs * bs), block_size, sectors: BTreeMap::new() }
    }

    /// Changes the size, as an array or a hypervisor would. What is cut off is lost.
    pub fn resize(&mut self, size: Bytes) {
        self.size = size;
        self.sectors.retain(|s, _| (s + 1) * SECTOR <= size.get());
    }

    /// Replaces the byte at `offset` by what `f` makes of it: damage, at any address.
    pub fn alter(&mut self, offset: Bytes, f: impl FnOnce(u8) -> u8) {
        let s = self.sectors.entry(offset.get() / SECTOR).or_insert([0; SECTOR_LEN]);
        let b = &mut s[(offset.get() % SECTOR) as usize];
        *b = f(*b);
    }

    /// Writes `bytes` at any address.
    pub fn put(&mut self, offset: Bytes, bytes: &[u8]) {
        for (i, b) in bytes.iter().enumerate() {
            self.alter(offset.plus(Bytes::new(i as u64)), |_| *b);
        }
    }
}

impl Storage for MemDisk {
    fn size(&self) -> Bytes {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), StorageError> {
        check_range("read", self.size, self.block_size, offset, buf.len())?;
        buf.fill(0);
        let first = offset.get() / SECTOR;
        let end = first + (buf.len() / SECTOR_LEN) as u64;
        for (n, data) in self.sectors.range(first..end) {
            let at = (n - first) as usize * SECTOR_LEN;
            buf[at..at + SECTOR_LEN].copy_from_slice(data);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: Bytes, buf: &[u8]) -> Result<(), StorageError> {
        check_range("write", self.size, self.block_size, offset, buf.len())?;
        let first = offset.get() / SECTOR;
        for (i, chunk) in buf.chunks_exact(SECTOR_LEN).enumerate() {
            let mut s = [0; SECTOR_LEN];
            s.copy_from_slice(chunk);
            self.sectors.insert(first + i as u64, s);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}
