//! The VM harness on real nodes, without Weir: the verifier sees what it must, and a VM moves between two nodes that share
//! a disk by plain NVMe/TCP.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{
    lab::{Lab, Node},
    vm::{Guest, Settings, Vm, gaps, guest::Window},
};

const LIMIT: Duration = Duration::from_secs(120);
const WINDOW: Window = Window { start: 16 << 20, end: 512 << 20 };

/// Exports a node's first disk to whoever connects, as the kernel's documentation has it.
fn export(node: &Node) -> Result<String> {
    let (nqn, address) = ("nqn.2024-01.lab:shared", node.storage_ip());
    node.run_ok(&format!(
        "set -e; cd /sys/kernel/config/nvmet; mkdir subsystems/{nqn}; cd subsystems/{nqn}
        echo 1 >attr_allow_any_host; mkdir namespaces/1; echo -n {disk} >namespaces/1/device_path
        echo 1 >namespaces/1/enable; mkdir ../../ports/1; cd ../../ports/1
        echo tcp >addr_trtype; echo ipv4 >addr_adrfam; echo {address} >addr_traddr; echo 4420 >addr_trsvcid
        ln -s ../../subsystems/{nqn} subsystems/{nqn}",
        disk = node.disk(0)
    ))?;
    Ok(format!("transport=tcp,traddr={address},trsvcid=4420,nqn={nqn}"))
}

#[test]
#[ignore = "boots QEMU nodes"]
fn a_verifier_sees_what_it_must_and_moves() -> Result<()> {
    let lab = Lab::builder().nodes(2).disk_size(1 << 30).start()?;
    let (n1, n2) = (lab.node(1), lab.node(2));
    let options = export(n1)?;
    n2.run_ok(&format!("printf '%s' '{options}' >/dev/nvme-fabrics"))?;
    let remote = "/dev/nvme0n1";
    e2e::wait::until_ok("the import", LIMIT, || n2.run_ok(&format!("test -b {remote}")))?;

    let guest = Guest::Small(WINDOW);
    let disk = n1.disk(0);
    let settings = Settings { name: "vm", device: &disk, guest: &guest, incoming: false };
    let source = Vm::start(n1, settings)?;
    let start = source.wait_progress(300, LIMIT)?;
    ensure!(start.ios > 0 && source.written()? > 0, "{start:?}");

    let target = Vm::start(n2, Settings { device: remote, incoming: true, ..settings })?;
    source.begin_slow_migration(&target)?;
    source.cancel_migration()?;
    source.wait_progress(100, LIMIT)?;
    target.kill()?;

    let target = Vm::start(n2, Settings { device: remote, incoming: true, ..settings })?;
    source.monitor()?.execute("migrate-set-parameters", serde_json::json!({"max-bandwidth": 128 << 20}))?;
    let from = Instant::now();
    let moved = source.migrate_to(&target)?;
    ensure!(source.status()? == "postmigrate", "the source is {}", source.status()?);
    let after = target.wait_progress(300, LIMIT)?;
    ensure!(after.ios > start.ios, "the counters did not move along: {after:?}");
    let longest = gaps(&[source.console(), target.console()], from, Instant::now()).into_iter().max();
    println!("{moved:?}, longest gap {longest:?}, {after:?}");
    source.kill()?;

    // Every block of the guest is overwritten behind its back: it must notice.
    let mib = WINDOW.end >> 20;
    n2.run_ok(&format!("dd if=/dev/zero of={remote} bs=1M count={mib} oflag=direct conv=fsync status=none"))?;
    let noticed = target.wait_progress(300, LIMIT);
    ensure!(
        noticed.is_err() && target.counters().bad > 0,
        "the verifier saw nothing: {:?}",
        target.counters()
    );
    ensure!(target.counters().errors == 0, "{:?}", target.counters());
    target.kill()
}

#[test]
#[ignore = "boots QEMU nodes"]
fn a_linux_guest_keeps_to_its_window() -> Result<()> {
    let lab = Lab::builder().nodes(1).disk_size(1 << 30).start()?;
    let (node, guest) = (lab.node(1), Guest::Linux(WINDOW, lab.kernel_files().clone()));
    let disk = node.disk(0);
    node.run_ok(&format!("dd if=/dev/urandom of={disk} bs=1M count=16 oflag=direct conv=fsync status=none"))?;
    let front = format!("dd if={disk} bs=1M count=16 iflag=direct status=none | sha256sum");
    let before = node.run_ok(&front)?;
    guest.prepare(node, &disk)?;
    let vm = Vm::start(node, Settings { name: "linux", device: &disk, guest: &guest, incoming: false })?;
    let counters = vm.wait_progress(1500, LIMIT);
    let counters = counters.map_err(|e| e.context(vm.console().other().join("\n")))?;
    println!("{counters:?}");
    vm.kill()?;
    ensure!(node.run_ok(&front)? == before, "the guest wrote outside of its window");
    node.run_ok(&format!("e2fsck -fn '{disk}?offset={}' || [ $? -le 1 ]", WINDOW.start)).map(drop)
}
