//! fio: job files and what it answers. Knows fio, and nothing of what is measured.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::{Node, Stdin, argv};

/// What is counted in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Iops,
    MibPerSecond,
}

impl Unit {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Unit::Iops => "IOPS",
            Unit::MibPerSecond => "MiB/s",
        }
    }
}

/// A way of doing I/O.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// As fio calls it.
    pub(super) rw: &'static str,
    pub(super) block: &'static str,
    pub(super) depth: u32,
    pub(super) unit: Unit,
}

/// All of them.
pub(super) const CASES: [Case; 6] = [
    case("4k randread depth 1", "randread", "4k", 1, Unit::Iops),
    case("4k randwrite depth 1", "randwrite", "4k", 1, Unit::Iops),
    case("4k randread depth 32", "randread", "4k", 32, Unit::Iops),
    case("4k randwrite depth 32", "randwrite", "4k", 32, Unit::Iops),
    case("128k read depth 8", "read", "128k", 8, Unit::MibPerSecond),
    case("128k write depth 8", "write", "128k", 8, Unit::MibPerSecond),
];

const fn case(name: &'static str, rw: &'static str, block: &'static str, depth: u32, unit: Unit) -> Case {
    Case { name, rw, block, depth, unit }
}

/// A region of a device, under the name its results will have.
#[derive(Debug, Clone)]
pub(super) struct Region {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What a job did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome {
    pub(super) iops: f64,
    pub(super) bytes_per_second: f64,
    /// Completion latency in microseconds.
    pub(super) median_us: f64,
    pub(super) p99_us: f64,
}

impl Outcome {
    pub(super) fn in_unit(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Iops => self.iops,
            Unit::MibPerSecond => self.bytes_per_second / f64::from(1 << 20),
        }
    }
}

/// How long each measurement takes, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Before anything is counted.
    pub(super) ramp: u32,
    pub(super) run: u32,
}

/// A job file that measures `rounds` one after the other, and in each round the regions in its order: all in one process,
/// of which only the first job pays for fio's start, and never two at once.
fn render_jobs(case: Case, rounds: &[Vec<Region>], times: Times) -> String {
    let (Case { rw, block, depth, .. }, Times { ramp, run }) = (case, times);
    let mut out = format!(
        "[global]\nioengine=libaio\ndirect=1\nthread=1\nrw={rw}\nbs={block}\niodepth={depth}\nnorandommap=1\n\
         time_based=1\nruntime={run}ms\nramp_time={ramp}ms\ndisk_util=0\n"
    );
    for (n, r) in rounds.iter().enumerate().flat_map(|(n, round)| round.iter().map(move |r| (n, r))) {
        // Writing to a String cannot fail.
        writeln!(
            out,
            "[{n}.{}]\nstonewall\nfilename={}\noffset={}\nsize={}",
            r.name, r.path, r.offset, r.bytes
        )
        .expect("write to a string");
    }
    out
}

/// Measures a case; for every round the outcomes by region's name.
pub(super) fn measure(
    node: &Node,
    case: Case,
    rounds: &[Vec<Region>],
    times: Times,
) -> Result<Vec<BTreeMap<String, Outcome>>> {
    let jobs = render_jobs(case, rounds, times);
    let count: usize = rounds.iter().map(Vec::len).sum();
    // Ten times what it takes on a machine that is left alone.
    let limit = Duration::from_secs(120)
        + 10 * Duration::from_millis(u64::from(times.ramp + times.run)) * count as u32;
    let command = argv(["fio", "--output-format=json", "-"]);
    let out = node.exec_with(command, Stdin::Bytes(jobs.as_bytes()), limit)?;
    let text = out.check("fio").with_context(|| format!("node {}", node.name()))?;
    let outcomes = parse_outcomes(&text, case, rounds.len())?;
    let found: usize = outcomes.iter().map(BTreeMap::len).sum();
    ensure!(found == count, "fio measured {found} of {count} regions");
    Ok(outcomes)
}

