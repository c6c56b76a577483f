//! Byte quantities as Kubernetes writes them: `16Mi`, `1Gi`, `500M`, or plain bytes.

use pool::units::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantity(Bytes);

/// What the API server lets through: no more digits than 64 bits hold with the unit.
pub(crate) const PATTERN: &str = "^(0([KMGTP]i|[kMGTP])?|[1-9]([0-9]{0,18}|[0-9]{0,15}(Ki|k)|[0-9]{0,12}Mi?|[0-9]{0,9}Gi?|\
                                  [0-9]{0,6}Ti?|[0-9]{0,3}Pi?))$";

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no quantity of bytes: a whole number with one of Ki, Mi, Gi, Ti, Pi, k, M, G, T, P or nothing is expected"
)]
pub struct BadQuantity(String);

impl Quantity {
    /// The quantity of so many bytes.
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

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

impl std::fmt::Display for Quantity {
    /// With the largest binary unit that divides it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n = self.0.get();
        for (unit, shift) in [("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            if n != 0 && n.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", n >> shift);
            }
        }
        write!(f, "{n}")
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
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

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Quantity, E> {
                u64::try_from(n)
                    .map(|n| Quantity(Bytes::new(n)))
                    .map_err(|_| E::custom(BadQuantity(n.to_string())))
            }

            fn visit_str<E: de::Error>(self, s: &str) -> Result<Quantity, E> {
                s.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": PATTERN,
            "minimum": 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, string::string_regex};

    use super::*;

    #[test]
    fn what_the_api_server_lets_through_is_read() {
        let inner = PATTERN.trim_start_matches('^').trim_end_matches('$');
        proptest!(|(text in string_regex(inner).expect("a pattern"))| {
            prop_assert!(text.parse::<Quantity>().is_ok(), "{text}");
        });
        for most in [
            "9999999999999999999",
            "9999999999999999Ki",
            "9999999999999Mi",
            "9999999999Gi",
            "9999999Ti",
            "9999Pi",
        ] {
            assert!(most.parse::<Quantity>().is_ok(), "{most}");
            assert!(format!("9{most}").parse::<Quantity>().is_err(), "the bound of {most} is needed");
        }
    }

    #[test]
    fn written_quantities_are_read_back() {
        for (n, text) in
            [(0, "0"), (7, "7"), (1 << 20, "1Mi"), (3 << 30, "3Gi"), (1536, "1536"), (1 << 61, "2048Pi")]
        {
            let q = Quantity::new(Bytes::new(n));
            assert_eq!(q.to_string(), text);
            assert_eq!(serde_json::from_value::<Quantity>(serde_json::json!(text)).expect("parses"), q);
        }
        assert!(serde_json::from_value::<Quantity>(serde_json::json!(-1)).is_err());
    }
}
