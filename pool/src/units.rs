//! Units as newtypes: bytes, 512-byte sectors, extents. Private fields, checked arithmetic, and conversions
//! that say which way they round. Must not know: ids, I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A length or an offset in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

/// A length or an offset in sectors of 512 bytes, the unit of device-mapper tables whatever the disk's
/// logical block size is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sectors(u64);

/// A number of extents, or the index of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Extents(u64);

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

macro_rules! unit {
    ($t:ident) => {
        impl $t {
            /// None of it.
            pub const ZERO: $t = $t(0);

            /// A quantity of `n`.
            pub const fn new(n: u64) -> Self {
                Self(n)
            }

            /// The bare number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Whether it is zero.
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }

            /// Sum; `None` on overflow.
            #[must_use]
            pub const fn checked_add(self, o: Self) -> Option<Self> {
                match self.0.checked_add(o.0) {
                    Some(n) => Some(Self(n)),
                    None => None,
                }
            }

            /// Difference; `None` below zero.
            #[must_use]
            pub const fn checked_sub(self, o: Self) -> Option<Self> {
                match self.0.checked_sub(o.0) {
                    Some(n) => Some(Self(n)),
                    None => None,
                }
            }

            /// Sum of quantities whose total is known to be representable (sizes of real disks).
            ///
            /// # Panics
            /// On overflow of 64 bits: a broken invariant, never an input (inputs go through `checked_add`).
            #[must_use]
            pub const fn plus(self, o: Self) -> Self {
                self.checked_add(o).expect("quantity overflows 64 bits")
            }

            /// Difference of quantities of which the first is known to be the larger.
            ///
            /// # Panics
            /// Below zero: a broken invariant, never an input (inputs go through `checked_sub`).
            #[must_use]
            pub const fn minus(self, o: Self) -> Self {
                self.checked_sub(o).expect("quantity below zero")
            }

            /// Difference, at least zero.
            #[must_use]
            pub const fn saturating_sub(self, o: Self) -> Self {
                Self(self.0.saturating_sub(o.0))
            }
        }

        impl std::iter::Sum for $t {
            fn sum<I: Iterator<Item = Self>>(it: I) -> Self {
                it.fold(Self::ZERO, Self::plus)
            }
        }
    };
}

unit!(Bytes);
unit!(Sectors);
unit!(Extents);

impl Bytes {
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// Reads a quantity as Kubernetes writes them: a whole number of bytes, or of `Ki`, `Mi`, `Gi`, `Ti`, `Pi`, `k`, `M`,
    /// `G`, `T` or `P`. Digits only: no sign, no spaces, no second spelling by leading zeros.
    pub fn parse_quantity(s: &str) -> Option<Self> {
        const UNITS: [(&str, u64); 10] = [
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("Ti", 1 << 40),
            ("Pi", 1 << 50),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
            ("P", 1_000_000_000_000_000),
        ];
        let (digits, unit) =
            UNITS.iter().find_map(|(u, n)| s.strip_suffix(u).map(|d| (d, *n))).unwrap_or((s, 1));
        let plain = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        if plain { digits.parse::<u64>().ok()?.checked_mul(unit).map(Self) } else { None }
    }

    /// As sectors, or `None` when it is not a whole number of them.
    pub const fn to_sectors_exact(self) -> Option<Sectors> {
        if self.0.is_multiple_of(SECTOR) { Some(Sectors(self.0 / SECTOR)) } else { None }
    }
}

impl Sectors {
    /// As bytes.
    ///
    /// # Panics
    /// On overflow of 64 bits (no device has that many sectors).
    pub const fn to_bytes(self) -> Bytes {
        Bytes(self.0.checked_mul(SECTOR).expect("sectors overflow 64 bits of bytes"))
    }
}

