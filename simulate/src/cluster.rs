//! A simulated cluster: nodes with one disk each, volumes made of a trace's devices, migrations of their VMs.
//!
//! Invariants: the same seed gives the same cluster and the same migrations to every policy. Must not know policies.

use crate::random::Random;
use crate::trace::Trace;

/// How a cluster is made.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// What a disk can do, as a multiple of a node's mean load.
    pub headroom: f64,
    /// Share of all space that volumes take.
    pub full: f64,
    /// Migrations a VM a day.
    pub migrations: f64,
}

impl Shape {
    /// As the reference simulation had it: 25 nodes; with this headroom all local is overloaded in about 3 % of samples.
    pub const REFERENCE: Self = Self { nodes: 25, headroom: 4.5, full: 0.6, migrations: 0.0027 };
}

/// One volume.
#[derive(Clone, PartialEq, Debug)]
pub struct Volume {
    /// The node of its VM at first.
    pub home: usize,
    /// The share of its I/O that each extent gets: a few extents are hot.
    pub heat: Vec<f32>,
}

/// The loads of all volumes over time.
#[derive(Clone, PartialEq, Debug)]
pub struct Loads {
    /// KB/s, by volume and step; 0 where nothing is known.
    pub kb_s: Vec<Vec<f32>>,
    /// Whether enough of a step is known to be scored.
    pub known: Vec<bool>,
    /// Steps an hour.
    pub steps_per_hour: usize,
    /// The first hour, counted from 1970.
    pub first_hour: u64,
}

/// A cluster before anything is placed.
#[derive(Clone, PartialEq, Debug)]
pub struct Cluster {
    /// Nodes, each with one disk.
    pub nodes: usize,
    /// KB/s a disk can do.
    pub cap: f64,
    /// Extents a disk has.
    pub disk_extents: usize,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// (hour, volume, node): VMs that migrate, by hour.
    pub migrations: Vec<(usize, usize, usize)>,
}

impl Loads {
    /// The loads of a trace's devices, one volume each.
    #[must_use]
    pub fn new(trace: &Trace) -> Self {
        let lives: Vec<_> = trace.devices.iter().map(super::trace::Device::lifetime).collect();
        let known = (0..trace.steps).map(|step| {
            let alive = lives.iter().filter(|life| life.contains(&step)).count();
            let seen = trace.devices.iter().filter(|device| !device.kb_s[step].is_nan()).count();
            seen * 4 >= alive * 3
        });
        let zeroed = |device: &super::trace::Device| device.kb_s.iter().map(|v| v.max(0.0)).collect();
        Self {
            known: known.collect(),
            // `max` with NaN is 0.
            kb_s: trace.devices.iter().map(zeroed).collect(),
            steps_per_hour: trace.steps_per_hour(),
            first_hour: trace.start_s / 3600,
        }
    }

    /// Whole hours.
    #[must_use]
    pub fn hours(&self) -> usize {
        self.known.len() / self.steps_per_hour
    }

    /// Mean of all volumes together over some steps, KB/s.
    #[must_use]
    pub fn mean(&self, steps: std::ops::Range<usize>) -> f64 {
        let known: Vec<usize> = steps.filter(|step| self.known[*step]).collect();
        let sum: f64 =
            self.kb_s.iter().map(|v| known.iter().map(|step| f64::from(v[*step])).sum::<f64>()).sum();
        sum / known.len().max(1) as f64
    }
}

impl Cluster {
    /// A cluster of a seed: who lives where, how large and how skewed each volume is, who migrates when.
    #[must_use]
    pub fn new(shape: Shape, loads: &Loads, seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xc105_7e4d);
        let nodes = shape.nodes.max(1);
        let mut order: Vec<usize> = (0..loads.kb_s.len()).collect();
        random.shuffle(&mut order);
        let mut homes = vec![0; order.len()];
        for (place, volume) in order.into_iter().enumerate() {
            homes[volume] = place % nodes;
        }
        let volumes: Vec<Volume> =
            homes.into_iter().map(|home| Volume { home, heat: heat(&mut random) }).collect();
        let extents: usize = volumes.iter().map(|v| v.heat.len()).sum();
        let half = loads.known.len() / 2;
        let migrations = (0..loads.hours())
            .flat_map(|hour| (0..volumes.len()).map(move |volume| (hour, volume)))
            .filter_map(|(hour, volume)| {
                let moves = random.unit() < shape.migrations / 24.0;
                moves.then(|| (hour, volume, random.below(nodes)))
            })
            .collect();
        Self {
            nodes,
            cap: shape.headroom * loads.mean(0..half) / nodes as f64,
            disk_extents: (extents as f64 / nodes as f64 / shape.full).ceil() as usize,
            volumes,
            migrations,
        }
    }

    /// All extents of all volumes.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.volumes.iter().map(|v| v.heat.len()).sum()
    }
}

/// Shares of 32 to 128 extents by Zipf's law, the hot ones anywhere.
fn heat(random: &mut Random) -> Vec<f32> {
    let extents = 32 + random.below(97);
    let mut heat: Vec<f64> = (1..=extents).map(|rank| 1.0 / rank as f64).collect();
    let sum: f64 = heat.iter().sum();
    random.shuffle(&mut heat);
    heat.into_iter().map(|h| (h / sum) as f32).collect()
}
