//! Kernel calls for the async side: each on a thread of its own, none ever awaited without somebody being told when
//! it takes too long.
//!
//! A call that does not return counts as not done, keeps its thread, and keeps its object from making another such
//! call: what comes back late must not undo what was done meanwhile under a newer goal. Other objects are not
//! concerned: only the start of calls is throttled, and a call that is slow gives its place away.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use kernel::deadline::{DeadlineError, Outcome, Runner, Running};
use tokio::sync::{Semaphore, oneshot};

/// Threads at the very most, stuck ones counted: some calls for each of the objects a node can have.
const MAX_THREADS: usize = 4096;
/// Calls that are started at the same time. More would only wait for the same CPUs, each with a stack of its own.
const AT_ONCE: usize = 32;
/// After so long a call is slow, and another may start in its place.
const SLOW: Duration = Duration::from_millis(500);

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was not started.
    #[error(transparent)]
    NotStarted(#[from] DeadlineError),
    /// It panicked: a defect of this program.
    #[error("kernel call {0} panicked")]
    Panicked(String),
}

/// Starts calls.
#[derive(Clone, Debug)]
pub struct Calls {
    runner: Runner,
    places: Arc<Semaphore>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { runner: Runner::new(MAX_THREADS), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Calls {
    /// Runs `f` on a thread of its own and waits for it, however long it takes: the caller puts a deadline on its
    /// own waiting, and does not start another call for the same object before this one is back.
    pub fn run<T: Send + 'static>(
        &self,
        what: String,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, CallError>> + Send + 'static {
        let (runner, places) = (self.runner.clone(), self.places.clone());
        async move {
            let place = places.acquire_owned().await.ok();
            let (tx, mut rx) = oneshot::channel();
            // The runner would hand a panic to whoever waits with it. Here that is seen by the sender's end, whenever it comes.
            let body = move || {
                if let Ok(t) = catch_unwind(AssertUnwindSafe(f)) {
                    // An error means that nobody waits any more.
                    drop(tx.send(t));
                }
            };
            // Zero: the runner starts the thread and keeps count of it, the waiting is ours.
            match runner.run(&what, Duration::ZERO, body)? {
                Outcome::Done(()) | Outcome::TimedOut(_) => {}
            }
            let quick = tokio::time::timeout(SLOW, &mut rx).await;
            drop(place);
            let back = match quick {
                Ok(r) => r,
                Err(_) => rx.await,
            };
            back.map_err(|_| CallError::Panicked(what))
        }
    }

    /// Calls that have been running for longer than `age`: for health and for people.
    pub fn older_than(&self, age: Duration) -> Vec<Running> {
        let now = Instant::now();
        let mut r = self.runner.running();
        r.retain(|c| now.saturating_duration_since(c.since) >= age);
        r
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn stuck_calls_do_not_keep_others_from_starting() {
        let calls = Calls::default();
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let stuck: Vec<_> = (0..AT_ONCE + 3)
            .map(|n| {
                let wait = wait.clone();
                tokio::spawn(calls.run(format!("stuck {n}"), move || wait.lock().unwrap().recv().is_ok()))
            })
            .collect();
        let running =
            || calls.older_than(Duration::ZERO).iter().filter(|r| r.what.starts_with("stuck")).count();
        let every_place_is_taken = async {
            while running() < AT_ONCE {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), every_place_is_taken).await.unwrap();
        let r = tokio::time::timeout(Duration::from_secs(30), calls.run("quick".into(), || 7)).await;
        assert_eq!(r.unwrap().unwrap(), 7);
        assert!(running() >= AT_ONCE);
        for _ in &stuck {
            go.send(()).unwrap();
        }
        for s in stuck {
            assert!(s.await.unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let r = Calls::default().run("bad".into(), || -> u32 { panic!("on purpose") }).await;
        assert!(matches!(r, Err(CallError::Panicked(w)) if w == "bad"));
    }
}
