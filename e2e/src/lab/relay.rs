//! The relay: a small process beside each QEMU that lets any number of processes of this host talk to the node's agent.
//!
//! It ends with its QEMU. The socket it listens on is in the node's folder, which only the lab's owner can enter.

use super::qmp::connect_long;
use crate::mux::Mux;
use crate::wait;
use anyhow::{Context, Result};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The socket of QEMU's serial port, and the one that clients connect to; both in the node's folder.
pub(super) const PORT_SOCKET: &str = "port.sock";
pub(super) const AGENT_SOCKET: &str = "agent.sock";

/// Relays until QEMU ends. The working directory is the node's folder.
///
/// # Errors
/// The sockets', or what came from the node was no frame.
pub fn relay() -> Result<()> {
    let port = wait::until_ok("QEMU's serial port", Duration::from_secs(30), || {
        UnixStream::connect(PORT_SOCKET).map_err(Into::into)
    })?;
    let mux = Mux::new(port.try_clone().context("share the port")?);
    let listener = UnixListener::bind(AGENT_SOCKET).context("listen for clients")?;
    let opener = std::sync::Arc::clone(&mux);
    std::thread::Builder::new().stack_size(1 << 17).spawn(move || {
        for (id, client) in (0..).zip(listener.incoming()) {
            if let Err(e) = client.and_then(|client| opener.open(id, &client)) {
                eprintln!("relay: {e}");
            }
        }
    })?;
    mux.carry(port, |_| Err(io::Error::other("the agent opened a channel")))
        .context("carry the node's answers")
}

/// A connection to the agent of the node in `dir`.
pub(super) fn connect(dir: &Path) -> Result<UnixStream> {
    connect_long(&dir.join(AGENT_SOCKET))
}
