//! What host and agent say to each other: one connection for one request, in frames of kind, length, payload.
//!
//! The first frame is always an [`Op`] as JSON. A run answers with any number of `Stdout` and `Stderr` frames and one
//! `Exit`; other requests answer with one `Reply`; after the reply to `Dial` the connection carries raw bytes. A
//! connection that closes before `Exit` means: kill what it was running.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The name of the virtio-serial port that leads to the agent.
pub const PORT_NAME: &str = "weir.agent";
/// No frame is longer than this.
pub const MAX_FRAME: usize = 1 << 20;

/// What a host may want of a node.
#[derive(Debug, Serialize, Deserialize)]
pub enum Op {
    /// Are you there? Answers [`Reply::Hello`].
    Ping,
    /// Run a command with its streams on this connection.
    Run(Cmd),
    /// Start a command that outlives this connection; its output goes to `log/NAME.log` in the node's folder.
    Spawn {
        /// Name of the log file.
        name: String,
        /// What to start.
        cmd: Cmd,
    },
    /// How did a spawned command end? Answers `Ended` with `None` while it runs.
    Poll {
        /// Its process id, from [`Reply::Spawned`].
        pid: u32,
    },
    /// Send a signal to a spawned command's process group, if it still runs.
    Signal {
        /// Its process id.
        pid: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Connect this connection to a Unix socket in the node.
    Dial {
        /// The socket's path.
        unix: String,
    },
}

/// A command: argv, additions to the agent's environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cmd {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables to set.
    pub env: Vec<(String, String)>,
}

/// The one answer to anything but a run.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The agent serves, on this boot.
    Hello {
        /// The kernel's boot id.
        boot_id: String,
    },
    /// Started.
    Spawned {
        /// Process id, also the process group.
        pid: u32,
    },
    /// State of a spawned command.
    Ended(Option<Exit>),
    /// Sent.
    Signalled,
    /// The socket is connected; raw bytes follow.
    Dialled,
    /// It did not work, and why.
    Failed(String),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// The code a shell would show: signals are 128 and above.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Op`], JSON.
    Request = 0,
    /// [`Reply`], JSON.
    Reply = 1,
    /// Bytes for the command's stdin; an empty frame closes it.
    Stdin = 2,
    /// Bytes from its stdout.
    Stdout = 3,
    /// Bytes from its stderr.
    Stderr = 4,
    /// [`Exit`], JSON; the last frame of a run.
    Exit = 5,
}

impl Kind {
    fn parse(byte: u8) -> io::Result<Kind> {
        [Kind::Request, Kind::Reply, Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Exit]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| bad(format!("unknown frame kind {byte}")))
    }
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Writes one frame in one write.
///
/// # Errors
/// Those of the stream.
pub fn write_frame(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_FRAME);
    let len = len.ok_or_else(|| bad(format!("frame of {} bytes", payload.len())))?;
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)
}

/// Writes `value` as a JSON frame.
///
/// # Errors
/// Those of the stream.
pub fn write_json(to: &mut impl Write, kind: Kind, value: &impl Serialize) -> io::Result<()> {
    write_frame(to, kind, &serde_json::to_vec(value)?)
}

/// Reads one frame from a blocking stream.
///
/// # Errors
/// Those of the stream; `InvalidData` for what is no frame.
pub fn read_frame(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let (kind, len) = parse_head(&head)?;
    let mut payload = vec![0; len];
    from.read_exact(&mut payload)?;
    Ok((kind, payload))
}

fn parse_head(head: &[u8; 5]) -> io::Result<(Kind, usize)> {
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if len > MAX_FRAME {
        return Err(bad(format!("frame of {len} bytes")));
    }
    Ok((Kind::parse(head[0])?, len))
}

/// Takes whole frames out of bytes that arrive in pieces.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// `InvalidData` for what is no frame.
    pub fn next_frame(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let Some(head) = self.bytes.first_chunk::<5>() else { return Ok(None) };
        let (kind, len) = parse_head(head)?;
        if self.bytes.len() < 5 + len {
            return Ok(None);
        }
        let payload = self.bytes[5..5 + len].to_vec();
        self.bytes.drain(..5 + len);
        Ok(Some((kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whole_however_they_are_cut() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Stdout, b"hello").unwrap();
        write_frame(&mut wire, Kind::Stdin, b"").unwrap();
        write_json(&mut wire, Kind::Exit, &Exit::Signal(9)).unwrap();
        for step in 1..wire.len() {
            let (mut frames, mut got) = (Frames::default(), Vec::new());
            for piece in wire.chunks(step) {
                frames.push(piece);
                while let Some(frame) = frames.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got.len(), 3);
            assert_eq!(got[0], (Kind::Stdout, b"hello".to_vec()));
            assert_eq!(got[1], (Kind::Stdin, Vec::new()));
            assert_eq!(serde_json::from_slice::<Exit>(&got[2].1).unwrap(), Exit::Signal(9));
        }
    }

    #[test]
    fn strangers_are_refused() {
        assert!(read_frame(&mut &b"GET / HTTP/1.1\r\n"[..]).is_err());
        let mut frames = Frames::default();
        frames.push(&[3, 0xff, 0xff, 0xff, 0xff]);
        assert!(frames.next_frame().is_err());
        assert!(write_frame(&mut Vec::new(), Kind::Stdin, &vec![0; MAX_FRAME + 1]).is_err());
    }
}
