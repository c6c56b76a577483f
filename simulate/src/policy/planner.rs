//! Weir's own policy: stripe what bursts, keep the rest local, spill by forecast, come home when it is quiet.
//!
//! Invariants: never more moves than the budget; an extent that was moved stays for some hours. Must not know how loads
//! came about, nor (but for the oracle) what they will be.

use forecast::{ClassScores, Forecaster, Hour};

use super::Layout;
use crate::cluster::{Cluster, Loads};
use crate::evaluate::WANTED_VIOLATIONS;

/// A stripe has as many columns as its volume's peak (99.5 %) has parts of this share of a disk's cap.
const STRIPE_SHARE: f64 = 0.15;
/// So many columns lie beside the VM. One is what the reference has; with three (0.45 of the cap, where extents may come
/// home to) much more stays local and hardly more is overloaded: a VM's own disk is where it does least harm.
const HOME_COLUMNS: usize = 3;
/// The quantile that is a volume's peak.
const PEAK: f64 = 0.995;
/// Extents leave a node that is forecast to be above this share of its cap ...
const SPILL: f64 = 0.7;
/// ... and come home to one that will be below this one with them.
const HOME: f64 = 0.45;
/// Hours that a moved extent stays where it is.
const HOLD_H: usize = 6;
/// Share of all extents that may move in a day.
const BUDGET_A_DAY: f64 = 0.004;

/// What is known of loads to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Foresight {
    /// Forecasts.
    Forecast,
    /// The future itself.
    Perfect,
}

/// What each volume is expected to do in the hour after each hour, and what it did.
pub struct Outlook {
    /// (mean, peak bound) by volume and hour, decided at the hour's beginning.
    expected: Vec<Vec<(f64, f64)>>,
    /// (mean, peak) that came.
    came: Vec<Vec<(f64, f64)>>,
}

impl Outlook {
    /// Forecasts every volume for every hour, each from the hours before it.
    #[must_use]
    pub fn new(loads: &Loads) -> Self {
        let mut class = ClassScores::new();
        let mut forecasters = vec![Forecaster::new(WANTED_VIOLATIONS); loads.kb_s.len()];
        let mut expected = vec![Vec::with_capacity(loads.hours()); forecasters.len()];
        let mut came = expected.clone();
        for hour in 0..loads.hours() {
            for (volume, forecaster) in forecasters.iter_mut().enumerate() {
                let said = forecaster.forecast(1);
                expected[volume].push((said.mean, said.peak_bound));
                let seen = observed(loads, volume, hour);
                came[volume].push(seen.map_or((0.0, 0.0), |h| (h.mean, h.peak)));
                if let Some(seen) = seen {
                    forecaster.observe(seen, &mut class);
                }
            }
        }
        Self { expected, came }
    }
}

/// What a volume did in an hour, if enough of it is known.
fn observed(loads: &Loads, volume: usize, hour: usize) -> Option<Hour> {
    let each = loads.steps_per_hour;
    let steps = hour * each..(hour + 1) * each;
    let known = loads.known[steps.clone()].iter().filter(|known| **known).count();
    let series = &loads.kb_s[volume][steps];
    let mean = |part: &[f32]| part.iter().map(|v| f64::from(*v)).sum::<f64>() / part.len().max(1) as f64;
    (known * 4 >= each * 3).then(|| Hour {
        number: loads.first_hour + hour as u64,
        mean: mean(series),
        peak: series.iter().copied().map(f64::from).fold(0.0, f64::max),
        late: mean(&series[each - (each / 4).max(1)..]),
    })
}

/// An extent that is not where it belongs.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Away {
    volume: usize,
    extent: usize,
    /// Where it belongs; `None`: beside its VM.
    from: Option<usize>,
    since: usize,
}

pub(super) struct Planner<'a> {
    foresight: Foresight,
    cluster: &'a Cluster,
    loads: &'a Loads,
    outlook: &'a Outlook,
    start: usize,
    away: Vec<Away>,
    budget: f64,
    striped: Vec<bool>,
}

