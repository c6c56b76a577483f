//! One node: starting, killing, cutting, commanding it.
//!
//! Invariant: all state is in the node's folder, so that any process may act on a node of a lab it has opened; a handle
//! only adds the `Child` of a QEMU it started itself, to reap it. Every error names the node.

use super::cache::Kernel;
use super::client::{Agent, Chunk, Output, Stdin};
use super::names::{self, Nic};
use super::process::{self, Identity};
use super::qmp::Qmp;
use super::relay::{AGENT_SOCKET, PORT_SOCKET};
use super::state::{self, Config, Running};
use super::{forward::Forward, qemu};
use crate::proto::{Cmd, Exit, Op, Reply};
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::json;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a command may take unless the caller says otherwise.
pub const EXEC_LIMIT: Duration = Duration::from_secs(60);
/// How long a boot may take: 15-25 s under emulation, several times that on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// What all nodes of a lab share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) dir: PathBuf,
    pub(super) kernel: Kernel,
}

/// Which of a node's networks to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// eth1: the other nodes.
    Storage,
    /// eth0: the host, and with it the controller.
    Control,
    /// Both of them.
    Both,
}

impl Link {
    fn nics(self) -> &'static [Nic] {
        match self {
            Link::Storage => &[Nic::Storage],
            Link::Control => &[Nic::Control],
            Link::Both => &[Nic::Storage, Nic::Control],
        }
    }
}

/// A node of a lab.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    number: u8,
    children: Mutex<Vec<Child>>,
}

impl Node {
    pub(super) fn new(shared: Arc<Shared>, number: u8) -> Node {
        Node { shared, number, children: Mutex::default() }
    }

    /// Its number, from 1.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its name and host name: n1, n2, ...
    #[must_use]
    pub fn name(&self) -> String {
        names::node(self.number)
    }

    /// Its address on the storage network.
    #[must_use]
    pub fn storage_ip(&self) -> Ipv4Addr {
        names::storage_ip(self.number)
    }

    /// Path, inside the node, of pool disk `disk` (from 0). It is a link to the kernel's name for it.
    #[must_use]
    pub fn disk(&self, disk: u8) -> String {
        format!("/dev/disk/by-id/virtio-{}", names::disk_serial(self.number, disk))
    }

    /// The image of that disk on the host.
    #[must_use]
    pub fn disk_image(&self, disk: u8) -> PathBuf {
        self.dir().join(qemu::disk_file(disk))
    }