fn parse_outcomes(text: &str, case: Case, rounds: usize) -> Result<Vec<BTreeMap<String, Outcome>>> {
    // Warnings may stand before the document.
    let start = text.find('{').context("fio printed no JSON")?;
    let document: Value = serde_json::from_str(&text[start..]).context("parse fio's answer")?;
    let mut out = vec![BTreeMap::new(); rounds];
    for job in document["jobs"].as_array().context("fio's answer has no jobs")? {
        let name = job["jobname"].as_str().context("a job without a name")?;
        let (round, region) = name.split_once('.').with_context(|| format!("a job named {name}"))?;
        let round = out.get_mut(round.parse::<usize>()?).with_context(|| format!("a job named {name}"))?;
        round.insert(region.to_owned(), parse_outcome(job, case).with_context(|| format!("fio on {name}"))?);
    }
    Ok(out)
}

fn parse_outcome(job: &Value, case: Case) -> Result<Outcome> {
    let number = |v: &Value, what: &str| v.as_f64().with_context(|| format!("{what} is missing"));
    ensure!(job["error"].as_i64() == Some(0), "error {}", job["error"]);
    let side = &job[if case.rw.contains("write") { "write" } else { "read" }];
    let iops = number(&side["iops"], "iops")?;
    ensure!(iops > 0.0, "no I/O was done");
    let clat = &side["clat_ns"]["percentile"];
    Ok(Outcome {
        iops,
        bytes_per_second: number(&side["bw_bytes"], "bw_bytes")?,
        median_us: number(&clat["50.000000"], "the median latency")? / 1000.0,
        p99_us: number(&clat["99.000000"], "p99 of latency")? / 1000.0,
    })
}

/// Writes a region once from begin to end, so that the host has allocated what is measured later.
pub(super) fn fill(node: &Node, r: &Region) -> Result<()> {
    let command = format!(
        "fio --name=fill --ioengine=libaio --direct=1 --thread --rw=write --bs=1M --iodepth=4 --filename={} \
         --offset={} --size={} --minimal",
        r.path, r.offset, r.bytes
    );
    let out = node.exec_within(&command, Duration::from_secs(600))?;
    out.check(&command).with_context(|| format!("fill {} on {}", r.name, node.name())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"fio: warning
{"jobs": [{"jobname": "1.raw", "error": 0, "write": {"iops": 0},
  "read": {"iops": 250.5, "bw_bytes": 1026048, "clat_ns": {"percentile": {"50.000000": 4000, "99.000000": 9000}}}}]}"#;

    #[test]
    fn answers_are_read() {
        let rounds = parse_outcomes(ANSWER, CASES[0], 2).unwrap();
        assert!(rounds[0].is_empty());
        let outcome = rounds[1]["raw"];
        assert_eq!(outcome.in_unit(Unit::Iops), 250.5);
        assert_eq!((outcome.median_us, outcome.p99_us), (4.0, 9.0));
        // The read case's job did no writes: measured as a write, it did nothing.
        assert!(parse_outcomes(ANSWER, CASES[1], 2).is_err());
        assert!(parse_outcomes(ANSWER, CASES[0], 1).is_err());
        let failed = ANSWER.replace(r#""error": 0"#, r#""error": 5"#);
        let error = parse_outcomes(&failed, CASES[0], 2).unwrap_err();
        assert!(format!("{error:#}").contains("error 5"));
    }

    #[test]
    fn jobs_stand_in_the_order_given() {
        let r = |name: &str| Region {
            name: name.to_owned(),
            path: "/dev/x".to_owned(),
            offset: 512,
            bytes: 4096,
        };
        let times = Times { ramp: 100, run: 500 };
        let text = render_jobs(CASES[0], &[vec![r("b"), r("a")], vec![r("a")]], times);
        let at = |name| text.find(name).unwrap();
        assert!(at("[0.b]") < at("[0.a]") && at("[0.a]") < at("[1.a]"));
        assert_eq!(text.matches("stonewall").count(), 3);
    }
}
