//! Verified I/O as a test sees it, wherever it runs: by the report that the verifier keeps in its node's folder on this
//! host, which is there even when the node is dead.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::{PATIENCE, tail},
    lab::{Node, state::remove_if_there},
    verify::Report,
    wait,
};

/// A verifier's report, and what is demanded of it.
#[derive(Debug)]
pub(super) struct Watch {
    name: String,
    report: PathBuf,
    log: PathBuf,
}

impl Watch {
    /// For a verifier that is about to start as `name` on a node and reports where [`Self::command`] says; an older
    /// report under that name is removed.
    pub(super) fn new(node: &Node, name: &str) -> Result<Self> {
        let name = format!("verify-{name}");
        let log = node.log(&name);
        let report = log.with_extension("json");
        remove_if_there(&report)?;
        Ok(Self { name, report, log })
    }

    /// Its name on the node.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same for one that only looks now and then, and leaves its node's one processor to others.
    pub(super) fn rare(&self, device: &str, seed: u64, stop: &str) -> String {
        self.command(device, seed, stop) + " --threads 1 --pause-ms 50"
    }

    /// The command to be run where the node's folder is /host; it ends once the file `stop` exists.
    pub(super) fn command(&self, device: &str, seed: u64, stop: &str) -> String {
        let name = &self.name;
        format!(
            "weir-lab agent verify --device {device} --seed {seed} --report /host/log/{name}.json --stop {stop}"
        )
    }

    /// The newest report.
    pub(super) fn report(&self) -> Result<Report> {
        let bytes = fs::read(&self.report).with_context(|| format!("read {}", self.report.display()))?;
        serde_json::from_slice(&bytes).context("parse the verifier's report")
    }

    /// The newest report of one whose node is dead. It is a little old: what it says was acknowledged was, and what it says
    /// was begun is not all.
    pub(super) fn last_words(&self) -> Result<Report> {
        let mut r = self.report()?;
        r.begun = vec![u64::MAX; r.begun.len()];
        Ok(r)
    }

    /// The newest report; an empty one before the first.
    pub(super) fn seen(&self) -> Report {
        self.report().unwrap_or_default()
    }

    /// Waits for so many more acknowledged writes; fails on the first error.
    pub(super) fn wait_writes(&self, more: u64) -> Result<Report> {
        let start = self.seen().writes;
        let what = format!("{more} more writes of {}", self.name);
        wait::until(&what, PATIENCE, || {
            let r = self.seen();
            self.check(&r)?;
            Ok((r.writes >= start + more).then_some(r))
        })
        .with_context(|| format!("last report: {:?}; its log: {}", self.seen(), tail(&self.log)))
    }

    /// Waits until an I/O has been under way for so long; fails on the first error.
    pub(super) fn wait_stalled(&self, age: Duration) -> Result<Report> {
        wait::until(&format!("I/O of {} to queue", self.name), PATIENCE, || {
            let r = self.seen();
            self.check(&r)?;
            Ok((u128::from(r.waiting_ms) >= age.as_millis()).then_some(r))
        })
        .with_context(|| format!("last report: {:?}", self.seen()))
    }

    /// For all of `time`, I/O goes on without an error.
    pub(super) fn goes_on_for(&self, time: Duration) -> Result<Report> {
        let start = Instant::now();
        loop {
            let r = self.wait_writes(8)?;
            if start.elapsed() >= time {
                return Ok(r);
            }
        }
    }

    /// No I/O failed and none found what it should not.
    pub(super) fn check(&self, r: &Report) -> Result<()> {
        ensure!(r.errors == 0, "{}: {} errors: {:?}", self.name, r.errors, r.first_errors);
        ensure!(r.mismatches.is_empty(), "{}: {:?}", self.name, r.mismatches);
        Ok(())
    }

    /// The same at its end, when all has been read back; says how it went.
    pub(super) fn check_end(&self, r: &Report) -> Result<()> {
        self.check(r)?;
        ensure!(r.done, "{} ended early: {r:?}", self.name);
        println!(
            "   {}: {} writes, {} reads, longest stall {} ms, 0 errors",
            self.name, r.writes, r.reads, r.max_stall_ms
        );
        Ok(())
    }
}
