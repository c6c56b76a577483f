//! Watching a guard for its first write, and how long that was held. dm-delay gives no event, so its status is read every
//! 2 ms, by a thread that lives only while a guard stands and holds nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use observe::prometheus::{
    metrics::{family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use pool::{ids::VolumeId, names::DmRole};
use tokio::sync::oneshot;
use tracing::warn;

use super::plan::{Seen, is_fence, is_guard};
use crate::agent::ground::Ground;

/// Pause between two looks: a held write is a VM that waits, and a look costs microseconds.
const PAUSE: Duration = Duration::from_millis(2);
/// After a look that failed (the device is being swapped or removed).
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// Bounds in seconds of the time for which a write is held: a cut-over in which all goes well takes tens of
/// milliseconds, and a guest gives its disk up after 30 s or more.
const HELD: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

/// What becomes of a held write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It goes through: the volume is this node's.
    Released,
    /// It fails: the migration was given up.
    Failed,
}

impl Ending {
    const ALL: [Ending; 2] = [Ending::Released, Ending::Failed];

    /// What has become of the write that a volume's guard held; `None` while the guard stands. Whoever takes a guard away
    /// puts what its writes are to meet below it first ([`super::plan`]), so what stands now tells.
    pub fn of(seen: &Seen) -> Option<Self> {
        match seen.top_table() {
            Some(t) if is_guard(t) => None,
            Some(t) if !is_fence(t) => Some(Ending::Released),
            Some(_) | None => Some(Ending::Failed),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Ending::Released => "released",
            Ending::Failed => "failed",
        }
    }
}

/// For how long guards have held the first write of a migration, from the sight of it: what a guest feels of a cut-over.
/// Clones count together.
#[derive(Clone, Debug)]
pub struct HeldWrites(Family<[(&'static str, &'static str); 1], Histogram>);

impl Default for HeldWrites {
    fn default() -> Self {
        let all = Self(Family::new_with_constructor(|| Histogram::new(HELD)));
        // From the start: one that appears with its first write hides that one from `rate`.
        for e in Ending::ALL {
            drop(all.0.get_or_create(&[("outcome", e.as_str())]));
        }
        all
    }
}

impl HeldWrites {
    /// Makes them part of what is told.
    pub fn register(&self, registry: &mut Registry) {
        let help = "From the sight of a held write of a migration until it went through or failed";
        registry.register_with_unit("weir_node_held_write", help, Unit::Seconds, self.0.clone());
    }

    /// Counts one.
    pub fn ended(&self, ending: Ending, held: Duration) {
        self.0.get_or_create(&[("outcome", ending.as_str())]).observe(held.as_secs_f64());
    }
}

/// A watch. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    held: oneshot::Receiver<Instant>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    /// Starts to watch the guard of a volume.
    pub fn start(ground: Arc<dyn Ground>, volume: VolumeId) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tx, held) = oneshot::channel();
        let stopped = stop.clone();
        let body = move || {
            let role = DmRole::Top(volume);
            let mut warned = false;
            while !stopped.load(Ordering::Relaxed) {
                match ground.holds_write(&role) {
                    Ok(true) => {
                        // An error means that nobody watches any more.
                        return tx.send(Instant::now()).unwrap_or_default();
                    }
                    Ok(false) => std::thread::sleep(PAUSE),
                    Err(e) => {
                        if !warned {
                            warn!(%volume, error = %e, "the guard cannot be read");
                            warned = true;
                        }
                        std::thread::sleep(AFTER_FAILURE);
                    }
                }
            }
        };
        std::thread::Builder::new().name("guard".into()).spawn(body)?;
        Ok(Self { stop, held })
    }

    /// Waits until a write is held, and says when that was seen.
    pub async fn held(&mut self) -> Instant {
        match (&mut self.held).await {
            Ok(seen) => seen,
            // The thread ends without a word only when it was told to stop.
            Err(_) => std::future::pending().await,
        }
    }
}
