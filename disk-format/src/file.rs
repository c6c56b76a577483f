//! A block device or an image file as [`Storage`]: positioned reads and writes that bypass the page cache, and
//! fdatasync. The only module of the crate that touches the system.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
};

use pool::units::Bytes;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, fstat, ioctl_blksszget, open, seek};

use crate::storage::{Storage, StorageError, check_range};

/// Alignment in memory that satisfies direct I/O on every device with blocks up to 4 KiB.
const ALIGN: usize = 4096;

/// How to open a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reads only.
    Read,
    /// Reads and writes beside others that hold the device (device-mapper holds those that serve).
    Shared,
    /// Reads and writes, refused with EBUSY while a mount, device-mapper or md holds the device: for claiming.
    Exclusive,
}

/// An open device or image file.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    size: Bytes,
    block_size: u32,
}

impl FileStorage {
    /// Opens `path` with O_DIRECT; an image file on a file system without direct I/O is opened buffered.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self, StorageError> {
        let fail = |source: io::Error| StorageError::Io { op: "open", offset: 0, len: 0, source };
        let block = std::fs::metadata(path).map_err(fail)?.file_type().is_block_device();
        let mut flags = OFlags::CLOEXEC;
        flags |= if mode == OpenMode::Read { OFlags::RDONLY } else { OFlags::RDWR };
        if block && mode == OpenMode::Exclusive {
            flags |= OFlags::EXCL;
        }
        let fd = match open(path, flags | OFlags::DIRECT, Mode::empty()) {
            Err(rustix::io::Errno::INVAL) if !block => open(path, flags, Mode::empty()),
            r => r,
        };
        let fd = fd.map_err(|e| fail(e.into()))?;
        let kind = FileType::from_raw_mode(fstat(&fd).map_err(|e| fail(e.into()))?.st_mode);
        let block_size = match kind {
            FileType::BlockDevice => ioctl_blksszget(&fd).map_err(|e| fail(e.into()))?,
            // What a loop device over it would have.
            FileType::RegularFile => 512,
            _ => return Err(fail(io::Error::other("neither a block device nor a regular file"))),
        };
        let end = seek(&fd, SeekFrom::End(0)).map_err(|e| fail(e.into()))?;
        let size = Bytes::new(end / u64::from(block_size) * u64::from(block_size));
        Ok(Self { file: fd.into(), size, block_size })
    }
}

/// A buffer of `len` bytes that starts at a multiple of [`ALIGN`]: the vector, and where in it.
fn aligned(len: usize) -> (Vec<u8>, usize) {
    let v = vec![0; len + ALIGN];
    let at = v.as_ptr().align_offset(ALIGN).min(ALIGN);
    (v, at)
}

impl Storage for FileStorage {
    fn size(&self) -> Bytes {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), StorageError> {
        check_range("read", self.size, self.block_size, offset, buf.len())?;
        let (mut v, at) = aligned(buf.len());
        let bounce = &mut v[at..at + buf.len()];
        self.file.read_exact_at(bounce, offset.get()).map_err(|source| StorageError::Io {
            op: "read",
            offset: offset.get(),
            len: buf.len(),
            source,
        })?;
        buf.copy_from_slice(bounce);
        Ok(())
    }

    fn write_at(&mut self, offset: Bytes, buf: &[u8]) -> Result<(), StorageError> {
        check_range("write", self.size, self.block_size, offset, buf.len())?;
        let (mut v, at) = aligned(buf.len());
        let bounce = &mut v[at..at + buf.len()];
        bounce.copy_from_slice(buf);
        self.file.write_all_at(bounce, offset.get()).map_err(|source| StorageError::Io {
            op: "write",
            offset: offset.get(),
            len: buf.len(),
            source,
        })
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(|source| StorageError::Io { op: "sync", offset: 0, len: 0, source })
    }
}
