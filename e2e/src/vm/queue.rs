//! Whether a guest is in step with its disk's queue. Where QEMU emulates the processor, a store may be lost when a migration
//! moves memory: the emulator tests whether a page is to be sent again, and stores, and the migration may look between the two. If
//! that store counted what the guest has taken from its queue, the guest reads the ends of other requests as the end of its own, and
//! sees errors that no disk has made.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Vm, command, guest::Guest};

/// How often the queue is looked at: of a guest that is out of step nearly each look tells.
const LOOKS: usize = 100;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A guest has lost step with its disk's queue: what it counted is the emulator's doing, and says nothing about the volume.
#[derive(Debug, thiserror::Error)]
#[error(
    "{said}: the emulator has lost a store of its guest, which waits for each request and has {under_way} under way"
)]
pub struct OutOfStep {
    /// What the guest counted, and QEMU.
    pub said: String,
    /// The most requests that were under way at once.
    pub under_way: u64,
}

impl Vm {
    /// The error of a guest that has counted errors: [`OutOfStep`] if that is why.
    pub(super) fn mishap(&self, said: String) -> anyhow::Error {
        if !matches!(self.guest, Guest::Small(_)) {
            // Others have many requests under way.
            return anyhow::Error::msg(said);
        }
        match self.most_under_way() {
            Ok(under_way @ 2..) => OutOfStep { said, under_way }.into(),
            Ok(_) => anyhow::Error::msg(said),
            Err(e) => e.context(said),
        }
    }

    /// The most requests of the guest that QEMU had at once, of some looks.
    ///
    /// # Errors
    /// QEMU is gone, or knows no such queue.
    pub fn most_under_way(&self) -> Result<u64> {
        let mut monitor = self.monitor()?;
        let queue =
            json!({"path": format!("/machine/peripheral/{}/virtio-backend", command::VOLUME), "queue": 0});
        let mut most = 0;
        for _ in 0..LOOKS {
            let status: Value = monitor.execute("x-query-virtio-queue-status", queue.clone())?;
            most = most.max(status["inuse"].as_u64().with_context(|| format!("no requests in {status}"))?);
            std::thread::sleep(PAUSE);
        }
        Ok(most)
    }
}
