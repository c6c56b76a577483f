//! What moves by itself, and how much of it: a pool's policy, and an account of what has been spent.
//!
//! Invariants: within any hour no disk gives or takes more than its budget, within any day no more than its share of the
//! pool's extents moves; what is spent is forgotten once it counts no more. Recall and drain are somebody's need: they answer
//! to the numbers of moves only. Must not know: what moves.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DiskId, PoolName},
    moving::MoveCause,
    units::{Bytes, Extents},
};

/// Seconds of an hour and of a day.
const HOUR_S: u64 = 3600;
const DAY_S: u64 = 24 * HOUR_S;
/// Seconds for which what has moved by itself stays, unless the pool says otherwise.
pub const HOLD_S: u64 = 6 * HOUR_S;
/// Seconds for which nothing must have happened to a volume before it comes home, unless the pool says otherwise: VMs that
/// migrate often migrate on.
pub const STILL_S: u64 = 600;

/// What moves by itself in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MovePolicy {
    /// Extents come home to the node that uses them, while that pays.
    pub gravity: bool,
    /// Extents leave disks that are forecast to be overloaded.
    pub spill: bool,
    /// Lent extents leave disks whose owner needs the room.
    pub recall: bool,
    /// Extents leave disks that are fuller than so many percent.
    pub fullness: Option<u32>,
    /// Seconds for which what has moved by itself stays where it is, but for a lender that needs the room.
    pub hold_s: u64,
    /// Seconds for which nothing must have happened to a volume before it comes home.
    pub still_s: u64,
    /// How much may move.
    pub budget: Budget,
}

/// How much may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// What one disk gives or takes within an hour.
    pub hourly: Bytes,
    /// Thousandths of a pool's extents that move within a day.
    pub daily_permille: u32,
    /// Moves off one disk at a time, and onto one.
    pub per_disk: u32,
    /// Moves that a node has to do with at a time: as the disks' host, or as the one that copies.
    pub per_node: u32,
}

impl Default for MovePolicy {
    fn default() -> Self {
        Self {
            gravity: true,
            spill: true,
            recall: true,
            fullness: None,
            hold_s: HOLD_S,
            still_s: STILL_S,
            budget: Budget::default(),
        }
    }
}

impl Default for Budget {
    /// 32 GiB an hour is 9 MiB a second, a tenth of a 1 Gbit/s network; 0.3 % of a pool's extents a day are 0.5 % of those in
    /// use where it is 60 % full, and more gains nothing that counts (`weir simulate`: 0.55 % of samples overloaded, with 0.5 %
    /// of the pool's 0.53 %).
    fn default() -> Self {
        Self { hourly: Bytes::gib(32), daily_permille: 3, per_disk: 1, per_node: 4 }
    }
}

impl MovePolicy {
    /// Nothing moves by itself.
    pub fn still() -> Self {
        Self { gravity: false, spill: false, recall: false, ..Self::default() }
    }

    /// Whether anything moves by itself.
    pub fn is_still(&self) -> bool {
        !self.gravity && !self.spill && !self.recall && self.fullness.is_none()
    }

    /// Whether extents may move for this reason.
    pub fn allows(&self, cause: MoveCause) -> bool {
        match cause {
            MoveCause::Drain => true,
            MoveCause::Recall => self.recall,
            MoveCause::Gravity => self.gravity,
            MoveCause::Spill => self.spill,
            MoveCause::Fullness => self.fullness.is_some(),
        }
    }
}

/// Whether a move for this reason counts against the budget of bytes.
pub fn is_budgeted(cause: MoveCause) -> bool {
    match cause {
        MoveCause::Drain | MoveCause::Recall => false,
        MoveCause::Gravity | MoveCause::Spill | MoveCause::Fullness => true,
    }
}

/// Which budget does not allow a move now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// A disk's, of the hour.
    #[error("disk {disk} has given or taken {used} of its {budget} within the hour")]
    Hour {
        /// Which.
        disk: DiskId,
        /// What it has used.
        used: Bytes,
        /// Its budget.
        budget: Bytes,
    },
    /// The pool's, of the day.
    #[error("{used} of the {budget} extents that may move within a day have moved")]
    Day {
        /// Extents that have moved.
        used: Extents,
        /// Extents that may.
        budget: Extents,
    },
}

/// One account: when, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Account(VecDeque<(u64, u64)>);

impl Account {
    fn used(&self, now_s: u64, window_s: u64) -> u64 {
        self.0.iter().filter(|(at, _)| at.saturating_add(window_s) > now_s).map(|(_, n)| n).sum()
    }

    fn spend(&mut self, now_s: u64, window_s: u64, n: u64) {
        while self.0.front().is_some_and(|(at, _)| at.saturating_add(window_s) <= now_s) {
            self.0.pop_front();
        }
        match self.0.back_mut() {
            // A minute is one entry: an account has 1,440 at most.
            Some((at, sum)) if now_s < at.saturating_add(60) => *sum = sum.saturating_add(n),
            _ => self.0.push_back((now_s, n)),
        }
    }
}

