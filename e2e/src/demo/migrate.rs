//! The migration, and what is measured of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Demo, LIMIT, measure::Counts, millis};
use crate::{
    cluster::clients::Use,
    vm::{Console, Settings, Vm, gaps},
};

/// What the migration showed.
pub(super) struct Moved {
    /// The VM, on its new node.
    pub(super) vm: Vm,
    /// The volume there.
    pub(super) device: String,
    /// Bytes written to pool disks that the VM did not write.
    pub(super) copied: u64,
    /// From the last verified step on the source to the first on the target.
    pub(super) pause: Duration,
}

/// Migrates the VM from n1 to n2 as KubeVirt has it done: attach there, move, detach here.
///
/// # Errors
/// What failed, or what the verifier saw.
pub(super) fn run(demo: &Demo<'_>, source: Vm) -> Result<Moved> {
    let c = demo.c;
    let mut lines = vec![];
    let moved = demo.screen.step("migrate the VM to n2 while it works", |step| {
        let before = Counts::take(c, &source, None)?;
        let from = Instant::now();
        step.note("n2 gets the volume; its first write will be held");
        let device = c.node_csi(2)?.attach(&demo.id, Use::SharedBlock)?;
        let settings = Settings { name: "demo", device: &device, guest: &demo.guest, incoming: true };
        let target = Vm::start(c.node(2), settings)?;
        let usual = median(gaps(&[source.console()], from, Instant::now()));
        step.note("QEMU moves the machine");
        let qemu = source.migrate_to(&target)?;
        target.wait_progress(20, LIMIT).context("the VM after its migration")?;
        let pause = switch_gap(source.console(), target.console())?;
        let (on_source, heard) = (source.written()?, source.console().clone());
        source.kill()?;
        step.note("n1 lets go");
        c.node_csi(1)?.detach(&demo.id)?;
        wait_held_by(demo, "n2")?;
        target.wait_progress(100, LIMIT).context("the VM after n1 has let go")?;
        let longest = gaps(&[&heard, target.console()], from, Instant::now()).into_iter().max();
        let after = Counts::take(c, &target, Some(on_source))?;
        let (copied, own) = (after.copied_since(before)?, after.vm_since(before));
        lines = vec![
            format!(
                "pause   {:.0} ms from the last verified I/O on n1 to the first on n2; QEMU itself stood still for {} ms",
                millis(pause),
                qemu.downtime_ms
            ),
            format!(
                "        {:.0} ms is usual between two steps; the longest wait from attach to detach was {:.0} ms",
                millis(usual),
                millis(longest.unwrap_or_default())
            ),
            format!(
                "copied  {copied} bytes: what all pool disks counted as written, less the {} KiB that QEMU counted",
                own >> 10
            ),
        ];
        let text = format!("QEMU sent {} KiB of memory, Weir re-pointed the volume", qemu.bytes >> 10);
        Ok((Moved { vm: target, device, copied, pause }, text))
    })?;
    lines.iter().for_each(|line| demo.screen.say(&format!("              {line}")));
    ensure!(moved.copied == 0, "{} bytes were written to pool disks that the VM did not write", moved.copied);
    Ok(moved)
}

fn wait_held_by(demo: &Demo<'_>, node: &str) -> Result<()> {
    demo.c.wait_volume(&demo.id, &format!("the volume to be {node}'s alone"), |v| {
        v.is_some_and(|v| v["phase"] == "Attached" && v["holders"] == serde_json::json!([node]))
    })
}

/// From the last step heard of on the source to the first on the target.
fn switch_gap(source: &Console, target: &Console) -> Result<Duration> {
    let (last, first) = (source.times().last().copied(), target.times().first().copied());
    let (last, first) = last.zip(first).context("no step was heard of on both sides")?;
    first.checked_duration_since(last).context("both sides ran at once")
}

fn median(mut gaps: Vec<Duration>) -> Duration {
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).copied().unwrap_or_default()
}
