//! Process 1: makes a machine of the bare root the initrd leaves behind, starts the server, reaps orphans.
//!
//! Invariant: a node that cannot be set up powers off with the reason on its console; it never half runs. The initrd has
//! mounted /lab (binaries) and /lib/modules, and /proc, /sys and /dev have been moved here.

use super::{BOOT_SCRIPT, ENVIRONMENT, HOST_DIR, Settings};
use crate::lab::names;
use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::WaitOptions;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What the kernel should have at hand; what a kernel does not have is left out.
const MODULES: [&str; 29] = [
    "virtio_console",
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    "ext4",
    "xfs",
    "loop",
    "configfs",
    "dm_mod",
    "dm_multipath",
    "dm_round_robin",
    "dm_delay",
    "dm_flakey",
    "dm_mirror",
    "dm_snapshot",
    "dm_thin_pool",
    "dm_zero",
    "nvmet",
    "nvmet_tcp",
    "nvme_tcp",
    "nvme_fabrics",
    "tcp_diag",
    "inet_diag",
    "fuse",
    "veth",
    "br_netfilter",
    "nf_tables",
    "sch_netem",
    "sch_tbf",
];

/// Runs as process 1; returns only if the node could not be set up, after which the caller's exit stops the machine.
///
/// # Errors
/// What went wrong.
pub fn boot() -> Result<()> {
    ensure!(std::process::id() == 1, "this is process 1 of a lab node; nothing else may run it");
    let settings = Settings::read()?;
    // No other thread exists yet. Children inherit it.
    for (key, value) in ENVIRONMENT {
        // SAFETY: process 1 is single-threaded here.
        unsafe { std::env::set_var(key, value) };
    }
    mounts()?;
    identity(&settings)?;
    load_modules()?;
    network(&settings)?;
    disks()?;
    boot_script()?;
    stage("set up");
    loop {
        let mut server = start_server()?;
        reap_until_gone(&mut server)?;
        stage("the agent ended; starting it again");
    }
}

/// Says on the console how far the node has come, with the kernel's uptime.
fn stage(what: &str) {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    println!("LAB {} {what}", uptime.split(' ').next().unwrap_or_default());
}

fn mounts() -> Result<()> {
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("make / shared")?;
    let none = MountFlags::empty();
    mount_at("tmpfs", "/run", "tmpfs", none, "mode=755")?;
    mount_at("tmpfs", "/tmp", "tmpfs", none, "mode=1777,size=128m")?;
    mount_at("devpts", "/dev/pts", "devpts", none, "gid=5,mode=620")?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", none, "mode=1777")?;
    mount_at("debugfs", "/sys/kernel/debug", "debugfs", none, "")?;
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", none, "")?;
    let controllers =
        fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").context("read cgroup controllers")?;
    let all: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", all.join(" ")).context("enable cgroup controllers")?;
    // cache=none: both sides write here, and each must see the other's work.
    mount_at("node", HOST_DIR, "9p", none, "trans=virtio,version=9p2000.L,msize=512000,cache=none")?;
    fs::create_dir_all(format!("{HOST_DIR}/log")).context("create the log folder")
}

fn mount_at(source: &str, target: &str, fstype: &str, flags: MountFlags, data: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
    let data = std::ffi::CString::new(data)?;
    mount(source, target, fstype, flags, data.as_c_str())
        .with_context(|| format!("mount {fstype} at {target}"))
}

fn identity(settings: &Settings) -> Result<()> {
    let name = settings.name();
    rustix::system::sethostname(name.as_bytes()).context("set the host name")?;
    let mut hosts = String::from("127.0.0.1 localhost\n");
    for number in 1..=settings.nodes {
        hosts.push_str(&format!("{} {}\n", names::storage_ip(number), names::node(number)));
    }
    for (file, text) in [
        ("/etc/hostname", format!("{name}\n")),
        ("/etc/hosts", hosts),
        ("/etc/machine-id", format!("{}\n", settings.machine_id)),
    ] {
        // The host's own may be links into a /run that is not here.
        match fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(format!("replace {file}"));
            }
            _ => fs::write(file, text).with_context(|| format!("write {file}"))?,
        }
    }
    Ok(())
}

