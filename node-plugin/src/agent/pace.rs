//! How much of its time the kernel may spend on the copies of moves: all of it while nobody waits, and less as soon as the
//! volumes' own I/O gets slower by it. A copy gives way; users never wait for one.
//!
//! What is slow is measured, not assumed: for a moment the copies almost stop, and what I/O takes then is what it may take. That
//! holds with whatever a mirror itself costs, and is measured again every half minute, since loads change. Between, the share
//! grows by steps and is halved when I/O suffers, as TCP finds its rate.
//!
//! Invariants: the share is never 0, so every move ends; without a copy under way the kernel's own setting stands. The share is the
//! node's, for all of its copies: the kernel has one. Must not know: moves, why there are any.

use std::{sync::Arc, time::Duration};

use super::{book::Book, calls::Calls, ground::Ground};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Percent of the time that copies have at least, and at most.
const FLOOR: u32 = 5;
const ALL: u32 = 100;
/// By so much the share grows in a second.
const STEP: u32 = 8;
/// I/O suffers when it takes so many times what it takes without copies, and is slower by so many milliseconds.
const SUFFERS: f64 = 1.5;
const AT_LEAST_MS: f64 = 0.5;
/// So many I/Os of a second are needed to say how long one takes.
const ENOUGH: u64 = 10;
/// Seconds at the floor at first; of each measurement the first says what was under way before.
const MEASURE: u32 = 3;
/// Seconds after which it is measured again, for [`MEASURE`] seconds less one.
const AGAIN: u32 = 30;

/// I/O of all volumes on this node, since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreground {
    /// I/Os completed.
    pub ios: u64,
    /// Milliseconds that they took, in all.
    pub ms: u64,
}

impl Foreground {
    /// Milliseconds that an I/O took since an earlier look; `None` where there were too few to say. Devices that have gone
    /// take their counts with them: then there is nothing to say either.
    fn since(self, before: Self) -> Option<f64> {
        let (ios, ms) = (self.ios.checked_sub(before.ios)?, self.ms.checked_sub(before.ms)?);
        (ios >= ENOUGH).then(|| ms as f64 / ios as f64)
    }
}

/// Finds the share.
#[derive(Clone, Debug)]
struct Pacer {
    share: u32,
    /// Milliseconds that an I/O takes without copies, as far as known.
    calm: Option<f64>,
    /// Seconds of the present measurement that are left, and what it found so far.
    measuring: u32,
    found: Vec<f64>,
    /// Seconds since the last one.
    age: u32,
}

impl Pacer {
    fn new() -> Self {
        Self { share: FLOOR, calm: None, measuring: MEASURE, found: Vec::new(), age: 0 }
    }

    /// Takes what I/O took in the last second; the share of the next one.
    fn step(&mut self, took_ms: Option<f64>) -> u32 {
        let Some(took) = took_ms else {
            // Nobody waits, hence nobody suffers. Whoever comes is measured first.
            *self = Self { share: ALL, ..Self::new() };
            return ALL;
        };
        if self.measuring > 0 {
            return self.measure(took);
        }
        self.age += 1;
        if self.age >= AGAIN {
            self.measuring = MEASURE - 1;
            self.found.clear();
            return FLOOR;
        }
        let calm = self.calm.unwrap_or(took);
        if took > calm * SUFFERS && took - calm > AT_LEAST_MS {
            self.share = (self.share / 2).max(FLOOR);
        } else {
            self.share = (self.share + STEP).min(ALL);
        }
        self.share
    }

    fn measure(&mut self, took: f64) -> u32 {
        self.measuring -= 1;
        // The first second still has what was under way before it.
        if self.measuring + 1 < MEASURE {
            self.found.push(took);
        }
        if self.measuring > 0 {
            return FLOOR;
        }
        let mean = self.found.iter().sum::<f64>() / self.found.len().max(1) as f64;
        // A single slow second is not what I/O takes.
        self.calm = Some(self.calm.map_or(mean, |c| f64::midpoint(c, mean)));
        self.age = 0;
        self.share
    }
}