    /// Its folder on the host, which it sees as /host.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        state::node_dir(&self.shared.dir, self.number)
    }

    /// The log that [`Self::spawn`] with this name writes, on the host.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir().join("log").join(format!("{name}.log"))
    }

    /// What runs as this node; `None` if it is down.
    ///
    /// # Errors
    /// The node's file cannot be read.
    pub fn running(&self) -> Result<Option<Running>> {
        Ok(state::load::<Running>(&self.dir().join("node.json"))?.filter(|running| running.qemu.alive()))
    }

    fn up(&self) -> Result<Running> {
        self.running()?.with_context(|| format!("node {} is down", self.name()))
    }

    fn save(&self, running: &Running) -> Result<()> {
        state::save(&self.dir().join("node.json"), running)
    }

    /// Boots the node and waits until it takes commands. A node that runs already is left as it is.
    ///
    /// # Errors
    /// It does not come up: with the end of its console.
    pub fn start(&self) -> Result<()> {
        if self.running()?.is_some() {
            return Ok(());
        }
        self.launch().and_then(|()| self.wait_ready()).map_err(|e| self.explain(e))
    }

    fn launch(&self) -> Result<()> {
        let dir = self.dir();
        state::create_private_dir(&dir.join("log"))?;
        qemu::ensure_disks(&self.shared.config, &dir)?;
        for stale in ["ready", "qmp.sock", PORT_SOCKET, AGENT_SOCKET] {
            match fs::remove_file(dir.join(stale)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).context("remove a stale file");
                }
                _ => {}
            }
        }
        let id_file = dir.join("machine-id");
        if !id_file.exists() {
            fs::write(&id_file, state::random_hex(16)?).context("write the machine id")?;
        }
        let machine_id = fs::read_to_string(&id_file).context("read the machine id")?;
        let shared = &self.shared;
        let command = qemu::command(&shared.config, &shared.kernel, &shared.dir, self.number, &machine_id)?;
        let qemu = process::start(command, shared.config.lifetime)?;
        let mut relay = Command::new(shared.dir.join("bin").join(super::WEIR_LAB));
        relay.arg("relay").current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::null());
        relay.stderr(File::create(dir.join("relay.log")).context("create the relay's log")?);
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let qemu_id = Identity::of(qemu.id());
        children.push(qemu);
        let relay = process::start(relay, shared.config.lifetime)?;
        let relay_id = Identity::of(relay.id());
        children.push(relay);
        let (qemu, relay) =
            (qemu_id.context("QEMU ended at once")?, relay_id.context("the relay ended at once")?);
        self.save(&Running { qemu, relay, boot_id: String::new(), cut: Vec::new() })
    }

    fn wait_ready(&self) -> Result<()> {
        let mut running = self.up().context("QEMU ended at once")?;
        wait::until("the boot", BOOT_LIMIT, || {
            ensure!(running.qemu.alive(), "QEMU ended");
            Ok(self.dir().join("ready").exists().then_some(()))
        })?;
        running.boot_id = wait::until_ok("the agent", Duration::from_secs(30), || {
            ensure!(running.relay.alive(), "the relay ended (relay.log in the node's folder says why)");
            self.agent()?.boot_id(Duration::from_secs(10))
        })?;
        self.save(&running)
    }

    /// Names the node and shows the end of its console.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let tail = [("console", "console.log"), ("QEMU", "qemu.log")].map(|(what, file)| {
            let text = fs::read(self.dir().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let mut lines: Vec<&str> = text.lines().collect();
            // What led to a panic stands before it; the registers after it help nobody.
            if let Some(panic) = lines.iter().position(|line| line.contains("Kernel panic")) {
                lines.truncate(panic + 1);
            }
            let end = lines[lines.len().saturating_sub(15)..].join("\n    ");
            if end.is_empty() { String::new() } else { format!("\n  end of its {what}:\n    {end}") }
        });
        error.context(format!("node {}{}", self.name(), tail.concat()))
    }

    /// Kills the machine, as a power cut would: what it had not written is lost. Its disks stay.
    ///
    /// # Errors
    /// It does not die.
    pub fn kill(&self) -> Result<()> {
        if let Some(running) = self.running()? {
            let killed = running.qemu.kill().and_then(|()| running.relay.kill());
            killed.with_context(|| format!("kill node {}", self.name()))?;
        }
        // Not yet in node.json, or zombies: either way they are ours to end and reap.
        for mut child in self.children.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            child.kill().and_then(|()| child.wait()).with_context(|| format!("reap node {}", self.name()))?;
        }
        Ok(())
    }

    /// Kills the node and boots it again: disks and /var/lib/weir stay, everything else is fresh.
    ///
    /// # Errors
    /// As [`Self::kill`] and [`Self::start`].
    pub fn reboot(&self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// Stops the machine's processors: it neither acts nor answers, and knows nothing of it afterwards.
    ///
    /// # Errors
    /// The node is down.
    pub fn pause(&self) -> Result<()> {
        self.monitor()?.execute("stop", json!({})).map(drop)
    }

    /// Lets a paused machine go on.
    ///
    /// # Errors
    /// The node is down.
    pub fn resume(&self) -> Result<()> {
        self.monitor()?.execute("cont", json!({})).map(drop)
    }

    /// Cuts links; commands of the lab go on working. A reboot heals them.
    ///
    /// # Errors
    /// The node is down.
    pub fn cut(&self, link: Link) -> Result<()> {
        self.set_link(link, false)
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    /// The node is down.
    pub fn heal(&self, link: Link) -> Result<()> {
        self.set_link(link, true)
    }

    fn set_link(&self, link: Link, up: bool) -> Result<()> {
        let mut running = self.up()?;
        let mut monitor = self.monitor()?;
        for nic in link.nics() {
            let name = nic.qemu_name();
            monitor
                .execute("set_link", json!({"name": name, "up": up}))
                .with_context(|| format!("set link {name} of node {}", self.name()))?;
            running.cut.retain(|cut| cut != name);
            if !up {
                running.cut.push(name.to_owned());
            }
        }
        self.save(&running)
    }

    /// The monitor of the node's QEMU.
    ///
    /// # Errors
    /// The node is down.
    pub fn monitor(&self) -> Result<Qmp<UnixStream>> {
        self.up()?;
        Qmp::connect(&self.dir().join("qmp.sock")).with_context(|| format!("monitor of node {}", self.name()))
    }

    /// Plugs another node's disk `disk` (from 0) into slot `slot` (0 or 1) of this running one. The other one must be down, and
    /// stay so until the disk is unplugged.
    ///
    /// # Errors
    /// QEMU's: the node is down, the slot is taken, or the image is in use.
    pub fn plug(&self, slot: u8, from: &Node, disk: u8) -> Result<()> {
        let (name, bs) = (qemu::slot(slot), self.shared.config.logical_block_size);
        let (drive, device) = (format!("{name}-drive"), format!("{name}-disk"));
        let mut monitor = self.monitor()?;
        let image = json!({"driver": "file", "filename": from.disk_image(disk), "aio": "threads"});
        monitor.execute(
            "blockdev-add",
            json!({"driver": "raw", "node-name": drive, "discard": "unmap", "detect-zeroes": "unmap", "file": image}),
        )?;
        monitor.execute(
            "device_add",
            json!({"driver": "virtio-blk-pci", "id": device, "bus": name, "drive": drive,
                "serial": names::disk_serial(from.number, disk),
                "logical_block_size": bs, "physical_block_size": bs}),
        )?;
        Ok(())
    }

    /// Takes out what was plugged into a slot, as soon as the node's kernel lets go of it.
    ///
    /// # Errors
    /// QEMU's, or the kernel does not let go.
    pub fn unplug(&self, slot: u8) -> Result<()> {
        let name = qemu::slot(slot);
        let (drive, device) = (format!("{name}-drive"), format!("{name}-disk"));
        let mut monitor = self.monitor()?;
        monitor.execute("device_del", json!({"id": device}))?;
        wait::until(&format!("{device} of node {} to be out", self.name()), BOOT_LIMIT, || {
            let there = monitor.execute("qom-list", json!({"path": "/machine/peripheral"}))?;
            let out = there.as_array().is_some_and(|all| all.iter().all(|d| d["name"] != device.as_str()));
            Ok(out.then_some(()))
        })?;
        // QEMU lets go of the drive a moment after the device is out of its tree.
        wait::until(&format!("{drive} of node {} to be free", self.name()), BOOT_LIMIT, || {
            Ok(monitor.execute("blockdev-del", json!({"node-name": drive})).ok())
        })
        .map(drop)
    }

    fn agent(&self) -> Result<Agent> {
        self.up()?;
        Ok(Agent { dir: self.dir() })
    }

    /// Runs a shell command to its end, for up to [`EXEC_LIMIT`]. Past that it is killed.
    ///
    /// # Errors
    /// The node is out of reach or the limit passed; not that the command failed.
    pub fn exec(&self, script: &str) -> Result<Output> {
        self.exec_within(script, EXEC_LIMIT)
    }

    /// [`Self::exec`] with a limit of one's own.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_within(&self, script: &str, limit: Duration) -> Result<Output> {
        self.exec_with(shell(script), Stdin::Empty, limit)
    }

    /// Runs any command with any stdin.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_with(&self, cmd: Cmd, stdin: Stdin<'_>, limit: Duration) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit = self.stream(cmd, stdin, limit, |chunk| match chunk {
            Chunk::Stdout(bytes) => stdout.extend_from_slice(bytes),
            Chunk::Stderr(bytes) => stderr.extend_from_slice(bytes),
        })?;
        Ok(Output { exit, stdout, stderr })
    }

    /// Runs any command, with its output as it comes.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn stream(
        &self,
        cmd: Cmd,
        stdin: Stdin<'_>,
        limit: Duration,
        sink: impl FnMut(Chunk<'_>),
    ) -> Result<Exit> {
        let what = cmd.argv.join(" ");
        self.agent()?.run(cmd, stdin, limit, sink).with_context(|| format!("node {}: `{what}`", self.name()))
    }

    /// Runs a shell command that must succeed; returns its stdout without the last newline.
    ///
    /// # Errors
    /// It failed: with what it wrote.
    pub fn run_ok(&self, script: &str) -> Result<String> {
        self.exec(script)?.check(script).with_context(|| format!("node {}", self.name()))
    }

    /// Starts a shell command in the background, in a process group of its own; its output is appended to
    /// [`Self::log`]`(name)`. `exec` is put before it, so that the process id is that of the command.
    ///
    /// # Errors
    /// The node is out of reach.
    pub fn spawn(&self, name: &str, command: &str) -> Result<Background> {
        let op = Op::Spawn { name: name.to_owned(), cmd: shell(&format!("exec {command}")) };
        match self.call(op)? {
            Reply::Spawned { pid } => Ok(Background { pid, name: name.to_owned() }),
            other => bail!("{other:?} is no answer to a spawn"),
        }
    }

    /// How a background command ended; `None` while it runs.
    ///
    /// # Errors
    /// The node is out of reach, or was rebooted since.
    pub fn ended(&self, background: &Background) -> Result<Option<Exit>> {
        match self.call(Op::Poll { pid: background.pid })? {
            Reply::Ended(exit) => Ok(exit),
            other => bail!("{other:?} is no answer to a poll"),
        }
    }

    /// Sends a signal, by name (`KILL`), to a background command's process group; one that has ended gets none.
    ///
    /// # Errors
    /// The node is out of reach, or was rebooted since.
    pub fn signal(&self, background: &Background, signal: &str) -> Result<()> {
        match self.call(Op::Signal { pid: background.pid, signal: signal_number(signal)?.as_raw() })? {
            Reply::Signalled => Ok(()),
            other => bail!("{other:?} is no answer to a signal"),
        }
    }

    fn call(&self, op: Op) -> Result<Reply> {
        self.agent()?.call(op, EXEC_LIMIT).with_context(|| format!("node {}", self.name()))
    }

    /// A connection to a Unix socket in the node.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn dial(&self, unix: &str) -> Result<UnixStream> {
        self.agent()?.dial(unix, EXEC_LIMIT).with_context(|| format!("node {}: dial {unix}", self.name()))
    }

    /// A Unix socket on the host that leads to a Unix socket in the node, as long as the result lives.
    ///
    /// # Errors
    /// No socket can be made in `dir`.
    pub fn forward(self: &Arc<Self>, unix: &str, dir: &Path) -> Result<Forward> {
        Forward::start(Arc::clone(self), unix, dir)
    }

    /// Writes a file in the node.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_file(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let cmd = argv(["/bin/sh", "-c", "mkdir -p \"$(dirname \"$1\")\" && cat >\"$1\"", "sh", path]);
        let output = self.exec_with(cmd, Stdin::Bytes(bytes), EXEC_LIMIT)?;
        output.check(&format!("write {path}")).with_context(|| format!("node {}", self.name())).map(drop)
    }

    /// Reads a file in the node.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let output = self.exec_with(argv(["cat", path]), Stdin::Empty, EXEC_LIMIT)?;
        output.check(&format!("cat {path}")).with_context(|| format!("node {}", self.name()))?;
        Ok(output.stdout)
    }
}

fn signal_number(name: &str) -> Result<Signal> {
    Ok(match name {
        "KILL" => Signal::KILL,
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        _ => bail!("no signal is called {name}"),
    })
}

/// A command that runs in the background of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Background {
    /// Its process id, also its process group.
    pub pid: u32,
    /// The name of its log.
    pub name: String,
}

/// A shell script as a command.
#[must_use]
pub fn shell(script: &str) -> Cmd {
    argv(["/bin/sh", "-c", script])
}

/// A program and its arguments as a command.
#[must_use]
pub fn argv<const N: usize>(words: [&str; N]) -> Cmd {
    Cmd { argv: words.map(str::to_owned).to_vec(), env: Vec::new() }
}
