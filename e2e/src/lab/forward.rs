//! A Unix socket on the host that stands for one in a node, so that a gRPC client here can talk to a plugin there.

use super::node::Node;
use anyhow::{Context, Result};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The socket; it is removed when this is dropped. Connections that are open then go on to their end.
#[derive(Debug)]
pub struct Forward {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    pub(super) fn start(node: Arc<Node>, unix: &str, dir: &Path) -> Result<Forward> {
        let path = dir.join(format!("{}-{}.sock", node.name(), unix.trim_matches('/').replace('/', "-")));
        let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (unix, stopped) = (unix.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (node, unix) = (Arc::clone(&node), unix.clone());
                std::thread::spawn(move || {
                    // The client sees its connection close, which is what a plugin that is gone looks like.
                    drop(connect(&node, &unix, &client));
                });
            }
        });
        Ok(Forward { path, stop, thread: Some(thread) })
    }

    /// Where to connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn connect(node: &Node, unix: &str, client: &UnixStream) -> Result<()> {
    let inner = node.dial(unix)?;
    match crate::agent::splice(&inner, client) {
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Ok(()),
        other => other.context("carry bytes"),
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // One last connection wakes the listener, which then sees the flag.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let (Some(thread), true) = (self.thread.take(), woken) {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.path));
    }
}
