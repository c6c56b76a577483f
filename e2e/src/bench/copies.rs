//! What a volume's user feels of its being copied elsewhere: reads at rest, while a move copies and gives way, and while one
//! copies as fast as the kernel can.
//!
//! A round drains the volume's node, measures, calls the drain off and drains the other node, so that every round begins with the
//! volume where its user is. What is read is the end of the volume, which goes last. A copy that gives way to nobody is the same one, with the kernel's own setting put back ten times a second.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{
    fio::{self, Region},
    host::Patience,
};
use crate::{
    cluster::{
        Cluster, PATIENCE,
        clients::{NewVolume, Use},
    },
    lab::Node,
    suite::moves::{wait_copying, wait_drained},
    wait,
};

/// How long each measurement is, after as long as a copy takes to find its pace.
const TIMES: fio::Times = fio::Times { ramp: 4000, run: 6000 };
/// More than a copy in haste does within a round.
const BYTES: u64 = 6 << 30;
/// What is read.
const READ: u64 = 256 << 20;
/// The node that has the volume and uses it, and the one that takes it.
const HERE: u8 = 1;
const THERE: u8 = 2;

/// What was measured, round by round.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Copies {
    pub(super) rest: Vec<Felt>,
    pub(super) paced: Vec<Felt>,
    pub(super) hasty: Vec<Felt>,
}

/// Reads of 4 KiB, one at a time, and what was copied meanwhile.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Felt {
    pub(super) iops: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) copied_mib_s: f64,
}

pub(super) fn run(c: &Cluster, rounds: u32) -> Result<Copies> {
    println!("copies: writing a volume once");
    let new =
        NewVolume { name: "copied", bytes: BYTES, usage: Use::Block, beside: Some("n1"), parameters: &[] };
    let id = c.csi().create(&new)?;
    let device = c.node_csi(HERE)?.attach(&id, Use::Block)?;
    // What was never written is copied as holes, and read from none.
    let region = |offset, bytes| Region { name: "v".to_owned(), path: device.clone(), offset, bytes };
    fio::fill(c.node(HERE), &region(0, BYTES))?;
    let region = region(BYTES - READ, READ);
    let mut patience = Patience(PATIENCE);
    let mut out = Copies::default();
    for round in 0..rounds {
        patience.wait(c)?;
        let rest = felt(c, &region)?;
        c.csi().drain_node("n1", false)?;
        wait_copying(c, &id)?;
        // Which comes first is turned: a copy's beginning is not its middle.
        let (mut paced, mut hasty) = (None, None);
        for second in [false, true] {
            if second == (round % 2 == 0) {
                hasty = Some(in_haste(c.node(HERE), || felt(c, &region))?);
            } else {
                paced = Some(felt(c, &region)?);
            }
        }
        c.csi().drain_node("n1", true)?;
        c.csi().drain_node("n2", false)?;
        wait_drained(c, THERE)?;
        c.csi().drain_node("n2", true)?;
        let (paced, hasty) = (paced.context("no pace")?, hasty.context("no haste")?);
        println!(
            "copies: round {} of {rounds}: {:.0} reads a second at rest, {:.0} beside a copy of {:.0} MiB/s, {:.0} beside one of \
             {:.0} MiB/s in haste",
            round + 1,
            rest.iops,
            paced.iops,
            paced.copied_mib_s,
            hasty.iops,
            hasty.copied_mib_s
        );
        out.rest.push(rest);
        out.paced.push(paced);
        out.hasty.push(hasty);
    }
    c.node_csi(HERE)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(out)
}

fn felt(c: &Cluster, region: &Region) -> Result<Felt> {
    let (begun, before) = (Instant::now(), written(c.node(THERE))?);
    let rounds = fio::measure(c.node(HERE), fio::CASES[0], &[vec![region.clone()]], TIMES)?;
    let (seconds, after) = (begun.elapsed().as_secs_f64(), written(c.node(THERE))?);
    let o = rounds.first().and_then(|r| r.get(&region.name)).context("fio measured nothing")?;
    Ok(Felt {
        iops: o.iops,
        p50_us: o.median_us,
        p99_us: o.p99_us,
        copied_mib_s: after.saturating_sub(before) as f64 / f64::from(1 << 20) / seconds,
    })
}

/// Bytes that were ever written to the node's pool disk.
fn written(node: &Node) -> Result<u64> {
    let stat =
        node.run_ok(&format!("cat /sys/class/block/$(basename $(readlink -f {}))/stat", node.disk(0)))?;
    let sectors = stat.split_whitespace().nth(6).and_then(|w| w.parse::<u64>().ok());
    Ok(sectors.with_context(|| format!("a disk's counters: {stat:?}"))? << 9)
}

/// What is done while the kernel's copies are held back by nothing.
fn in_haste<T>(node: &Node, what: impl FnOnce() -> Result<T>) -> Result<T> {
    const SETTING: &str = "/sys/module/dm_mirror/parameters/raid1_resync_throttle";
    let loops = format!("sh -c 'while echo 100 >{SETTING}; do sleep 0.1; done'");
    let haste = node.spawn("haste", &loops)?;
    let done = what();
    ensure!(node.ended(&haste)?.is_none(), "{SETTING} could not be set");
    node.signal(&haste, "KILL")?;
    wait::until("the haste to end", PATIENCE, || node.ended(&haste))?;
    done
}
