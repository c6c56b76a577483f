//! What a caller may do about an error, decided from the errno in one place.

use std::io;

use rustix::io::Errno;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The same call may succeed later: memory, descriptors, a peer that is away, an object not there yet.
    Transient,
    /// Somebody uses the object; retry when they have let go.
    Busy,
    /// The same call will fail again: a wrong argument, a missing module, a name that is taken.
    Permanent,
    /// The kernel may or may not have done it: look before doing anything else.
    OutcomeUnknown,
}

impl Class {
    /// A stable word for metric labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Transient => "transient",
            Class::Busy => "busy",
            Class::Permanent => "permanent",
            Class::OutcomeUnknown => "outcome_unknown",
        }
    }

    /// The class of a bare errno.
    pub fn of(e: Errno) -> Class {
        match e {
            Errno::BUSY | Errno::ALREADY | Errno::INPROGRESS | Errno::TXTBSY => Class::Busy,
            // An I/O error or a time-out says nothing about what was done before it.
            Errno::IO | Errno::TIMEDOUT => Class::OutcomeUnknown,
            Errno::NOMEM
            | Errno::AGAIN
            | Errno::INTR
            | Errno::NFILE
            | Errno::MFILE
            | Errno::NOBUFS
            | Errno::NODEV
            | Errno::NXIO
            | Errno::NOENT
            | Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::CONNABORTED
            | Errno::HOSTUNREACH
            | Errno::HOSTDOWN
            | Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::PIPE => Class::Transient,
            _ => Class::Permanent,
        }
    }

    /// The class of an `io::Error`; one without an errno is permanent (it was made by code, not by the kernel).
    pub fn of_io(e: &io::Error) -> Class {
        errno(e).map_or(Class::Permanent, Class::of)
    }
}

/// The errno in an `io::Error`.
pub fn errno(e: &io::Error) -> Option<Errno> {
    Errno::from_io_error(e)
}

/// The errno that the last libc call of this thread left.
pub(crate) fn last_errno() -> Errno {
    errno(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_the_errnos_that_matter() {
        for (e, c) in [
            (Errno::BUSY, Class::Busy),
            (Errno::NXIO, Class::Transient),
            (Errno::INVAL, Class::Permanent),
            (Errno::IO, Class::OutcomeUnknown),
            (Errno::ALREADY, Class::Busy),
        ] {
            assert_eq!(Class::of(e), c, "{e}");
        }
        assert_eq!(Class::of_io(&io::Error::from_raw_os_error(libc::ENOMEM)), Class::Transient);
        assert_eq!(Class::of_io(&io::Error::other("made up")), Class::Permanent);
    }
}
