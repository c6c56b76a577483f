//! Waiting for device-mapper events (a multipath path that failed, a mirror that is done) without polling.

use std::{os::fd::AsFd, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{control::Control, error::DmError};

/// A control descriptor of its own that is armed for the next event of any device.
///
/// Use: make it, read the states, [`EventPoll::wait`], read the states again: an event between arming and
/// waiting is not lost.
#[derive(Debug)]
pub struct EventPoll {
    control: Control,
}

impl EventPoll {
    /// Opens and arms.
    pub fn new() -> Result<Self, DmError> {
        let control = Control::open()?;
        control.arm_poll()?;
        Ok(Self { control })
    }

    /// Waits until some device had an event since the last arming, and arms again. `false` when the time ran
    /// out; `None` waits for ever.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, DmError> {
        let ts = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let fd = self.control.as_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let n = match rustix::event::poll(&mut fds, ts.as_ref()) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => 0,
            Err(source) => return Err(DmError::Ioctl { op: "poll", device: "-".to_owned(), source }),
        };
        if n == 0 {
            return Ok(false);
        }
        self.control.arm_poll()?;
        Ok(true)
    }
}