/// What the nodes are expected to carry: volumes peak independently, so variances add up.
struct Expected {
    volumes: Vec<(f64, f64)>,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Expected {
    fn new(volumes: Vec<(f64, f64)>, nodes: usize) -> Self {
        Self { volumes, mean: vec![0.0; nodes], variance: vec![0.0; nodes] }
    }

    /// Takes into account that a node's share of a volume changes.
    fn change(&mut self, volume: usize, node: usize, before: f64, after: f64) {
        let (mean, bound) = self.volumes[volume];
        let spread = (bound - mean).max(0.0);
        self.mean[node] += (after - before) * mean;
        self.variance[node] += (after * after - before * before) * spread * spread;
    }

    fn peak(&self, node: usize) -> f64 {
        self.mean[node] + self.variance[node].max(0.0).sqrt()
    }

    fn quietest(&self, layout: &Layout, but: &[usize]) -> Option<usize> {
        (0..self.mean.len())
            .filter(|node| layout.free(*node) > 0 && !but.contains(node))
            .min_by(|a, b| self.peak(*a).total_cmp(&self.peak(*b)))
    }

    /// Moves an extent in the layout and in what is expected.
    fn shift(&mut self, layout: &mut Layout, volume: usize, extent: usize, to: usize) {
        let from = layout.place[volume][extent];
        let before = [layout.shares(volume)[from], layout.shares(volume)[to]];
        layout.shift(volume, extent, to);
        for (node, before) in [from, to].into_iter().zip(before) {
            let after = layout.shares(volume)[node];
            self.change(volume, node, before, after);
        }
    }
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        foresight: Foresight,
        cluster: &'a Cluster,
        loads: &'a Loads,
        outlook: &'a Outlook,
        start: usize,
    ) -> Self {
        let striped = vec![false; cluster.volumes.len()];
        Self { foresight, cluster, loads, outlook, start, away: Vec::new(), budget: 0.0, striped }
    }

    /// Mean and peak of each volume, as far as they are known at the start (to the oracle: as they will be).
    fn history(&self) -> Vec<(f64, f64)> {
        let start = self.start * self.loads.steps_per_hour;
        let steps = match self.foresight {
            Foresight::Forecast => 0..start,
            Foresight::Perfect => start..self.loads.known.len(),
        };
        let known: Vec<usize> = steps.filter(|step| self.loads.known[*step]).collect();
        let of = |series: &Vec<f32>| {
            let mut seen: Vec<f64> = known.iter().map(|step| f64::from(series[*step])).collect();
            seen.sort_unstable_by(f64::total_cmp);
            let place = ((seen.len() as f64 * PEAK) as usize).min(seen.len().saturating_sub(1));
            (seen.iter().sum::<f64>() / seen.len().max(1) as f64, seen.get(place).copied().unwrap_or(0.0))
        };
        self.loads.kb_s.iter().map(of).collect()
    }

    /// Stripes what bursts over the quietest nodes, the widest first; the rest lies beside its VM.
    pub(super) fn place(&mut self, layout: &mut Layout) {
        let known = self.history();
        let width = |volume: usize| {
            let (_, peak) = known[volume];
            ((peak / (STRIPE_SHARE * self.cluster.cap)).ceil() as usize)
                .clamp(1, self.cluster.nodes - 1 + HOME_COLUMNS)
        };
        let mut order: Vec<usize> = (0..known.len()).collect();
        order.sort_by_key(|volume| (width(*volume) > HOME_COLUMNS, std::cmp::Reverse(width(*volume))));
        let widths: Vec<usize> = (0..known.len()).map(width).collect();
        let mut expected = Expected::new(known, self.cluster.nodes);
        for volume in order {
            let home = self.cluster.volumes[volume].home;
            let mut nodes = vec![home; HOME_COLUMNS.min(widths[volume])];
            while nodes.len() < widths[volume] {
                let Some(next) = expected.quietest(layout, &nodes) else { break };
                nodes.push(next);
            }
            let extents = layout.heat[volume].len();
            if nodes.len() > HOME_COLUMNS {
                self.striped[volume] = true;
                layout.heat[volume] = vec![1.0 / extents as f32; extents];
            }
            (0..extents).for_each(|extent| layout.put(volume, nodes[extent % nodes.len()]));
            for node in 0..self.cluster.nodes {
                let share = layout.shares(volume)[node];
                expected.change(volume, node, 0.0, share);
            }
        }
    }

