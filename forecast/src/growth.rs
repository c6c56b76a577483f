//! How much more space a disk's owner will take.
//!
//! Invariants: bytes are exact (a rounded size of terabytes would drown an extent); at a rate of 1 % a bound is
//! never below what was taken over the same length of time within the last week. Must not know pools or extents.

use std::collections::VecDeque;

use crate::codec::{DecodeError, Kind, Reader, Writer};
use crate::experts::WEEK;
use crate::number::{conformal_quantile, ratio, whole};

const KIND: Kind = Kind { name: "growth", tag: b'G', version: 1 };
/// An hour that is older than the newest by this many proves that the clock was ahead.
const CLOCK_WRONG_H: u64 = 24;
/// Hours before growth is believed to be known.
const KNOWN_H: usize = 24;
/// Of what nothing is known takes at most this share of the disk a day.
const UNKNOWN_A_DAY: f64 = 0.05;

/// The owner's use of one disk, hour by hour.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Growth {
    /// The most that was used in each hour, newest last.
    used: VecDeque<u64>,
    newest: Option<u64>,
}

impl Growth {
    /// Nothing known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes that the owner uses in hour `number` (seconds since 1970 / 3600); of several in an hour the
    /// greatest counts, an older hour is ignored (a day older: the clock was wrong, all begins anew). Hours left out had what came before them.
    pub fn observe(&mut self, number: u64, used: u64) {
        let missing = match self.newest {
            Some(newest) if newest >= number.saturating_add(CLOCK_WRONG_H) => {
                *self = Self::new();
                0
            }
            Some(newest) if number < newest => return,
            Some(newest) if number == newest => {
                if let Some(last) = self.used.back_mut() {
                    *last = used.max(*last);
                }
                return;
            }
            Some(newest) => number - newest - 1,
            None => 0,
        };
        let before = self.used.back().copied().unwrap_or(used);
        for _ in 0..missing.min(WEEK as u64) {
            self.push(before);
        }
        self.push(used);
        self.newest = Some(number);
    }

    fn push(&mut self, used: u64) {
        if self.used.len() == WEEK {
            self.used.pop_front();
        }
        self.used.push_back(used);
    }

    /// Bytes that the owner takes within `hours` with a probability of at most `rate` to take more; `size` is the
    /// disk's, for when too little is known.
    #[must_use]
    pub fn bound(&self, hours: u32, rate: f64, size: u64) -> u64 {
        let hours = hours.max(1) as usize;
        let unknown = share(size, UNKNOWN_A_DAY * (whole(hours) / 24.0).max(1.0 / 24.0));
        if self.used.len() < 2 {
            return unknown;
        }
        // Longer than half of what is known is put together from shorter stretches, each as bad as the worst.
        let stretch = hours.min(self.used.len() / 2).max(1);
        let mut taken: Vec<f64> = (stretch..self.used.len())
            .map(|end| {
                let from = self.used[end - stretch];
                // The most within the stretch, not only at its end: space that was lent meanwhile is missed then.
                (end - stretch..=end).map(|i| self.used[i].saturating_sub(from)).max().unwrap_or(0) as f64
            })
            .collect();
        taken.sort_unstable_by(f64::total_cmp);
        let most = conformal_quantile(&taken, rate).unwrap_or(0.0);
        // Windows overlap: the worst of m independent ones is exceeded once in m + 1. Beyond that the tail is taken
        // to fall with the fourth power, as that of a sum of bursts does or faster.
        let independent = whole(self.used.len() / stretch) + 1.0;
        let beyond = ratio(1.0, independent * rate, 1.0).clamp(1.0, 100.0).sqrt().sqrt();
        let bound = whole(hours.div_ceil(stretch)) * most * beyond;
        let known = if self.used.len() < KNOWN_H { unknown } else { 0 };
        whole_bytes(bound).max(known)
    }

    /// How much it rests on: 1 after a week.
    #[must_use]
    pub fn confidence(&self) -> f64 {
        (whole(self.used.len()) / whole(WEEK)).min(1.0)
    }

    /// The persistent form, 1.4 KB after a week.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(KIND);
        out.u8(u8::from(self.newest.is_some()));
        out.u64(self.newest.unwrap_or_default());
        out.u16(u16::try_from(self.used.len()).unwrap_or(0));
        self.used.iter().for_each(|used| out.u64(*used));
        out.finish()
    }

    /// Reads what [`Growth::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are damaged, cut, or of another version: the caller begins anew.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(KIND, bytes)?;
        let any = from.u8()? != 0;
        let newest = from.u64()?;
        let hours = usize::from(from.u16()?);
        if hours > WEEK {
            return Err(from.wrong("the number of hours"));
        }
        let used = (0..hours).map(|_| from.u64()).collect::<Result<_, _>>()?;
        from.end()?;
        Ok(Self { used, newest: any.then_some(newest) })
    }
}

/// A share of some bytes.
pub(crate) fn share(bytes: u64, of: f64) -> u64 {
    whole_bytes(bytes as f64 * of)
}

/// The next whole number of bytes.
pub(crate) fn whole_bytes(bytes: f64) -> u64 {
    // `as` saturates: NaN is 0, the hugest is u64::MAX.
    bytes.ceil() as u64
}
