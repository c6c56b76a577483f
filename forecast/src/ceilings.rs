//! What others may do on a disk while its owner waits for it: a ceiling for a loan, never below the loan's floor.
//!
//! The floor goes with the space: who borrows a part of a disk's extents may use the same part of what is given out of its I/O. Above
//! their floors loans do what the owner leaves. At each look at which the disk is past its knee while its owner has I/O, what a loan
//! does above its floor is halved; at each other look a ceiling grows by little, and it goes when it binds nobody, or when the
//! owner rests. So loans find what is left over as TCP finds its rate, on a device of which the model knows little as well: only the
//! floors rest on its capability.
//!
//! Invariants: no ceiling is below its loan's floor; there is none without an owner who waited; equal looks give equal ceilings. Must not
//! know: who borrows, how a ceiling is enforced, clocks.

use std::collections::BTreeMap;

use crate::{
    device::{DeviceModel, Observed},
    number::or_zero,
    offer::USABLE,
};

/// Reference I/Os a second from which on an owner is one who may wait.
const OWNER: f64 = 1.0;
/// What stays of the part above the floor when the owner waits.
const SHRINK: f64 = 0.5;
/// By what a ceiling grows otherwise: a part of itself, and a part of what the disk can do.
const GROW: f64 = 0.05;
const GROW_OF_ALL: f64 = 0.01;
/// A loan that does less than this part of its ceiling is not bound by it.
const FREE: f64 = 0.5;
/// After so many looks in a row that change nothing for anybody a ceiling goes.
const RESTS: u32 = 3;

/// A loan at a look.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Loan<K> {
    /// Which.
    pub who: K,
    /// The part of the disk's space that it has, from 0 to 1.
    pub share: f64,
    /// Reference I/Os a second that it did.
    pub load: f64,
}

/// Reference I/Os a second that a loan with such a part of the space is never kept from.
#[must_use]
pub fn floor(model: &DeviceModel, share: f64) -> f64 {
    USABLE * model.capability() * or_zero(share).min(1.0)
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Ceiling {
    load: f64,
    /// Looks in a row at which it bound nobody.
    free: u32,
}

/// The ceilings of one disk.
#[derive(Clone, PartialEq, Debug)]
pub struct Ceilings<K> {
    rows: BTreeMap<K, Ceiling>,
    /// Looks in a row at which the owner had no I/O.
    owner_rests: u32,
}

impl<K> Default for Ceilings<K> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), owner_rests: 0 }
    }
}

impl<K: Ord + Copy> Ceilings<K> {
    /// Takes a look at the disk and at all of its loans.
    pub fn look(&mut self, model: &DeviceModel, seen: &Observed, loans: &[Loan<K>]) {
        let lent: f64 = loans.iter().map(|l| or_zero(l.load)).sum();
        let owner_rests = or_zero(seen.load) - lent < OWNER;
        self.owner_rests = if owner_rests { self.owner_rests.saturating_add(1) } else { 0 };
        if self.owner_rests >= RESTS {
            self.rows.clear();
            return;
        }
        self.keep(|who| loans.iter().any(|l| l.who == *who));
        let waits = !owner_rests && model.is_past_knee(seen);
        for l in loans {
            let (least, load) = (floor(model, l.share), or_zero(l.load));
            if waits {
                self.shrink(l.who, least, load);
            } else {
                self.grow(l.who, least, load, model.capability());
            }
        }
    }

    fn shrink(&mut self, who: K, least: f64, load: f64) {
        let before = self.rows.get(&who).map(|c| c.load);
        // Who does not even do what is its own is not what the owner waits for.
        if before.is_none() && load <= least {
            return;
        }
        let does = before.map_or(load, |c| c.min(load));
        let load = least + (does - least).max(0.0) * SHRINK;
        self.rows.insert(who, Ceiling { load, free: 0 });
    }

    fn grow(&mut self, who: K, least: f64, load: f64, all: f64) {
        let Some(c) = self.rows.get_mut(&who) else { return };
        c.free = if load < FREE * c.load { c.free + 1 } else { 0 };
        c.load = (c.load * (1.0 + GROW) + all * GROW_OF_ALL).max(least);
        if c.free >= RESTS || c.load >= all {
            self.rows.remove(&who);
        }
    }

    /// Forgets loans that are none any more.
    pub fn keep(&mut self, is_loan: impl Fn(&K) -> bool) {
        self.rows.retain(|who, _| is_loan(who));
    }

