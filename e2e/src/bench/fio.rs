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

/// A job file that measures the regions one after the other in one process: only the first pays for fio's start, and
/// never do two run at once.
fn render_jobs(case: Case, regions: &[Region], seconds: u32) -> String {
    let Case { rw, block, depth, .. } = case;
    let mut out = format!(
        "[global]\nioengine=libaio\ndirect=1\nthread=1\nrw={rw}\nbs={block}\niodepth={depth}\nnorandommap=1\n\
         time_based=1\nruntime={seconds}\nramp_time=300ms\n"
    );
    for r in regions {
        // Writing to a String cannot fail.
        writeln!(out, "[{}]\nstonewall\nfilename={}\noffset={}\nsize={}", r.name, r.path, r.offset, r.bytes)
            .expect("write to a string");
    }
    out
}

/// Measures a case on regions, in this order; by region's name.
pub(super) fn measure(
    node: &Node,
    case: Case,
    regions: &[Region],
    seconds: u32,
) -> Result<BTreeMap<String, Outcome>> {
    let jobs = render_jobs(case, regions, seconds);
    let limit = Duration::from_secs(120 + 10 * u64::from(seconds) * regions.len() as u64);
    let command = argv(["fio", "--output-format=json", "-"]);
    let out = node.exec_with(command, Stdin::Bytes(jobs.as_bytes()), limit)?;
    let text = out.check("fio").with_context(|| format!("node {}", node.name()))?;
    let outcomes = parse_outcomes(&text, case)?;
    ensure!(outcomes.len() == regions.len(), "fio measured {} of {} regions", outcomes.len(), regions.len());
    Ok(outcomes)
}

fn parse_outcomes(text: &str, case: Case) -> Result<BTreeMap<String, Outcome>> {
    // Warnings may stand before the document.
    let start = text.find('{').context("fio printed no JSON")?;
    let document: Value = serde_json::from_str(&text[start..]).context("parse fio's answer")?;
    let jobs = document["jobs"].as_array().context("fio's answer has no jobs")?;
    let side = if case.rw.contains("write") { "write" } else { "read" };
    jobs.iter()
        .map(|job| {
            let name = job["jobname"].as_str().context("a job without a name")?;
            ensure!(job["error"].as_i64() == Some(0), "fio on {name}: error {}", job["error"]);
            let number = |v: &Value, what: &str| {
                v.as_f64().with_context(|| format!("fio on {name}: {what} is missing"))
            };
            let (s, clat) = (&job[side], &job[side]["clat_ns"]["percentile"]);
            let outcome = Outcome {
                iops: number(&s["iops"], "iops")?,
                bytes_per_second: number(&s["bw_bytes"], "bw_bytes")?,
                median_us: number(&clat["50.000000"], "the median latency")? / 1000.0,
                p99_us: number(&clat["99.000000"], "p99 of latency")? / 1000.0,
            };
            ensure!(outcome.iops > 0.0, "fio on {name}: no I/O was done");
            Ok((name.to_owned(), outcome))
        })
        .collect()
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
{"jobs": [{"jobname": "raw", "error": 0, "write": {"iops": 0},
  "read": {"iops": 250.5, "bw_bytes": 1026048, "clat_ns": {"percentile": {"50.000000": 4000, "99.000000": 9000}}}}]}"#;

    #[test]
    fn answers_are_read() {
        let outcome = parse_outcomes(ANSWER, CASES[0]).unwrap()["raw"];
        assert_eq!(outcome.in_unit(Unit::Iops), 250.5);
        assert_eq!((outcome.median_us, outcome.p99_us), (4.0, 9.0));
        // The read case's job did no writes: measured as a write, it did nothing.
        assert!(parse_outcomes(ANSWER, CASES[1]).is_err());
        let failed = ANSWER.replace(r#""error": 0"#, r#""error": 5"#);
        assert!(parse_outcomes(&failed, CASES[0]).unwrap_err().to_string().contains("error 5"));
    }

    #[test]
    fn jobs_stand_in_the_order_given() {
        let r = |name: &str| Region {
            name: name.to_owned(),
            path: "/dev/x".to_owned(),
            offset: 512,
            bytes: 4096,
        };
        let text = render_jobs(CASES[0], &[r("b"), r("a")], 2);
        assert!(text.find("[b]").unwrap() < text.find("[a]").unwrap());
        assert_eq!(text.matches("stonewall").count(), 2);
    }
}
