//! Every byte of both copies flipped, random bytes, changed sizes.

use disk_format::{
    CopyFault, CopyId, MemDisk, OtherCopy, ReadLabelError, SizeChange, Storage, claim, layout, read_label,
};
use pool::units::Bytes;
use proptest::prelude::*;

use crate::common::{SIZE, add, empty_disk, request, run};

fn two_volumes() -> (MemDisk, disk_format::Label) {
    let mut d = empty_disk();
    add(&mut d, 1, run(0, 0, 4));
    add(&mut d, 2, run(0, 10, 4));
    let label = d.label().clone();
    (d.into_storage(), label)
}

/// Flips each byte of the headers and of the one page in use, of both copies.
fn every_flip_reads(disk: &MemDisk, label: &disk_format::Label) {
    let used = (layout::HEADER_LEN + layout::BLOCK) as u64;
    for base in [layout::COPY_A, label.identity().geometry.copy_b.get()] {
        for i in 0..used {
            for mask in [0xff, 1 << (i % 8)] {
                let mut d = disk.clone();
                d.alter(Bytes::new(base + i), |b| b ^ mask);
                let found = read_label(&d).expect("the other copy is whole");
                assert_eq!(&found.label, label, "byte {i} of the copy at {base}");
                let bad = if base == layout::COPY_A { CopyId::A } else { CopyId::B };
                assert_eq!(found.copy, bad.other(), "byte {i} of the copy at {base}");
                assert!(matches!(found.other, OtherCopy::Bad(_)));
            }
        }
    }
}

#[test]
fn any_flipped_byte_leaves_the_truth() {
    let (disk, label) = two_volumes();
    every_flip_reads(&disk, &label);
}

#[test]
fn any_flipped_byte_leaves_the_truth_on_a_disk_that_has_grown() {
    let (mut disk, label) = two_volumes();
    disk.resize(Bytes::mib(5000));
    assert_eq!(read_label(&disk).unwrap().size, SizeChange::Grew(Bytes::mib(904)));
    every_flip_reads(&disk, &label);
}

#[test]
fn a_disk_that_has_shrunk_reads_and_is_not_written() {
    let (mut disk, label) = two_volumes();
    disk.resize(Bytes::mib(2048));
    let found = read_label(&disk).unwrap();
    assert_eq!((&found.label, found.size), (&label, SizeChange::Shrank(Bytes::mib(2048))));
    assert!(matches!(disk_format::LabelDisk::open(disk), Err(disk_format::OpenLabelError::Shrank { .. })));
}

#[test]
fn damage_to_both_copies_is_refused_and_not_called_blank() {
    let (disk, label) = two_volumes();
    let b = label.identity().geometry.copy_b.get();
    for (i, j) in [(0, 0), (20, 4080), (300, 9000), (8200, 8200)] {
        let mut d = disk.clone();
        d.alter(Bytes::new(layout::COPY_A + i), |x| x ^ 1);
        d.alter(Bytes::new(b + j), |x| x ^ 1);
        assert!(matches!(read_label(&d), Err(ReadLabelError::Corrupt { .. })), "{i} {j}");
        assert!(claim(d, &request(), disk_format::Force::No).is_err(), "{i} {j}");
    }
}

