//! The pause of a migration, as its writer meets it.
//!
//! A writer on the source stops, as QEMU stops a guest; a writer on the target, which has had the device open behind
//! its guard, writes. The pause is the time of that first write: from its issue to its completion, by the target's clock
//! alone. It contains all that Weir does to cut over: noticing the held write, asking whether the source is quiet,
//! the record, the fence on the source and its lenders, the swap of the tables. It leaves out the time between the last
//! write on the source and the first on the target, which is QEMU's own; `handover_ms` has that as well, by the
//! host's clock and with the lab's own delays in it.
//!
//! The data are checked as they pass: the target reads the last block that the source was told is written.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::writer::Writer;
use crate::cluster::{
    Cluster,
    clients::{NewVolume, Use},
};

const USAGE: Use = Use::SharedBlock;

/// Migrations of one volume.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Cutover {
    /// Time of the first write on each target.
    pub(super) hold_ms: Vec<f64>,
    /// From the source's word that it has stopped to the target's that it has written.
    pub(super) handover_ms: Vec<f64>,
    /// Making the guarded attachment on the target, beside the running writer.
    pub(super) stage_ms: Vec<f64>,
    /// The source's longest write between two migrations: what the target's arrival and the source's departure cost it.
    pub(super) running_max_ms: Vec<f64>,
    /// A usual write between two migrations.
    pub(super) running_p50_ms: Vec<f64>,
}

struct Side {
    node: u8,
    writer: Writer,
}

impl Side {
    fn attach(c: &Cluster, id: &str, node: u8) -> Result<Self> {
        let device = c.node_csi(node)?.attach(id, USAGE)?;
        Ok(Self { node, writer: Writer::start(c.node(node), &device)? })
    }

    fn detach(self, c: &Cluster, id: &str) -> Result<()> {
        self.writer.end()?;
        Ok(c.node_csi(self.node)?.detach(id)?)
    }
}

/// Migrates a volume of this size back and forth between two nodes.
pub(super) fn run(c: &Cluster, name: &str, bytes: u64, count: u32) -> Result<Cutover> {
    println!("cutover: {name}, {count} migrations");
    let id = c.csi().create(&NewVolume {
        name: &format!("cutover-{}", name.to_lowercase()),
        bytes,
        usage: USAGE,
        beside: Some("n1"),
        parameters: &[],
    })?;
    let mut out = Cutover::default();
    let mut source = Side::attach(c, &id, 1)?;
    source.writer.go(0)?;
    for n in 1..=count {
        let start = Instant::now();
        let mut target =
            Side::attach(c, &id, 3 - source.node).with_context(|| format!("target of migration {n}"))?;
        out.stage_ms.push(ms(start));
        let ran = source.writer.stop()?;
        let start = Instant::now();
        let first = target.writer.go(ran.last).with_context(|| format!("switch-over of migration {n}"))?;
        out.handover_ms.push(ms(start));
        out.hold_ms.push(first.first_us / 1e3);
        out.running_max_ms.push(ran.max_us / 1e3);
        out.running_p50_ms.push(ran.p50_us / 1e3);
        println!(
            "cutover: {name} {n}/{count}, n{} to n{}: {:.1} ms",
            source.node,
            target.node,
            first.first_us / 1e3
        );
        source.detach(c, &id).with_context(|| format!("source of migration {n}"))?;
        wait_for_holder(c, &id, target.node)?;
        source = target;
    }
    let ran = source.writer.stop()?;
    ensure!(ran.writes > 0, "the last target wrote nothing");
    source.detach(c, &id)?;
    Ok(out)
}

fn wait_for_holder(c: &Cluster, id: &str, node: u8) -> Result<()> {
    let name = c.node(node).name();
    c.wait_volume(id, &format!("{name} alone to hold the volume"), |v| {
        v.is_some_and(|v| {
            v["phase"] == "Attached"
                && v["holders"].as_array().is_some_and(|h| h.len() == 1 && h[0] == name.as_str())
                && v["leaving"].as_array().is_some_and(Vec::is_empty)
        })
    })
}

pub(super) fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
