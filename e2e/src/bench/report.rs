//! What was measured, as JSON and as tables for people.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{
    Effort,
    copies::{Copies, Felt},
    cutover::Cutover,
    density::Density,
    fio::{Case, Unit},
    machine::Machine,
    stats::{Spread, median_within, percentile, ratios, spread},
    targets::Target,
};
use crate::cluster::Cluster;

/// A local volume should do this share of the bare device.
pub(super) const LOCAL_TARGET: f64 = 0.98;
/// A borrowed one this share of plain NVMe over TCP.
pub(super) const REMOTE_TARGET: f64 = 0.95;
/// A cut-over should hold a write no longer.
pub(super) const PAUSE_TARGET_MS: f64 = 100.0;

/// Completion latency of one measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Latency {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// A case with what each target did in each round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CaseReport {
    pub(super) case: &'static str,
    pub(super) unit: &'static str,
    pub(super) rounds: BTreeMap<&'static str, Vec<f64>>,
    /// The same of the targets that are there to show the noise.
    pub(super) controls: BTreeMap<&'static str, Vec<f64>>,
    pub(super) latency: BTreeMap<&'static str, Vec<Latency>>,
    /// For each round, the share of the host's processors that others used meanwhile.
    pub(super) others_cpu: Vec<f64>,
}

impl CaseReport {
    pub(super) fn new(case: Case) -> Self {
        let unit: Unit = case.unit;
        Self {
            case: case.name,
            unit: unit.as_str(),
            rounds: BTreeMap::new(),
            controls: BTreeMap::new(),
            latency: BTreeMap::new(),
            others_cpu: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, target: Target, value: f64, latency: Latency) {
        let of = if target.is_control() { &mut self.controls } else { &mut self.rounds };
        of.entry(target.as_str()).or_default().push(value);
        self.latency.entry(target.as_str()).or_default().push(latency);
    }

    fn values(&self, target: Target) -> &[f64] {
        let of = if target.is_control() { &self.controls } else { &self.rounds };
        of.get(target.as_str()).map_or(&[], Vec::as_slice)
    }

    /// The target over its base, round by round.
    pub(super) fn ratios(&self, target: Target) -> Vec<f64> {
        ratios(self.values(target), self.values(target.base()))
    }
}

/// All results of a run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    pub(super) slice_ms: u32,
    pub(super) region_bytes: u64,
    pub(super) cases: Vec<CaseReport>,
    pub(super) cutover_ms: BTreeMap<String, Vec<f64>>,
    pub(super) cutover_more: BTreeMap<String, Cutover>,
    pub(super) stage_ms: Vec<f64>,
    pub(super) density: Option<Density>,
    pub(super) copies: Option<Copies>,
}

impl Report {
    /// Of a cluster on which nothing has been measured yet.
    pub(super) fn of(c: &Cluster, effort: Effort) -> Result<Self> {
        Ok(Self {
            machine: Machine::of(c.lab())?,
            rounds: effort.rounds,
            slice_ms: effort.slice_ms,
            region_bytes: effort.region,
            cases: Vec::new(),
            cutover_ms: BTreeMap::new(),
            cutover_more: BTreeMap::new(),
            stage_ms: Vec::new(),
            density: None,
            copies: None,
        })
    }
}

/// The tables.
pub(super) fn render(r: &Report) -> String {
    let mut out = String::new();
    let mut part = |title: &str, table: Option<Table>| {
        if let Some(table) = table {
            // Writing to a String cannot fail.
            writeln!(out, "\n{title}\n{table}").expect("write to a string");
        }
    };
    let m = &r.machine;
    part(
        &format!(
            "Local, as share of the bare disk (raw): median (least to greatest of {} rounds); {}, kernel {}",
            r.rounds, m.accelerator, m.kernel
        ),
        ratio_table(r, Target::Raw, LOCAL_TARGET),
    );
    part("Borrowed, as share of plain NVMe over TCP", ratio_table(r, Target::NvmeTcp, REMOTE_TARGET));
    part("Cut-over: a write held on the target, in ms", cutover_table(r));
    part("Density", density_table(r));
    part("Beside a copy of the volume: reads of 4 KiB, as share of those at rest", copies_table(r));
    out
}

fn table(header: Vec<String>) -> Table {
    let mut t = Table::new();
    t.load_style(presets::NOTHING).set_header(header);
    t
}

