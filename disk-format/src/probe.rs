//! Finding what else claims a disk. The table is our own rather than libblkid's: libblkid-rs would need libblkid
//! and bindgen at build, and libblkid in the node plugin's image, for a question that is simpler than the one
//! libblkid answers. We only ask whether anything is there, so a doubtful match counts.
//!
//! Invariants: reads only; a device that does not read is an error, never "nothing found".

use std::fmt;

use crate::{
    layout::{self, HEADER_LEN},
    model::Geometry,
    read::{CopyId, ReadLabelError, read_label},
    signatures::{SWAP, TABLE},
    storage::{Storage, StorageError, peek},
};

/// Something that was found on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What it is, for people.
    pub name: String,
    /// First byte of its magic.
    pub offset: u64,
    /// Bytes that make it one.
    pub len: usize,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.offset)
    }
}

/// Everything that is found on the device, Weir labels of whatever pool included.
pub fn probe_signatures<S: Storage + ?Sized>(s: &S) -> Result<Vec<Signature>, StorageError> {
    let mut found = probe_foreign(s)?;
    probe_weir(s, &mut found)?;
    Ok(found)
}

/// Foreign signatures on a labelled disk, but for those within its data: what a tenant writes is no one's claim.
pub(crate) fn foreign_outside<S: Storage + ?Sized>(
    s: &S,
    g: &Geometry,
) -> Result<Vec<Signature>, StorageError> {
    let ours = [
        (layout::COPY_A, layout::COPY_A + layout::AREA_LEN),
        (g.data_offset.get(), g.copy_b.get()),
        (g.copy_b.get(), g.copy_b.get() + layout::AREA_LEN),
    ];
    let mut found = probe_foreign(s)?;
    found.retain(|f| !ours.iter().any(|(from, to)| f.offset < *to && f.offset + f.len as u64 > *from));
    Ok(found)
}

struct Prober<'a, S: ?Sized> {
    s: &'a S,
    found: Vec<Signature>,
}

impl<S: Storage + ?Sized> Prober<'_, S> {
    /// Notes `name` when the bytes at `offset` are `magic`. A place behind the device holds nothing.
    fn at(&mut self, name: &str, offset: Option<u64>, magic: &[u8]) -> Result<(), StorageError> {
        let Some(offset) = offset else { return Ok(()) };
        if peek(self.s, offset, magic.len())?.is_some_and(|b| b == magic) {
            self.found.push(Signature { name: name.to_owned(), offset, len: magic.len() });
        }
        Ok(())
    }
}

fn probe_foreign<S: Storage + ?Sized>(s: &S) -> Result<Vec<Signature>, StorageError> {
    let mut p = Prober { s, found: Vec::new() };
    for m in TABLE {
        p.at(m.name, Some(m.offset), m.magic)?;
    }
    for page in [4096, 8192, 16384, 32768, 65536] {
        for (name, magic) in SWAP {
            p.at(name, Some(page - 10), magic)?;
        }
    }
    at_the_end(&mut p)?;
    zfs(&mut p)?;
    Ok(p.found)
}

/// What lies at a place counted from the device's end.
fn at_the_end<S: Storage + ?Sized>(p: &mut Prober<'_, S>) -> Result<(), StorageError> {
    let size = p.s.size().get();
    p.at("GPT (backup)", size.checked_sub(u64::from(p.s.block_size())), b"EFI PART")?;
    // md 0.90: 64 KiB before the last 64 KiB boundary, in the byte order of whoever made it.
    let md090 = (size & !0xffff).checked_sub(0x1_0000);
    p.at("md raid 0.90", md090, b"\xfc\x4e\x2b\xa9")?;
    p.at("md raid 0.90", md090, b"\xa9\x2b\x4e\xfc")?;
    // md 1.0: at least 8 KiB from the end, on a 4 KiB boundary.
    let md10 = (size / 512).checked_sub(16).map(|n| (n & !7) * 512);
    p.at("md raid 1.0", md10, b"\xfc\x4e\x2b\xa9")?;
    for n in [1, 257] {
        p.at("DDF raid", size.checked_sub(512 * n), b"\xde\x11\xde\x11")?;
    }
    for bs in [512, 4096] {
        p.at("Intel raid (IMSM)", size.checked_sub(2 * bs), b"Intel Raid ISM Cfg Sig. ")?;
    }
    for n in [512, 1 << 20] {
        p.at("Windows LDM", size.checked_sub(n), b"PRIVHEAD")?;
    }
    // DRBD: the superblock fills the device's last 4 KiB block; its magic is at 60 in 8.3, 8.4 and 9.
    let mut drbd = vec![size.checked_sub(4096), (size & !0xfff).checked_sub(4096)];
    drbd.dedup();
    for at in drbd {
        for magic in [b"\x83\x74\x02\x6b", b"\x83\x74\x02\x6c", b"\x83\x74\x02\x6d"] {
            p.at("DRBD", at.map(|n| n + 60), magic)?;
        }
    }
    Ok(())
}

/// ZFS keeps four labels of 256 KiB, two at either end of the device rounded down to 256 KiB. The second half of
/// each is a ring of uberblocks of at least 1 KiB, each of which begins with a magic in the writer's byte order.
fn zfs<S: Storage + ?Sized>(p: &mut Prober<'_, S>) -> Result<(), StorageError> {
    const LABEL: u64 = 256 << 10;
    const HALF: usize = 128 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let end = p.s.size().get() / LABEL * LABEL;
    let mut labels = vec![Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    labels.dedup();
    for (n, at) in labels.into_iter().enumerate() {
        let Some(at) = at else { continue };
        let ring = at + HALF as u64;
        let Some(b) = peek(p.s, ring, HALF)? else { continue };
        let slots = b.chunks_exact(1024).enumerate();
        let hits = slots.filter(|(_, u)| u[..8] == MAGIC.to_le_bytes() || u[..8] == MAGIC.to_be_bytes());
        for (i, _) in hits {
            p.found.push(Signature {
                name: format!("zfs label {n}"),
                offset: ring + i as u64 * 1024,
                len: 8,
            });
        }
    }
    Ok(())
}

/// A label of ours, whole or damaged. Reported with the extent of its headers, so that a wipe leaves no trace.
fn probe_weir<S: Storage + ?Sized>(s: &S, found: &mut Vec<Signature>) -> Result<(), StorageError> {
    let mut places = vec![layout::COPY_A];
    let name = match read_label(s) {
        Err(ReadLabelError::Blank | ReadLabelError::TooSmall { .. }) => return Ok(()),
        Ok(f) => {
            let i = f.label.identity();
            places.push(CopyId::B.offset(&i.geometry).get());
            format!("a Weir label of pool {} ({}), disk {}", i.pool, i.pool_uid, i.disk)
        }
        Err(e) => format!("a Weir label that cannot be used ({e})"),
    };
    places.extend(layout::copy_b_for(s.size()));
    if let Some(raw) = peek(s, layout::COPY_A, HEADER_LEN)?.filter(|b| crate::header::seen(b)) {
        places.extend(crate::header::copy_b_hints(&raw));
    }
    places.sort_unstable();
    places.dedup();
    for offset in places {
        if peek(s, offset, HEADER_LEN)?.is_some_and(|b| crate::header::seen(&b)) {
            found.push(Signature { name: name.clone(), offset, len: HEADER_LEN });
        }
    }
    Ok(())
}