    /// Reference I/Os a second that a loan may do; `None`: as much as it can.
    pub fn of(&self, who: &K) -> Option<f64> {
        self.rows.get(who).map(|c| c.load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceClass;

    /// A disk that does `can` at most and shares it by what is asked for.
    fn serve(can: f64, asked: &[f64]) -> (Observed, Vec<f64>) {
        let all: f64 = asked.iter().sum();
        let part = (can / all).min(1.0);
        let (queue, latency) = if all > can { (32.0, 32.0 / can) } else { (1.0, 3e-4) };
        let did = asked.iter().map(|a| a * part).collect();
        (Observed { load: all * part, queue, latency: Some(latency) }, did)
    }

    fn model(can: f64) -> DeviceModel {
        let mut m = DeviceModel::new(DeviceClass::Ssd);
        for at in 0..200 {
            m.observe(at * 10, Observed { load: can / 10.0, queue: 0.5, latency: Some(3e-4) });
        }
        for at in 200..240 {
            m.observe(at * 10, Observed { load: can, queue: 32.0, latency: Some(32.0 / can) });
        }
        m
    }

    /// What the owner and each loan did on average over the last of so many looks.
    fn run(
        c: &mut Ceilings<usize>,
        m: &DeviceModel,
        can: f64,
        own: f64,
        loans: &[(f64, f64)],
        looks: usize,
    ) -> Vec<f64> {
        let mut sums = vec![0.0; loans.len() + 1];
        let counted = looks / 2;
        for n in 0..looks {
            let mut asked = vec![own];
            asked.extend(loans.iter().enumerate().map(|(i, (_, a))| c.of(&i).map_or(*a, |c| c.min(*a))));
            let (seen, did) = serve(can, &asked);
            let rows: Vec<_> =
                (0..loans.len()).map(|i| Loan { who: i, share: loans[i].0, load: did[i + 1] }).collect();
            c.look(m, &seen, &rows);
            for (i, (share, _)) in loans.iter().enumerate() {
                assert!(c.of(&i).is_none_or(|c| c >= floor(m, *share)), "below its floor: {c:?}");
            }
            if n >= looks - counted {
                sums.iter_mut().zip(&did).for_each(|(s, d)| *s += d);
            }
        }
        sums.iter().map(|s| s / counted as f64).collect()
    }

    #[test]
    fn an_owner_gets_what_it_needs_and_loans_what_is_left() {
        let m = model(5000.0);
        let mut c = Ceilings::default();
        let did = run(&mut c, &m, 5000.0, 3000.0, &[(0.1, 20_000.0), (0.05, 100.0)], 200);
        assert!(did[0] > 2800.0, "the owner: {did:?}");
        assert!(did[1] > 1000.0, "what it leaves is used: {did:?}");
        assert!(did[2] > 90.0 && c.of(&1).is_none(), "who does little is not bound: {did:?}");
    }

    #[test]
    fn an_owner_that_wants_everything_leaves_the_floors() {
        let m = model(5000.0);
        let mut c = Ceilings::default();
        let did = run(&mut c, &m, 5000.0, 50_000.0, &[(0.2, 20_000.0)], 100);
        let least = floor(&m, 0.2);
        assert!((750.0..850.0).contains(&least), "{least}");
        let ceiling = c.of(&0).unwrap();
        assert!(ceiling < 1.1 * least, "{ceiling}: {did:?}");
    }

    #[test]
    fn ceilings_go_when_the_owner_rests_or_they_bind_nobody() {
        let m = model(5000.0);
        let greedy = [(0.2, 20_000.0)];
        let mut c = Ceilings::default();
        run(&mut c, &m, 5000.0, 4000.0, &greedy, 20);
        assert!(c.of(&0).is_some());
        run(&mut c, &m, 5000.0, 0.0, &greedy, 4);
        assert_eq!(c.of(&0), None, "the owner rests");
        run(&mut c, &m, 5000.0, 4000.0, &greedy, 20);
        run(&mut c, &m, 5000.0, 4000.0, &[(0.2, 10.0)], 6);
        assert_eq!(c.of(&0), None, "it binds nobody");
        run(&mut c, &m, 5000.0, 4000.0, &greedy, 20);
        c.look(&m, &serve(5000.0, &[9000.0]).0, &[]);
        assert_eq!(c.of(&0), None, "it is no loan any more");
    }

    #[test]
    fn nobody_is_kept_from_a_disk_that_bears_all() {
        let m = model(5000.0);
        let mut c = Ceilings::default();
        run(&mut c, &m, 5000.0, 1000.0, &[(0.01, 3500.0)], 50);
        assert_eq!(c.of(&0), None);
        run(&mut c, &m, 5000.0, 0.0, &[(0.01, 50_000.0)], 50);
        assert_eq!(c.of(&0), None, "nobody waits but those who borrow");
    }

    #[test]
    fn what_is_no_number_bounds_nobody_below_a_floor() {
        let m = model(5000.0);
        let odd = [f64::NAN, f64::INFINITY, -1.0, 0.0, f64::MAX];
        let mut c = Ceilings::default();
        for load in odd {
            for share in odd {
                for queue in odd {
                    let seen = Observed { load: f64::MAX, queue, latency: Some(load) };
                    c.look(&m, &seen, &[Loan { who: 0, share, load }]);
                    assert!(c.of(&0).is_none_or(|c| c.is_finite() && c >= floor(&m, share)), "{c:?}");
                }
            }
        }
    }
}
