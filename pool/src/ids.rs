//! Ids as newtypes. Volumes, disks and slices carry 128-bit ids that never change and are never used again;
//! nodes and pools carry the names people gave them. Must not know: how an id is drawn (the caller brings
//! randomness).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is no id or name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct BadId {
    /// Which kind of id was expected.
    pub what: &'static str,
    /// The text as it came.
    pub text: String,
    /// What is allowed.
    pub why: &'static str,
}

macro_rules! id128 {
    ($(#[$m:meta])* $t:ident, $what:literal) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $t(u128);

        impl $t {
            /// The id with these bits.
            pub const fn from_u128(n: u128) -> Self {
                Self(n)
            }

            /// Its bits.
            pub const fn as_u128(self) -> u128 {
                self.0
            }

            /// Its bytes, big-endian: the order in which they are printed and stored on disk.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// The id with these big-endian bytes.
            pub const fn from_bytes(b: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(b))
            }

            /// 32 lower-case hex digits without hyphens.
            pub fn simple(self) -> String {
                format!("{:032x}", self.0)
            }
        }

        impl fmt::Display for $t {
            /// The hyphenated form of a UUID (RFC 9562).
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&uuid::Uuid::from_u128(self.0), f)
            }
        }

        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $t {
            type Err = BadId;
            /// Takes the hyphenated and the simple form, in lower case only: one id has one spelling a form.
            fn from_str(s: &str) -> Result<Self, BadId> {
                let bad = || BadId { what: $what, text: s.chars().take(64).collect(), why: "a lower-case UUID is expected" };
                let u = uuid::Uuid::try_parse(s).map_err(|_| bad())?;
                let id = Self(u.as_u128());
                if s == id.to_string() || s == id.simple() { Ok(id) } else { Err(bad()) }
            }
        }

        impl TryFrom<String> for $t {
            type Error = BadId;
            fn try_from(s: String) -> Result<Self, BadId> {
                s.parse()
            }
        }

        impl From<$t> for String {
            fn from(id: $t) -> String {
                id.to_string()
            }
        }
    };
}

id128!(
    /// A volume, for as long as it exists.
    VolumeId,
    "volume id"
);
id128!(
    /// A disk of the pool; stands in its label.
    DiskId,
    "disk id"
);
id128!(
    /// What one consumer sees of one volume on one disk. Derived (`names::slice_id`), never drawn: a lender that
    /// exports the slice again must do so under the same id, or the consumer's kernel drops the device.
    SliceId,
    "slice id"
);

macro_rules! name {
    ($(#[$m:meta])* $t:ident, $what:literal, $max:literal) => {
        $(#[$m])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $t(std::sync::Arc<str>);

        impl $t {
            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $t {
            type Err = BadId;
            fn from_str(s: &str) -> Result<Self, BadId> {
                let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let ok = s.len() <= $max
                    && edge(s.as_bytes().first())
                    && edge(s.as_bytes().last())
                    && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
                if ok {
                    Ok(Self(s.into()))
                } else {
                    Err(BadId {
                        what: $what,
                        text: s.chars().take(64).collect(),
                        why: concat!(
                            "lower-case letters, digits, '-' and '.' are allowed, a letter or digit at both ends, at most ",
                            stringify!($max),
                            " characters"
                        ),
                    })
                }
            }
        }

        impl TryFrom<String> for $t {
            type Error = BadId;
            fn try_from(s: String) -> Result<Self, BadId> {
                s.parse()
            }
        }

        impl From<$t> for String {
            fn from(n: $t) -> String {
                n.0.as_ref().to_owned()
            }
        }
    };
}

// 128 bytes: what CSI allows for strings, and what leaves room for a host NQN (223 bytes) around a node's name.
name!(
    /// A node, by the name its cluster knows it by (a DNS subdomain name).
    NodeName,
    "node name",
    128
);
name!(
    /// A pool.
    PoolName,
    "pool name",
    63
);

/// The fencing number of one volume. It grows with every decision about who may touch the volume or where its
/// extents lie; whoever receives an older one refuses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

/// Which reign of a controller speaks: one higher each time that a controller becomes the active one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(u64);

macro_rules! counter {
    ($t:ident) => {
        impl $t {
            /// Before the first decision.
            pub const ZERO: $t = $t(0);
            /// The one with this number.
            pub const fn new(n: u64) -> Self {
                Self(n)
            }
            /// Its number.
            pub const fn get(self) -> u64 {
                self.0
            }
            /// The one after.
            ///
            /// # Panics
            /// After 2^64 decisions.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("fencing number exhausted"))
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
counter!(Epoch);
counter!(Term);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_spelling_a_form() {
        let id = VolumeId::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(id.to_string().parse::<VolumeId>(), Ok(id));
        assert_eq!(id.simple().parse::<VolumeId>(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<VolumeId>().is_err());
        assert!(format!("{{{id}}}").parse::<VolumeId>().is_err());
        assert_eq!(VolumeId::from_bytes(id.to_bytes()), id);
    }

    #[test]
    fn names_are_dns_names() {
        for (s, ok) in
            [("n1", true), ("a.b-c", true), ("", false), ("-a", false), ("A", false), ("a/b", false)]
        {
            assert_eq!(s.parse::<NodeName>().is_ok(), ok, "{s:?}");
        }
        assert!("x".repeat(129).parse::<NodeName>().is_err());
    }
}
