//! The server: one thread for one connection, one request on each.

use super::{HOST_DIR, run};
use crate::proto::{AGENT_PORT, Cmd, Exit, Kind, Op, Reply, Request, read_frame, write_json};
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

/// What all connections share.
struct Agent {
    token: String,
    boot_id: String,
    /// Commands that outlive their connection; `None` while they run.
    spawned: Mutex<HashMap<u32, Option<Exit>>>,
}

/// Serves the host until the machine dies.
///
/// # Errors
/// What kept it from listening.
pub fn serve() -> Result<()> {
    let token = fs::read_to_string(format!("{HOST_DIR}/token")).context("read the token")?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let agent = Agent { token, boot_id: boot_id.trim().to_owned(), spawned: Mutex::default() };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, AGENT_PORT)).context("listen for the host")?;
    fs::write(format!("{HOST_DIR}/ready"), &agent.boot_id).context("say that the node is ready")?;
    let agent = Arc::new(agent);
    for connection in listener.incoming() {
        let agent = Arc::clone(&agent);
        let mut host = connection.context("accept a connection")?;
        std::thread::Builder::new()
            .stack_size(1 << 18)
            .spawn(move || {
                if let Err(e) = agent.answer(&mut host) {
                    // A host that hangs up is how it says "kill that"; anything else belongs on the console.
                    if e.downcast_ref::<io::Error>().is_none_or(|e| e.kind() != io::ErrorKind::UnexpectedEof)
                    {
                        eprintln!("LAB agent: {e:#}");
                    }
                }
            })
            .context("start a thread")?;
    }
    Ok(())
}

impl Agent {
    fn answer(self: &Arc<Self>, host: &mut TcpStream) -> Result<()> {
        host.set_nodelay(true).context("set TCP_NODELAY")?;
        let (kind, payload) = read_frame(host)?;
        if kind != Kind::Request {
            bail!("a connection began with {kind:?}");
        }
        let request: Request = serde_json::from_slice(&payload).context("parse a request")?;
        if request.token != self.token {
            bail!("a connection with the wrong token");
        }
        let reply = match request.op {
            Op::Run(cmd) => return run::run(host, &cmd).map_err(Into::into),
            Op::Ping => Ok(Reply::Pong { boot_id: self.boot_id.clone() }),
            Op::Spawn { name, cmd } => self.spawn(&name, &cmd).map(|pid| Reply::Spawned { pid }),
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

    fn poll(&self, pid: u32) -> Result<Option<Exit>> {
        let spawned = self.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        spawned
            .get(&pid)
            .copied()
            .with_context(|| format!("process {pid} was not spawned by the host on this boot"))
    }
}

/// Carries bytes both ways until both sides have ended.
pub(crate) fn splice(host: &TcpStream, inner: &UnixStream) -> io::Result<()> {
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
