//! Byte quantities as Kubernetes writes them: `16Mi`, `1Gi`, `500M`, or plain bytes.

use pool::units::Bytes;
use serde::{Deserialize, Deserializer, de};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantity(Bytes);

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no quantity of bytes: a whole number with one of Ki, Mi, Gi, Ti, Pi, k, M, G, T, P or nothing is expected"
)]
pub struct BadQuantity(String);

const SUFFIXES: [(&str, u64); 10] = [
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

impl Quantity {
    /// As bytes.
    pub const fn bytes(self) -> Bytes {
        self.0
    }
}

impl std::str::FromStr for Quantity {
    type Err = BadQuantity;

    fn from_str(s: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity(s.chars().take(40).collect());
        let (digits, unit) =
            SUFFIXES.iter().find_map(|(suf, n)| s.strip_suffix(suf).map(|d| (d, *n))).unwrap_or((s, 1));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let n: u64 = digits.parse().map_err(|_| bad())?;
        n.checked_mul(unit).map(|n| Self(Bytes::new(n))).ok_or_else(bad)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a quantity of bytes such as 16Mi or 1073741824")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Quantity, E> {
                Ok(Quantity(Bytes::new(n)))
            }

            fn visit_str<E: de::Error>(self, s: &str) -> Result<Quantity, E> {
                s.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (s, n) in [("0", 0), ("16Mi", 16 << 20), ("1Gi", 1 << 30), ("500M", 500_000_000), ("7", 7)] {
            assert_eq!(s.parse::<Quantity>().unwrap().bytes(), Bytes::new(n), "{s}");
        }
        for s in ["", "Mi", "1.5Gi", "-1", "1 Gi", "1gi", "99999999999Pi"] {
            assert!(s.parse::<Quantity>().is_err(), "{s}");
        }
    }
}
