//! Policies that place once and never move.

use super::{Layout, Policy};
use crate::cluster::Cluster;
use crate::random::Random;

/// Places every volume in turn, as they would be created.
pub(super) fn place(policy: Policy, cluster: &Cluster, layout: &mut Layout, seed: u64) {
    let mut next = 0;
    let mut volumes_on = vec![0_usize; cluster.nodes];
    for (volume, made) in cluster.volumes.iter().enumerate() {
        let whole = match policy {
            Policy::Mayastor => Some(mayastor(cluster, layout, &volumes_on)),
            Policy::AllLocal | Policy::Reactive | Policy::Weir | Policy::Oracle => Some(made.home),
            Policy::MostFree | Policy::RoundRobin | Policy::Hash => None,
        };
        if let Some(node) = whole {
            volumes_on[node] += 1;
        }
        for extent in 0..made.heat.len() {
            let node = match (policy, whole) {
                (_, Some(node)) => node,
                (Policy::MostFree, None) => layout.emptiest(),
                (Policy::RoundRobin, None) => {
                    next = (next + 1) % cluster.nodes;
                    next
                }
                _ => Random::new(seed ^ ((volume as u64) << 20) ^ extent as u64).below(cluster.nodes),
            };
            layout.put(volume, node);
        }
    }
}

/// The node with the best score: of 100, 25 for few volumes, 40 for free space, 35 for little that is committed. Volumes
/// are thick here, so what is committed is what is used.
fn mayastor(cluster: &Cluster, layout: &Layout, volumes_on: &[usize]) -> usize {
    let most = volumes_on.iter().copied().max().unwrap_or(0).max(1) as f64;
    let score = |node: usize| {
        let free = layout.free(node) as f64 / cluster.disk_extents as f64;
        25.0 * (1.0 - volumes_on[node] as f64 / most) + 40.0 * free + 35.0 * free
    };
    (0..cluster.nodes).max_by(|a, b| score(*a).total_cmp(&score(*b)).then(b.cmp(a))).unwrap_or(0)
}
