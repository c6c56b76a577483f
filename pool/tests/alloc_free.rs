//! The free runs of a disk against a bitmap.

use pool::{free::FreeRuns, units::Extents};
use proptest::prelude::*;

const N: u64 = 48;

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, u64),
    Take(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let span = (0..N + 2, 0..12u64);
    prop_oneof![
        span.clone().prop_map(|(f, c)| Op::Insert(f, c)),
        span.prop_map(|(f, c)| Op::Take(f, c)),
        Just(Op::Insert(u64::MAX, 2)),
    ]
}

/// The maximal runs of set bits as (first, count).
fn runs(bits: &[bool]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (i, b) in bits.iter().enumerate() {
        match out.last_mut() {
            Some((f, c)) if *b && *f + *c == i as u64 => *c += 1,
            _ if *b => out.push((i as u64, 1)),
            _ => {}
        }
    }
    out
}

fn apply(bits: &mut [bool], first: u64, count: u64, to: bool) -> bool {
    let Some(end) = first.checked_add(count).filter(|e| *e <= N && count > 0) else { return false };
    let span = &mut bits[first as usize..end as usize];
    if span.contains(&to) {
        return false;
    }
    span.fill(to);
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn free_runs_match_a_bitmap(ops in proptest::collection::vec(op(), 1..80)) {
        let mut bits = vec![false; N as usize];
        let mut free = FreeRuns::none_of(Extents::new(N));
        for o in ops {
            let (want, got) = match o {
                Op::Insert(f, c) => (apply(&mut bits, f, c, true), free.insert(Extents::new(f), Extents::new(c)).is_ok()),
                Op::Take(f, c) => (apply(&mut bits, f, c, false), free.take(Extents::new(f), Extents::new(c)).is_ok()),
            };
            prop_assert_eq!(want, got);
            prop_assert_eq!(free.check(), Ok(()));
            let oracle = runs(&bits);
            let mine: Vec<_> = free.iter().map(|r| (r.first.get(), r.count.get())).collect();
            prop_assert_eq!(&mine, &oracle);
            prop_assert_eq!(free.total().get(), bits.iter().filter(|b| **b).count() as u64);
            prop_assert_eq!(free.is_whole(), bits.iter().all(|b| *b));
            for n in 1..=N {
                let want = oracle.iter().filter(|r| r.1 >= n).min_by_key(|r| (r.1, r.0)).copied();
                let got = free.best_fit(Extents::new(n)).map(|r| (r.first.get(), r.count.get()));
                prop_assert_eq!(want, got);
                let at = n - 1;
                let from = bits[at as usize..].iter().take_while(|b| **b).count() as u64;
                prop_assert_eq!(free.free_from(Extents::new(at)).get(), from);
            }
            let mut by_len: Vec<_> = oracle.iter().map(|r| r.1).collect();
            by_len.sort_unstable_by(|a, b| b.cmp(a));
            prop_assert_eq!(free.longest_first().map(|r| r.count.get()).collect::<Vec<_>>(), by_len);
        }
    }
}