    /// One hour's moves.
    pub(super) fn hour(&mut self, layout: &mut Layout, hour: usize) {
        let day = BUDGET_A_DAY * self.cluster.extents() as f64;
        self.budget = (self.budget + day / 24.0).min(day);
        for (_, volume, _) in self.cluster.migrations.iter().filter(|m| m.0 == hour) {
            if !self.striped[*volume] {
                self.left_behind(layout, *volume, hour);
            }
        }
        let by_volume = match self.foresight {
            Foresight::Forecast => &self.outlook.expected,
            Foresight::Perfect => &self.outlook.came,
        };
        let volumes = by_volume.iter().map(|hours| hours.get(hour).copied().unwrap_or_default()).collect();
        let mut expected = Expected::new(volumes, self.cluster.nodes);
        for volume in 0..self.cluster.volumes.len() {
            for node in 0..self.cluster.nodes {
                expected.change(volume, node, 0.0, layout.shares(volume)[node]);
            }
        }
        self.spill(layout, &mut expected, hour);
        self.come_home(layout, &mut expected, hour);
    }

    /// Notes what a VM that has migrated left behind: it comes home when that pays.
    fn left_behind(&mut self, layout: &Layout, volume: usize, hour: usize) {
        self.away.retain(|away| away.volume != volume);
        let home = layout.home[volume];
        let places = layout.place[volume].iter().enumerate().filter(|(_, node)| **node != home);
        self.away.extend(places.map(|(extent, _)| Away { volume, extent, from: None, since: hour }));
    }

    fn spill(&mut self, layout: &mut Layout, expected: &mut Expected, hour: usize) {
        let limit = SPILL * self.cluster.cap;
        let mut busy: Vec<usize> = (0..self.cluster.nodes).filter(|n| expected.peak(*n) > limit).collect();
        busy.sort_by(|a, b| expected.peak(*b).total_cmp(&expected.peak(*a)));
        for node in busy {
            while self.budget >= 1.0 && expected.peak(node) > limit {
                let Some((volume, extent)) = self.hottest(layout, expected, node, hour) else { break };
                let Some(to) = expected.quietest(layout, &[node]) else { break };
                let heat = f64::from(layout.heat[volume][extent]);
                if expected.peak(to) + heat * expected.volumes[volume].1 > limit {
                    break;
                }
                expected.shift(layout, volume, extent, to);
                self.budget -= 1.0;
                let from = self.striped[volume].then_some(node);
                self.away.retain(|away| (away.volume, away.extent) != (volume, extent));
                self.away.push(Away { volume, extent, from, since: hour });
            }
        }
    }

    /// The extent on a node whose leaving helps most.
    fn hottest(
        &self,
        layout: &Layout,
        expected: &Expected,
        node: usize,
        hour: usize,
    ) -> Option<(usize, usize)> {
        let held = |volume: usize, extent: usize| {
            let same = self.away.iter().find(|a| (a.volume, a.extent) == (volume, extent));
            same.is_some_and(|away| hour < away.since + HOLD_H)
        };
        let mut volumes: Vec<usize> =
            (0..self.cluster.volumes.len()).filter(|v| layout.shares(*v)[node] > 1e-6).collect();
        let part = |volume: &usize| layout.shares(*volume)[node] * expected.volumes[*volume].1;
        volumes.sort_by(|a, b| part(b).total_cmp(&part(a)));
        volumes.into_iter().take(8).find_map(|volume| {
            let here = layout.place[volume].iter().enumerate().filter(|(_, place)| **place == node);
            let free = here.map(|(extent, _)| extent).filter(|extent| !held(volume, *extent));
            let heat = &layout.heat[volume];
            free.max_by(|a, b| heat[*a].total_cmp(&heat[*b])).map(|extent| (volume, extent))
        })
    }

    fn come_home(&mut self, layout: &mut Layout, expected: &mut Expected, hour: usize) {
        let limit = HOME * self.cluster.cap;
        let part =
            |away: &Away| f64::from(layout.heat[away.volume][away.extent]) * expected.volumes[away.volume].0;
        let mut list = std::mem::take(&mut self.away);
        list.sort_by(|a, b| {
            part(b).total_cmp(&part(a)).then((a.volume, a.extent).cmp(&(b.volume, b.extent)))
        });
        list.retain(|away| {
            let home = away.from.unwrap_or(layout.home[away.volume]);
            if layout.place[away.volume][away.extent] == home {
                return false;
            }
            let peak = f64::from(layout.heat[away.volume][away.extent]) * expected.volumes[away.volume].1;
            let due = hour >= away.since + HOLD_H && self.budget >= 1.0 && layout.free(home) > 0;
            if !due || expected.peak(home) + peak > limit {
                return true;
            }
            expected.shift(layout, away.volume, away.extent, home);
            self.budget -= 1.0;
            false
        });
        self.away = list;
    }
}
