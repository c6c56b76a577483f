//! Virtual machines inside lab nodes: QEMU on a node's block device, as KubeVirt runs it, with a guest that does
//! verified I/O all the time; and QEMU's own live migration between two nodes.
//!
//! Invariants: a VM lives in its node and ends with it; what its guest says is heard through the serial port and
//! timed by the host's clock, so that two nodes can be compared. Knows nodes and devices, and nothing of Weir.

mod command;
mod console;
pub mod guest;
mod queue;

use std::{
    io::{Read, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    lab::{Background, Node, qmp::Qmp},
    wait,
};
pub use console::{Console, Counters, gaps};
pub use guest::Guest;
pub use queue::OutOfStep;

/// How long QEMU may take to come up in an emulated node: it is read through 9p the first time.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How long a migration of a guest with little memory may take.
const MIGRATE_LIMIT: Duration = Duration::from_secs(300);
/// The port on which a VM to come is awaited; one VM a node migrates at a time.
const MIGRATE_PORT: u16 = 49152;

/// A VM to start.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Its name: distinct on its node.
    pub name: &'a str,
    /// The block device, as the node sees it.
    pub device: &'a str,
    /// What it boots.
    pub guest: &'a Guest,
    /// It waits for a migration instead of booting.
    pub incoming: bool,
}

/// A running VM.
#[derive(Debug)]
pub struct Vm {
    name: String,
    node: Arc<Node>,
    dir: String,
    /// Its QEMU, if it was started here.
    process: Option<Background>,
    console: Console,
    guest: Guest,
}

/// What a finished migration was, in QEMU's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// How long neither side ran, in milliseconds of the source's clock.
    pub downtime_ms: u64,
    /// From command to completion.
    pub total_ms: u64,
    /// Bytes of memory and device state sent.
    pub bytes: u64,
}

impl Vm {
    /// Starts it on `node` and waits until QEMU answers.
    ///
    /// # Errors
    /// QEMU did not come up: with what it said.
    pub fn start(node: &Arc<Node>, settings: Settings<'_>) -> Result<Vm> {
        let line = Self::prepare(node, settings)?;
        let process = node.spawn(&format!("vm-{}", settings.name), &line)?;
        Self::connect(node, settings, Some(process))
    }

    /// Puts what it needs into the node; returns QEMU's command line, which somebody else is to run there.
    ///
    /// # Errors
    /// The node is out of reach.
    pub fn prepare(node: &Node, settings: Settings<'_>) -> Result<String> {
        let dir = folder(settings.name);
        node.run_ok(&format!("rm -rf {dir} && mkdir -p {dir}"))?;
        settings.guest.install(node, &dir)?;
        let incoming = settings.incoming.then(|| format!("tcp:{}:{MIGRATE_PORT}", node.storage_ip()));
        Ok(command::line(&settings, &dir, incoming.as_deref()))
    }

    /// Takes hold of one whose command line somebody else runs; waits until QEMU answers.
    ///
    /// # Errors
    /// It does not: with what it said, if its output goes to the log `vm-NAME` of its node.
    pub fn adopt(node: &Arc<Node>, settings: Settings<'_>) -> Result<Vm> {
        Self::connect(node, settings, None)
    }

    fn connect(node: &Arc<Node>, settings: Settings<'_>, process: Option<Background>) -> Result<Vm> {
        let name = settings.name;
        let dir = folder(name);
        let connected = wait::until("QEMU's serial port", START_LIMIT, || {
            if let Some(exit) = process.as_ref().map_or(Ok(None), |p| node.ended(p))? {
                bail!("QEMU ended with {exit:?}");
            }
            Ok(node.dial(&format!("{dir}/serial.sock")).ok())
        });
        let serial = connected.with_context(|| {
            format!(
                "VM {name} on {}: {}",
                node.name(),
                crate::cluster::tail(&node.log(&format!("vm-{name}")))
            )
        })?;
        let vm = Vm {
            name: name.to_owned(),
            node: Arc::clone(node),
            dir,
            process,
            console: Console::listen(serial)?,
            guest: settings.guest.clone(),
        };
        vm.status()?;
        Ok(vm)
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// What its guest has said so far.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// What its guest counted last.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.console.counters()
    }

