//! The host's side of commands in nodes. Knows the relay's socket; knows nothing of QEMU.

use super::relay;
use crate::proto::{Cmd, Exit, Kind, MAX_FRAME, Op, Reply, read_frame, write_frame, write_json};
use anyhow::{Context, Result, anyhow, bail};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a node's agent is.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The node's folder.
    pub dir: PathBuf,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Did it return 0?
    #[must_use]
    pub fn ok(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// Stdout as text, without the last newline.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Stderr as text, without the last newline.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end_matches('\n').to_owned()
    }

    /// Stdout as text.
    ///
    /// # Errors
    /// It did not return 0: what it wrote to both streams.
    pub fn check(&self, what: &str) -> Result<String> {
        if !self.ok() {
            bail!("`{what}` ended with {:?}: {}\n{}", self.exit, self.errors(), self.text());
        }
        Ok(self.text())
    }
}

/// A piece of a running command's output.
#[derive(Debug, Clone, Copy)]
pub enum Chunk<'a> {
    /// From stdout.
    Stdout(&'a [u8]),
    /// From stderr.
    Stderr(&'a [u8]),
}

/// What a command reads.
pub enum Stdin<'a> {
    /// Nothing: end of file at once.
    Empty,
    /// These bytes.
    Bytes(&'a [u8]),
    /// What a thread of its own reads from here, as long as the command runs.
    From(Box<dyn Read + Send>),
}

impl Agent {
    fn ask(&self, op: &Op, deadline: Instant) -> Result<UnixStream> {
        let mut stream = relay::connect(&self.dir)?;
        stream.set_write_timeout(Some(remaining(deadline)?)).context("set a timeout")?;
        write_json(&mut stream, Kind::Request, op).context("send the request")?;
        Ok(stream)
    }

    /// The boot that the agent runs on.
    ///
    /// # Errors
    /// The agent is out of reach.
    pub fn boot_id(&self, limit: Duration) -> Result<String> {
        match self.call(Op::Ping, limit)? {
            Reply::Hello { boot_id } => Ok(boot_id),
            other => bail!("the agent answered {other:?} to a ping"),
        }
    }

    /// One question, one answer.
    ///
    /// # Errors
    /// The agent is out of reach, or said that it failed.
    pub fn call(&self, op: Op, limit: Duration) -> Result<Reply> {
        let deadline = Instant::now() + limit;
        let mut stream = self.ask(&op, deadline)?;
        read_reply(&mut stream, deadline)
    }

    /// A raw connection to a Unix socket in the node.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn dial(&self, unix: &str, limit: Duration) -> Result<UnixStream> {
        let deadline = Instant::now() + limit;
        let mut stream = self.ask(&Op::Dial { unix: unix.to_owned() }, deadline)?;
        match read_reply(&mut stream, deadline)? {
            Reply::Dialled => {}
            other => bail!("the agent answered {other:?} to a dial"),
        }
        stream
            .set_read_timeout(None)
            .and_then(|()| stream.set_write_timeout(None))
            .context("lift the timeouts")?;
        Ok(stream)
    }

    /// Runs `cmd`, giving its output to `sink` as it comes. Past `limit` the command is killed.
    ///
    /// # Errors
    /// The agent is out of reach or goes away, or the limit has passed. How the command ended is no error.
    pub fn run(
        &self,
        cmd: Cmd,
        stdin: Stdin<'_>,
        limit: Duration,
        mut sink: impl FnMut(Chunk<'_>),
    ) -> Result<Exit> {
        let deadline = Instant::now() + limit;
        let mut stream = self.ask(&Op::Run(cmd), deadline)?;
        let mut writer = stream.try_clone().context("share the connection")?;
        std::thread::scope(|scope| {
            match stdin {
                Stdin::Empty => write_frame(&mut writer, Kind::Stdin, b"").context("close stdin")?,
                Stdin::Bytes(bytes) => drop(scope.spawn(move || send_all(&mut writer, bytes))),
                Stdin::From(from) => drop(std::thread::spawn(move || send_from(&mut writer, from))),
            }
            let ended = read_until_exit(&mut stream, deadline, &mut sink);
            // Wakes the thread that may still be writing what nobody reads any more.
            drop(stream.shutdown(std::net::Shutdown::Both));
            ended
        })
    }
}

fn send_all(to: &mut UnixStream, bytes: &[u8]) {
    let sent = bytes.chunks(MAX_FRAME).try_for_each(|chunk| write_frame(to, Kind::Stdin, chunk));
    // A command may end without reading all it is given; the reader of its output sees what became of it.
    drop(sent.and_then(|()| write_frame(to, Kind::Stdin, b"")));
}

fn send_from(to: &mut UnixStream, mut from: Box<dyn Read + Send>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        if write_frame(to, Kind::Stdin, &buffer[..count]).is_err() || count == 0 {
            return;
        }
    }
}

fn read_until_exit(
    stream: &mut UnixStream,
    deadline: Instant,
    sink: &mut impl FnMut(Chunk<'_>),
) -> Result<Exit> {
    loop {
        let (kind, payload) = read_by(stream, deadline)?;
        match kind {
            Kind::Stdout => sink(Chunk::Stdout(&payload)),
            Kind::Stderr => sink(Chunk::Stderr(&payload)),
            Kind::Exit => return serde_json::from_slice(&payload).context("parse an exit"),
            other => bail!("unexpected frame {other:?} from the agent"),
        }
    }
}

fn read_reply(stream: &mut UnixStream, deadline: Instant) -> Result<Reply> {
    let (kind, payload) = read_by(stream, deadline)?;
    if kind != Kind::Reply {
        bail!("unexpected frame {kind:?} from the agent");
    }
    match serde_json::from_slice(&payload).context("parse a reply")? {
        Reply::Failed(why) => Err(anyhow!(why)),
        reply => Ok(reply),
    }
}

fn read_by(stream: &mut UnixStream, deadline: Instant) -> Result<(Kind, Vec<u8>)> {
    stream.set_read_timeout(Some(remaining(deadline)?)).context("set a timeout")?;
    read_frame(stream).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => anyhow!("no answer within the time limit"),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            anyhow!("the agent closed the connection")
        }
        _ => anyhow::Error::new(e).context("read from the agent"),
    })
}

fn remaining(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { bail!("no answer within the time limit") } else { Ok(left) }
}

/// Writes chunks through to this process's own streams.
///
/// # Errors
/// Those of the streams.
pub fn pass_through(chunk: Chunk<'_>) -> io::Result<()> {
    match chunk {
        Chunk::Stdout(bytes) => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        Chunk::Stderr(bytes) => io::stderr().lock().write_all(bytes),
    }
}
