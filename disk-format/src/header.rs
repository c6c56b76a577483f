//! A copy's header as bytes, and back. A header that decodes has a right checksum, a known version and lies where
//! it says. Place and reach of magic, checksum and version are the same in every version of the format.

use pool::{
    ids::{DiskId, PoolName},
    units::{Bytes, ExtentSize, Extents},
};

use crate::{
    layout::{self, HEADER_LEN, INCOMPAT_KNOWN, PAGES, VERSION, header as f},
    model::{Geometry, Identity, PoolUid},
    read::{CopyFault, CopyId},
    record::{get, get_id, put},
};

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    pub(crate) generation: u64,
    /// Checksums of the pages in use.
    pub(crate) directory: Vec<u32>,
}

/// Whether a copy of ours is or was here: either magic. One damaged byte cannot hide both.
pub(crate) fn seen(b: &[u8]) -> bool {
    [f::MAGIC, f::MAGIC_AGAIN].iter().any(|m| b[m.at..m.end()] == layout::MAGIC)
}

/// Where an unverified header claims copy B to be. Only ever a hint: copy B proves itself.
pub(crate) fn copy_b_hints(b: &[u8]) -> [u64; 2] {
    [get(b, f::COPY_B), get(b, f::COPY_B_AGAIN)]
}

fn crc(b: &[u8]) -> u32 {
    let before = crc32c::crc32c(&b[..f::CRC.at]);
    crc32c::crc32c_append(crc32c::crc32c_append(before, &[0; 4]), &b[f::CRC.end()..])
}

/// The header of copy `copy`.
pub(crate) fn encode(h: &Header, copy: CopyId) -> Vec<u8> {
    let g = &h.identity.geometry;
    let mut b = vec![0; HEADER_LEN];
    put(&mut b, f::MAGIC, &layout::MAGIC);
    put(&mut b, f::MAGIC_AGAIN, &layout::MAGIC);
    put(&mut b, f::VERSION, &VERSION.to_le_bytes());
    b[f::COPY.at] = copy.index();
    put(&mut b, f::COMPAT, &h.identity.compat.to_le_bytes());
    put(&mut b, f::GENERATION, &h.generation.to_le_bytes());
    put(&mut b, f::OWN_OFFSET, &copy.offset(g).get().to_le_bytes());
    put(&mut b, f::COPY_B, &g.copy_b.get().to_le_bytes());
    put(&mut b, f::COPY_B_AGAIN, &g.copy_b.get().to_le_bytes());
    put(&mut b, f::POOL_UID, &h.identity.pool_uid.0.to_be_bytes());
    put(&mut b, f::DISK_ID, &h.identity.disk.to_bytes());
    put(&mut b, f::CLAIMED_AT, &h.identity.claimed_at.to_le_bytes());
    put(&mut b, f::DEVICE_SIZE, &g.device_size.get().to_le_bytes());
    put(&mut b, f::EXTENT_SIZE, &g.extent_size.bytes().get().to_le_bytes());
    put(&mut b, f::BLOCK_SIZE, &g.block_size.to_le_bytes());
    put(&mut b, f::PAGES_USED, &(h.directory.len() as u32).to_le_bytes());
    put(&mut b, f::DATA_OFFSET, &g.data_offset.get().to_le_bytes());
    put(&mut b, f::EXTENTS, &g.extents.get().to_le_bytes());
    let name = h.identity.pool.as_str().as_bytes();
    b[f::POOL_NAME_LEN.at] = name.len() as u8;
    put(&mut b, f::POOL_NAME, name);
    for (i, c) in h.directory.iter().enumerate() {
        let at = f::DIRECTORY.at + 4 * i;
        b[at..at + 4].copy_from_slice(&c.to_le_bytes());
    }
    let c = crc(&b);
    put(&mut b, f::CRC, &c.to_le_bytes());
    b
}

/// Reads the header of copy `copy` that was found at `offset`. `b` holds [`HEADER_LEN`] bytes.
pub(crate) fn decode(b: &[u8], copy: CopyId, offset: u64) -> Result<Header, CopyFault> {
    if !seen(b) {
        return Err(CopyFault::Absent);
    }
    if u64::from(crc(b)) != get(b, f::CRC) {
        return Err(CopyFault::BadHeader);
    }
    let (version, incompat) = (get(b, f::VERSION) as u16, get(b, f::INCOMPAT));
    if version != VERSION || incompat & !INCOMPAT_KNOWN != 0 {
        return Err(CopyFault::Unsupported { version, incompat });
    }
    if b[f::COPY.at] != copy.index() || get(b, f::OWN_OFFSET) != offset {
        return Err(CopyFault::Misplaced { says: get(b, f::OWN_OFFSET) });
    }
    let bad = |why| CopyFault::Malformed { why };
    let name = b.get(f::POOL_NAME.at..f::POOL_NAME.at + usize::from(b[f::POOL_NAME_LEN.at]));
    let name = name.filter(|n| n.len() <= f::POOL_NAME.len).and_then(|n| std::str::from_utf8(n).ok());
    let pool: PoolName = name.and_then(|n| n.parse().ok()).ok_or(bad("the pool's name is not valid"))?;
    let geometry = Geometry {
        device_size: Bytes::new(get(b, f::DEVICE_SIZE)),
        block_size: get(b, f::BLOCK_SIZE) as u32,
        extent_size: ExtentSize::new(get(b, f::EXTENT_SIZE))
            .map_err(|_| bad("the extent size is not valid"))?,
        data_offset: Bytes::new(get(b, f::DATA_OFFSET)),
        extents: Extents::new(get(b, f::EXTENTS)),
        copy_b: Bytes::new(get(b, f::COPY_B)),
    };
    geometry.check().map_err(|_| bad("the areas do not add up"))?;
    if copy == CopyId::B && geometry.copy_b.get() != offset {
        return Err(bad("the two places of copy B differ"));
    }
    let pages = get(b, f::PAGES_USED) as usize;
    if pages > PAGES {
        return Err(bad("more pages are in use than there are"));
    }
    let directory = b[f::DIRECTORY.at..f::DIRECTORY.at + 4 * pages]
        .chunks_exact(4)
        .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
        .collect();
    let identity = Identity {
        pool,
        pool_uid: PoolUid(get_id(b, f::POOL_UID)),
        disk: DiskId::from_u128(get_id(b, f::DISK_ID)),
        claimed_at: get(b, f::CLAIMED_AT),
        geometry,
        compat: get(b, f::COMPAT),
    };
    Ok(Header { identity, generation: get(b, f::GENERATION), directory })
}
