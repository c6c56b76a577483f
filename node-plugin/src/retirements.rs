//! What wipes have overtaken: since which epoch a volume has had runs on a disk of this node wiped. A goal that is older may map
//! those runs, and they may be somebody else's by now.
//!
//! Invariants: an epoch only grows while anything here could act by an older goal; an act by an older goal begins only
//! before the wipe was heard of, and the wipe does not begin before that act has ended.
//!
//! After a restart nothing is known here, and nothing has to be: goals come anew, from the newest record. Must not know: what
//! the acts are, how a wipe is done.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pool::ids::{DiskId, Epoch, VolumeId};

type Key = (DiskId, VolumeId);

/// A goal that a wipe has overtaken. Nothing is to be tried again: a newer goal is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the goal's epoch {epoch} is older than {since}, at which volume {volume} gave up runs on disk {disk} that are wiped"
)]
pub struct Overtaken {
    /// The disk.
    pub disk: DiskId,
    /// The volume.
    pub volume: VolumeId,
    /// The goal's.
    pub epoch: Epoch,
    /// The wipe's.
    pub since: Epoch,
}

/// The epochs of wipes, and what is being done by older goals.
#[derive(Debug, Default)]
pub struct Retirements(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    since: BTreeMap<Key, Epoch>,
    /// Acts under way, by their goals' epochs.
    acts: BTreeMap<Key, BTreeMap<Epoch, usize>>,
}

/// An act under way; it ends when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Act {
    all: Arc<Retirements>,
    key: Key,
    epoch: Epoch,
}

impl Retirements {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs of the volume on the disk, given up at this epoch, are to be wiped.
    pub fn raise(&self, disk: DiskId, volume: VolumeId, epoch: Epoch) {
        let mut i = self.lock();
        let e = i.since.entry((disk, volume)).or_insert(epoch);
        *e = (*e).max(epoch);
    }

    /// Whether a goal may still be obeyed.
    ///
    /// # Errors
    /// When it is older than a wipe.
    pub fn check(&self, disk: DiskId, volume: VolumeId, epoch: Epoch) -> Result<(), Overtaken> {
        self.lock().check((disk, volume), epoch)
    }

    /// Begins an act that may map runs of the volume on the disk, as a goal of this epoch has them.
    ///
    /// # Errors
    /// When the goal is older than a wipe.
    pub fn begin(self: &Arc<Self>, disk: DiskId, volume: VolumeId, epoch: Epoch) -> Result<Act, Overtaken> {
        let key = (disk, volume);
        let mut i = self.lock();
        i.check(key, epoch)?;
        *i.acts.entry(key).or_default().entry(epoch).or_default() += 1;
        Ok(Act { all: self.clone(), key, epoch })
    }

    /// Whether an act by a goal older than the wipe is still under way.
    pub fn is_acted_on(&self, disk: DiskId, volume: VolumeId) -> bool {
        let i = self.lock();
        let since = i.since.get(&(disk, volume)).copied().unwrap_or_default();
        i.acts.get(&(disk, volume)).is_some_and(|a| a.range(..since).next().is_some())
    }

    /// Forgets the epochs for all but those of which `wanted` says that an older goal could still be around.
    pub fn retain(&self, mut wanted: impl FnMut(DiskId, VolumeId) -> bool) {
        let mut i = self.lock();
        let Inner { since, acts } = &mut *i;
        since.retain(|k, _| acts.contains_key(k) || wanted(k.0, k.1));
    }
}

impl Inner {
    fn check(&self, (disk, volume): Key, epoch: Epoch) -> Result<(), Overtaken> {
        match self.since.get(&(disk, volume)) {
            Some(since) if epoch < *since => Err(Overtaken { disk, volume, epoch, since: *since }),
            Some(_) | None => Ok(()),
        }
    }
}

impl Drop for Act {
    fn drop(&mut self) {
        let mut i = self.all.lock();
        let Some(a) = i.acts.get_mut(&self.key) else { return };
        if let Some(n) = a.get_mut(&self.epoch) {
            *n -= 1;
            if *n == 0 {
                a.remove(&self.epoch);
            }
        }
        if a.is_empty() {
            i.acts.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wipe_waits_for_older_acts_and_lets_none_begin() {
        let (d, v, e) = (DiskId::from_u128(1), VolumeId::from_u128(2), Epoch::new);
        let all = Arc::new(Retirements::default());
        let (old, new) = (all.begin(d, v, e(3)).unwrap(), all.begin(d, v, e(5)).unwrap());
        assert!(!all.is_acted_on(d, v), "no wipe was heard of");
        all.raise(d, v, e(5));
        all.raise(d, v, e(4));
        assert!(all.is_acted_on(d, v));
        let refused = all.begin(d, v, e(4)).unwrap_err();
        assert_eq!((refused.epoch, refused.since), (e(4), e(5)));
        assert_eq!(all.check(d, VolumeId::from_u128(3), e(1)), Ok(()));
        drop(old);
        assert!(!all.is_acted_on(d, v), "what the new goal maps is not wiped");
        all.retain(|_, _| false);
        assert!(all.check(d, v, e(4)).is_err(), "something still acts");
        drop(new);
        all.retain(|_, _| false);
        assert_eq!(all.check(d, v, e(4)), Ok(()));
    }
}