    /// Waits until the guest has done `steps` more steps than now (of the small guest: others make larger ones and get more
    /// time), and has said that none failed.
    ///
    /// # Errors
    /// It did not within `limit`, or it counted an error: with its state; [`OutOfStep`] if the error is the emulator's.
    pub fn wait_progress(&self, steps: usize, limit: Duration) -> Result<Counters> {
        let (steps, limit) = (self.guest.scale(steps), limit * self.guest.patience());
        let (from, before) = (self.console.steps(), self.counters());
        let moved = || self.console.steps() >= from + steps && self.counters().ios > before.ios;
        let deadline = Instant::now() + limit;
        wait::until(&format!("{steps} more steps of the guest"), limit, || {
            if moved() {
                return Ok(Some(()));
            }
            // A stopped machine makes no step any more: say so, rather than wait.
            if Instant::now() + Duration::from_secs(1) > deadline {
                let status = self.status()?;
                ensure!(status == "running", "QEMU says {status}");
            }
            Ok(None)
        })
        .with_context(|| format!("VM {} on {}, after {:?}", self.name, self.node.name(), self.counters()))?;
        let counters = self.counters();
        if !counters.clean() {
            return Err(self.mishap(format!(
                "the guest of VM {} counted {counters:?}; its QEMU on {}: {}",
                self.name,
                self.node.name(),
                self.block_errors()
            )));
        }
        Ok(counters)
    }

