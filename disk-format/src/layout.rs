//! Every offset and size of the format, once: the code encodes by these constants and docs/on-disk-format.md is
//! compared with them by a test. Must not know: how anything is read or written.

use pool::units::{Bytes, ExtentSize};

/// Version of the format. A reader refuses any other; additions that old readers may ignore set a compat flag,
/// additions that they must not ignore set an incompat flag.
pub const VERSION: u16 = 1;
/// The incompat flags that this code understands.
pub const INCOMPAT_KNOWN: u64 = 0;
/// Begins and ends a header's first block. The last four bytes catch transfers that mangle line ends or stop at ^Z.
pub const MAGIC: [u8; 16] = *b"WeirDiskLabe\x1a\r\n\x00";
/// Begins a page of the run table.
pub const PAGE_MAGIC: [u8; 4] = *b"WPg1";

/// The unit of all label I/O: the larger of the two logical block sizes.
pub const BLOCK: usize = 4096;
/// Header: one block of identity, one block of the page directory.
pub const HEADER_LEN: usize = 2 * BLOCK;
/// Size of one copy.
pub const AREA_LEN: u64 = 4 << 20;
/// Table pages of one copy; their checksums fill the directory block but for its last eight bytes.
pub const PAGES: usize = (AREA_LEN as usize - HEADER_LEN) / BLOCK;
/// Everything in the layout begins at a multiple of it.
pub const ALIGNMENT: u64 = 1 << 20;
/// Where copy A lies. The first MiB stays empty, so that a stray partition table harms no copy.
pub const COPY_A: u64 = ALIGNMENT;
/// Bytes behind copy B that stay empty: room for a stray backup partition table, RAID or ZFS label.
pub const TAIL: u64 = ALIGNMENT;
/// Where extents begin: the first multiple of the smallest extent behind copy A.
pub const DATA_OFFSET: u64 = 8 << 20;
/// Bytes in front of a page's records.
pub const PAGE_HEAD: usize = 16;
/// Bytes in front of a record's body.
pub const RECORD_HEAD: usize = 4;
/// Bytes of a run's record with its head.
pub const RUN_RECORD: usize = 64;
/// The most bytes of a volume's record with its head.
pub const VOLUME_RECORD_MAX: usize = 2048;
/// Runs in one page.
pub const RUNS_PER_PAGE: usize = (BLOCK - PAGE_HEAD) / RUN_RECORD;
/// Runs in a table that holds nothing else.
pub const RUNS_MAX: usize = RUNS_PER_PAGE * PAGES;
/// The smallest device that can be claimed: one smallest extent.
pub const MIN_DEVICE: Bytes = Bytes::new(DATA_OFFSET + ExtentSize::MIN.bytes().get() + AREA_LEN + TAIL);

/// Where copy B lies on a device of this size when it is claimed; `None` when it is too small.
pub const fn copy_b_for(size: Bytes) -> Option<u64> {
    (size.get() / ALIGNMENT * ALIGNMENT).checked_sub(AREA_LEN + TAIL)
}

/// A field of a structure on disk.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its first byte.
    pub at: usize,
    /// Its bytes.
    pub len: usize,
    /// What it holds.
    pub what: &'static str,
}

impl Field {
    /// The byte after its last.
    pub const fn end(self) -> usize {
        self.at + self.len
    }
}

