//! Live migration by guarded cut-over, with a writer that switches nodes as QEMU does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Run, basic::too_large_for_one, check_pattern, write_pattern};
use crate::{
    cluster::{
        Cluster, PATIENCE,
        clients::{NewVolume, Use},
    },
    wait,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "migrate/commit",
        about: "the target's first write is the switch-over",
        run: Run::On(commit),
    },
    Case { name: "migrate/abort", about: "the target goes, the source never noticed", run: Run::On(abort) },
    Case {
        name: "migrate/conflict",
        about: "a source that still writes wins, the target's write fails",
        run: Run::On(conflict),
    },
    Case {
        name: "migrate/silent",
        about: "a target that never writes is promoted when the source goes",
        run: Run::On(silent),
    },
    Case {
        name: "migrate/discard",
        about: "a discard as the first thing on the target is held and done",
        run: Run::On(discard),
    },
];

const SEED: u32 = 7;

/// A volume over several nodes, attached at n1 as source and n2 as target, with a pattern in its first 32 MiB.
fn set_up(c: &Cluster, name: &str) -> Result<(String, String, String)> {
    let id = c.csi().create(&NewVolume {
        name,
        bytes: too_large_for_one(c),
        usage: Use::SharedBlock,
        beside: Some("n1"),
        parameters: &[],
    })?;
    let source = c.node_csi(1)?.attach(&id, Use::SharedBlock)?;
    write_pattern(c.node(1), &source, 32, SEED)?;
    let target = c.node_csi(2)?.attach(&id, Use::SharedBlock)?;
    wait_phase(c, &id, "Guarded")?;
    check_pattern(c.node(2), &target, 32, SEED).context("reads on the target before the switch-over")?;
    Ok((id, source, target))
}

fn wait_phase(c: &Cluster, id: &str, phase: &str) -> Result<()> {
    c.wait_volume(id, &format!("phase {phase}"), |v| v.is_some_and(|v| v["phase"] == phase))
}

fn holders(c: &Cluster, id: &str) -> Result<Vec<String>> {
    let row = c.volume_row(id)?.context("the volume's row")?;
    Ok(row["holders"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|h| h.as_str().map(str::to_owned))
        .collect())
}

/// A shell command that writes one block of 4096 bytes.
pub(super) fn write_block(device: &str, block: u64, text: &str) -> String {
    format!(
        "printf '%-4096s' '{text}' | dd of={device} bs=4096 seek={block} oflag=direct iflag=fullblock \
         conv=notrunc status=none"
    )
}

/// How many writes a device has completed.
fn writes(c: &Cluster, n: u8, device: &str) -> Result<u64> {
    let stat = "/sys/dev/block/$(($1)):$(($2))/stat";
    let script = format!("set -- $(stat -L -c '0x%t 0x%T' {device}); set -- $(cat {stat}); echo $5");
    Ok(c.node(n).run_ok(&script)?.trim().parse()?)
}

/// Reads what [`write_block`] wrote.
pub(super) fn read_block(c: &Cluster, n: u8, device: &str, block: u64) -> Result<String> {
    let text =
        c.node(n).run_ok(&format!("dd if={device} bs=4096 skip={block} count=1 iflag=direct status=none"))?;
    Ok(text.trim_end().to_owned())
}

fn tear_down(c: &Cluster, id: &str, nodes: &[u8]) -> Result<()> {
    for n in nodes {
        c.node_csi(*n)?.detach(id)?;
    }
    c.csi().delete(id)?;
    Ok(())
}

/// The block at which tests write: past the pattern.
pub(super) const BLOCK: u64 = 64 << 20 >> 12;

fn commit(c: &Cluster) -> Result<()> {
    let (id, source, target) = set_up(c, "commit")?;
    c.node(2)
        .run_ok(&write_block(&target, BLOCK, "by the target"))
        .context("the first write on the target")?;
    wait_phase(c, &id, "Attached")?;
    ensure!(holders(c, &id)? == ["n2"], "holders after the cut-over: {:?}", holders(c, &id)?);
    ensure!(read_block(c, 2, &target, BLOCK)? == "by the target", "the held write is lost");
    let late = c.node(1).exec(&write_block(&source, BLOCK, "too late"))?;
    ensure!(!late.ok(), "the source can still write after the cut-over");
    ensure!(read_block(c, 2, &target, BLOCK)? == "by the target", "a late write of the source got through");
    check_pattern(c.node(2), &target, 32, SEED)?;
    tear_down(c, &id, &[1, 2])
}

fn abort(c: &Cluster) -> Result<()> {
    let (id, source, _) = set_up(c, "abort")?;
    c.node(1).run_ok(&write_block(&source, BLOCK, "before"))?;
    c.node_csi(2)?.detach(&id)?;
    c.node(1)
        .run_ok(&write_block(&source, BLOCK, "after"))
        .context("a write of the source after the abort")?;
    ensure!(read_block(c, 1, &source, BLOCK)? == "after", "the source's write is lost");
    ensure!(holders(c, &id)? == ["n1"], "holders after the abort: {:?}", holders(c, &id)?);
    tear_down(c, &id, &[1])
}

fn conflict(c: &Cluster) -> Result<()> {
    let (id, source, target) = set_up(c, "conflict")?;
    // One process that writes without a pause: between those of a shell's loop a source looks quiet.
    let writer = format!(
        "dd if=/dev/zero of={source} bs=4096 seek={} count=200000 oflag=direct conv=notrunc status=none",
        BLOCK + 1
    );
    let before = writes(c, 1, &source)?;
    let running = c.node(1).spawn("conflict-writer", &writer)?;
    wait::until("the source to write", PATIENCE, || Ok((writes(c, 1, &source)? > before).then_some(())))?;
    let first = c.node(2).exec(&write_block(&target, BLOCK, "target"))?;
    ensure!(!first.ok(), "the target's write went through beside a writing source");
    let ended = c.node(1).ended(&running)?;
    ensure!(ended.is_none(), "the source's writer failed: {ended:?}");
    c.node(1).signal(&running, "KILL")?;
    wait::until("the writer to end", PATIENCE, || c.node(1).ended(&running))?;
    c.node(1).run_ok(&write_block(&source, BLOCK, "source at last"))?;
    ensure!(read_block(c, 1, &source, BLOCK)? == "source at last", "the source's write is lost");
    ensure!(holders(c, &id)? == ["n1"], "holders after the conflict: {:?}", holders(c, &id)?);
    tear_down(c, &id, &[2, 1])
}

fn silent(c: &Cluster) -> Result<()> {
    let (id, _, target) = set_up(c, "silent")?;
    c.node_csi(1)?.detach(&id)?;
    wait_phase(c, &id, "Attached")?;
    ensure!(holders(c, &id)? == ["n2"], "holders: {:?}", holders(c, &id)?);
    check_pattern(c.node(2), &target, 32, SEED)?;
    c.node(2).run_ok(&write_block(&target, BLOCK, "at last"))?;
    tear_down(c, &id, &[2])
}

fn discard(c: &Cluster) -> Result<()> {
    let (id, _, target) = set_up(c, "discard")?;
    let limit = Duration::from_secs(60);
    let offset = 8 << 20;
    let out = c.node(2).exec_within(&format!("blkdiscard -o {offset} -l 1048576 {target}"), limit)?;
    ensure!(out.ok(), "discard on the target: {}", out.errors());
    wait_phase(c, &id, "Attached")?;
    ensure!(holders(c, &id)? == ["n2"], "holders: {:?}", holders(c, &id)?);
    tear_down(c, &id, &[1, 2])
}
