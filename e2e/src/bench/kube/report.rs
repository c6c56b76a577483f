//! What was measured, as JSON and as tables for people.

use std::{collections::BTreeMap, fmt::Write as _};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{Times, driver::Flavour};
use crate::bench::{machine::Machine, stats::percentile};

/// One thing that people wait for, with so many at once.
#[derive(Clone, Debug, Serialize)]
struct Case {
    case: &'static str,
    parallel: usize,
    weir_ms: Vec<f64>,
    floor_ms: Vec<f64>,
}

/// All results of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    cases: Vec<Case>,
    /// Writes of Weir's for one volume, from its claim to its end.
    api_writes_per_volume: f64,
    /// The same by driver and what was written.
    pub(super) api_writes: BTreeMap<&'static str, BTreeMap<String, f64>>,
}

const BOUND: &str = "create-to-bound";
const DEVICE: &str = "pod-start-to-device";
const FILES: &str = "pod-start-to-filesystem";
const DELETE: &str = "delete";

impl Report {
    pub(super) fn of(machine: Machine) -> Self {
        Self { machine, cases: Vec::new(), api_writes_per_volume: 0.0, api_writes: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, flavour: Flavour, parallel: usize, times: &Times) {
        match flavour {
            Flavour::Weir => {
                self.case(BOUND, parallel).weir_ms.extend(&times.bound);
                self.case(DEVICE, parallel).weir_ms.extend(&times.ready);
                self.case(DELETE, parallel).weir_ms.extend(&times.deleted);
            }
            // Bound and deleted as any other.
            Flavour::WeirFile => self.case(FILES, parallel).weir_ms.extend(&times.ready),
            Flavour::Floor => {
                self.case(BOUND, parallel).floor_ms.extend(&times.bound);
                self.case(DEVICE, parallel).floor_ms.extend(&times.ready);
                self.case(FILES, parallel).floor_ms.extend(&times.ready);
                self.case(DELETE, parallel).floor_ms.extend(&times.deleted);
            }
        }
    }

    fn case(&mut self, case: &'static str, parallel: usize) -> &mut Case {
        let at = self.cases.iter().position(|c| (c.case, c.parallel) == (case, parallel));
        let at = at.unwrap_or_else(|| {
            self.cases.push(Case { case, parallel, weir_ms: Vec::new(), floor_ms: Vec::new() });
            self.cases.len() - 1
        });
        &mut self.cases[at]
    }

    pub(super) fn sum_up(&mut self) {
        let order = [BOUND, DEVICE, FILES, DELETE];
        self.cases.sort_by_key(|c| (order.iter().position(|o| *o == c.case), c.parallel));
        self.api_writes_per_volume = self.total(Flavour::Weir);
    }

    fn total(&self, flavour: Flavour) -> f64 {
        self.api_writes.get(flavour.as_str()).map_or(0.0, |w| w.values().sum())
    }

    /// What was timed so far.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "ms",
            "at once",
            "n",
            "weir p50",
            "p95",
            "p99",
            "floor p50",
            "p95",
            "p99",
            "weir costs (p50)",
        ]);
        for c in &self.cases {
            let of = |sample: &[f64], p| percentile(sample, p).map_or("-".to_owned(), |v| format!("{v:.0}"));
            let mut row = vec![c.case.to_owned(), c.parallel.to_string(), c.weir_ms.len().to_string()];
            for sample in [&c.weir_ms, &c.floor_ms] {
                row.extend([0.5, 0.95, 0.99].map(|p| of(sample, p)));
            }
            let median = |sample: &[f64]| percentile(sample, 0.5);
            row.push(match (median(&c.weir_ms), median(&c.floor_ms)) {
                (Some(w), Some(f)) => format!("{:+.0}", w - f),
                _ => "-".to_owned(),
            });
            table.add_row(row);
        }
        table
    }

    /// All of it.
    pub(super) fn render(&self) -> String {
        let mut text = format!("{}\n", self.table());
        if !self.api_writes.is_empty() {
            text += "\nwrites to the API server for one volume, from its claim to its end\n";
        }
        for (driver, writes) in &self.api_writes {
            let list: Vec<String> = writes.iter().map(|(k, n)| format!("{k} {n:.1}")).collect();
            let sum: f64 = writes.values().sum();
            // Writing to a String does not fail.
            writeln!(text, "{driver:<8}{sum:>6.1}   {}", list.join(", ")).unwrap_or_default();
        }
        let m = &self.machine;
        text + &format!(
            "\n{} nodes of {} processors under {}, kernel {}, on a machine of {}\n",
            m.nodes, m.node_cpus, m.accelerator, m.kernel, m.host_cpus
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_both_drivers() {
        let mut r = Report::of(Machine::example());
        let times = |x: f64| Times { bound: vec![x], ready: vec![10.0 * x], deleted: vec![100.0 * x] };
        r.add(Flavour::Floor, 10, &times(1.0));
        r.add(Flavour::WeirFile, 10, &times(3.0));
        r.add(Flavour::Weir, 10, &times(2.0));
        r.api_writes.insert("weir", [("events".to_owned(), 1.0), ("logicalvolumes".to_owned(), 2.5)].into());
        r.sum_up();
        let of = |c: &Case| (c.case, c.weir_ms.clone(), c.floor_ms.clone());
        let want = [
            (BOUND, vec![2.0], vec![1.0]),
            (DEVICE, vec![20.0], vec![10.0]),
            (FILES, vec![30.0], vec![10.0]),
            (DELETE, vec![200.0], vec![100.0]),
        ];
        assert_eq!(r.cases.iter().map(of).collect::<Vec<_>>(), want);
        assert!((r.api_writes_per_volume - 3.5).abs() < 1e-9);
        let text = r.render();
        assert!(text.contains("+100") && text.contains("logicalvolumes 2.5"), "{text}");
    }
}
