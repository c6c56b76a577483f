//! The command line of a node's QEMU, and its disks. Knows QEMU, and nothing of how a lab is kept.

use super::accel::Accel;
use super::cache::Kernel;
use super::names::{self, Nic};
use super::relay::PORT_SOCKET;
use super::state::Config;
use super::tools::{find_tool, run_tool};
use crate::proto::PORT_NAME;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes of the state disk, all of them sparse.
const STATE_SIZE: u64 = 8 << 30;
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off nokaslr random.trust_cpu=on cgroup_no_v1=all";

/// Slots into which disks can be plugged while the node runs.
const SLOTS: u8 = 2;

/// The bus of such a slot.
pub(super) fn slot(number: u8) -> String {
    format!("slot{number}")
}

/// File name of a pool disk in the node's folder.
#[must_use]
pub(super) fn disk_file(disk: u8) -> String {
    format!("disk{disk}.img")
}

/// Creates the disks a node does not have yet. Those that are there keep what they hold.
///
/// # Errors
/// No room, or no mkfs.ext4.
pub(super) fn ensure_disks(config: &Config, dir: &Path) -> Result<()> {
    let sparse = |name: &str, size: u64| -> Result<bool> {
        let path = dir.join(name);
        if path.exists() {
            return Ok(false);
        }
        File::create(&path)
            .and_then(|f| f.set_len(size))
            .with_context(|| format!("create {}", path.display()))?;
        Ok(true)
    };
    for disk in 0..config.disks {
        sparse(&disk_file(disk), config.disk_size)?;
    }
    if sparse("state.img", STATE_SIZE)? {
        let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        let mkfs = find_tool("mkfs.ext4")?;
        run_tool(Command::new(mkfs).args(["-q", "-F", "-m0", "-E", options]).arg(dir.join("state.img")))?;
    }
    Ok(())
}

/// The QEMU of node `number`, to be started in its folder.
///
/// # Errors
/// No QEMU.
pub(super) fn command(
    config: &Config,
    kernel: &Kernel,
    lab: &Path,
    number: u8,
    machine_id: &str,
) -> Result<Command> {
    let dir = super::state::node_dir(lab, number);
    let mut qemu = Command::new(find_tool("qemu-system-x86_64")?);
    qemu.current_dir(&dir).stdin(Stdio::null());
    let log = File::create(dir.join("qemu.log")).context("create QEMU's log")?;
    qemu.stdout(log.try_clone()?).stderr(log);
    qemu.args(["-name", &format!("{}/{}", config.name, names::node(number))]);
    match config.accel {
        Accel::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
        // A bounded cache of translations (MiB) holds a node's RSS near its memory; but the more a node runs, the more
        // it has, and a full one is thrown away whole. Nehalem is the least that has SSE4.2.
        Accel::Tcg => {
            let cache = (config.memory / 2).max(128);
            qemu.args(["-accel", &format!("tcg,thread=multi,tb-size={cache}"), "-cpu", "Nehalem"])
        }
    };
    qemu.args(["-M", "q35,hpet=off", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-smp", &config.cpus.to_string(), "-m", &config.memory.to_string()]);
    // With relative paths no socket's address can be too long.
    qemu.args(["-serial", "file:console.log", "-qmp", "unix:qmp.sock,server=on,wait=off"]);
    qemu.arg("-kernel").arg(&kernel.vmlinuz).arg("-initrd").arg(&kernel.initrd).arg("-append").arg(format!(
        "{CMDLINE}{} lab.node={number} lab.nodes={} lab.machine_id={machine_id}",
        if config.accel == Accel::Tcg { " tsc=reliable" } else { "" },
        config.nodes
    ));
    qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci,max_ports=2"]);
    qemu.args(["-chardev", &format!("socket,id=agent,path={PORT_SOCKET},server=on,wait=off")]);
    qemu.args(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
    shares(&mut qemu, config, kernel, lab, &dir);
    disks(&mut qemu, config, number);
    nics(&mut qemu, config, number);
    Ok(qemu)
}

fn shares(qemu: &mut Command, config: &Config, kernel: &Kernel, lab: &Path, dir: &Path) {
    let bin = lab.join("bin");
    let shares = [
        ("root", Path::new("/"), true),
        ("lab", &bin, true),
        ("modules", &kernel.modules, true),
        ("node", dir, false),
    ];
    let more = config.shares.iter().map(|(tag, path)| (tag.as_str(), path.as_path(), true));
    for (tag, path, readonly) in shares.into_iter().chain(more) {
        let readonly = if readonly { ",readonly=on" } else { "" };
        // QEMU reads a doubled comma as one.
        let path = path.to_string_lossy().replace(',', ",,");
        qemu.arg("-fsdev")
            .arg(format!("local,id={tag},path={path},security_model=none,multidevs=remap{readonly}"));
        qemu.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }
}

/// Pool disks answer a flush with a real one (cache=writeback), so what survives a killed node is what a disk with a
/// volatile cache would have kept or more, and what a flush costs shows in measurements; aio=threads because io_uring
/// and native need what not every host file system offers. Zeros and discards make holes, so a disk is as big as what
/// it holds. The state disk skips flushes: only a crash of the host could tell.
fn disks(qemu: &mut Command, config: &Config, number: u8) {
    qemu.args(["-drive", "file=state.img,if=none,id=state,format=raw,cache=unsafe,discard=unmap"]);
    qemu.args(["-device", &format!("virtio-blk-pci,drive=state,serial={}", names::STATE_SERIAL)]);
    let slow = config.disk_iops.map(|n| format!(",throttling.iops-total={n}")).unwrap_or_default();
    for disk in 0..config.disks {
        let file = disk_file(disk);
        qemu.arg("-drive").arg(format!(
            "file={file},if=none,id=d{disk},format=raw,cache=writeback,aio=threads,discard=unmap,detect-zeroes=unmap{slow}"
        ));
        let serial = names::disk_serial(number, disk);
        qemu.arg("-device").arg(if config.sata_disks {
            // The machine has an AHCI controller of six ports.
            format!("ide-hd,drive=d{disk},bus=ide.{disk},serial={serial}")
        } else {
            let bs = config.logical_block_size;
            format!("virtio-blk-pci,drive=d{disk},serial={serial},logical_block_size={bs},physical_block_size={bs}")
        });
    }
    // Devices of the machine's own bus cannot be plugged.
    for n in 0..SLOTS {
        qemu.arg("-device").arg(format!("pcie-root-port,id={},chassis={}", slot(n), n + 1));
    }
}

fn nics(qemu: &mut Command, config: &Config, number: u8) {
    let (group, port) = config.storage_net;
    let mut control = "user,net=10.0.2.0/24".to_owned();
    for forward in &config.forwards {
        control.push_str(&format!(",hostfwd={}", forward.replace("{n}", &number.to_string())));
    }
    let storage = format!("socket,mcast={group}:{port},localaddr=127.0.0.1");
    for (nic, backend) in [(Nic::Control, control), (Nic::Storage, storage)] {
        let (kind, rest) = backend.split_once(',').unwrap_or((&backend, ""));
        let (id, mac) = (nic.qemu_name(), names::mac(nic, number));
        qemu.args(["-netdev", &format!("{kind},id={id},{rest}")]);
        qemu.args(["-device", &format!("virtio-net-pci,netdev={id},mac={mac},romfile=")]);
    }
}