impl fmt::Display for Bytes {
    /// Binary units with at most two decimals: `1.5 GiB`; exact bytes below 1 KiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut v = self.0 as f64 / 1024.0;
        let mut u = 0;
        while v >= 1024.0 && u + 1 < UNITS.len() {
            v /= 1024.0;
            u += 1;
        }
        let s = format!("{v:.2}");
        let s = s.trim_end_matches('0').trim_end_matches('.');
        write!(f, "{s} {}", UNITS[u])
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Size of an extent: a power of two from 4 MiB to 1 GiB, fixed for a pool at its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ExtentSize(u64);

/// Why a number of bytes is no extent size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("extent size {0} is not a power of two from 4194304 (4 MiB) to 1073741824 (1 GiB)")]
pub struct BadExtentSize(pub u64);

impl ExtentSize {
    /// The smallest extent: below it records of large volumes grow without a gain in placement.
    pub const MIN: ExtentSize = ExtentSize(4 << 20);
    /// The largest extent.
    pub const MAX: ExtentSize = ExtentSize(1 << 30);
    /// 16 MiB: moved in a fraction of a second, and a 1 TiB disk has 65,536 of them.
    pub const DEFAULT: ExtentSize = ExtentSize(16 << 20);

    /// An extent size of so many bytes.
    pub const fn new(bytes: u64) -> Result<Self, BadExtentSize> {
        if bytes.is_power_of_two() && bytes >= Self::MIN.0 && bytes <= Self::MAX.0 {
            Ok(Self(bytes))
        } else {
            Err(BadExtentSize(bytes))
        }
    }

    /// Bytes of one extent.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0)
    }

    /// Sectors of one extent.
    pub const fn sectors(self) -> Sectors {
        Sectors(self.0 / SECTOR)
    }

    /// Extents that hold `b`, the last one perhaps not full.
    pub const fn extents_round_up(self, b: Bytes) -> Extents {
        Extents(b.0.div_ceil(self.0))
    }

    /// Whole extents in `b`.
    pub const fn extents_round_down(self, b: Bytes) -> Extents {
        Extents(b.0 / self.0)
    }

    /// Bytes of `n` extents; `None` on overflow.
    pub const fn checked_bytes_of(self, n: Extents) -> Option<Bytes> {
        match self.0.checked_mul(n.0) {
            Some(b) => Some(Bytes(b)),
            None => None,
        }
    }

    /// Bytes of `n` extents of a real disk or volume.
    ///
    /// # Panics
    /// On overflow of 64 bits.
    pub const fn bytes_of(self, n: Extents) -> Bytes {
        self.checked_bytes_of(n).expect("extents overflow 64 bits of bytes")
    }

    /// Sectors of `n` extents of a real disk or volume.
    ///
    /// # Panics
    /// On overflow of 64 bits.
    pub const fn sectors_of(self, n: Extents) -> Sectors {
        Sectors(self.bytes_of(n).0 / SECTOR)
    }
}

impl Default for ExtentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u64> for ExtentSize {
    type Error = BadExtentSize;
    fn try_from(n: u64) -> Result<Self, Self::Error> {
        Self::new(n)
    }
}

impl From<ExtentSize> for u64 {
    fn from(e: ExtentSize) -> u64 {
        e.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extent_sizes_are_powers_of_two_within_bounds() {
        for (n, ok) in [
            (4 << 20, true),
            (16 << 20, true),
            (1 << 30, true),
            (2 << 20, false),
            (2 << 30, false),
            (5 << 20, false),
            (0, false),
        ] {
            assert_eq!(ExtentSize::new(n).is_ok(), ok, "{n}");
        }
    }

    #[test]
    fn conversions_say_how_they_round() {
        let e = ExtentSize::DEFAULT;
        assert_eq!(e.extents_round_up(Bytes::new(1)), Extents::new(1));
        assert_eq!(e.extents_round_down(Bytes::new((16 << 20) - 1)), Extents::ZERO);
        assert_eq!(e.sectors_of(Extents::new(2)), Sectors::new(65536));
        assert_eq!(Bytes::new(513).to_sectors_exact(), None);
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (s, n) in [("0", 0), ("16Mi", 16 << 20), ("1Gi", 1 << 30), ("500M", 500_000_000), ("7", 7)] {
            assert_eq!(Bytes::parse_quantity(s), Some(Bytes::new(n)), "{s}");
        }
        for s in ["", "Mi", "1.5Gi", "-1", "+1", "1 Gi", "1gi", "01", "99999999999Pi"] {
            assert_eq!(Bytes::parse_quantity(s), None, "{s}");
        }
    }

    #[test]
    fn bytes_read_as_people_write_them() {
        assert_eq!(Bytes::new(1000).to_string(), "1000 B");
        assert_eq!(Bytes::mib(1536).to_string(), "1.5 GiB");
        assert_eq!(Bytes::gib(1).to_string(), "1 GiB");
    }
}