/// What moves have used of their budgets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    disks: BTreeMap<DiskId, Account>,
    pools: BTreeMap<PoolName, Account>,
}

/// A move as the accounts see it.
#[derive(Clone, Copy, Debug)]
pub struct Spending<'a> {
    /// Of this pool.
    pub pool: &'a PoolName,
    /// Extents that the pool has.
    pub pool_extents: Extents,
    /// Off this disk.
    pub from: DiskId,
    /// To this one.
    pub to: DiskId,
    /// So many extents.
    pub extents: Extents,
    /// So many bytes.
    pub bytes: Bytes,
}

impl Spent {
    /// Whether the budget allows a move now.
    ///
    /// # Errors
    /// Which budget does not.
    pub fn check(&self, now_s: u64, budget: &Budget, s: &Spending<'_>) -> Result<(), Over> {
        for disk in [s.from, s.to] {
            let used = self.disks.get(&disk).map_or(0, |a| a.used(now_s, HOUR_S));
            if used.saturating_add(s.bytes.get()) > budget.hourly.get() {
                return Err(Over::Hour { disk, used: Bytes::new(used), budget: budget.hourly });
            }
        }
        let may = daily(s.pool_extents, budget);
        let used = self.pools.get(s.pool).map_or(0, |a| a.used(now_s, DAY_S));
        if used.saturating_add(s.extents.get()) > may.get() {
            return Err(Over::Day { used: Extents::new(used), budget: may });
        }
        Ok(())
    }

    /// Takes note of a move.
    pub fn spend(&mut self, now_s: u64, s: &Spending<'_>) {
        for disk in [s.from, s.to] {
            self.disks.entry(disk).or_default().spend(now_s, HOUR_S, s.bytes.get());
        }
        self.pools.entry(s.pool.clone()).or_default().spend(now_s, DAY_S, s.extents.get());
    }

    /// Forgets disks and pools whose accounts are empty by now.
    pub fn forget(&mut self, now_s: u64) {
        self.disks.retain(|_, a| a.used(now_s, HOUR_S) > 0);
        self.pools.retain(|_, a| a.used(now_s, DAY_S) > 0);
    }
}

/// Extents of a pool that may move within a day: one at least, so that the smallest pool moves at all.
fn daily(pool: Extents, budget: &Budget) -> Extents {
    let n = u128::from(pool.get()) * u128::from(budget.daily_permille) / 1000;
    Extents::new(u64::try_from(n).unwrap_or(u64::MAX).max(1))
}

impl fmt::Display for MovePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("recall", self.recall), ("spill", self.spill), ("gravity", self.gravity)];
        let mut on: Vec<String> = all.iter().filter(|(_, on)| *on).map(|(w, _)| (*w).to_owned()).collect();
        on.extend(self.fullness.map(|p| format!("fullness above {p} %")));
        f.write_str(&if on.is_empty() { "nothing".to_owned() } else { on.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> PoolName {
        "p".parse().expect("a name")
    }

    #[test]
    fn an_hour_and_a_day_have_their_budgets() {
        let (pool, budget) =
            (name(), Budget { hourly: Bytes::gib(2), daily_permille: 5, ..Budget::default() });
        let [a, b, c] = [1, 2, 3].map(DiskId::from_u128);
        let m = |from, to, gib| Spending {
            pool: &pool,
            pool_extents: Extents::new(1000),
            from,
            to,
            extents: Extents::new(gib),
            bytes: Bytes::gib(gib),
        };
        let mut s = Spent::default();
        assert_eq!(s.check(0, &budget, &m(a, b, 2)), Ok(()));
        assert!(matches!(s.check(0, &budget, &m(a, b, 3)), Err(Over::Hour { .. })));
        s.spend(0, &m(a, b, 2));
        assert!(matches!(s.check(10, &budget, &m(c, b, 1)), Err(Over::Hour { disk, .. }) if disk == b));
        assert_eq!(s.check(HOUR_S, &budget, &m(c, b, 2)), Ok(()));
        s.spend(HOUR_S, &m(c, b, 2));
        // Four of five extents of the day.
        assert!(matches!(s.check(3 * HOUR_S, &budget, &m(a, c, 2)), Err(Over::Day { .. })));
        assert_eq!(s.check(3 * HOUR_S, &budget, &m(a, c, 1)), Ok(()));
        s.forget(DAY_S + 2 * HOUR_S);
        assert_eq!(s, Spent::default());
    }

    #[test]
    fn an_account_stays_small() {
        let mut a = Account::default();
        for t in 0..DAY_S * 2 {
            a.spend(t, DAY_S, 1);
        }
        assert!(a.0.len() <= 1442, "{}", a.0.len());
        assert!(a.used(2 * DAY_S, DAY_S) <= DAY_S);
    }
}
