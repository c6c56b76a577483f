//! Lengths of time as people write them: `90s`, `10m`, `6h`, `2d`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time in whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(u64);

/// Why a text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no length of time: a whole number and one of s, m, h, d are expected")]
pub struct BadSpan(String);

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

impl Span {
    /// So many seconds.
    #[must_use]
    pub const fn seconds(s: u64) -> Self {
        Self(s)
    }

    /// In seconds.
    #[must_use]
    pub const fn as_seconds(self) -> u64 {
        self.0
    }
}

impl std::str::FromStr for Span {
    type Err = BadSpan;

    fn from_str(s: &str) -> Result<Self, BadSpan> {
        let parsed = UNITS.iter().find_map(|(unit, seconds)| {
            let n = s.strip_suffix(unit)?;
            let digits = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
            n.parse::<u64>().ok().filter(|_| digits)?.checked_mul(*seconds)
        });
        parsed.map(Self).ok_or_else(|| BadSpan(s.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Span {
    type Error = BadSpan;

    fn try_from(s: String) -> Result<Self, BadSpan> {
        s.parse()
    }
}

impl std::fmt::Display for Span {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fits = |(_, seconds): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*seconds);
        let (unit, seconds) = UNITS.iter().find(fits).unwrap_or(&("s", 1));
        write!(f, "{}{unit}", self.0 / seconds)
    }
}

impl From<Span> for String {
    fn from(s: Span) -> Self {
        s.to_string()
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]{1,9}[smhd]$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_spans_are_read_back() {
        for (n, text) in [(0, "0s"), (90, "90s"), (600, "10m"), (21_600, "6h"), (172_800, "2d")] {
            assert_eq!(Span::seconds(n).to_string(), text);
            assert_eq!(text.parse(), Ok(Span::seconds(n)));
        }
        for bad in ["", "5", "m", "-1s", "+1s", "1.5h", "1w", "99999999999999999999d", "999999999999999999d"]
        {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
