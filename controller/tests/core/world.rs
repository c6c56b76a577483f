//! What the scripted nodes share: the disks' contents, as far as it matters whose data lies where, and who writes.
//! It is the oracle: whatever breaks a promise is noted here and fails the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use pool::{
    ids::{DiskId, NodeName, VolumeId},
    volume::Map,
};

#[derive(Default)]
struct Inner {
    /// Whose data an extent holds.
    dirty: BTreeMap<(DiskId, u64), VolumeId>,
    /// Who writes a volume, with the extents that its device maps.
    writers: BTreeMap<VolumeId, BTreeMap<NodeName, BTreeSet<(DiskId, u64)>>>,
    broken: Vec<String>,
}

/// The world.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<Inner>>);

impl World {
    /// A freshly made device may hold anything.
    pub(crate) fn soil(&self, disk: DiskId, extents: u64) {
        let nobody = VolumeId::from_u128(0);
        let mut w = self.0.lock().unwrap();
        w.dirty.extend((0..extents).map(|e| ((disk, e), nobody)));
    }

    /// A node opens a volume: everything in it must be its own or clean, and it must be the only writer.
    pub(crate) fn open(&self, node: &NodeName, volume: VolumeId, map: &Map, writes: bool) {
        let mut w = self.0.lock().unwrap();
        let used = |s: &pool::volume::Segment| {
            let given_up = s.spare.filter(|p| !p.filling).map(|p| p.place.disk);
            s.runs().filter(|r| Some(r.disk) != given_up).collect::<Vec<_>>()
        };
        let runs: Vec<_> = map.0.iter().flat_map(used).collect();
        let mut mapped = BTreeSet::new();
        for r in runs {
            for e in r.first.get()..r.end().get() {
                mapped.insert((r.disk, e));
                match w.dirty.get(&(r.disk, e)).copied() {
                    Some(of) if of != volume => {
                        w.broken
                            .push(format!("{node} reads data of {of} in {volume}: {} extent {e}", r.disk));
                    }
                    _ if writes => drop(w.dirty.insert((r.disk, e), volume)),
                    _ => {}
                }
            }
        }
        if writes {
            let all = w.writers.entry(volume).or_default();
            all.insert(node.clone(), mapped);
            if all.len() > 1 {
                let all: Vec<_> = all.keys().cloned().collect();
                w.broken.push(format!("{volume} is written by {all:?}"));
            }
        }
    }

    /// A node cannot write a volume any more.
    pub(crate) fn shut(&self, node: &NodeName, volume: VolumeId) {
        if let Some(all) = self.0.lock().unwrap().writers.get_mut(&volume) {
            all.remove(node);
        }
    }

    /// A node's power is gone: it writes nothing any more.
    pub(crate) fn lose(&self, node: &NodeName) {
        for all in self.0.lock().unwrap().writers.values_mut() {
            all.remove(node);
        }
    }

    /// Extents are zeroed: nobody may be using them.
    pub(crate) fn wipe(&self, disk: DiskId, first: u64, count: u64) {
        let mut w = self.0.lock().unwrap();
        for e in first..first + count {
            if let Some(of) = w.dirty.remove(&(disk, e))
                && w.writers.get(&of).is_some_and(|n| n.values().any(|m| m.contains(&(disk, e))))
            {
                w.broken.push(format!("{disk} extent {e} was wiped while {of} is written"));
            }
        }
    }

    /// A promise was broken.
    pub(crate) fn broke(&self, text: String) {
        self.0.lock().unwrap().broken.push(text);
    }

    /// How many extents hold anybody's data.
    pub(crate) fn dirty(&self) -> usize {
        self.0.lock().unwrap().dirty.len()
    }

    /// Fails when a promise was broken.
    pub(crate) fn check(&self) {
        let w = self.0.lock().unwrap();
        assert!(w.broken.is_empty(), "{:#?}", w.broken);
    }
}

/// Waits until `f` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut f: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(t) = f().await {
            return t;
        }
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
