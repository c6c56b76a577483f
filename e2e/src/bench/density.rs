//! Many volumes on one node: how long each takes to stage, and what a restart of the plugin is like then.
//!
//! Nine of ten lie on the node itself, every tenth on the other one. A writer writes to the first volume while
//! the plugin is killed and started: its longest write shows whether the plugin's absence reaches the data path.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{cutover::ms, writer::Writer};
use crate::{
    cluster::{
        Cluster, PATIENCE,
        clients::{NewVolume, Use},
    },
    lab::Node,
    suite, wait,
};

/// Every so many-th volume is borrowed.
const BORROWED: u32 = 10;
const USAGE: Use = Use::Block;

/// What was measured; times in milliseconds, at the CSI client.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Density {
    pub(super) volumes: u32,
    /// CreateVolume, each.
    pub(super) create_ms: Vec<f64>,
    /// NodeStageVolume, each, in order.
    pub(super) stage_ms: Vec<f64>,
    /// Those of them that lie on the other node.
    pub(super) stage_borrowed_ms: Vec<f64>,
    /// From the plugin's start until it answers NodeGetInfo.
    pub(super) restart_answers_ms: f64,
    /// From the plugin's start until it has confirmed to a NodeStageVolume that the last volume stands as it did.
    pub(super) restart_confirms_ms: f64,
    /// From the plugin's start until it has confirmed all of them, asked one after the other.
    pub(super) restart_confirms_all_ms: f64,
    /// Longest and usual write, by a writer that writes all through the restart.
    pub(super) restart_write_max_ms: f64,
    pub(super) restart_write_p50_ms: f64,
    /// The plugin's memory in KiB before and after the restart.
    pub(super) memory_before: Memory,
    pub(super) memory_after: Memory,
}

/// A process's resident memory in KiB.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Memory {
    /// All of it.
    pub(super) rss_kib: u64,
    /// Of that, what is not the program's own file.
    pub(super) anon_kib: u64,
    /// The most it has been.
    pub(super) peak_kib: u64,
}

pub(super) fn run(c: &Cluster, count: u32) -> Result<Density> {
    println!("density: {count} volumes");
    let mut out = Density { volumes: count, ..Density::default() };
    let ids = create(c, count, &mut out)?;
    stage(c, &ids, &mut out)?;
    let devices = suite::devices(c.node(1))?;
    out.memory_before = memory_of_plugin(c.node(1))?;
    restart(c, &ids, &mut out)?;
    out.memory_after = memory_of_plugin(c.node(1))?;
    ensure!(suite::devices(c.node(1))? == devices, "the restart changed the node's devices");
    Ok(out)
}

fn create(c: &Cluster, count: u32, out: &mut Density) -> Result<Vec<String>> {
    (0..count)
        .map(|n| {
            let start = Instant::now();
            let id = c.csi().create(&NewVolume {
                name: &format!("dense-{n}"),
                bytes: c.spec().extent_size,
                usage: USAGE,
                beside: Some(if is_borrowed(n) { "n2" } else { "n1" }),
                parameters: &[],
            })?;
            out.create_ms.push(ms(start));
            Ok(id)
        })
        .collect()
}

fn is_borrowed(n: u32) -> bool {
    n % BORROWED == BORROWED - 1
}

fn stage(c: &Cluster, ids: &[String], out: &mut Density) -> Result<()> {
    let csi = c.node_csi(1)?;
    for (n, id) in (0..).zip(ids) {
        let start = Instant::now();
        csi.stage(id, USAGE).with_context(|| format!("stage volume {n}"))?;
        let took = ms(start);
        out.stage_ms.push(took);
        if is_borrowed(n) {
            out.stage_borrowed_ms.push(took);
        }
        if (n + 1) % 50 == 0 {
            println!("density: {} of {} staged, the last in {took:.0} ms", n + 1, ids.len());
        }
    }
    Ok(())
}

fn restart(c: &Cluster, ids: &[String], out: &mut Density) -> Result<()> {
    let (first, last) = ids.first().zip(ids.last()).context("no volumes")?;
    let device = c.node_csi(1)?.publish(first, USAGE)?;
    let mut writer = Writer::start(c.node(1), &device)?;
    writer.go(0)?;
    c.kill_plugin(1)?;
    let start = Instant::now();
    c.start_plugin(1, None)?;
    let csi = c.node_csi(1)?;
    wait::until("the plugin to answer", PATIENCE, || Ok(csi.info().ok()))?;
    out.restart_answers_ms = ms(start);
    let confirm = |id: &str| wait::until("the plugin to confirm", PATIENCE, || Ok(csi.stage(id, USAGE).ok()));
    confirm(last)?;
    out.restart_confirms_ms = ms(start);
    ids.iter().try_for_each(|id| confirm(id))?;
    out.restart_confirms_all_ms = ms(start);
    let ran = writer.stop()?;
    writer.end()?;
    (out.restart_write_max_ms, out.restart_write_p50_ms) = (ran.max_us / 1e3, ran.p50_us / 1e3);
    println!(
        "density: restarted, answers after {:.0} ms; longest write meanwhile {:.1} ms",
        out.restart_answers_ms, out.restart_write_max_ms
    );
    Ok(())
}

fn memory_of_plugin(node: &Node) -> Result<Memory> {
    let text = node.run_ok("cat /proc/$(pidof weir-node)/status").context("weir-node's memory")?;
    parse_memory(&text).with_context(|| format!("weir-node's memory in {text:?}"))
}

fn parse_memory(status: &str) -> Option<Memory> {
    let kib = |key: &str| {
        status.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    Some(Memory { rss_kib: kib("VmRSS:")?, anon_kib: kib("RssAnon:")?, peak_kib: kib("VmHWM:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        let m = parse_memory("VmHWM:\t   90 kB\nVmRSS:\t    80 kB\nRssAnon:\t   30 kB\n").unwrap();
        assert_eq!((m.rss_kib, m.anon_kib, m.peak_kib), (80, 30, 90));
        assert!(parse_memory("VmRSS: 1 kB").is_none());
    }
}
