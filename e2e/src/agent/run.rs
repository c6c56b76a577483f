//! One command on one connection: a single loop over its pipes, its pidfd and the host's socket.
//!
//! Invariants: all a command wrote before it ended reaches the host before its exit does, and what it leaves running in
//! the background, pipes in hand, does not delay that. A host that goes away takes the command's process group with it.

use crate::proto::{Cmd, Exit, Frames, Kind, MAX_FRAME, write_frame, write_json};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

pub(super) fn command(cmd: &Cmd) -> io::Result<Command> {
    let Some((program, args)) = cmd.argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "empty command"));
    };
    let mut command = Command::new(program);
    command.args(args).envs(cmd.env.iter().map(|(k, v)| (k, v))).current_dir("/").process_group(0);
    Ok(command)
}

pub(super) fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(255),
    }
}

/// Runs `cmd` with its streams on `host`, to its end or to the connection's.
pub(super) fn run(host: &mut UnixStream, cmd: &Cmd) -> io::Result<()> {
    let mut child =
        match command(cmd)?.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(e) => {
                // As a shell would say it.
                write_frame(host, Kind::Stderr, format!("{}: {e}\n", cmd.argv[0]).as_bytes())?;
                let code = if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
                return write_json(host, Kind::Exit, &Exit::Code(code));
            }
        };
    let ended = Streams::new(&mut child).and_then(|mut streams| streams.pump(host, &mut child));
    match ended {
        Ok(exit) => write_json(host, Kind::Exit, &exit),
        Err(e) => {
            kill_group(&child)?;
            child.wait()?;
            Err(e)
        }
    }
}

fn kill_group(child: &Child) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(child.id().cast_signed()) else { return Ok(()) };
    match kill_process_group(pid, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The pipes of a running command.
struct Streams {
    stdin: Option<ChildStdin>,
    /// What the host sent for stdin and the command has not read yet.
    unread: Vec<u8>,
    stdin_ends: bool,
    from_host: Frames,
    outputs: [Option<Output>; 2],
}

struct Output {
    pipe: Box<dyn ReadFd>,
    kind: Kind,
}

trait ReadFd: Read + AsFd {}
impl<T: Read + AsFd> ReadFd for T {}

impl Streams {
    fn new(child: &mut Child) -> io::Result<Streams> {
        let missing = || io::Error::other("the command has no pipes");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let outputs = [
            Some(Output { pipe: Box::new(stdout), kind: Kind::Stdout }),
            Some(Output { pipe: Box::new(stderr), kind: Kind::Stderr }),
        ];
        Ok(Streams {
            stdin: Some(stdin),
            unread: Vec::new(),
            stdin_ends: false,
            from_host: Frames::default(),
            outputs,
        })
    }

    fn pump(&mut self, host: &mut UnixStream, child: &mut Child) -> io::Result<Exit> {
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::other("no process id"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let ready = self.wait(host.as_fd(), pidfd.as_fd())?;
            if ready.host {
                self.read_host(host)?;
            }
            self.feed_stdin()?;
            self.drain(host)?;
            if ready.ended {
                // What it wrote is in the pipes already; whatever comes later is from what it left behind.
                self.drain(host)?;
                return Ok(exit_of(child.wait()?));
            }
        }
    }

    fn wait(&self, host: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(host, PollFlags::IN),
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
        ];
        for output in self.outputs.iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(output.pipe.as_fd(), PollFlags::IN));
        }
        if let (Some(stdin), false) = (&self.stdin, self.unread.is_empty()) {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT));
        }
        loop {
            match poll(&mut fds, None) {
                Ok(_) => {
                    return Ok(Ready {
                        host: !fds[0].revents().is_empty(),
                        ended: !fds[1].revents().is_empty(),
                    });
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn read_host(&mut self, host: &mut UnixStream) -> io::Result<()> {
        let mut buffer = [0; 1 << 16];
        let count = host.read(&mut buffer)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the host hung up"));
        }
        self.from_host.push(&buffer[..count]);
        self.take_stdin()
    }

    fn take_stdin(&mut self) -> io::Result<()> {
        while let Some((kind, payload)) = self.from_host.next_frame()? {
            if kind != Kind::Stdin {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected frame {kind:?}")));
            }
            self.stdin_ends |= payload.is_empty();
            self.unread.extend_from_slice(&payload);
        }
        Ok(())
    }

    fn feed_stdin(&mut self) -> io::Result<()> {
        while let (Some(stdin), false) = (&mut self.stdin, self.unread.is_empty()) {
            match stdin.write(&self.unread) {
                Ok(count) => drop(self.unread.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                    self.stdin = None;
                    self.unread.clear();
                }
                Err(e) => return Err(e),
            }
        }
        if self.stdin_ends {
            self.stdin = None;
        }
        Ok(())
    }

    /// Sends on what the pipes hold now.
    fn drain(&mut self, host: &mut UnixStream) -> io::Result<()> {
        let mut buffer = vec![0; MAX_FRAME.min(1 << 16)];
        for slot in &mut self.outputs {
            while let Some(output) = slot {
                match output.pipe.read(&mut buffer) {
                    Ok(0) => *slot = None,
                    Ok(count) => write_frame(host, output.kind, &buffer[..count])?,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

struct Ready {
    host: bool,
    ended: bool,
}
