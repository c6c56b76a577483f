//! Kernel calls and tools on threads of their own, from async code. The volume's lock goes along: what does not
//! return keeps its volume locked.

use std::time::Duration;

use kernel::deadline::{Outcome, Runner};

use super::{error::CsiError, locks::Lock};

/// Calls that may run or be stuck at once: as many as volumes can be staged, so that one node's worth of stuck
/// volumes does not stop the rest.
const MAX_CALLS: usize = 512;

/// Runs blocking work.
#[derive(Clone, Debug)]
pub(super) struct Work(Runner);

impl Work {
    pub(super) fn new() -> Self {
        Self(Runner::new(MAX_CALLS))
    }

    /// Runs `f` on a thread and waits for it until the time is over.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        lock: &Lock,
        what: &str,
        within: Duration,
        f: impl FnOnce() -> Result<T, CsiError> + Send + 'static,
    ) -> Result<T, CsiError> {
        let volume = lock.volume();
        let (runner, held, name) = (self.0.clone(), lock.clone(), what.to_owned());
        let call = move || {
            let locked = move || {
                let out = f();
                drop(held);
                out
            };
            runner.run(&name, within, locked)
        };
        match tokio::task::spawn_blocking(call).await {
            Ok(Ok(Outcome::Done(out))) => out,
            Ok(Ok(Outcome::TimedOut(_))) => Err(CsiError::TimedOut { volume, what: what.to_owned(), within }),
            Ok(Err(source)) => Err(CsiError::NotStarted { volume, source }),
            Err(_) => Err(CsiError::Panicked { volume, what: what.to_owned() }),
        }
    }
}
