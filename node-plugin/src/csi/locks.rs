//! One operation a volume at a time. A lock is held by every thread that works for the operation: a tool that
//! outlives its deadline keeps its volume locked until it has ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use pool::ids::VolumeId;

use super::error::CsiError;

type Held = HashMap<VolumeId, (&'static str, Instant)>;

/// The volumes that are being worked on.
#[derive(Clone, Debug, Default)]
pub(super) struct Locks(Arc<Mutex<Held>>);

/// The right to work on a volume; ends with the last clone.
#[derive(Clone, Debug)]
pub(super) struct Lock(Arc<Release>);

#[derive(Debug)]
struct Release {
    held: Locks,
    volume: VolumeId,
}

impl Locks {
    /// Takes the volume for `what`, or says what has it.
    pub(super) fn take(&self, volume: VolumeId, what: &'static str) -> Result<Lock, CsiError> {
        let mut held = self.lock();
        if let Some((what, since)) = held.get(&volume) {
            return Err(CsiError::Pending { volume, what, age: since.elapsed() });
        }
        held.insert(volume, (what, Instant::now()));
        Ok(Lock(Arc::new(Release { held: self.clone(), volume })))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics while the map is locked; a poisoned map is still a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lock {
    /// Whose it is.
    pub(super) fn volume(&self) -> VolumeId {
        self.0.volume
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        self.held.lock().remove(&self.volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_operation_is_told_what_runs_until_the_last_holder_is_gone() {
        let (locks, v) = (Locks::default(), VolumeId::from_u128(1));
        let first = locks.take(v, "NodeStageVolume").unwrap();
        let thread = first.clone();
        drop(first);
        let e = locks.take(v, "NodeUnstageVolume").unwrap_err();
        assert_eq!(e.status().code(), tonic::Code::Aborted);
        assert!(e.to_string().contains("NodeStageVolume"), "{e}");
        assert!(locks.take(VolumeId::from_u128(2), "NodeStageVolume").is_ok());
        drop(thread);
        assert!(locks.take(v, "NodeUnstageVolume").is_ok());
    }
}
