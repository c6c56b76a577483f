//! Policies side by side: the same clusters, loads and migrations for each, over several seeds.
//!
//! Invariants: placed and scored at and after half of the trace, what was tuned was tuned before it; steps that are not
//! known are not scored. Must not know what a policy does.

use serde::Serialize;

use crate::cluster::{Cluster, Loads, Shape};
use crate::policy::{Policy, Run};

/// What one policy did, means over the seeds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct PolicyResult {
    /// Its name.
    pub policy: &'static str,
    /// Share of samples (node and step) above the disk's cap.
    pub overloaded: f64,
    /// Share of the traffic that was above caps.
    pub above_cap: f64,
    /// Share of the traffic that stayed on its VM's node.
    pub local: f64,
    /// Share of all extents moved in a day.
    pub moved_per_day: f64,
    /// How many seeds.
    pub seeds: u64,
}

/// One policy's result with what the table shows beside it.
#[derive(Clone, PartialEq, Debug)]
pub struct Compared {
    /// Means.
    pub result: PolicyResult,
    /// Half the 95 % interval of each of the four means, in their order.
    pub within: [f64; 4],
    /// Standard deviation of the disks' fullness at the end, mean over the seeds.
    pub fullness_spread: f64,
}

/// overloaded, above cap, local, moved a day, fullness spread.
type Score = [f64; 5];

/// Runs every policy on the clusters of `seeds` seeds.
#[must_use]
pub fn compare(loads: &Loads, shape: Shape, seeds: u64) -> Vec<Compared> {
    let clusters: Vec<Cluster> = (0..seeds).map(|seed| Cluster::new(shape, loads, seed)).collect();
    Policy::ALL
        .into_iter()
        .map(|policy| {
            let scores: Vec<Score> =
                (0..seeds).zip(&clusters).map(|(seed, cluster)| run(policy, cluster, loads, seed)).collect();
            summed(policy, &scores)
        })
        .collect()
}

fn summed(policy: Policy, scores: &[Score]) -> Compared {
    let count = scores.len().max(1) as f64;
    let mean = |i: usize| scores.iter().map(|s| s[i]).sum::<f64>() / count;
    let within = |i: usize| {
        let squares: f64 = scores.iter().map(|s| (s[i] - mean(i)) * (s[i] - mean(i))).sum();
        1.96 * (squares / (count - 1.0).max(1.0) / count).sqrt()
    };
    Compared {
        result: PolicyResult {
            policy: policy.as_str(),
            overloaded: mean(0),
            above_cap: mean(1),
            local: mean(2),
            moved_per_day: mean(3),
            seeds: scores.len() as u64,
        },
        within: [0, 1, 2, 3].map(within),
        fullness_spread: mean(4),
    }
}

fn run(policy: Policy, cluster: &Cluster, loads: &Loads, seed: u64) -> Score {
    let start = loads.hours() / 2;
    let mut run = Run::new(policy, cluster, loads, start, seed);
    let (mut samples, mut overloaded) = (0.0, 0.0);
    let (mut traffic, mut above, mut local) = (0.0, 0.0, 0.0);
    let mut sums = vec![0.0; cluster.nodes];
    for hour in start..loads.hours() {
        run.hour(hour);
        for step in hour * loads.steps_per_hour..(hour + 1) * loads.steps_per_hour {
            if !loads.known[step] {
                continue;
            }
            sums.fill(0.0);
            run.layout.load(loads, step, &mut sums);
            for sum in &sums {
                samples += 1.0;
                traffic += sum;
                above += (sum - cluster.cap).max(0.0);
                overloaded += f64::from(u8::from(*sum > cluster.cap));
            }
            for (volume, series) in loads.kb_s.iter().enumerate() {
                local += f64::from(series[step]) * run.layout.shares(volume)[run.layout.home[volume]];
            }
        }
    }
    let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
    let days = (loads.hours() - start) as f64 / 24.0;
    let moved = share(run.layout.moved as f64, cluster.extents() as f64 * days);
    let full: Vec<f64> = run.layout.used.iter().map(|u| *u as f64 / cluster.disk_extents as f64).collect();
    let mean = full.iter().sum::<f64>() / full.len() as f64;
    let spread = (full.iter().map(|f| (f - mean) * (f - mean)).sum::<f64>() / full.len() as f64).sqrt();
    [share(overloaded, samples), share(above, traffic), share(local, traffic), moved, spread]
}
