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

impl Quantity {
    /// As bytes.
    pub const fn bytes(self) -> Bytes {
        self.0
    }
}

impl std::str::FromStr for Quantity {
    type Err = BadQuantity;

    fn from_str(s: &str) -> Result<Self, BadQuantity> {
        Bytes::parse_quantity(s).map(Self).ok_or_else(|| BadQuantity(s.chars().take(40).collect()))
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
