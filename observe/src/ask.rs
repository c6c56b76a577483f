//! The other end of what is told: a plain question whether something is ready.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::Verdict;

/// How long any part of it may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks whoever tells at `HOST:PORT` whether it is ready.
///
/// # Errors
/// Nobody answers there, or the answer is that it is not, with the reason.
pub fn ask_ready(at: &str) -> Verdict {
    let answer = get(at, "/readyz").map_err(|e| format!("{at} does not answer: {e}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!("{at} is not ready: {} {body}", head.lines().next().unwrap_or_default())),
    }
}

fn get(at: &str, path: &str) -> io::Result<String> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in at.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, LIMIT) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                write!(stream, "GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                return Ok(text);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}
