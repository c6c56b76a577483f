//! Processes of the lab: started so that they end with their owner, or so that they outlive it; and told apart from
//! strangers that got the same process id later.

use anyhow::{Context, Result};
use rustix::process::{
    Pid, Signal, kill_process, set_parent_process_death_signal, setsid, test_kill_process,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Makes this process, and those it starts, the last to get the processor: a session of its own, of the lowest priority.
///
/// # Errors
/// The kernel refuses.
pub fn yield_always() -> Result<()> {
    // A leader of its process group, which a shell makes of its jobs, cannot begin a session and has one of its own kind.
    match setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(e) => return Err(e).context("begin a session"),
    }
    rustix::process::nice(19).context("lower the priority")?;
    // Where the scheduler weighs sessions against each other, that of a process counts only within its own.
    match std::fs::write("/proc/self/autogroup", "19") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("lower the session's priority"),
        _ => Ok(()),
    }
}

/// Whom a process may outlive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// It is killed when this process ends, however it ends.
    Owned,
    /// It goes on until someone kills it.
    Persistent,
}

/// A process id and when that process began: together they name one process for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Start, in clock ticks since the host's boot.
    started: u64,
}

impl Identity {
    /// Names the process that has this id now; `None` if there is none.
    #[must_use]
    pub fn of(pid: u32) -> Option<Identity> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        // A zombie does nothing more; only its parent has yet to look.
        (state != 'Z' && state != 'X').then_some(Identity { pid, started })
    }

    /// Does this very process still run?
    #[must_use]
    pub fn alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// It may not be killed, or does not go.
    pub fn kill(self) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid.cast_signed()).context("a process id of 0")?;
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(e).with_context(|| format!("kill process {}", self.pid)),
        }
        let what = format!("process {} to end", self.pid);
        crate::wait::until(&what, Duration::from_secs(120), || Ok((!self.alive()).then_some(())))
    }
}

/// State and start time from a line of /proc/PID/stat; the name in brackets may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((state, words.nth(18)?.parse().ok()?))
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts `command`.
///
/// # Errors
/// It could not be started.
pub fn start(mut command: Command, lifetime: Lifetime) -> Result<Child> {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || match lifetime {
            Lifetime::Persistent => setsid().map(drop).map_err(io::Error::from),
            Lifetime::Owned => {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have died before the call above.
                if rustix::process::getppid() == Some(parent) {
                    Ok(())
                } else {
                    Err(io::Error::other("the owner is gone"))
                }
            }
        });
    }
    let program = command.get_program().to_string_lossy().into_owned();
    on_keeper(move || command.spawn())?.with_context(|| format!("start {program}"))
}

/// Runs `job` on a thread that lives as long as this process: the death signal comes when the *thread* that started a
/// child ends, not when the process does.
fn on_keeper<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    static KEEPER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let (sender, answer) = channel();
    let job: Job = Box::new(move || {
        // Nobody listens only if the caller is gone, and then nobody cares.
        drop(sender.send(job()));
    });
    keeper
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .ok()
        .context("the keeper thread is gone")?;
    answer.recv().context("the keeper thread dropped a job")
}

/// Is there a process with this id that this user may signal? For processes whose start was not recorded.
#[must_use]
pub fn exists(pid: u32) -> bool {
    Pid::from_raw(pid.cast_signed()).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_odd_names_and_tell_the_dead() {
        let line = "12 (a) b) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 99";
        assert_eq!(parse_stat(line), Some(('S', 4242)));
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.alive());
        assert!(!Identity { pid: me.pid, started: me.started + 1 }.alive());
    }

    #[test]
    fn owned_children_outlive_the_thread_that_asked_for_them() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut child = std::thread::spawn(move || start(command, Lifetime::Owned).unwrap()).join().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        // Were the signal bound to the thread above, it would have been sent by now.
        assert!(child.try_wait().unwrap().is_none() && identity.alive());
        identity.kill().unwrap();
        assert!(!identity.alive());
        child.wait().unwrap();
    }
}
