//! Running a file system's tool with a deadline.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, setpriority_process},
};

use super::MountError;

/// What is kept of a tool's output.
const KEEP: usize = 16 << 10;
/// How much a tool gives way, as `nice` counts.
const YIELDS: i32 = 10;

/// Runs a tool to its end and gives what it said; the caller judges the status.
pub(super) fn run(tool: &str, args: &[&str], device: &Path, within: Duration) -> Result<Output, MountError> {
    let spawn = |source| MountError::Spawn { tool: tool.to_owned(), source };
    let mut child = Command::new(tool)
        .args(args)
        .arg(device)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn)?;
    // Ten file systems that are made at once must not keep this process from saying that it lives: it shares one small part of the
    // processor with them. A tool that runs as fast as others is no error.
    let _slower = setpriority_process(Some(Pid::from_child(&child)), YIELDS);
    let out = child.stdout.take().map(drain);
    let err = child.stderr.take().map(drain);
    let ended = wait(&mut child, within).map_err(spawn)?;
    let Some(status) = ended else {
        child.kill().map_err(spawn)?;
        // A tool that hangs in the kernel does not die at once: its threads are left to it, and it is reaped
        // when it does end.
        let stderr = err.filter(|t| t.is_finished()).map(text).unwrap_or_default();
        let reaper = thread::Builder::new().name("reap".into()).spawn(move || child.wait().map(drop));
        reaper.map(drop).map_err(spawn)?;
        return Err(MountError::ToolTimeout { tool: tool.to_owned(), after: within, stderr });
    };
    Ok(Output {
        status,
        stdout: out.map(text).unwrap_or_default().into_bytes(),
        stderr: err.map(text).unwrap_or_default().into_bytes(),
    })
}

/// As [`run`], for tools whose only good end is 0.
pub(super) fn run_ok(
    tool: &str,
    args: &[&str],
    device: &Path,
    within: Duration,
) -> Result<Output, MountError> {
    let out = run(tool, args, device, within)?;
    if out.status.success() { Ok(out) } else { Err(failed(tool, &out)) }
}

/// The error for an output that was not good.
pub(super) fn failed(tool: &str, out: &Output) -> MountError {
    let said = if out.stderr.is_empty() { &out.stdout } else { &out.stderr };
    MountError::Tool {
        tool: tool.to_owned(),
        status: out.status,
        stderr: String::from_utf8_lossy(said).trim().to_owned(),
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut kept, mut buf) = (Vec::new(), [0; 4096]);
        // Read to the end even when no more is kept, or the tool would block; an error ends it as an end would.
        while let Ok(n @ 1..) = pipe.read(&mut buf) {
            kept.extend_from_slice(&buf[..n.min(KEEP.saturating_sub(kept.len()))]);
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

fn text(t: thread::JoinHandle<String>) -> String {
    t.join().unwrap_or_default()
}

/// Waits for the end of a child through its pidfd; `None` when the time ran out.
fn wait(child: &mut Child, within: Duration) -> std::io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let ts = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&ts)) {
            Ok(0) => return Ok(None),
            Ok(_) => return child.wait().map(Some),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_says_why() {
        let e = run_ok("ls", &["-d"], Path::new("/no/such/file"), Duration::from_secs(30)).unwrap_err();
        assert!(e.to_string().contains("/no/such/file"), "{e}");
        assert!(run_ok("ls", &["-d"], Path::new("/"), Duration::from_secs(30)).is_ok());
        let e = run("/no/such/tool", &[], Path::new("/"), Duration::from_secs(1)).unwrap_err();
        assert!(matches!(e, MountError::Spawn { .. }));
    }

    #[test]
    fn a_tool_that_hangs_is_killed() {
        let e = run("sleep", &[], Path::new("1000"), Duration::from_millis(20)).unwrap_err();
        assert!(matches!(e, MountError::ToolTimeout { .. }), "{e}");
    }
}
