//! The size that a file system believes its device to have, from its superblock: growing is only begun when the
//! device is larger. Offsets: fs/ext4/ext4.h (struct ext4_super_block, at byte 1024), fs/xfs/libxfs/xfs_format.h
//! (struct xfs_dsb, at byte 0).

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use kernel::mount::FsKind;

/// Bytes that the file system spans; `None` when the superblock is not one of this kind.
pub(super) fn fs_bytes(device: &Path, kind: FsKind) -> io::Result<Option<u64>> {
    let mut sb = [0u8; 2048];
    File::open(device)?.read_exact_at(&mut sb, 0)?;
    Ok(parse(&sb, kind))
}

fn parse(sb: &[u8; 2048], kind: FsKind) -> Option<u64> {
    match kind {
        FsKind::Ext4 => {
            let le32 =
                |at: usize| u32::from_le_bytes(sb[1024 + at..1028 + at].try_into().expect("four bytes"));
            if sb[1024 + 0x38..1024 + 0x3a] != [0x53, 0xef] {
                return None;
            }
            const INCOMPAT_64BIT: u32 = 0x80;
            let high = if le32(0x60) & INCOMPAT_64BIT != 0 { u64::from(le32(0x150)) << 32 } else { 0 };
            let block = 1024u64.checked_shl(le32(0x18)).filter(|_| le32(0x18) <= 6)?;
            (high | u64::from(le32(4))).checked_mul(block)
        }
        FsKind::Xfs => {
            if &sb[..4] != b"XFSB" {
                return None;
            }
            let block = u32::from_be_bytes(sb[4..8].try_into().expect("four bytes"));
            let blocks = u64::from_be_bytes(sb[8..16].try_into().expect("eight bytes"));
            blocks.checked_mul(u64::from(block))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::*;

    #[test]
    fn what_the_tools_make_has_the_size_of_its_device() {
        for (kind, tool, mib) in [(FsKind::Ext4, "mkfs.ext4", 20), (FsKind::Xfs, "mkfs.xfs", 320)] {
            // xfs's tools are not everywhere; where they are missing the lab shows the same.
            if Command::new(tool).arg("-V").output().is_err() {
                continue;
            }
            let t = tempfile::tempdir().unwrap();
            let img = t.path().join("img");
            File::create(&img).unwrap().set_len(mib << 20).unwrap();
            kernel::mount::make_fs(&img, kind, Duration::from_secs(60)).unwrap();
            assert_eq!(fs_bytes(&img, kind).unwrap(), Some(mib << 20), "{tool}");
        }
    }

    #[test]
    fn other_bytes_have_no_size() {
        assert_eq!(parse(&[0; 2048], FsKind::Ext4), None);
        assert_eq!(parse(&[0xff; 2048], FsKind::Xfs), None);
        let mut odd = [0xff; 2048];
        odd[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(parse(&odd, FsKind::Ext4), None);
    }
}
