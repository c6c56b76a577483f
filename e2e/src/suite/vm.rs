//! A real QEMU VM on a volume: live-migrated by QEMU itself, under verified I/O.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Run, basic::too_large_for_one};
use crate::{
    cluster::{
        Cluster,
        clients::{NewVolume, Use},
    },
    vm::{Guest, Settings, Vm, guest::Window},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "vm/migrate",
        about: "a VM moves to another node and back, verifying all the time",
        run: Run::On(migrate),
    },
    Case {
        name: "vm/abort",
        about: "its migration is given up: it goes on at the source",
        run: Run::On(abort),
    },
];

/// Steps of the guest that show it goes on.
const STEPS: usize = 150;
const LIMIT: Duration = Duration::from_secs(120);

/// A volume, beside n1 as far as it goes there, and a VM on it in n1.
pub(super) fn set_up(c: &Cluster, name: &str, bytes: u64) -> Result<(String, Guest, Vm)> {
    let usage = Use::SharedBlock;
    let id = c.csi().create(&NewVolume { name, bytes, usage, beside: Some("n1"), parameters: &[] })?;
    let guest = Guest::Small(Window { start: 0, end: bytes });
    let device = c.node_csi(1)?.attach(&id, usage)?;
    let vm = Vm::start(c.node(1), Settings { name, device: &device, guest: &guest, incoming: false })?;
    vm.wait_progress(2 * STEPS, LIMIT).context("the VM before any migration")?;
    Ok((id, guest, vm))
}

/// The other side of a migration: the volume attached, QEMU waiting.
fn await_on(c: &Cluster, n: u8, id: &str, name: &str, guest: &Guest) -> Result<Vm> {
    let device = c.node_csi(n)?.attach(id, Use::SharedBlock)?;
    Vm::start(c.node(n), Settings { name, device: &device, guest, incoming: true })
}

fn wait_held_by(c: &Cluster, id: &str, node: &str) -> Result<()> {
    c.wait_volume(id, &format!("the volume to be {node}'s alone"), |v| {
        v.is_some_and(|v| v["phase"] == "Attached" && v["holders"] == serde_json::json!([node]))
    })
}

fn migrate(c: &Cluster) -> Result<()> {
    let (id, guest, mut vm) = set_up(c, "vm-migrate", too_large_for_one(c))?;
    for (from, to) in [(1, 2), (2, 1)] {
        let target = await_on(c, to, &id, "vm-migrate", &guest)?;
        let moved = vm.migrate_to(&target)?;
        target.wait_progress(STEPS, LIMIT).with_context(|| format!("the VM after moving to n{to}"))?;
        ensure!(vm.status()? == "postmigrate", "the source is {}", vm.status()?);
        vm.kill()?;
        c.node_csi(from)?.detach(&id)?;
        wait_held_by(c, &id, &format!("n{to}"))?;
        let counters = target.wait_progress(STEPS, LIMIT).context("the VM after the source is gone")?;
        println!("   n{from} to n{to}: {} ms of downtime, {} verified I/Os", moved.downtime_ms, counters.ios);
        vm = target;
    }
    vm.kill()?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}

fn abort(c: &Cluster) -> Result<()> {
    let (id, guest, vm) = set_up(c, "vm-abort", too_large_for_one(c))?;
    let target = await_on(c, 2, &id, "vm-abort", &guest)?;
    vm.begin_slow_migration(&target)?;
    vm.wait_progress(STEPS, LIMIT).context("the VM while its memory moves")?;
    vm.cancel_migration()?;
    target.kill()?;
    c.node_csi(2)?.detach(&id)?;
    wait_held_by(c, &id, "n1")?;
    vm.wait_progress(2 * STEPS, LIMIT).context("the VM after the abort")?;
    vm.kill()?;
    c.node_csi(1)?.detach(&id)?;
    c.csi().delete(&id)?;
    Ok(())
}
