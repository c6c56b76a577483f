//! Verified I/O: what a block of the verifier holds, and what the verifier reports.
//!
//! A device is divided into slots, each with one block and one writer. A block says whose it is (seed), which slot, and
//! its sequence number, and the rest follows from these, so that any byte that is wrong, old or misplaced shows. Must
//! not know: how blocks get to a device, or where reports go.

use serde::{Deserialize, Serialize};

/// Bytes of a block: a multiple of every logical block size there is.
pub const BLOCK: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"WeirVrfy");
/// Bytes of a block's stamp: magic, seed, slot, sequence.
const STAMP: usize = 32;

/// What a block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Whose.
    pub seed: u64,
    /// Where it belongs.
    pub slot: u64,
    /// Which write of this slot, from 1.
    pub sequence: u64,
}

/// What is found in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Zeros: never written.
    Zero,
    /// A block that is whole.
    Block(Stamp),
    /// Neither.
    Damaged(String),
}

impl Stamp {
    /// Fills a block.
    pub fn render(self, block: &mut [u8]) {
        let words = [MAGIC, self.seed, self.slot, self.sequence];
        for (at, word) in block.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        let mut state = self.start();
        for at in block[STAMP..].chunks_exact_mut(8) {
            at.copy_from_slice(&next(&mut state).to_le_bytes());
        }
    }

    fn start(self) -> u64 {
        let mut state = self.seed;
        for word in [self.slot, self.sequence] {
            state = next(&mut state) ^ word;
        }
        state
    }
}

/// SplitMix64: every bit of the state reaches every bit of the output.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Reads a block.
pub fn parse(block: &[u8]) -> Content {
    if block.iter().all(|b| *b == 0) {
        return Content::Zero;
    }
    let mut words = block.chunks_exact(8).map(|b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
    let mut word = || words.next().unwrap_or_default();
    if word() != MAGIC {
        return Content::Damaged("no block of the verifier".to_owned());
    }
    let stamp = Stamp { seed: word(), slot: word(), sequence: word() };
    let mut want = vec![0; block.len()];
    stamp.render(&mut want);
    match want.iter().zip(block).position(|(a, b)| a != b) {
        None => Content::Block(stamp),
        Some(at) => Content::Damaged(format!("{stamp:?} is wrong from byte {at} on")),
    }
}

/// Where the slots of a device are: spread evenly over all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// How many.
    pub count: u64,
    /// Bytes from one to the next.
    pub stride: u64,
}

impl Slots {
    /// `count` slots on a device of `bytes`.
    pub fn of(bytes: u64, count: u64) -> Self {
        let count = count.clamp(1, (bytes / BLOCK as u64).max(1));
        Self { count, stride: bytes / count / BLOCK as u64 * BLOCK as u64 }
    }

    /// Where a slot is.
    pub fn offset(self, slot: u64) -> u64 {
        slot * self.stride
    }
}

/// What the verifier has seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its blocks' seed.
    pub seed: u64,
    /// Slots.
    pub slots: u64,
    /// Acknowledged writes.
    pub writes: u64,
    /// Checked reads.
    pub reads: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// The first of them.
    pub first_errors: Vec<String>,
    /// Reads that gave something else than what had been acknowledged.
    pub mismatches: Vec<String>,
    /// Longest time of one I/O that ended, in milliseconds.
    pub max_stall_ms: u64,
    /// Age of the oldest I/O under way, in milliseconds.
    pub waiting_ms: u64,
    /// All slots were read back at the end, and the verifier has ended.
    pub done: bool,
    /// Newest acknowledged write of each slot; 0: none.
    pub acked: Vec<u64>,
    /// Newest write of each slot that was begun.
    pub begun: Vec<u64>,
}

impl Report {
    /// Whether a slot may hold this, given all that is known: nothing older than what was acknowledged, nothing
    /// that was never begun. A write that failed may or may not have reached the disk.
    ///
    /// # Errors
    /// Why not.
    pub fn allows(&self, slot: u64, found: &Content) -> Result<(), String> {
        let at = |v: &[u64]| usize::try_from(slot).ok().and_then(|i| v.get(i)).copied().unwrap_or_default();
        let (acked, begun) = (at(&self.acked), at(&self.begun));
        match found {
            Content::Zero if acked == 0 => Ok(()),
            Content::Zero => Err(format!("slot {slot} is empty, write {acked} of it was acknowledged")),
            Content::Damaged(why) => Err(format!("slot {slot}: {why}")),
            Content::Block(s) if s.seed != self.seed || s.slot != slot => {
                Err(format!("slot {slot} holds a block of another: {s:?}"))
            }
            Content::Block(s) if s.sequence < acked => {
                Err(format!("slot {slot} holds write {}, write {acked} was acknowledged", s.sequence))
            }
            Content::Block(s) if s.sequence > begun => {
                Err(format!("slot {slot} holds write {}, only {begun} were begun", s.sequence))
            }
            Content::Block(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(sequence: u64) -> Vec<u8> {
        let mut b = vec![0; BLOCK];
        Stamp { seed: 7, slot: 3, sequence }.render(&mut b);
        b
    }

    #[test]
    fn blocks_read_back_and_any_changed_byte_shows() {
        let b = block(9);
        assert_eq!(parse(&b), Content::Block(Stamp { seed: 7, slot: 3, sequence: 9 }));
        for at in (0..BLOCK).step_by(61) {
            let mut bad = b.clone();
            bad[at] ^= 1;
            assert!(matches!(parse(&bad), Content::Damaged(_)), "byte {at}");
        }
        assert_eq!(parse(&[0; BLOCK]), Content::Zero);
    }

    #[test]
    fn reports_judge_what_is_found() {
        let mut r = Report { seed: 7, acked: vec![0, 0, 0, 4], begun: vec![0, 0, 0, 5], ..Report::default() };
        for (sequence, ok) in [(3, false), (4, true), (5, true), (6, false)] {
            assert_eq!(r.allows(3, &parse(&block(sequence))).is_ok(), ok, "{sequence}");
        }
        assert!(r.allows(2, &parse(&block(4))).is_err(), "a block of slot 3 in slot 2");
        assert!(r.allows(3, &Content::Zero).is_err());
        assert!(r.allows(0, &Content::Zero).is_ok());
        r.seed = 8;
        assert!(r.allows(3, &parse(&block(4))).is_err(), "another's block");
    }

    #[test]
    fn slots_are_spread_over_the_device() {
        let s = Slots::of(1 << 30, 64);
        assert_eq!((s.count, s.stride), (64, 16 << 20));
        assert_eq!(Slots::of(8192, 64), Slots { count: 2, stride: 4096 });
    }
}