fn ratio_table(r: &Report, base: Target, goal: f64) -> Option<Table> {
    if r.cases.is_empty() {
        return None;
    }
    let targets: Vec<Target> = Target::ALL.into_iter().filter(|t| t.base() == base && *t != base).collect();
    let mut header = vec!["case".to_owned(), base.as_str().to_owned()];
    header.extend(targets.iter().map(|t| t.as_str().to_owned()));
    header.push(format!("weir: goal {goal}"));
    let mut out = table(header);
    for case in &r.cases {
        let mut row = vec![case.case.to_owned()];
        row.push(
            spread(case.values(base)).map_or(String::new(), |s| format!("{:.0} {}", s.median, case.unit)),
        );
        row.extend(targets.iter().map(|t| render_spread(spread(&case.ratios(*t)))));
        row.push(verdict(case, base, goal));
        out.add_row(row);
    }
    Some(out)
}

fn render_spread(s: Option<Spread>) -> String {
    s.map_or(String::new(), |s| format!("{:.3} ({:.3} to {:.3})", s.median, s.min, s.max))
}

/// Whether Weir's median ratio reaches the goal; where it does not, whether that is more than chance, with the range in
/// which the true median lies.
pub(super) fn verdict(case: &CaseReport, base: Target, goal: f64) -> String {
    let weir = case.ratios(if base == Target::Raw { Target::WeirLocal } else { Target::WeirRemote });
    let (Some(s), Some((low, high))) = (spread(&weir), median_within(&weir)) else {
        return String::new();
    };
    let word = if s.median >= goal {
        "reached"
    } else if high >= goal {
        "within noise"
    } else {
        "missed"
    };
    format!("{word} ({low:.3} to {high:.3})")
}

fn cutover_table(r: &Report) -> Option<Table> {
    if r.cutover_more.is_empty() {
        return None;
    }
    let header =
        ["volume", "migrations", "least", "median", "p95", "greatest", "goal", "usual write", "to stage"];
    let mut out = table(header.map(str::to_owned).to_vec());
    for (name, c) in &r.cutover_more {
        let Some(s) = spread(&c.hold_ms) else { continue };
        let of = |sample: &[f64]| spread(sample).map_or(String::new(), |s| format!("{:.1}", s.median));
        let p95 = percentile(&c.hold_ms, 0.95).unwrap_or(f64::NAN);
        let goal = if s.max <= PAUSE_TARGET_MS { "reached" } else { "missed" };
        out.add_row([
            name.clone(),
            c.hold_ms.len().to_string(),
            format!("{:.1}", s.min),
            format!("{:.1}", s.median),
            format!("{p95:.1}"),
            format!("{:.1}", s.max),
            format!("{PAUSE_TARGET_MS:.0}: {goal}"),
            of(&c.running_p50_ms),
            of(&c.stage_ms),
        ]);
    }
    Some(out)
}

fn density_table(r: &Report) -> Option<Table> {
    let d = r.density.as_ref()?;
    let at = |sample: &[f64], p| percentile(sample, p).map_or(String::new(), |v| format!("{v:.0} ms"));
    let mut out = table(vec!["what".to_owned(), "value".to_owned()]);
    let mut row = |what: String, value: String| {
        out.add_row([what, value]);
    };
    row("volumes on the node".to_owned(), d.volumes.to_string());
    for (what, sample) in
        [("stage", &d.stage_ms), ("stage, borrowed ones", &d.stage_borrowed_ms), ("create", &d.create_ms)]
    {
        row(format!("{what}, p50 / p99"), format!("{} / {}", at(sample, 0.5), at(sample, 0.99)));
    }
    row("plugin restarted: answers after".to_owned(), format!("{:.0} ms", d.restart_answers_ms));
    row("has confirmed a volume after".to_owned(), format!("{:.0} ms", d.restart_confirms_ms));
    row("has confirmed all after".to_owned(), format!("{:.0} ms", d.restart_confirms_all_ms));
    row(
        "a write meanwhile, usual / longest".to_owned(),
        format!("{:.1} / {:.1} ms", d.restart_write_p50_ms, d.restart_write_max_ms),
    );
    for (what, m) in [("before", d.memory_before), ("after", d.memory_after)] {
        row(
            format!("plugin's memory {what}: RSS / of it anonymous / peak"),
            format!("{} / {} / {} KiB", m.rss_kib, m.anon_kib, m.peak_kib),
        );
    }
    Some(out)
}

