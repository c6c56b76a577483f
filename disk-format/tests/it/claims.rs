//! What is claimed and what is not; release.

use disk_format::{
    ClaimError, Claimed, Force, LabelDisk, MemDisk, OpenLabelError, PoolUid, ReadLabelError, ReleaseError,
    claim, layout, probe_signatures, read_label, release,
};
use pool::units::Bytes;

use crate::common::{SIZE, add, empty_disk, request, run};

/// Synthetic images of what is asked of the probe by name: name, offset, bytes. Places at the end are counted for
/// a disk of `SIZE`.
fn images() -> Vec<(&'static str, u64, Vec<u8>)> {
    let s = SIZE.get();
    let mut all: Vec<(&'static str, u64, &[u8])> = vec![
        ("ext", 1080, b"\x53\xef"),
        ("xfs", 0, b"XFSB"),
        ("btrfs", 65600, b"_BHRfS_M"),
        ("vfat", 82, b"FAT32   "),
        ("exfat", 3, b"EXFAT   "),
        ("ntfs", 3, b"NTFS    "),
        ("swap", 4086, b"SWAPSPACE2"),
        ("swap", 65526, b"SWAPSPACE2"),
        ("suspend", 4086, b"S1SUSPEND"),
        ("iso9660", 32769, b"CD001"),
        ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
        ("squashfs", 0, b"hsqs"),
        ("MBR", 510, b"\x55\xaa"),
        ("GPT", 512, b"EFI PART"),
        ("GPT (backup)", s - 512, b"EFI PART"),
        ("LVM2", 512, b"LABELONE"),
        ("md raid 0.90", s - 65536, b"\xfc\x4e\x2b\xa9"),
        ("md raid 1.0", s - 8192, b"\xfc\x4e\x2b\xa9"),
        ("md raid 1.1", 0, b"\xfc\x4e\x2b\xa9"),
        ("md raid 1.2", 4096, b"\xfc\x4e\x2b\xa9"),
        ("LUKS", 0, b"LUKS\xba\xbe\0\x01"),
        ("LUKS", 0, b"LUKS\xba\xbe\0\x02"),
        ("LUKS2", 0x4000, b"SKUL\xba\xbe"),
        ("ceph", 0, b"bluestore block device\n"),
        ("DRBD", s - 4096 + 60, b"\x83\x74\x02\x6d"),
        ("dm-integrity", 0, b"integrt\0"),
        ("VDO", 0, b"dmvdo001"),
        ("BitLocker", 3, b"-FVE-FS-"),
        ("bcache", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ];
    let zfs = [0, 256 << 10, s - (512 << 10), s - (256 << 10)];
    all.extend(zfs.map(|l| ("zfs", l + (128 << 10) + 7 * 1024, &b"\x0c\xb1\xba\0\0\0\0\0"[..])));
    all.into_iter().map(|(n, o, b)| (n, o, b.to_vec())).collect()
}

#[test]
fn no_signature_is_claimed_unless_forced() {
    for (name, offset, bytes) in images() {
        let mut d = MemDisk::new(SIZE, 512);
        d.put(Bytes::new(offset), &bytes);
        let found = probe_signatures(&d).unwrap();
        assert!(found.iter().any(|f| f.name.starts_with(name)), "{name}: {found:?}");
        match claim(d.clone(), &request(), Force::No) {
            Err(ClaimError::Signatures(f)) => assert_eq!(f, found),
            r => panic!("{name}: {r:?}"),
        }
        let forced = claim(d, &request(), Force::WipeSignatures).unwrap().into_disk().into_storage();
        let left = probe_signatures(&forced).unwrap();
        assert!(left.iter().all(|f| f.name.contains("Weir")), "{name}: {left:?}");
    }
}

#[test]
fn four_kib_blocks_have_their_partition_table_elsewhere() {
    for offset in [4096, SIZE.get() - 4096] {
        let mut d = MemDisk::new(SIZE, 4096);
        d.put(Bytes::new(offset), b"EFI PART");
        assert!(probe_signatures(&d).unwrap().iter().any(|f| f.name.starts_with("GPT")), "{offset}");
        assert!(claim(d, &request(), Force::No).is_err());
    }
}

#[test]
fn leftovers_without_a_signature_are_claimed() {
    let mut d = MemDisk::new(SIZE, 512);
    d.put(Bytes::mib(1), &[0xa5; 100_000]);
    d.put(Bytes::ZERO, &[0x11; 400]);
    assert!(matches!(claim(d, &request(), Force::No), Ok(Claimed::Created(_))));
}

#[test]
fn claiming_again_is_the_same_and_another_pool_is_refused() {
    let mut d = empty_disk();
    add(&mut d, 1, run(0, 0, 1));
    let label = d.label().clone();
    let disk = d.into_storage();
    match claim(disk.clone(), &request(), Force::No) {
        Ok(Claimed::Identity(d)) => assert_eq!(d.label(), &label),
        r => panic!("{r:?}"),
    }
    let mut other = request();
    other.pool_uid = PoolUid(0xdef);
    match claim(disk.clone(), &other, Force::No) {
        Err(ClaimError::Signatures(f)) => assert!(f.iter().all(|s| s.name.contains("pool fast")), "{f:?}"),
        r => panic!("{r:?}"),
    }
    let taken = claim(disk, &other, Force::WipeSignatures).unwrap().into_disk();
    assert_eq!(taken.label().identity().pool_uid, PoolUid(0xdef));
    assert!(taken.label().volumes().is_empty());
}

#[test]
fn release_asks_who_it_is_and_leaves_nothing() {
    let mut d = empty_disk();
    let (uid, disk) = (request().pool_uid, request().disk);
    add(&mut d, 1, run(0, 0, 1));
    let s = d.into_storage();
    assert!(matches!(release(s.clone(), uid, disk), Err(ReleaseError::HoldsVolumes(1))));
    let mut d = LabelDisk::open(s).unwrap();
    let next = d.label().without_volume(crate::common::volume(1));
    d.update(next).unwrap();
    let s = d.into_storage();
    assert!(matches!(release(s.clone(), PoolUid(1), disk), Err(ReleaseError::NotThisDisk { .. })));
    let s = release(s, uid, disk).unwrap();
    assert!(matches!(read_label(&s), Err(ReadLabelError::Blank)));
    assert!(probe_signatures(&s).unwrap().is_empty());
}

#[test]
fn small_devices_are_refused_by_size() {
    let min = layout::MIN_DEVICE;
    for (size, ok) in
        [(min, true), (min.minus(Bytes::new(512)), false), (Bytes::mib(1), false), (Bytes::ZERO, false)]
    {
        let r = claim(MemDisk::new(size, 512), &request(), Force::No);
        assert_eq!(r.is_ok(), ok, "{size}: {r:?}");
    }
    assert!(matches!(read_label(&MemDisk::new(Bytes::mib(8), 512)), Err(ReadLabelError::TooSmall { .. })));
}

#[test]
fn a_labelled_disk_that_someone_formatted_is_not_opened() {
    let mut disk = empty_disk().into_storage();
    // A tenant's own data is not a foreign signature.
    disk.put(Bytes::new((64 << 20) + 0x40), b"_BHRfS_M");
    assert!(LabelDisk::open(disk.clone()).is_ok());
    disk.put(Bytes::new(1080), b"\x53\xef");
    assert!(matches!(LabelDisk::open(disk), Err(OpenLabelError::Foreign(_))));
}
