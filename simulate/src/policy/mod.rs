//! Policies: where extents lie at first, and what moves later.
//!
//! Invariants: a policy sees nothing later than the hour it decides in, but for the oracle. Must not know how it is
//! scored.

mod place;
mod reactive;
mod weir;

use crate::cluster::{Cluster, Loads};

/// The policies that are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Everything beside its VM.
    AllLocal,
    /// Each extent where most is free.
    MostFree,
    /// Extents in turn over all nodes.
    RoundRobin,
    /// Each extent where a hash says.
    Hash,
    /// Whole volumes by Mayastor's weights: 25 for few volumes, 40 for free space, 35 for little commitment.
    Mayastor,
    /// All local, then whole volumes away from what was overloaded, every 8 hours, as Storage DRS does.
    Reactive,
    /// Bursty volumes striped, the rest local; spill by forecast, come home when it is quiet.
    Weir,
    /// The same with the future in hand.
    Oracle,
}

impl Policy {
    /// In the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::AllLocal,
        Self::MostFree,
        Self::RoundRobin,
        Self::Hash,
        Self::Mayastor,
        Self::Reactive,
        Self::Weir,
        Self::Oracle,
    ];

    /// Its name in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllLocal => "all_local",
            Self::MostFree => "most_free",
            Self::RoundRobin => "round_robin",
            Self::Hash => "hash",
            Self::Mayastor => "mayastor",
            Self::Reactive => "reactive_8h",
            Self::Weir => "weir",
            Self::Oracle => "oracle",
        }
    }
}

/// Where everything lies.
#[derive(Clone, PartialEq, Debug)]
pub struct Layout {
    /// The node of each VM.
    pub home: Vec<usize>,
    /// The share of a volume's I/O by extent; even where it is striped.
    pub heat: Vec<Vec<f32>>,
    /// The node of each extent.
    pub place: Vec<Vec<usize>>,
    /// Extents in use by node.
    pub used: Vec<usize>,
    /// Extents moved so far.
    pub moved: usize,
    /// The share of each volume's I/O that each node gets: volume * nodes + node.
    shares: Vec<f64>,
    nodes: usize,
    disk_extents: usize,
}

impl Layout {
    fn empty(cluster: &Cluster) -> Self {
        Self {
            home: cluster.volumes.iter().map(|v| v.home).collect(),
            heat: cluster.volumes.iter().map(|v| v.heat.clone()).collect(),
            place: vec![Vec::new(); cluster.volumes.len()],
            used: vec![0; cluster.nodes],
            moved: 0,
            shares: vec![0.0; cluster.volumes.len() * cluster.nodes],
            nodes: cluster.nodes,
            disk_extents: cluster.disk_extents,
        }
    }

    /// Extents that are free on a node.
    #[must_use]
    pub fn free(&self, node: usize) -> usize {
        self.disk_extents.saturating_sub(self.used[node])
    }

    /// The share of a volume's I/O that each node gets.
    #[must_use]
    pub fn shares(&self, volume: usize) -> &[f64] {
        &self.shares[volume * self.nodes..(volume + 1) * self.nodes]
    }

    /// Puts the next extent of a volume on a node, or on the emptiest if that is full.
    fn put(&mut self, volume: usize, node: usize) {
        let node = if self.free(node) > 0 { node } else { self.emptiest() };
        let extent = self.place[volume].len();
        self.place[volume].push(node);
        self.used[node] += 1;
        self.shares[volume * self.nodes + node] += f64::from(self.heat[volume][extent]);
    }

    /// Moves one extent. The caller has seen that there is room.
    fn shift(&mut self, volume: usize, extent: usize, to: usize) {
        let from = std::mem::replace(&mut self.place[volume][extent], to);
        let heat = f64::from(self.heat[volume][extent]);
        self.shares[volume * self.nodes + from] -= heat;
        self.shares[volume * self.nodes + to] += heat;
        self.used[from] -= 1;
        self.used[to] += 1;
        self.moved += 1;
    }

    fn emptiest(&self) -> usize {
        (0..self.nodes).min_by_key(|node| (self.used[*node], *node)).unwrap_or(0)
    }

    /// KB/s by node in one step, added to `sums`.
    pub fn load(&self, loads: &Loads, step: usize, sums: &mut [f64]) {
        for (volume, series) in loads.kb_s.iter().enumerate() {
            let load = f64::from(series[step]);
            if load > 0.0 {
                for (sum, share) in sums.iter_mut().zip(self.shares(volume)) {
                    *sum += load * share;
                }
            }
        }
    }
}

/// A policy at work on one cluster.
pub struct Run<'a> {
    policy: Policy,
    cluster: &'a Cluster,
    loads: &'a Loads,
    /// Where everything lies now.
    pub layout: Layout,
    weir: Option<weir::Weir<'a>>,
}

impl<'a> Run<'a> {
    /// Places everything, knowing the hours before `hour`.
    #[must_use]
    pub fn new(policy: Policy, cluster: &'a Cluster, loads: &'a Loads, hour: usize, seed: u64) -> Self {
        let mut layout = Layout::empty(cluster);
        let foresight = match policy {
            Policy::Weir => Some(weir::Foresight::Forecast),
            Policy::Oracle => Some(weir::Foresight::Perfect),
            _ => None,
        };
        let mut weir = foresight.map(|f| weir::Weir::new(f, cluster, loads, hour));
        match &mut weir {
            Some(weir) => weir.place(&mut layout),
            None => place::place(policy, cluster, &mut layout, seed),
        }
        Self { policy, cluster, loads, layout, weir }
    }

    /// Lets the VMs that migrate in this hour do so, and then the policy decide.
    pub fn hour(&mut self, hour: usize) {
        for (_, volume, node) in self.cluster.migrations.iter().filter(|m| m.0 == hour) {
            self.layout.home[*volume] = *node;
        }
        if self.policy == Policy::Reactive && hour.is_multiple_of(reactive::EVERY_H) {
            reactive::rebalance(self.cluster, self.loads, &mut self.layout, hour);
        }
        if let Some(weir) = &mut self.weir {
            weir.hour(&mut self.layout, hour);
        }
    }
}
