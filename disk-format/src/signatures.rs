//! Where file systems, volume managers and the like put their magic numbers: a table of fixed places. Places that
//! depend on the device's size are in [`crate::probe`]. Offsets and magics are those of util-linux's libblkid
//! (libblkid/src/superblocks, 2.38) and of the kernel's own headers.

/// A magic number at a fixed place.
pub(crate) struct Magic {
    pub(crate) name: &'static str,
    pub(crate) offset: u64,
    pub(crate) magic: &'static [u8],
}

const fn m(name: &'static str, offset: u64, magic: &'static [u8]) -> Magic {
    Magic { name, offset, magic }
}

const MD: &[u8] = b"\xfc\x4e\x2b\xa9";
const BTRFS: &[u8] = b"_BHRfS_M";
const SKUL: &[u8] = b"SKUL\xba\xbe";

/// All of them.
pub(crate) const TABLE: &[Magic] = &[
    m("ext2/ext3/ext4", 0x438, b"\x53\xef"),
    m("xfs", 0, b"XFSB"),
    m("xfs log", 0, b"\xfe\xed\xba\xbe"),
    m("btrfs", 0x1_0040, BTRFS),
    m("btrfs", (64 << 20) + 0x40, BTRFS),
    m("btrfs", (256 << 30) + 0x40, BTRFS),
    m("vfat", 0x36, b"FAT12   "),
    m("vfat", 0x36, b"FAT16   "),
    m("vfat", 0x36, b"MSDOS"),
    m("vfat", 0x52, b"FAT32   "),
    m("vfat", 0x52, b"MSWIN"),
    m("exfat", 3, b"EXFAT   "),
    m("ntfs", 3, b"NTFS    "),
    m("refs", 0, b"\0\0\0ReFS\0"),
    m("BitLocker", 3, b"-FVE-FS-"),
    m("MBR or boot sector", 0x1fe, b"\x55\xaa"),
    m("GPT", 512, b"EFI PART"),
    m("GPT", 4096, b"EFI PART"),
    m("Windows LDM", 0xc00, b"PRIVHEAD"),
    m("Apple partition map", 512, b"PM\0\0"),
    m("Sun disk label", 508, b"\xda\xbe"),
    m("iso9660", 0x8001, b"CD001"),
    m("iso9660", 0x8009, b"CDROM"),
    m("udf", 0x8001, b"BEA01"),
    m("udf", 0x8001, b"NSR02"),
    m("udf", 0x8001, b"NSR03"),
    m("f2fs", 0x400, b"\x10\x20\xf5\xf2"),
    m("f2fs", 0x1400, b"\x10\x20\xf5\xf2"),
    m("erofs", 0x400, b"\xe2\xe1\xf5\xe0"),
    m("squashfs", 0, b"hsqs"),
    m("squashfs", 0, b"sqsh"),
    m("squashfs", 0, b"qshs"),
    m("cramfs", 0, b"\x45\x3d\xcd\x28"),
    m("romfs", 0, b"-rom1fs-"),
    m("jfs", 0x8000, b"JFS1"),
    m("nilfs2", 0x406, b"\x34\x34"),
    m("hfs", 0x400, b"BD"),
    m("hfsplus", 0x400, b"H+\0\x04"),
    m("hfsplus", 0x400, b"HX\0\x05"),
    m("apfs", 32, b"NXSB"),
    m("reiserfs", 0x1_0034, b"ReIsEr"),
    m("reiserfs", 0x2034, b"ReIsEr"),
    m("reiser4", 0x1_0000, b"ReIsEr4"),
    m("gfs2", 0x1_0000, b"\x01\x16\x19\x70"),
    m("ocfs2", 0x400, b"OCFSV2"),
    m("ocfs2", 0x800, b"OCFSV2"),
    m("ocfs2", 0x1000, b"OCFSV2"),
    m("ocfs2", 0x2000, b"OCFSV2"),
    m("oracleasm", 32, b"ORCLDISK"),
    m("vmfs", 0x20_0000, b"\x5e\xf1\xab\x2f"),
    m("vmfs member", 0x10_0000, b"\x0d\xd0\x01\xc0"),
    m("ufs", 0x255c, b"\x54\x19\x01\x00"),
    m("ufs", 0x1_055c, b"\x19\x01\x54\x19"),
    m("LVM2 physical volume", 0, b"LABELONE"),
    m("LVM2 physical volume", 0x200, b"LABELONE"),
    m("LVM2 physical volume", 0x400, b"LABELONE"),
    m("LVM2 physical volume", 0x600, b"LABELONE"),
    m("LVM1 physical volume", 0, b"HM\x01\0"),
    m("LVM1 physical volume", 0, b"HM\x02\0"),
    m("stratis", 0x204, b"!Stra0tis\x86\xff\x02^\x41rh"),
    m("stratis", 0x1204, b"!Stra0tis\x86\xff\x02^\x41rh"),
    m("md raid 1.1", 0, MD),
    m("md raid 1.2", 0x1000, MD),
    m("LUKS", 0, b"LUKS\xba\xbe"),
    m("LUKS2", 0x4000, SKUL),
    m("LUKS2", 0x8000, SKUL),
    m("LUKS2", 0x1_0000, SKUL),
    m("LUKS2", 0x2_0000, SKUL),
    m("LUKS2", 0x4_0000, SKUL),
    m("LUKS2", 0x8_0000, SKUL),
    m("LUKS2", 0x10_0000, SKUL),
    m("LUKS2", 0x20_0000, SKUL),
    m("LUKS2", 0x40_0000, SKUL),
    m("bcache", 0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    m("bcachefs", 0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    m("ceph bluestore", 0, b"bluestore block device"),
    m("DRBD", 60, b"\x83\x74\x02\x6b"),
    m("DRBD", 60, b"\x83\x74\x02\x6c"),
    m("DRBD", 60, b"\x83\x74\x02\x6d"),
    m("dm-integrity", 0, b"integrt\0"),
    m("dm-verity", 0, b"verity\0\0"),
    m("dm-snapshot", 0, b"SnAp"),
    m("dm-thin metadata", 32, &27_022_010u64.to_le_bytes()),
    m("dm-cache metadata", 32, &6_142_003u64.to_le_bytes()),
    m("dm-era metadata", 32, &2_126_579_579u64.to_le_bytes()),
    m("VDO", 0, b"dmvdo001"),
    m("TuxOnIce", 0, b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"),
];

/// Swap and hibernation images: the last ten bytes of the first page, whatever the page size.
pub(crate) const SWAP: &[(&str, &[u8])] = &[
    ("swap", b"SWAPSPACE2"),
    ("swap", b"SWAP-SPACE"),
    ("suspend image", b"S1SUSPEND"),
    ("suspend image", b"S2SUSPEND"),
    ("suspend image", b"ULSUSPEND"),
    ("suspend image", b"LINHIB0001"),
];