/// Paces the copies of this node until the process ends.
pub(super) async fn keep(ground: Arc<dyn Ground>, calls: Calls, book: Arc<Book>) {
    // As if one were: an earlier life may have left a share behind.
    let mut under_way = Some((Pacer::new(), Foreground::default()));
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let share = match (book.is_copying(), &mut under_way) {
            (false, None) => continue,
            (false, Some(_)) => {
                under_way = None;
                ALL
            }
            (true, state) => {
                let g = ground.clone();
                match calls.run("look at the volumes' I/O".into(), move || g.foreground()).await {
                    Ok(Ok(now)) => match state {
                        Some((pacer, before)) => {
                            let took = now.since(std::mem::replace(before, now));
                            let share = pacer.step(took);
                            tracing::debug!(took_ms = took, share, "paced");
                            share
                        }
                        None => state.insert((Pacer::new(), now)).0.share,
                    },
                    Ok(Err(e)) => {
                        tracing::warn!(error = %e, "the volumes' I/O cannot be seen: copies go on at the floor");
                        FLOOR
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "the volumes' I/O was not seen: copies go on at the floor");
                        FLOOR
                    }
                }
            }
        };
        let g = ground.clone();
        match calls.run("pace copies".into(), move || g.set_copy_share(share)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!(error = %e, "copies are not paced"),
            Err(e) => tracing::warn!(error = %e, "copies are not paced"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk on which I/O takes 2 ms, and by `harm` ms more for each percent that copies have.
    fn run(pacer: &mut Pacer, seconds: u32, harm: f64) -> Vec<u32> {
        let mut shares = vec![pacer.share];
        for _ in 0..seconds {
            let share = f64::from(*shares.last().expect("one"));
            shares.push(pacer.step(Some(2.0 + harm * share)));
        }
        shares
    }

    #[test]
    fn what_harms_nobody_goes_at_full_speed() {
        let shares = run(&mut Pacer::new(), 25, 0.0);
        assert_eq!((shares[1], shares[25]), (FLOOR, ALL));
    }

    #[test]
    fn what_harms_gives_way_and_does_not_stop() {
        // At 50 % I/O takes twice as long.
        let shares = run(&mut Pacer::new(), 300, 0.04);
        assert!(shares.iter().all(|s| (FLOOR..=ALL).contains(s)));
        let slow =
            shares.iter().filter(|s| 2.0 + 0.04 * f64::from(**s) > (2.0 + 0.04 * 5.0) * SUFFERS).count();
        assert!(slow * 3 < shares.len(), "users suffer in {slow} of {} seconds", shares.len());
        let mean = shares.iter().sum::<u32>() as f64 / shares.len() as f64;
        assert!(mean > 12.0, "and yet the copy goes on: {mean}");
    }

    #[test]
    fn a_load_that_comes_later_is_measured_before_it_is_judged() {
        let mut p = Pacer::new();
        assert_eq!((p.step(None), p.step(None)), (ALL, ALL));
        // From now on I/O takes 10 ms whatever copies do.
        assert_eq!(p.step(Some(30.0)), FLOOR);
        for _ in 0..2 {
            p.step(Some(10.0));
        }
        let mut last = 0;
        for _ in 0..20 {
            last = p.step(Some(10.0));
        }
        assert_eq!(last, ALL);
    }

    #[test]
    fn a_load_that_changes_is_measured_again() {
        let mut p = Pacer::new();
        run(&mut p, 20, 0.0);
        // Everything is four times as slow, and not for copies: for a while they stand back, not for good.
        let shares: Vec<u32> = (0..400).map(|_| p.step(Some(8.0))).collect();
        assert!(shares[1] < ALL && shares[..10].contains(&FLOOR), "{:?}", &shares[..10]);
        assert_eq!(shares[390..].iter().max(), Some(&ALL), "{:?}", &shares[390..]);
    }

    #[test]
    fn counts_that_fall_say_nothing() {
        let f = |ios, ms| Foreground { ios, ms };
        assert_eq!(f(120, 500).since(f(20, 300)), Some(2.0));
        assert_eq!(f(25, 500).since(f(20, 300)), None, "too few");
        assert_eq!(f(10, 5).since(f(20, 300)), None, "a device has gone");
    }
}
