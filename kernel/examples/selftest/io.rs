//! Direct I/O on block devices.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// Bytes of one block of the selftest.
pub(crate) const BLOCK: usize = 4096;

/// A buffer that O_DIRECT takes.
#[repr(C, align(4096))]
pub(crate) struct Block([u8; BLOCK]);

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC).open(path)
}

/// Fills a block of a device.
pub(crate) fn write(path: &Path, block: u64, fill: u8) -> io::Result<()> {
    open(path)?.write_all_at(&Block([fill; BLOCK]).0, block * BLOCK as u64)
}

/// The byte that fills a block; an error when it is not filled by one.
pub(crate) fn read(path: &Path, block: u64) -> io::Result<u8> {
    let mut b = Block([0; BLOCK]);
    open(path)?.read_exact_at(&mut b.0, block * BLOCK as u64)?;
    match b.0.iter().all(|x| *x == b.0[0]) {
        true => Ok(b.0[0]),
        false => Err(io::Error::other("a torn block")),
    }
}

/// Discards a block.
pub(crate) fn discard(path: &Path, block: u64) -> io::Result<()> {
    /// _IO(0x12, 119), linux/fs.h.
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let f = open(path)?;
    let range = [block * BLOCK as u64, BLOCK as u64];
    // SAFETY: BLKDISCARD reads two 64-bit numbers.
    let rc = unsafe { libc::ioctl(f.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// I/O on a thread of its own, with the time that it took.
pub(crate) fn spawn<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Receiver<(io::Result<T>, Duration)> {
    let (tx, rx) = mpsc::channel();
    thread::spawn(move || {
        let t = Instant::now();
        let r = f();
        // Fails when the step has given up on it.
        if tx.send((r, t.elapsed())).is_err() {}
    });
    rx
}