fn load_modules() -> Result<()> {
    // A kernel may lack some of them, and then says so on the console; what must be there fails loudly later.
    let status =
        Command::new("modprobe").arg("-aq").args(MODULES).status().context("run modprobe (package kmod)")?;
    if !status.success() {
        stage("not every module could be loaded");
    }
    mount_at("configfs", "/sys/kernel/config", "configfs", MountFlags::empty(), "").or_else(|e| {
        // configfs mounts itself on some kernels.
        if Path::new("/sys/kernel/config/nvmet").exists() { Ok(()) } else { Err(e) }
    })
}

fn network(settings: &Settings) -> Result<()> {
    let mut by_mac = HashMap::new();
    for entry in fs::read_dir("/sys/class/net").context("list network devices")? {
        let entry = entry?;
        let mac = fs::read_to_string(entry.path().join("address")).context("read a MAC address")?;
        by_mac.insert(mac.trim().to_owned(), entry.file_name().to_string_lossy().into_owned());
    }
    let mut script = String::from("link set lo up\n");
    let mut renames = String::new();
    for nic in names::NICS {
        let mac = names::mac(nic, settings.number);
        let Some(found) = by_mac.get(&mac) else { bail!("no network device {mac} for {}", nic.guest_name()) };
        // By way of a name of its own, so that two devices can change names with each other.
        script.push_str(&format!("link set {found} name lab-{}\n", nic.guest_name()));
        renames.push_str(&format!("link set lab-{0} name {0}\nlink set {0} up\n", nic.guest_name()));
        renames.push_str(&format!(
            "addr add {}/24 dev {}\n",
            names::guest_ip(nic, settings.number),
            nic.guest_name()
        ));
    }
    script.push_str(&renames);
    script.push_str(&format!("route add default via {} dev eth0\n", names::HOST_IP));
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("run ip (package iproute2)")?;
    ip.stdin.take().context("stdin of ip")?.write_all(script.as_bytes()).context("write to ip")?;
    ensure!(ip.wait()?.success(), "ip could not set the network up:\n{script}");
    Ok(())
}

/// Names every disk by its serial number, as udev would, and mounts the state disk.
fn disks() -> Result<()> {
    let by_id = Path::new("/dev/disk/by-id");
    fs::create_dir_all(by_id).context("create /dev/disk/by-id")?;
    let mut state = None;
    for entry in fs::read_dir("/sys/block").context("list block devices")? {
        let entry = entry?;
        let Ok(serial) = fs::read_to_string(entry.path().join("serial")) else { continue };
        let (name, serial) = (entry.file_name().to_string_lossy().into_owned(), serial.trim().to_owned());
        std::os::unix::fs::symlink(format!("../../{name}"), by_id.join(format!("virtio-{serial}")))
            .with_context(|| format!("name disk {name}"))?;
        if serial == names::STATE_SERIAL {
            state = Some(format!("/dev/{name}"));
        }
    }
    let state = state.context("the state disk is missing")?;
    mount_at(&state, "/state", "ext4", MountFlags::NOATIME, "")?;
    for (from, to) in [("/state/weir", "/var/lib/weir"), ("/state/scratch", "/scratch")] {
        for dir in [from, to] {
            fs::create_dir_all(dir).with_context(|| format!("create {dir}"))?;
        }
        mount_bind(from, to).with_context(|| format!("mount {from} at {to}"))?;
    }
    Ok(())
}

/// Starts what the host wants done at each boot beside what every node does: a script in the node's folder, if there is
/// one. Nobody waits for it, and what it leaves running goes on.
fn boot_script() -> Result<()> {
    let script = format!("{HOST_DIR}/{BOOT_SCRIPT}");
    if !Path::new(&script).exists() {
        return Ok(());
    }
    let log = fs::File::options().create(true).append(true).open(format!("{HOST_DIR}/log/boot.log"));
    let log = log.context("open the boot script's log")?;
    Command::new("/bin/sh")
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .map(drop)
        .context("start the boot script")
}

fn start_server() -> Result<Child> {
    Command::new("/proc/self/exe")
        .args(["agent", "serve"])
        .stdin(Stdio::null())
        .spawn()
        .context("start the agent")
}

/// Waits for any child until the server itself is gone.
fn reap_until_gone(server: &mut Child) -> Result<()> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid.as_raw_nonzero().get().unsigned_abs() == server.id() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("wait for children"),
        }
    }
}
