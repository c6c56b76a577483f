//! Wiping: zeroes through the kernel, in chunks, so that it can be watched and stopped.
//!
//! BLKZEROOUT uses the device's write-zeroes where it has it (the kernel asks for it without unmapping) and
//! writes pages of zeroes where not. BLKDISCARD is not used: what a discarded block returns is not told by the
//! kernel any more, and a tenant's data must be gone.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
};

use super::BlockError;

/// _IO(0x12, 127), linux/fs.h.
const BLKZEROOUT: libc::c_ulong = 0x127f;
/// _IO(0x12, 104), linux/fs.h.
const BLKSSZGET: libc::c_ulong = 0x1268;

/// A chunk that takes well under a second on any disk, so that a stop is soon heeded.
pub const DEFAULT_CHUNK: u64 = 16 << 20;

/// How far zeroing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Writes zeroes over `len` bytes from `offset`, `chunk` bytes at a time, and flushes. `progress` is called after
/// each chunk; `abort` is looked at before each. The device must be open for writing. Pages of it that others
/// hold in the page cache are dropped by the kernel.
pub fn zero_range(
    device: &File,
    offset: u64,
    len: u64,
    chunk: u64,
    abort: &AtomicBool,
    mut progress: impl FnMut(Progress),
) -> Result<(), BlockError> {
    let (size, block) =
        geometry(device).map_err(|source| BlockError::Zero { at: offset, done: 0, source })?;
    let end = offset.checked_add(len).filter(|e| *e <= size);
    if end.is_none() || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(BlockError::Range { offset, len, size, block });
    }
    let chunk = chunk.max(block) / block * block;
    let mut done = 0;
    while done < len {
        if abort.load(Ordering::Relaxed) {
            return Err(BlockError::Aborted { done });
        }
        let n = chunk.min(len - done);
        let range = [offset + done, n];
        // SAFETY: BLKZEROOUT reads two 64-bit numbers.
        let rc = unsafe { libc::ioctl(device.as_raw_fd(), BLKZEROOUT as _, range.as_ptr()) };
        if rc < 0 {
            return Err(BlockError::Zero { at: range[0], done, source: io::Error::last_os_error() });
        }
        done += n;
        progress(Progress { done, total: len });
    }
    flush(device)
}

/// Flushes the device's write cache. A failed flush is not to be retried: what was lost stays lost.
pub fn flush(device: &File) -> Result<(), BlockError> {
    device.sync_data().map_err(BlockError::Flush)
}

/// Size and logical block size in bytes.
fn geometry(device: &File) -> io::Result<(u64, u64)> {
    let mut block: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int.
    if unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET as _, &raw mut block) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let size = (&*device).seek(SeekFrom::End(0))?;
    Ok((size, u64::try_from(block).ok().filter(|b| *b > 0).unwrap_or(512)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_is_refused() {
        let f = tempfile::tempfile().unwrap();
        let e = zero_range(&f, 0, 512, 512, &AtomicBool::new(false), |_| ()).unwrap_err();
        assert!(matches!(e, BlockError::Zero { done: 0, .. }), "{e}");
    }
}
