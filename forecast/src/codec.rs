//! Bytes of a persisted state: little-endian numbers behind a kind and a version, a CRC-32C behind them.
//!
//! Invariants: decoding never panics and never trusts a length that the bytes do not hold. Must not know what is
//! stored.

use crate::number::Packed;

/// Why bytes are no state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the state takes.
    #[error("a stored {kind} ends early, after {at} bytes")]
    Short {
        /// What was read.
        kind: &'static str,
        /// How many bytes there are.
        at: usize,
    },
    /// The checksum is wrong.
    #[error("a stored {kind} is damaged: its checksum is wrong")]
    Damaged {
        /// What was read.
        kind: &'static str,
    },
    /// Not this kind of state.
    #[error("the bytes are no stored {kind}")]
    Other {
        /// What was wanted.
        kind: &'static str,
    },
    /// Written by another version of this software.
    #[error("a stored {kind} has format {found}, {known} is known: start it anew")]
    Version {
        /// What was read.
        kind: &'static str,
        /// Its version.
        found: u8,
        /// The version that is known.
        known: u8,
    },
    /// A number that the state cannot have.
    #[error("a stored {kind} is wrong: {what}")]
    Wrong {
        /// What was read.
        kind: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What a kind of state calls itself in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) tag: u8,
    pub(crate) version: u8,
}

pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(kind: Kind) -> Self {
        Self(vec![b'W', kind.tag, kind.version])
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, value: f32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn f64(&mut self, value: f64) {
        self.u64(value.to_bits());
    }

    pub(crate) fn packed(&mut self, value: Packed) {
        self.u16(value.code());
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let sum = crc32c::crc32c(&self.0);
        self.0.extend_from_slice(&sum.to_le_bytes());
        self.0
    }
}

pub(crate) struct Reader<'a> {
    kind: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(kind: Kind, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let name = kind.name;
        let short = || DecodeError::Short { kind: name, at: bytes.len() };
        let head = bytes.get(..3).ok_or_else(short)?;
        if head[..2] != [b'W', kind.tag] {
            return Err(DecodeError::Other { kind: name });
        }
        if head[2] != kind.version {
            return Err(DecodeError::Version { kind: name, found: head[2], known: kind.version });
        }
        let (body, sum) = bytes.split_last_chunk::<4>().map(|(b, s)| (b, *s)).ok_or_else(short)?;
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return Err(DecodeError::Damaged { kind: name });
        }
        Ok(Self { kind: name, bytes: body, at: 3 })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let short = DecodeError::Short { kind: self.kind, at: self.bytes.len() };
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let chunk = *rest.first_chunk::<N>().ok_or(short)?;
        self.at += N;
        Ok(chunk)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|b| b[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }

    /// A finite number of at least 0 (nothing else is ever written).
    pub(crate) fn f32(&mut self) -> Result<f32, DecodeError> {
        let value = f32::from_le_bytes(self.take()?);
        if value.is_finite() { Ok(value) } else { Err(self.wrong("a number that is none")) }
    }

    /// A finite number.
    pub(crate) fn f64(&mut self) -> Result<f64, DecodeError> {
        let value = f64::from_bits(self.u64()?);
        if value.is_finite() { Ok(value) } else { Err(self.wrong("a number that is none")) }
    }

    pub(crate) fn packed(&mut self) -> Result<Packed, DecodeError> {
        self.u16().map(Packed::from_code)
    }

    pub(crate) fn wrong(&self, what: &'static str) -> DecodeError {
        DecodeError::Wrong { kind: self.kind, what }
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.wrong("bytes are left over")) }
    }
}
