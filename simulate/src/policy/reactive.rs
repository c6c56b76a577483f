//! Whole volumes away from what was overloaded: Storage DRS, which looks back every 8 hours.

use super::Layout;
use crate::cluster::{Cluster, Loads};

/// Hours between looks.
pub(super) const EVERY_H: usize = 8;
/// A node is overloaded if its 90th percentile lies above this share of its cap.
const BUSY: f64 = 0.8;
/// Volumes moved from one node at a time.
const MOVES: usize = 2;

/// Looks at the last hours and moves.
pub(super) fn rebalance(cluster: &Cluster, loads: &Loads, layout: &mut Layout, hour: usize) {
    let each = loads.steps_per_hour;
    let steps: Vec<usize> =
        (hour.saturating_sub(EVERY_H) * each..hour * each).filter(|step| loads.known[*step]).collect();
    if steps.is_empty() {
        return;
    }
    let mut by_node: Vec<Vec<f64>> = vec![Vec::with_capacity(steps.len()); cluster.nodes];
    for step in &steps {
        let mut sums = vec![0.0; cluster.nodes];
        layout.load(loads, *step, &mut sums);
        by_node.iter_mut().zip(sums).for_each(|(node, sum)| node.push(sum));
    }
    let mut busy: Vec<f64> = by_node.into_iter().map(|mut node| high(&mut node)).collect();
    for node in 0..cluster.nodes {
        for _ in 0..MOVES {
            if busy[node] <= BUSY * cluster.cap || !shed(cluster, loads, layout, &steps, node, &mut busy) {
                break;
            }
        }
    }
}

fn high(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() * 9 / 10).copied().unwrap_or(0.0)
}

/// Moves the busiest volume that the least busy node can take without becoming as busy; false if there is none.
fn shed(
    cluster: &Cluster,
    loads: &Loads,
    layout: &mut Layout,
    steps: &[usize],
    from: usize,
    busy: &mut [f64],
) -> bool {
    let target = (0..cluster.nodes).min_by(|a, b| busy[*a].total_cmp(&busy[*b])).unwrap_or(from);
    let best = (0..loads.kb_s.len())
        .filter(|volume| layout.place[*volume].first() == Some(&from))
        .filter(|volume| layout.free(target) >= layout.place[*volume].len())
        .map(|volume| {
            let mut own: Vec<f64> = steps.iter().map(|step| f64::from(loads.kb_s[volume][*step])).collect();
            (volume, high(&mut own))
        })
        .filter(|(_, own)| *own > 0.0 && busy[target] + own < busy[from])
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let Some((volume, own)) = best else { return false };
    for extent in 0..layout.place[volume].len() {
        layout.shift(volume, extent, target);
    }
    busy[from] -= own;
    busy[target] += own;
    true
}
