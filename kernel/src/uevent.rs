//! Kernel uevents: block devices that come, go and change, NVMe controllers that change their state.
//!
//! The listener tells that something happened, never what is: uevents are lost when the socket's buffer runs
//! over. Whoever acts on one reads sysfs; whoever gets [`Next::Lost`] reads everything again.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use crate::{Class, error::last_errno};

/// One uevent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, ...
    pub action: String,
    /// Path under /sys.
    pub devpath: String,
    /// `block`, `nvme`, ...
    pub subsystem: String,
    /// All variables, these three among them.
    pub vars: BTreeMap<String, String>,
}

/// What [`Uevents::next`] brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// An event.
    Event(Uevent),
    /// Events were lost: read everything again.
    Lost,
    /// Nothing within the time.
    TimedOut,
}

/// Why uevents cannot be heard.
#[derive(Debug, thiserror::Error)]
#[error("kernel uevents: {op}: {source}")]
pub struct UeventError {
    /// Which call.
    pub op: &'static str,
    /// Why.
    #[source]
    pub source: rustix::io::Errno,
}

impl UeventError {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        Class::of(self.source)
    }
}

/// A listener. Events since it was made are kept for it, up to its buffer.
#[derive(Debug)]
pub struct Uevents {
    fd: OwnedFd,
}

/// Group 1 is the kernel's own; group 2 is what udev says afterwards.
const KERNEL_GROUP: u32 = 1;
/// Room for some thousand events (one has a few hundred bytes), since a node may see 300 volumes come at once.
const BUFFER: libc::c_int = 2 << 20;

impl Uevents {
    /// Starts to listen.
    pub fn open() -> Result<Self, UeventError> {
        let fail = |op| move || UeventError { op, source: last_errno() };
        // SAFETY: plain socket(2); the descriptor is owned at once.
        let raw = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
                libc::NETLINK_KOBJECT_UEVENT,
            )
        };
        if raw < 0 {
            return Err(fail("socket")());
        }
        // SAFETY: `raw` was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // Without CAP_NET_ADMIN the buffer is only as large as the system allows.
        if !set_buffer(&fd, libc::SO_RCVBUFFORCE) && !set_buffer(&fd, libc::SO_RCVBUF) {
            return Err(fail("set the buffer")());
        }
        // SAFETY: an all-zero sockaddr_nl is valid.
        let mut addr: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        addr.nl_family = libc::AF_NETLINK as u16;
        addr.nl_groups = KERNEL_GROUP;
        // SAFETY: the address is a sockaddr_nl of the given length.
        let rc = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), size_of::<libc::sockaddr_nl>() as u32)
        };
        if rc < 0 {
            return Err(fail("bind")());
        }
        Ok(Self { fd })
    }

    /// The next event; `None` waits for ever.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Next, UeventError> {
        let until = timeout.map(|t| Instant::now() + t);
        loop {
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            if !self.readable(left)? {
                return Ok(Next::TimedOut);
            }
            match self.receive()? {
                Received::Event(e) => return Ok(Next::Event(e)),
                Received::Lost => return Ok(Next::Lost),
                Received::NotKernel => {}
            }
        }
    }

    fn readable(&self, left: Option<Duration>) -> Result<bool, UeventError> {
        let ts = left.map(|t| rustix::event::Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let mut fds = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, ts.as_ref()) {
            Ok(n) => Ok(n > 0),
            Err(rustix::io::Errno::INTR) => Ok(left.is_none_or(|l| !l.is_zero())),
            Err(source) => Err(UeventError { op: "poll", source }),
        }
    }

    fn receive(&self) -> Result<Received, UeventError> {
        let mut buf = [0u8; 8192];
        // SAFETY: an all-zero sockaddr_nl is valid.
        let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_nl>() as u32;
        // SAFETY: buffer and address are as long as said; MSG_DONTWAIT because poll may have been woken for
        // a message that is gone.
        let n = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        if n < 0 {
            return match last_errno() {
                rustix::io::Errno::NOBUFS => Ok(Received::Lost),
                rustix::io::Errno::AGAIN | rustix::io::Errno::INTR => Ok(Received::NotKernel),
                source => Err(UeventError { op: "receive", source }),
            };
        }
        // Any process may send to a netlink socket; the kernel's own port is 0.
        if from.nl_pid != 0 {
            return Ok(Received::NotKernel);
        }
        Ok(parse(&buf[..n as usize]).map_or(Received::NotKernel, Received::Event))
    }
}

fn set_buffer(fd: &OwnedFd, option: libc::c_int) -> bool {
    let size = BUFFER;
    // SAFETY: option value and length describe one c_int.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    rc == 0
}

enum Received {
    Event(Uevent),
    Lost,
    NotKernel,
}

/// Waits until `check` brings a value, looking again at each uevent of one of `subsystems`, and at least every
/// 250 ms, because uevents may be lost and some attributes change without one. `None` when the time ran out.
pub(crate) fn wait_for<T, E: From<UeventError>>(
    subsystems: &[&str],
    deadline: Instant,
    mut check: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    // Listening starts before the first look, so that nothing falls between the two.
    let events = Uevents::open()?;
    loop {
        if let Some(v) = check()? {
            return Ok(Some(v));
        }
        let look_again = Instant::now() + Duration::from_millis(250);
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            match events.next(Some(look_again.min(deadline).saturating_duration_since(now)))? {
                Next::Event(e) if !subsystems.contains(&e.subsystem.as_str()) => {}
                Next::Event(_) | Next::Lost | Next::TimedOut => break,
            }
        }
    }
}

/// `ACTION@DEVPATH` and then `KEY=VALUE`s, each ended by a zero.
fn parse(b: &[u8]) -> Option<Uevent> {
    let mut parts = b.split(|&c| c == 0).filter(|p| !p.is_empty()).map(|p| std::str::from_utf8(p).ok());
    let (action, devpath) = parts.next()??.split_once('@')?;
    let mut vars = BTreeMap::new();
    for p in parts {
        let (k, v) = p?.split_once('=')?;
        vars.insert(k.to_owned(), v.to_owned());
    }
    let subsystem = vars.get("SUBSYSTEM")?.clone();
    Some(Uevent { action: action.to_owned(), devpath: devpath.to_owned(), subsystem, vars })
}

impl From<UeventError> for io::Error {
    fn from(e: UeventError) -> io::Error {
        e.source.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_block_device() {
        let b = b"add@/devices/virtual/block/dm-0\0ACTION=add\0DEVPATH=/devices/virtual/block/dm-0\0SUBSYSTEM=block\0MAJOR=253\0MINOR=0\0DEVNAME=dm-0\0DEVTYPE=disk\0SEQNUM=1471\0";
        let e = parse(b).unwrap();
        assert_eq!((e.action.as_str(), e.subsystem.as_str()), ("add", "block"));
        assert_eq!(e.vars["DEVNAME"], "dm-0");
    }

    #[test]
    fn what_is_no_event_is_dropped() {
        for b in [
            &b""[..],
            b"libudev\0\xfe\xed\xca\xfe",
            b"add@/x\0NOEQUALS\0",
            b"add@/x\0A=b\0",
            b"\xff@\0SUBSYSTEM=x\0",
        ] {
            assert_eq!(parse(b), None);
        }
    }
}