#[test]
fn a_later_version_and_another_disk_are_told_apart_from_damage() {
    let (disk, label) = two_volumes();
    let b = label.identity().geometry.copy_b;
    // Another disk's copy at B: whole, but of another claim.
    let mut req = request();
    req.disk = pool::ids::DiskId::from_u128(8);
    let other =
        claim(MemDisk::new(SIZE, 512), &req, disk_format::Force::No).unwrap().into_disk().into_storage();
    let mut area = vec![0; layout::AREA_LEN as usize];
    other.read_at(b, &mut area).unwrap();
    let mut mixed = disk.clone();
    mixed.write_at(b, &area).unwrap();
    assert!(matches!(read_label(&mixed), Err(ReadLabelError::Disagree(_))));
    // Copy A at the place of copy B.
    disk.read_at(Bytes::new(layout::COPY_A), &mut area).unwrap();
    let mut moved = disk.clone();
    moved.write_at(b, &area).unwrap();
    let found = read_label(&moved).unwrap();
    assert!(matches!(found.other, OtherCopy::Bad(CopyFault::Misplaced { .. })));
    // A version and an incompat flag of the future, checksum made right.
    for (at, version, incompat) in [(20, 2, 0), (24, 1, 1)] {
        let mut h = vec![0; layout::HEADER_LEN];
        disk.read_at(Bytes::new(layout::COPY_A), &mut h).unwrap();
        h[at] = if at == 20 { 2 } else { 1 };
        h[16..20].fill(0);
        let crc = crc32c::crc32c(&h);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        let mut d = disk.clone();
        d.write_at(Bytes::new(layout::COPY_A), &h).unwrap();
        match read_label(&d) {
            Err(ReadLabelError::Unsupported { version: v, incompat: i }) => {
                assert_eq!((v, i), (version, incompat))
            }
            r => panic!("{r:?}"),
        }
    }
}

/// A whole header over random pages: checksums are right, so that decoding is reached.
fn with_page(page: &[u8]) -> MemDisk {
    let (mut disk, label) = two_volumes();
    let id = label.identity();
    for base in [layout::COPY_A, id.geometry.copy_b.get()] {
        let mut h = vec![0; layout::HEADER_LEN];
        disk.read_at(Bytes::new(base), &mut h).expect("memory does not fail");
        let seed = crc32c::crc32c_append(crc32c::crc32c(&id.disk.to_bytes()), &0u32.to_le_bytes());
        h[4096..4100].copy_from_slice(&crc32c::crc32c_append(seed, page).to_le_bytes());
        h[16..20].fill(0);
        let crc = crc32c::crc32c(&h);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        disk.write_at(Bytes::new(base), &h).expect("memory does not fail");
        disk.write_at(Bytes::new(base + layout::HEADER_LEN as u64), page).expect("memory does not fail");
    }
    disk
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn random_headers_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), layout::HEADER_LEN), right in any::<bool>()) {
        let mut d = MemDisk::new(SIZE, 512);
        bytes[..16].copy_from_slice(&layout::MAGIC);
        if right {
            bytes[20..32].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes[48..56].copy_from_slice(&layout::COPY_A.to_le_bytes());
            bytes[16..20].fill(0);
            let crc = crc32c::crc32c(&bytes);
            bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        }
        d.write_at(Bytes::new(layout::COPY_A), &bytes).unwrap();
        prop_assert!(read_label(&d).is_err());
    }

    #[test]
    fn altered_pages_under_right_checksums_are_valid_or_refused(
        at in prop::collection::vec((0usize..400, any::<u8>()), 1..6),
    ) {
        let (disk, _) = two_volumes();
        let mut page = vec![0; layout::BLOCK];
        disk.read_at(Bytes::new(layout::COPY_A + layout::HEADER_LEN as u64), &mut page).unwrap();
        for (i, b) in at {
            page[i] = b;
        }
        match read_label(&with_page(&page)) {
            Ok(found) => prop_assert_eq!(found.label.check(), Ok(())),
            Err(ReadLabelError::Corrupt { .. }) => {}
            Err(e) => prop_assert!(false, "{e}"),
        }
    }

    #[test]
    fn random_pages_do_not_panic(mut page in prop::collection::vec(any::<u8>(), layout::BLOCK)) {
        page[..8].copy_from_slice(b"WPg1\0\0\0\0");
        page[9] &= 0xf;
        let corrupt = matches!(read_label(&with_page(&page)), Err(ReadLabelError::Corrupt { .. }));
        prop_assert!(corrupt);
    }
}
