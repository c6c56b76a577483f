//! Watching a guard for its first write. dm-delay gives no event, so its status is read every 2 ms, by a thread that
//! lives only while a guard stands and holds nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pool::{ids::VolumeId, names::DmRole};
use tokio::sync::oneshot;
use tracing::warn;

use crate::agent::ground::Ground;

/// Pause between two looks: a held write is a VM that waits, and a look costs microseconds.
const PAUSE: Duration = Duration::from_millis(2);
/// After a look that failed (the device is being swapped or removed).
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// A watch. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    held: oneshot::Receiver<()>,
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
                        return tx.send(()).unwrap_or_default();
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

    /// Waits until a write is held.
    pub async fn held(&mut self) {
        // The thread ends without a word only when it was told to stop.
        if (&mut self.held).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
