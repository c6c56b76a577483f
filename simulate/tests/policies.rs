//! Policies on generated load: they hold their invariants, and ours does what it is for.

use simulate::cluster::{Cluster, Loads, Shape};
use simulate::compare::{Compared, compare};
use simulate::generate::generate;
use simulate::policy::{Policy, Run};

const SHAPE: Shape = Shape { nodes: 8, ..Shape::REFERENCE };

fn loads() -> Loads {
    Loads::new(&generate(64, 6, 3))
}

fn check(policy: Policy, cluster: &Cluster, run: &Run<'_>, hour: usize) {
    let layout = &run.layout;
    let mut used = vec![0; cluster.nodes];
    for (volume, made) in cluster.volumes.iter().enumerate() {
        assert_eq!(layout.place[volume].len(), made.heat.len());
        let mut shares = vec![0.0; cluster.nodes];
        for (node, heat) in layout.place[volume].iter().zip(&layout.heat[volume]) {
            used[*node] += 1;
            shares[*node] += f64::from(*heat);
        }
        for (share, counted) in layout.shares(volume).iter().zip(&shares) {
            assert!((share - counted).abs() < 1e-5, "{policy:?}, hour {hour}: {share} for {counted}");
        }
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-4);
    }
    assert_eq!(used, layout.used, "{policy:?}, hour {hour}");
    assert!(used.iter().all(|u| *u <= cluster.disk_extents), "{policy:?}, hour {hour}: {used:?}");
}

#[test]
fn layouts_stay_whole_whatever_moves() {
    let loads = loads();
    let tight = Shape { full: 0.95, headroom: 2.0, migrations: 0.2, ..SHAPE };
    let cluster = Cluster::new(tight, &loads, 5);
    let start = loads.hours() / 2;
    for policy in Policy::ALL {
        let mut run = Run::new(policy, &cluster, &loads, start, 5);
        check(policy, &cluster, &run, start);
        for hour in start..loads.hours() {
            run.hour(hour);
            check(policy, &cluster, &run, hour);
        }
    }
}

#[test]
fn ours_overloads_less_than_hash_and_stays_local_within_its_budget() {
    let results = compare(&loads(), SHAPE, 2);
    let of = |policy: Policy| -> &Compared {
        results.iter().find(|r| r.result.policy == policy.as_str()).expect("every policy")
    };
    let (ours, hash, local) = (of(Policy::Weir).result, of(Policy::Hash).result, of(Policy::AllLocal).result);
    assert_eq!(results.len(), Policy::ALL.len());
    assert!(local.overloaded > 0.01, "the load is no test: {local:?}");
    assert!(ours.overloaded <= 0.7 * local.overloaded, "{ours:?} against {local:?}");
    assert!(ours.above_cap <= local.above_cap && ours.local > 2.0 * hash.local, "{ours:?} against {hash:?}");
    assert!(ours.moved_per_day <= 0.005, "{ours:?}");
    for still in [Policy::AllLocal, Policy::MostFree, Policy::RoundRobin, Policy::Hash, Policy::Mayastor] {
        assert_eq!(of(still).result.moved_per_day, 0.0);
    }
    assert!(local.local > 0.9 && (hash.local - 1.0 / 8.0).abs() < 0.08, "{local:?} {hash:?}");
}

#[test]
fn a_seed_is_a_result() {
    let loads = Loads::new(&generate(24, 3, 1));
    let small = Shape { nodes: 4, ..SHAPE };
    assert_eq!(compare(&loads, small, 2), compare(&loads, small, 2));
    assert_ne!(Cluster::new(small, &loads, 1), Cluster::new(small, &loads, 2));
    assert_eq!(generate(24, 3, 1), generate(24, 3, 1));
    assert_ne!(generate(24, 3, 1), generate(24, 3, 2));
}
