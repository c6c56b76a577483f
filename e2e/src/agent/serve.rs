//! The server: one thread for one channel of the serial port, one request on each.

use super::{HOST_DIR, run};
use crate::mux::Mux;
use crate::proto::{Cmd, Exit, Kind, Op, PORT_NAME, Reply, read_frame, write_json};
use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What all connections share.
struct Agent {
    boot_id: String,
    /// Commands that outlive their connection; `None` while they run.
    spawned: Mutex<HashMap<u32, Option<Exit>>>,
}

/// Serves the host until its relay is gone.
///
/// # Errors
/// What kept it from serving.
pub fn serve() -> Result<()> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let agent = Arc::new(Agent { boot_id: boot_id.trim().to_owned(), spawned: Mutex::default() });
    let path = port()?;
    let port = File::options().read(true).write(true).open(&path).with_context(|| format!("open {path}"))?;
    let mux = Mux::new(port.try_clone().context("share the port")?);
    fs::write(format!("{HOST_DIR}/ready"), &agent.boot_id).context("say that the node is ready")?;
    let input = Port { port, met: false };
    mux.carry(input, |mut host| {
        let agent = Arc::clone(&agent);
        let answer = move || {
            if let Err(e) = agent.answer(&mut host) {
                // A host that hangs up is how it says "kill that"; anything else belongs on the console.
                if e.downcast_ref::<io::Error>().is_none_or(|e| e.kind() != io::ErrorKind::UnexpectedEof) {
                    eprintln!("LAB agent: {e:#}");
                }
            }
        };
        std::thread::Builder::new().stack_size(1 << 18).spawn(answer).map(drop)
    })
    .context("serve the host")
}

/// The device of the port that leads to the host.
fn port() -> Result<String> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("list serial ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME) {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    bail!("there is no serial port {PORT_NAME}")
}

/// The port, which reads as ended as long as the host has not connected to it.
struct Port {
    port: File,
    met: bool,
}

impl Read for Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.port.read(buffer)?;
            if count > 0 || self.met {
                self.met = true;
                return Ok(count);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Agent {
    fn answer(self: &Arc<Self>, host: &mut UnixStream) -> Result<()> {
        let (kind, payload) = read_frame(host)?;
        if kind != Kind::Request {
            bail!("a connection began with {kind:?}");
        }
        let op: Op = serde_json::from_slice(&payload).context("parse a request")?;
        let reply = match op {
            Op::Run(cmd) => return run::run(host, &cmd).map_err(Into::into),
            Op::Ping => Ok(Reply::Hello { boot_id: self.boot_id.clone() }),
            Op::Spawn { name, cmd } => self.spawn(&name, &cmd).map(|pid| Reply::Spawned { pid }),
            Op::Signal { pid, signal } => self.signal(pid, signal).map(|()| Reply::Signalled),
            Op::Poll { pid } => self.poll(pid).map(Reply::Ended),
            Op::Dial { unix } => match UnixStream::connect(&unix) {
                Ok(inner) => {
                    write_json(host, Kind::Reply, &Reply::Dialled)?;
                    return splice(host, &inner).map_err(Into::into);
                }
                Err(e) => Err(anyhow::Error::new(e).context(format!("connect to {unix}"))),
            },
        };
        let reply = reply.unwrap_or_else(|e| Reply::Failed(format!("{e:#}")));
        write_json(host, Kind::Reply, &reply).map_err(Into::into)
    }

    fn spawn(self: &Arc<Self>, name: &str, cmd: &Cmd) -> Result<u32> {
        if name.is_empty() || name.contains('/') {
            bail!("{name:?} is no name for a log file");
        }
        let path = format!("{HOST_DIR}/log/{name}.log");
        let log =
            File::options().create(true).append(true).open(&path).with_context(|| format!("open {path}"))?;
        let mut child = run::command(cmd)?
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {:?}", cmd.argv))?;
        let pid = child.id();
        self.spawned.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, None);
        let agent = Arc::clone(self);
        std::thread::Builder::new().stack_size(1 << 17).spawn(move || {
            let exit = child.wait().map_or(Exit::Code(255), run::exit_of);
            agent.spawned.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, Some(exit));
        })?;
        Ok(pid)
    }

    fn signal(&self, pid: u32, signal: i32) -> Result<()> {
        let spawned = self.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        match spawned.get(&pid) {
            None => bail!("process {pid} was not spawned by the host on this boot"),
            Some(Some(_)) => Ok(()),
            Some(None) => {
                let signal =
                    Signal::from_named_raw(signal).with_context(|| format!("{signal} is no signal"))?;
                let group = Pid::from_raw(pid.cast_signed()).context("process id 0")?;
                match kill_process_group(group, signal) {
                    // It ended a moment ago.
                    Ok(()) | Err(Errno::SRCH) => Ok(()),
                    Err(e) => Err(e).with_context(|| format!("signal process group {pid}")),
                }
            }
        }
    }

    fn poll(&self, pid: u32) -> Result<Option<Exit>> {
        let spawned = self.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        spawned
            .get(&pid)
            .copied()
            .with_context(|| format!("process {pid} was not spawned by the host on this boot"))
    }
}

/// Carries bytes both ways until both sides have ended.
pub(crate) fn splice(host: &UnixStream, inner: &UnixStream) -> io::Result<()> {
    let (mut host_in, mut host_out) = (host.try_clone()?, host.try_clone()?);
    let (mut inner_in, mut inner_out) = (inner.try_clone()?, inner.try_clone()?);
    let up = std::thread::Builder::new().stack_size(1 << 17).spawn(move || {
        let copied = io::copy(&mut host_in, &mut inner_out);
        end(inner_out.shutdown(Shutdown::Write)).and(copied.map(drop))
    })?;
    let down = io::copy(&mut inner_in, &mut host_out).map(drop);
    let down = end(host_out.shutdown(Shutdown::Write)).and(down);
    let up = up.join().map_err(|_| io::Error::other("the other direction panicked"))?;
    down.and(up)
}

/// A side that is gone already needs no shutdown.
fn end(shutdown: io::Result<()>) -> io::Result<()> {
    match shutdown {
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}