macro_rules! fields {
    ($(#[$m:meta])* $module:ident: $($name:ident $at:expr, $len:expr, $what:literal;)+) => {
        $(#[$m])*
        pub mod $module {
            use super::Field;
            $(
                #[doc = $what]
                pub const $name: Field = Field { name: stringify!($name), at: $at, len: $len, what: $what };
            )+
            /// All of them, in order.
            pub const ALL: &[Field] = &[$($name),+];
        }
    };
}

fields! {
    /// The header.
    header:
    MAGIC 0, 16, "`WeirDiskLabe`, 1a 0d 0a 00";
    CRC 16, 4, "CRC-32C of the header's 8192 bytes, this field taken as zero";
    VERSION 20, 2, "format version";
    COPY 22, 1, "0 = copy A, 1 = copy B";
    RESERVED_1 23, 1, "zero";
    INCOMPAT 24, 8, "flags; a reader refuses any it does not know";
    COMPAT 32, 8, "flags; a reader ignores and keeps those it does not know";
    GENERATION 40, 8, "grows by one with each update";
    OWN_OFFSET 48, 8, "where this copy lies";
    COPY_B 56, 8, "where copy B lies";
    POOL_UID 64, 16, "uuid of the pool, big-endian";
    DISK_ID 80, 16, "uuid of the disk, big-endian";
    CLAIMED_AT 96, 8, "seconds since 1970";
    DEVICE_SIZE 104, 8, "bytes of the device when it was claimed";
    EXTENT_SIZE 112, 8, "bytes of an extent, a power of two";
    BLOCK_SIZE 120, 4, "logical block size of the device when it was claimed";
    PAGES_USED 124, 4, "table pages in use";
    DATA_OFFSET 128, 8, "where extent 0 begins";
    EXTENTS 136, 8, "number of extents";
    POOL_NAME_LEN 144, 1, "bytes of the pool's name";
    POOL_NAME 145, 63, "the pool's name";
    RESERVED_2 208, 3864, "zero";
    COPY_B_AGAIN 4072, 8, "where copy B lies, once more";
    MAGIC_AGAIN 4080, 16, "the magic, once more";
    DIRECTORY 4096, 4088, "CRC-32C of each page in use, 4 bytes a page; the rest zero";
    RESERVED_3 8184, 8, "zero";
}

fields! {
    /// A page of the run table.
    page:
    MAGIC 0, 4, "`WPg1`";
    INDEX 4, 4, "its place in the table";
    USED 8, 2, "bytes of records";
    COUNT 10, 2, "number of records";
    RESERVED 12, 4, "zero";
    RECORDS 16, 4080, "records without gaps; the rest zero";
}

fields! {
    /// What each record begins with.
    record:
    KIND 0, 1, "1 = volume, 2 = run";
    RESERVED 1, 1, "zero";
    LEN 2, 2, "bytes of the record with this head";
}

fields! {
    /// A run's record.
    run:
    VOLUME 4, 16, "id of the volume, big-endian";
    START 20, 8, "first logical extent of the segment";
    FIRST 28, 8, "first extent on this disk";
    COUNT 36, 8, "extents on this disk";
    LEG 44, 2, "which leg of the segment";
    LEGS 46, 2, "legs of the segment";
    CHUNK 48, 4, "sectors of a stripe's chunk; zero = not striped";
    EPOCH 52, 8, "the volume's epoch when the run was last recorded";
    STATE 60, 1, "0 = live, 1 = filling, 2 = retired";
    RESERVED 61, 3, "zero";
}

fields! {
    /// A volume's record, up to the texts.
    volume:
    ID 4, 16, "id of the volume, big-endian";
    SIZE 20, 8, "bytes of the volume";
    EPOCH 28, 8, "epoch of the record that this label last saw";
    LAYOUT 36, 1, "0 = linear, 1 = striped, 2 = mirrored, 3 = wholeDisk";
    SHARING 37, 1, "0 = migrate, 1 = multiWriter";
    NAME_LEN 38, 1, "bytes of the name";
    PARAMS 39, 1, "number of parameters";
    PARTS 40, 4, "striped: stripes; mirrored: replicas; else zero";
    CHUNK 44, 8, "striped: sectors of a chunk; else zero";
    TEXTS 52, 0, "the name; then per parameter: 1 byte length, key, 2 bytes length, value (UTF-8)";
}

/// One structure as text: a line a field. The documentation holds exactly this.
pub fn render(fields: &[Field]) -> String {
    let mut out = String::from("offset  bytes  field           content\n");
    for f in fields {
        out.push_str(&format!("{:>6}  {:>5}  {:<14}  {}\n", f.at, f.len, f.name.to_lowercase(), f.what));
    }
    out
}

/// The sizes and limits as text. The documentation holds exactly this.
pub fn render_sizes() -> String {
    let rows: [(&str, u64, &str); 12] = [
        ("version", u64::from(VERSION), "format version"),
        ("block", BLOCK as u64, "bytes; unit of all label I/O"),
        ("header", HEADER_LEN as u64, "bytes of a header"),
        ("area", AREA_LEN, "bytes of a copy"),
        ("pages", PAGES as u64, "table pages of a copy"),
        ("alignment", ALIGNMENT, "bytes; areas and data begin at multiples of it"),
        ("copy_a", COPY_A, "offset of copy A"),
        ("tail", TAIL, "bytes left empty behind copy B"),
        ("data_offset", DATA_OFFSET, "offset of extent 0"),
        ("runs_per_page", RUNS_PER_PAGE as u64, "runs in one page"),
        ("runs_max", RUNS_MAX as u64, "runs in a table that holds nothing else"),
        ("volume_max", VOLUME_RECORD_MAX as u64, "most bytes of a volume's record"),
    ];
    let mut out = String::from("name             value  meaning\n");
    for (n, v, w) in rows {
        out.push_str(&format!("{n:<13}  {v:>7}  {w}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_touch_and_do_not_overlap() {
        for (fields, start, end) in [
            (header::ALL, 0, HEADER_LEN),
            (page::ALL, 0, BLOCK),
            (record::ALL, 0, RECORD_HEAD),
            (run::ALL, RECORD_HEAD, RUN_RECORD),
            (volume::ALL, RECORD_HEAD, 52),
        ] {
            let mut at = start;
            for f in fields {
                assert_eq!(f.at, at, "{}", f.name);
                at = f.end();
            }
            assert_eq!(at, end);
        }
        assert_eq!(header::DIRECTORY.len, PAGES * 4);
        assert_eq!(DATA_OFFSET % ExtentSize::MIN.bytes().get(), 0);
    }
}