fn copies_table(r: &Report) -> Option<Table> {
    let c = r.copies.as_ref()?;
    let header = ["a copy that", "reads", "a read takes, p50 / p99", "copied"];
    let mut out = table(header.map(str::to_owned).to_vec());
    for (what, sample) in [("is not there", &c.rest), ("gives way", &c.paced), ("hurries", &c.hasty)] {
        let of = |value: fn(&Felt) -> f64| sample.iter().map(value).collect::<Vec<f64>>();
        let middle = |value| spread(&of(value)).map_or(f64::NAN, |s| s.median);
        let rest: Vec<f64> = c.rest.iter().map(|f| f.iops).collect();
        out.add_row([
            what.to_owned(),
            render_spread(spread(&ratios(&of(|f| f.iops), &rest))),
            format!("{:.0} / {:.0} us", middle(|f| f.p50_us), middle(|f| f.p99_us)),
            format!("{:.0} MiB/s", middle(|f| f.copied_mib_s)),
        ]);
    }
    Some(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::fio::CASES;

    pub(in crate::bench) fn case(weir: f64, again: f64) -> CaseReport {
        let mut c = CaseReport::new(CASES[0]);
        let latency = Latency { p50_us: 1.0, p99_us: 2.0 };
        for t in Target::ALL {
            let value = match t {
                Target::WeirLocal | Target::WeirRemote => weir,
                Target::RawAgain | Target::NvmeTcpAgain => again,
                _ => 1.0,
            };
            c.add(t, value * 1000.0, latency);
            c.add(t, value * 1010.0, latency);
        }
        c
    }

    fn felt(iops: f64) -> Felt {
        Felt { iops, p50_us: 1.0, p99_us: 2.0, copied_mib_s: 3.0 }
    }

    pub(in crate::bench) fn report() -> Report {
        let hold_ms = vec![40.0, 60.0, 55.0];
        let cutover = Cutover { hold_ms: hold_ms.clone(), ..Cutover::default() };
        Report {
            machine: Machine::example(),
            rounds: 2,
            slice_ms: 1,
            region_bytes: 1 << 20,
            cases: vec![case(0.97, 1.01)],
            cutover_ms: BTreeMap::from([("1GiB".to_owned(), hold_ms)]),
            cutover_more: BTreeMap::from([("1GiB".to_owned(), cutover)]),
            stage_ms: vec![1.0],
            density: Some(Density::default()),
            copies: Some(Copies { rest: vec![felt(10.0)], paced: vec![felt(9.0)], hasty: vec![felt(5.0)] }),
        }
    }

    #[test]
    fn the_verdict_knows_the_noise() {
        let word = |weir, base, goal| verdict(&case(weir, 1.0), base, goal);
        assert!(word(0.99, Target::Raw, LOCAL_TARGET).starts_with("reached"));
        assert!(word(0.97, Target::Raw, LOCAL_TARGET).starts_with("missed"));
        assert!(word(0.97, Target::NvmeTcp, REMOTE_TARGET).starts_with("reached"));
        let mut noisy = case(0.97, 1.0);
        noisy.add(Target::WeirLocal, 1100.0, Latency { p50_us: 1.0, p99_us: 1.0 });
        noisy.add(Target::WeirLocal, 900.0, Latency { p50_us: 1.0, p99_us: 1.0 });
        (0..2).for_each(|_| noisy.add(Target::Raw, 1000.0, Latency { p50_us: 1.0, p99_us: 1.0 }));
        assert_eq!(verdict(&noisy, Target::Raw, LOCAL_TARGET), "within noise (0.900 to 1.100)");
    }

    #[test]
    fn the_json_has_the_promised_shape() {
        let json = serde_json::to_value(report()).unwrap();
        let case = &json["cases"][0];
        assert_eq!(
            (case["case"].as_str(), case["unit"].as_str()),
            (Some("4k randread depth 1"), Some("IOPS"))
        );
        let rounds = case["rounds"].as_object().unwrap();
        let mut keys: Vec<_> = rounds.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["loop", "lvm2", "nvme_tcp", "raw", "weir_local", "weir_remote"]);
        assert!(rounds.values().all(|v| v.as_array().is_some_and(|a| a.len() == 2)));
        assert_eq!(json["cutover_ms"]["1GiB"].as_array().unwrap().len(), 3);
        assert_eq!(json["stage_ms"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn tables_show_what_there_is() {
        let text = render(&report());
        assert!(text.contains("0.970 (0.970 to 0.970)") && text.contains("missed"));
        assert!(text.contains("0.900 (0.900 to 0.900)") && text.contains("0.500 (0.500 to 0.500)"), "{text}");
        let none =
            Report { cases: vec![], cutover_more: BTreeMap::new(), density: None, copies: None, ..report() };
        assert_eq!(render(&none), "");
    }
}
