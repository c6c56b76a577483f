//! Turns uevents of disks into a wish to look again. Listens on a thread of its own; nothing polls.

use std::time::Duration;

use kernel::uevent::{Next, Uevent, Uevents};
use tokio::sync::mpsc::UnboundedSender;

use super::room::Event;

/// A disk comes with its partitions, and a batch of disks with each other: one look is enough for what arrives
/// within this time.
const SETTLE: Duration = Duration::from_millis(200);
/// After an error of the socket itself.
const AGAIN: Duration = Duration::from_secs(5);

/// Kinds whose comings and goings are our own doing or never a disk of the pool.
const NOT_DISKS: [&str; 5] = ["dm-", "loop", "ram", "zram", "nbd"];

fn is_disk(e: &Uevent) -> bool {
    let name = e.vars.get("DEVNAME").map_or("", String::as_str);
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    e.subsystem == "block"
        && matches!(e.action.as_str(), "add" | "remove" | "change")
        && !NOT_DISKS.iter().any(|k| name.starts_with(k))
}

/// Listens until the room has gone.
pub(super) fn listen(room: &UnboundedSender<Event>) {
    loop {
        if let Err(e) = listen_once(room) {
            tracing::warn!("{e}; disks that come and go are not noticed until it works again");
        }
        if room.is_closed() {
            return;
        }
        std::thread::sleep(AGAIN);
        // What happened in between was not heard.
        if room.send(Event::LookAgain).is_err() {
            return;
        }
    }
}

fn listen_once(room: &UnboundedSender<Event>) -> Result<(), kernel::uevent::UeventError> {
    let events = Uevents::open()?;
    loop {
        let mut wanted = match events.next(None)? {
            Next::Event(e) => is_disk(&e),
            Next::Lost => true,
            Next::TimedOut => false,
        };
        while wanted {
            match events.next(Some(SETTLE))? {
                Next::TimedOut => break,
                Next::Event(_) | Next::Lost => wanted = true,
            }
        }
        if wanted && room.send(Event::LookAgain).is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_count() {
        for (name, subsystem, action, counts) in [
            ("vdb", "block", "add", true),
            ("nvme0n1", "block", "remove", true),
            ("sda1", "block", "change", true),
            ("dm-3", "block", "change", false),
            ("loop0", "block", "add", false),
            ("vdb", "nvme", "add", false),
            ("vdb", "block", "bind", false),
        ] {
            let vars = [("DEVNAME".to_owned(), name.to_owned())].into();
            let e =
                Uevent { action: action.into(), devpath: String::new(), subsystem: subsystem.into(), vars };
            assert_eq!(is_disk(&e), counts, "{name} {action}");
        }
    }
}
