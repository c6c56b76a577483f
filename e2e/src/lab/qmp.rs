//! A small QMP client: one command after another, events skipped.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to a QEMU's monitor; `S` is the way there, such as a Unix socket or a [`super::client::Tunnel`].
#[derive(Debug)]
pub struct Qmp<S: Read + Write> {
    stream: BufReader<S>,
}

/// Connects to a Unix socket whose path may be longer than the 107 bytes an address can hold.
///
/// # Errors
/// Those of the folder and the socket.
pub fn connect_long(socket: &Path) -> Result<UnixStream> {
    let (dir, name) = socket.parent().zip(socket.file_name()).context("a socket's path")?;
    let dir = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).with_context(|| format!("connect to {}", socket.display()))
}

impl Qmp<UnixStream> {
    /// Connects to a monitor's socket on this host.
    ///
    /// # Errors
    /// Nobody listens there, or it is not QMP.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = connect_long(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).context("set a timeout")?;
        Qmp::over(stream)
    }
}

impl<S: Read + Write> Qmp<S> {
    /// Speaks QMP over a connection that is there already.
    ///
    /// # Errors
    /// It is not QMP.
    pub fn over(stream: S) -> Result<Self> {
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes one command and returns what it returned.
    ///
    /// # Errors
    /// The connection's, or what QEMU said.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = serde_json::to_vec(&json!({"execute": command, "arguments": arguments}))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).with_context(|| format!("send {command}"))?;
        loop {
            let mut answer = self.read().with_context(|| format!("wait for the answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or("no reason given"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Executes a command of the human monitor and returns its text.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn human(&mut self, line: &str) -> Result<String> {
        let text = self.execute("human-monitor-command", json!({"command-line": line}))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("read from QEMU")? == 0 {
            bail!("QEMU closed the monitor");
        }
        serde_json::from_str(&line).with_context(|| format!("parse {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_among_events() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a".repeat(90)).join("qmp.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let parent = File::open(path.parent().unwrap()).unwrap();
        let short = format!("/proc/self/fd/{}/qmp.sock", parent.as_raw_fd());
        let listener = std::os::unix::net::UnixListener::bind(short).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for answer in [
                "{\"return\": {}}",
                "{\"event\": \"STOP\"}\n{\"return\": \"x\"}",
                "{\"error\": {\"desc\": \"no\"}}",
            ] {
                lines.next().unwrap().unwrap();
                writeln!(stream, "{answer}").unwrap();
            }
        });
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.human("info usernet").unwrap(), "x");
        assert!(qmp.execute("stop", json!({})).unwrap_err().to_string().contains("no"));
        server.join().unwrap();
    }
}
