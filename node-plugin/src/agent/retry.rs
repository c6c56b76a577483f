//! Pauses that grow.

use std::time::Duration;

/// Doubles from the first pause to the longest.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause to make now.
    pub fn pause(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now
    }

    /// It went well: the next pause is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let s = Duration::from_secs;
        let mut b = Backoff::new(s(1), s(5));
        assert_eq!([b.pause(), b.pause(), b.pause(), b.pause()], [s(1), s(2), s(4), s(5)]);
        b.reset();
        assert_eq!(b.pause(), s(1));
    }
}
