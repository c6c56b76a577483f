//! From the store's records to the core's memory, and the checks that they agree. Nothing is written here.
//!
//! Invariants: an extent that two records claim, or that lies outside of its disk, stops the start: only a person can
//! say which record is right. A pool that is configured as its disks are not is left out, and theirs is not changed; all
//! else goes on. Must not know: sessions.

use std::collections::{BTreeSet, HashMap};

use pool::{
    alloc::IndexError,
    disk::DiskState,
    ids::{DiskId, NodeName, PoolName, VolumeId},
    record::{Lifecycle, Record, Stretch},
};

use super::{disks::DiskSlot, engine::Engine, volume::Volume};
use crate::store::{Store, StoreError, Stored};

/// Records of one page: few round trips, and no page is large.
const PAGE: usize = 4096;

/// Why the core cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error("the records cannot be loaded")]
    Store(#[from] StoreError),
    /// Two pools have one name.
    #[error("pool {0} is configured twice")]
    PoolTwice(PoolName),
    /// The records contradict each other.
    #[error(
        "the record of {what} contradicts others: nothing was changed; compare them before starting again"
    )]
    Records {
        /// Which.
        what: String,
        /// How.
        #[source]
        source: IndexError,
    },
    /// A volume uses a disk that is not on record.
    #[error("volume {volume} uses disk {disk}, which is not on record: nothing was changed")]
    NoDisk {
        /// The volume.
        volume: VolumeId,
        /// The disk.
        disk: DiskId,
    },
}

/// What is wrong with how a pool is configured, to whoever can change that.
fn said(e: &IndexError) -> String {
    match e {
        IndexError::ExtentSize { have, want, .. } => {
            let (have, want) = (have.bytes(), want.bytes());
            format!(
                "extents of {want} are wanted, but its disks have extents of {have}, and a pool's never change: \
                 make it again with {have}, or with another name"
            )
        }
        other => other.to_string(),
    }
}

impl Engine {
    /// Loads everything.
    pub(super) async fn load(&mut self, store: &dyn Store) -> Result<(), StartError> {
        let mut after = None;
        loop {
            let page = store.load(after, PAGE).await?;
            for s in page.records {
                self.take_record(s);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        self.index()
    }

    fn take_record(&mut self, s: Stored) {
        match s.record {
            Record::Volume(v) => {
                let id = v.id;
                if v.lifecycle == Lifecycle::Active {
                    self.names.insert(v.name.clone(), id);
                }
                self.wipes.extend(v.retired.iter().map(|r| ((r.disk, r.wipe), id)));
                self.volumes.insert(id, Volume::new(*v, Some(s.version)));
            }
            Record::Disk(d) => {
                self.disks.insert(d.disk.id, DiskSlot::new(*d, Some(s.version)));
            }
            Record::Node(n) => self.load_node(*n, s.version),
        }
    }

    /// Builds the index of free and owned extents.
    fn index(&mut self) -> Result<(), StartError> {
        self.define_pools()?;
        let mut used: HashMap<DiskId, Vec<Stretch>> = HashMap::new();
        for (volume, v) in &self.volumes {
            for r in v.record.runs() {
                if !self.disks.contains_key(&r.disk) {
                    return Err(StartError::NoDisk { volume: *volume, disk: r.disk });
                }
                used.entry(r.disk).or_default().push(Stretch { first: r.first, count: r.count });
            }
        }
        let nodes: BTreeSet<NodeName> = self.disks.values().map(|s| s.record.disk.node.clone()).collect();
        for n in &nodes {
            self.node_mut(n);
        }
        for (id, s) in &mut self.disks {
            let r = &mut s.record;
            // The node's record has the newer word on where the node stands, the configuration on what is kept.
            r.disk.domain = self.nodes.get(&r.disk.node).map(|n| n.domain()).unwrap_or_default();
            if let Some(p) = self.specs.get(&r.disk.pool) {
                r.disk.reserve = r.disk.extent_size.extents_round_down(p.reserve);
            }
            if r.disk.extents.is_zero() || r.disk.state == DiskState::Released {
                continue;
            }
            let free = r.free_runs(used.remove(id).unwrap_or_default());
            let added = self.pool.add_disk(r.disk.clone(), free);
            added.map_err(|source| StartError::Records { what: format!("disk {id}"), source })?;
            s.indexed = true;
        }
        // Of the others it is found out when their lease runs out.
        let forgotten = self.nodes.iter().filter(|(_, n)| n.is_forgotten()).map(|(name, _)| name.clone());
        for n in forgotten.collect::<Vec<_>>() {
            self.refresh_disks(&n);
        }
        for (id, v) in &self.volumes {
            let adopted = self.pool.adopt(*id, &v.record.map);
            adopted.map_err(|source| StartError::Records { what: format!("volume {id}"), source })?;
        }
        Ok(())
    }

    fn define_pools(&mut self) -> Result<(), StartError> {
        if self.specs.len() != self.config.pools.len() {
            let mut seen = BTreeSet::new();
            let twice = self.config.pools.iter().find(|p| !seen.insert(&p.name));
            if let Some(p) = twice {
                return Err(StartError::PoolTwice(p.name.clone()));
            }
        }
        // A pool that is configured no more keeps what it has; nothing new joins it.
        let kept = self.disks.values().map(|s| &s.record.disk).filter(|d| d.state != DiskState::Released);
        for d in kept {
            let defined = self.pool.define_pool(d.pool.clone(), d.extent_size);
            defined.map_err(|source| StartError::Records { what: format!("disk {}", d.id), source })?;
        }
        let (pool, left_out) = (&mut self.pool, &mut self.left_out);
        self.specs.retain(|name, spec| match pool.define_pool(name.clone(), spec.extent_size) {
            Ok(()) => true,
            Err(e) => {
                tracing::error!(pool = %name, error = %e, "the pool is left out: its disks stay as they are");
                left_out.insert(name.clone(), said(&e));
                false
            }
        });
        Ok(())
    }

    /// Looks at everything once: what was under way when the last controller ended goes on.
    pub(super) fn resume(&mut self) {
        self.began_ms = self.now.unix_ms;
        let active = |(id, v): (&VolumeId, &Volume)| {
            (v.is_active() || v.record.lifecycle == Lifecycle::Deleting).then_some(*id)
        };
        let volumes: Vec<_> = self.volumes.iter().filter_map(active).collect();
        for v in volumes {
            self.advance(v);
        }
        // After the volumes: what these name is not known before.
        let disks: Vec<_> = self.disks.keys().copied().collect();
        for d in disks {
            self.advance_disk(d);
        }
        self.wake_mover();
    }
}
