//! Kernel calls under a deadline. A call that does not return keeps its thread; the caller goes on and may ask
//! later. Until then it counts as not done. The number of such threads is bounded and can be seen.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use crate::Class;

/// Why a call was not even started.
#[derive(Debug, thiserror::Error)]
pub enum DeadlineError {
    /// As many calls as allowed are running or stuck.
    #[error(
        "{what} not started: {running} kernel calls have not returned, the oldest, {oldest}, for {age:?}"
    )]
    Saturated {
        /// What was to be done.
        what: String,
        /// How many run.
        running: usize,
        /// What the oldest is doing.
        oldest: String,
        /// For how long.
        age: Duration,
    },
    /// No thread could be made.
    #[error("{what} not started: no thread: {source}")]
    Thread {
        /// What was to be done.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl DeadlineError {
    /// What a caller may do about it: nothing was started in either case.
    pub fn class(&self) -> Class {
        match self {
            DeadlineError::Saturated { .. } => Class::Busy,
            DeadlineError::Thread { .. } => Class::Transient,
        }
    }
}

/// How a call under a deadline went.
#[derive(Debug)]
pub enum Outcome<T> {
    /// It returned.
    Done(T),
    /// It did not return in time; it may still.
    TimedOut(Pending<T>),
}

/// A call that has not returned.
#[derive(Debug)]
pub struct Pending<T> {
    what: String,
    since: Instant,
    rx: Receiver<thread::Result<T>>,
}

/// A call that runs, as an observer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it does.
    pub what: String,
    /// Since when.
    pub since: Instant,
}

/// Runs calls on threads of their own, at most `limit` at a time.
#[derive(Clone, Debug)]
pub struct Runner {
    limit: usize,
    running: Arc<Mutex<Vec<(u64, Running)>>>,
}

impl Runner {
    /// A runner for at most `limit` calls at a time, stuck ones counted.
    pub fn new(limit: usize) -> Self {
        Self { limit, running: Arc::default() }
    }

    /// Runs `f` and waits for it until the time is over.
    ///
    /// # Panics
    /// When `f` panics, in the caller.
    pub fn run<T: Send + 'static>(
        &self,
        what: &str,
        within: Duration,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Outcome<T>, DeadlineError> {
        let since = Instant::now();
        let id = self.enter(what, since)?;
        let (tx, rx) = mpsc::sync_channel(1);
        let running = self.running.clone();
        let body = move || {
            let r = catch_unwind(AssertUnwindSafe(f));
            leave(&running, id);
            // An error means that the caller has dropped its Pending: nobody wants the answer.
            if tx.send(r).is_err() {}
        };
        if let Err(source) = thread::Builder::new().name(format!("kernel-{id}")).spawn(body) {
            leave(&self.running, id);
            return Err(DeadlineError::Thread { what: what.to_owned(), source });
        }
        Ok(Pending { what: what.to_owned(), since, rx }.wait(within))
    }

    /// The calls that have not returned, oldest first.
    pub fn running(&self) -> Vec<Running> {
        lock(&self.running).iter().map(|(_, r)| r.clone()).collect()
    }

    fn enter(&self, what: &str, since: Instant) -> Result<u64, DeadlineError> {
        let mut g = lock(&self.running);
        if g.len() >= self.limit {
            let (oldest, age) = g.first().map_or((String::new(), Duration::ZERO), |(_, r)| {
                (r.what.clone(), since.saturating_duration_since(r.since))
            });
            return Err(DeadlineError::Saturated { what: what.to_owned(), running: g.len(), oldest, age });
        }
        let id = g.last().map_or(0, |(n, _)| n + 1);
        g.push((id, Running { what: what.to_owned(), since }));
        Ok(id)
    }
}

fn lock(m: &Mutex<Vec<(u64, Running)>>) -> MutexGuard<'_, Vec<(u64, Running)>> {
    // Nothing panics while the lock is held; a poisoned list is still a list.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn leave(running: &Mutex<Vec<(u64, Running)>>, id: u64) {
    lock(running).retain(|(n, _)| *n != id);
}

impl<T> Pending<T> {
    /// What the call does.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it has returned by now.
    ///
    /// # Panics
    /// When the call panicked.
    pub fn poll(self) -> Outcome<T> {
        match self.rx.try_recv() {
            Ok(r) => Outcome::Done(r.unwrap_or_else(|p| resume_unwind(p))),
            Err(TryRecvError::Empty) => Outcome::TimedOut(self),
            Err(TryRecvError::Disconnected) => unreachable!("the thread sends before it ends"),
        }
    }

    /// Waits once more.
    ///
    /// # Panics
    /// When the call panicked.
    pub fn wait(self, within: Duration) -> Outcome<T> {
        match self.rx.recv_timeout(within) {
            Ok(r) => Outcome::Done(r.unwrap_or_else(|p| resume_unwind(p))),
            Err(RecvTimeoutError::Timeout) => Outcome::TimedOut(self),
            Err(RecvTimeoutError::Disconnected) => unreachable!("the thread sends before it ends"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn what_returns_is_done() {
        let r = Runner::new(1);
        for n in 0..3 {
            assert!(matches!(r.run("add", LONG, move || n + 1), Ok(Outcome::Done(m)) if m == n + 1));
        }
    }

    #[test]
    fn what_does_not_return_is_counted_and_can_be_asked_again() {
        let r = Runner::new(1);
        let (go, wait) = mpsc::channel::<()>();
        let out = r.run("stuck", Duration::from_millis(1), move || wait.recv().is_ok()).unwrap();
        let Outcome::TimedOut(p) = out else { panic!("returned") };
        assert_eq!(r.running()[0].what, "stuck");
        let full = r.run("next", LONG, || ()).unwrap_err();
        assert!(matches!(&full, DeadlineError::Saturated { oldest, .. } if oldest == "stuck"), "{full}");
        let Outcome::TimedOut(p) = p.poll() else { panic!("returned") };
        go.send(()).unwrap();
        assert!(matches!(p.wait(LONG), Outcome::Done(true)));
        assert!(r.running().is_empty());
        assert!(matches!(r.run("next", LONG, || 7), Ok(Outcome::Done(7))));
    }

    #[test]
    #[should_panic(expected = "boom")]
    fn a_panic_reaches_the_caller() {
        let r = Runner::new(1);
        drop(r.run("panics", LONG, || panic!("boom")));
    }
}