    /// QEMU's monitor. One client at a time.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn monitor(&self) -> Result<Qmp<impl Read + Write + use<>>> {
        let stream = self.node.dial(&format!("{}/qmp.sock", self.dir))?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).context("set a timeout")?;
        Qmp::over(stream).with_context(|| format!("monitor of VM {}", self.name))
    }

    /// `running`, `paused`, `inmigrate`, `postmigrate`, `io-error`, ...
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn status(&self) -> Result<String> {
        let answer = self.monitor()?.execute("query-status", json!({}))?;
        Ok(answer["status"].as_str().context("no status")?.to_owned())
    }

    /// Stops its processor; what it had asked of the disk is done when this returns.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn pause(&self) -> Result<()> {
        self.monitor()?.execute("stop", json!({})).map(drop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// QEMU is gone, or will not: after an I/O error, say.
    pub fn resume(&self) -> Result<()> {
        self.monitor()?.execute("cont", json!({})).map(drop)
    }

    /// Bytes that this QEMU has written to the volume.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn written(&self) -> Result<u64> {
        self.block_stats()?["wr_bytes"].as_u64().context("no counters of the volume")
    }

    /// What this QEMU counts of the volume.
    fn block_stats(&self) -> Result<Value> {
        let all = self.monitor()?.execute("query-blockstats", json!({}))?;
        let volume = all.as_array().into_iter().flatten().find(|d| {
            d["qdev"].as_str().is_some_and(|path| path.split('/').any(|part| part == command::VOLUME))
        });
        Ok(volume.map(|d| d["stats"].clone()).unwrap_or_default())
    }

    /// What went wrong by QEMU's own count: an error of the guest that is none of QEMU's is none of the volume's either.
    fn block_errors(&self) -> String {
        const COUNTS: [&str; 8] = [
            "rd_operations",
            "failed_rd_operations",
            "invalid_rd_operations",
            "wr_operations",
            "failed_wr_operations",
            "invalid_wr_operations",
            "failed_flush_operations",
            "idle_time_ns",
        ];
        match self.block_stats() {
            Ok(stats) => COUNTS.map(|c| format!("{c} {}", stats[c])).join(", "),
            Err(e) => format!("{e:#}"),
        }
    }

    /// Moves the VM to `target`, which waits for it, and returns once it runs there.
    ///
    /// # Errors
    /// It failed: QEMU says why. The VM then runs on here.
    pub fn migrate_to(&self, target: &Vm) -> Result<Migration> {
        let mut monitor = self.monitor()?;
        monitor.execute("migrate", json!({"uri": target.address()}))?;
        let done = wait::until("the migration", MIGRATE_LIMIT, || {
            let state = monitor.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => Ok(Some(state)),
                Some(bad @ ("failed" | "cancelled")) => bail!(
                    "QEMU's migration {bad}: {}; on the target: {}",
                    state["error-desc"].as_str().unwrap_or("no reason given"),
                    crate::cluster::tail(&target.node.log(&format!("vm-{}", target.name)))
                ),
                _ => Ok(None),
            }
        })?;
        wait::until_ok("the VM to run on the target", MIGRATE_LIMIT, || {
            let status = target.status()?;
            ensure!(status == "running", "it is {status}");
            Ok(())
        })?;
        let number = |v: &Value, what: &str| v.as_u64().with_context(|| format!("no {what} in {done}"));
        Ok(Migration {
            downtime_ms: number(&done["downtime"], "downtime")?,
            total_ms: number(&done["total-time"], "total time")?,
            bytes: number(&done["ram"]["transferred"], "bytes")?,
        })
    }

    /// Begins a migration that cannot end by itself, for tests of giving up: memory trickles.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn begin_slow_migration(&self, target: &Vm) -> Result<()> {
        let mut monitor = self.monitor()?;
        monitor.execute("migrate-set-parameters", json!({"max-bandwidth": 4096}))?;
        monitor.execute("migrate", json!({"uri": target.address()}))?;
        wait::until("memory to move", MIGRATE_LIMIT, || {
            let state = monitor.execute("query-migrate", json!({}))?;
            let moved = state["ram"]["transferred"].as_u64().unwrap_or(0);
            match state["status"].as_str() {
                Some("active") if moved > 0 => Ok(Some(())),
                Some("completed" | "failed" | "cancelled") => bail!("the migration did not stay: {state}"),
                _ => Ok(None),
            }
        })
    }

    /// Gives a migration up, and returns once the VM runs on here.
    ///
    /// # Errors
    /// It is too late for that, or QEMU is gone.
    pub fn cancel_migration(&self) -> Result<()> {
        let mut monitor = self.monitor()?;
        monitor.execute("migrate_cancel", json!({}))?;
        wait::until("the migration to end", MIGRATE_LIMIT, || {
            let state = monitor.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("cancelled") => Ok(Some(())),
                Some("completed" | "failed") => bail!("the migration was not cancelled: {state}"),
                _ => Ok(None),
            }
        })?;
        let status = monitor.execute("query-status", json!({}))?;
        ensure!(status["status"] == "running", "after giving up QEMU says {status}");
        Ok(())
    }

    fn address(&self) -> String {
        format!("tcp:{}:{MIGRATE_PORT}", self.node.storage_ip())
    }

    /// Kills QEMU and returns once it is gone. One that is gone already is fine.
    ///
    /// # Errors
    /// The node is out of reach, QEMU does not die, or it is not ours to kill.
    pub fn kill(self) -> Result<()> {
        let process = self.process.as_ref().context("whoever started this VM has to end it")?;
        if self.node.ended(process)?.is_none() {
            // It may end by itself between the two calls; what counts is that it is gone.
            self.node.exec(&format!("kill -s KILL -- -{}", process.pid))?;
        }
        wait::until(&format!("QEMU of VM {} to end", self.name), START_LIMIT, || self.node.ended(process))
            .map(drop)
    }
}

/// Where a VM's sockets are, and what it boots.
pub fn folder(name: &str) -> String {
    format!("/run/lab/vm/{name}")
}
