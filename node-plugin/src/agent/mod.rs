//! The node agent: brings exports and attachments about in the kernel and says what it observes.
//!
//! One task an object; each has the highest epoch it was given and refuses an older one. Objects in the kernel that no
//! goal speaks of are reported and left alone. Without a controller nothing changes.
//!
//! Must not know: how goals come and reports go (the session does).

pub mod attachment;
pub mod book;
pub mod calls;
pub mod export;
pub mod ground;
pub mod imports;
pub mod model;
pub mod pace;
pub mod real;
pub mod resolve;
mod retry;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pool::{
    ids::{DiskId, Epoch, NodeName, VolumeId},
    names::DmRole,
};
use tracing::{info, warn};

use self::{
    attachment::guard::HeldWrites,
    book::Book,
    calls::{CallError, Calls},
    export::subsystems::Subsystems,
    ground::{Ground, GroundError},
    imports::Imports,
    model::{AttachmentGoal, AttachmentReport, ExportGoal, ExportKey, Standing},
};
use crate::disks_api::Disks;

pub use self::retry::Backoff;

/// What all workers share.
pub struct Ctx {
    /// The kernel.
    pub ground: Arc<dyn Ground>,
    /// Its calls.
    pub calls: Calls,
    /// Imported slices.
    pub imports: Arc<Imports>,
    /// This node's disks.
    pub disks: Arc<dyn Disks>,
    /// Who we are.
    pub node: NodeName,
    /// Where reports go.
    pub book: Arc<Book>,
    /// Subsystems of exports.
    pub subsystems: Subsystems,
    /// For how long guards held writes.
    pub held_writes: HeldWrites,
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel could not be read.
    #[error("the kernel's devices cannot be read: {0}")]
    Ground(#[from] GroundError),
    /// The call brought nothing.
    #[error(transparent)]
    Call(#[from] CallError),
}

struct Entry<H> {
    epoch: Epoch,
    handle: H,
}

#[derive(Default)]
struct Table {
    attachments: BTreeMap<VolumeId, Entry<attachment::Handle>>,
    exports: BTreeMap<ExportKey, Entry<export::Handle>>,
    /// Legs that the kernel had when the agent started.
    legs: BTreeMap<VolumeId, BTreeSet<DiskId>>,
}

/// The agent.
pub struct Agent {
    ctx: Arc<Ctx>,
    table: Mutex<Table>,
}

/// Goals of one message.
#[derive(Clone, Debug, Default)]
pub struct Goals {
    /// They are all that is on record about this node.
    pub full: bool,
    /// For volumes' devices.
    pub attachments: Vec<AttachmentGoal>,
    /// For exports.
    pub exports: Vec<ExportGoal>,
}

impl Agent {
    /// Reads back what the kernel has and gets ready for goals. Changes nothing.
    pub async fn start(
        node: NodeName,
        ground: Arc<dyn Ground>,
        disks: Arc<dyn Disks>,
    ) -> Result<Arc<Self>, StartError> {
        let calls = Calls::default();
        let g = ground.clone();
        let roles = calls.run("read back all devices".into(), move || g.roles()).await??;
        let mut legs: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for r in &roles {
            if let DmRole::Leg(v, d) | DmRole::Near(v, d) = r {
                legs.entry(*v).or_default().insert(*d);
            }
        }
        info!(devices = roles.len(), "read back from the kernel");
        let imports = Imports::start(ground.clone(), calls.clone(), node.clone());
        let book = Arc::new(Book::default());
        tokio::spawn(pace::keep(ground.clone(), calls.clone(), book.clone()));
        let (subsystems, held_writes) = (Subsystems::default(), HeldWrites::default());
        let ctx = Ctx { ground, calls, imports, disks, node, book, subsystems, held_writes };
        let agent =
            Arc::new(Self { ctx: Arc::new(ctx), table: Mutex::new(Table { legs, ..Table::default() }) });
        agent.hear_devices();
        Ok(agent)
    }

    /// Where its reports are.
    pub fn book(&self) -> Arc<Book> {
        self.ctx.book.clone()
    }

    /// Its kernel calls, for health: [`Calls::older_than`].
    pub fn calls(&self) -> &Calls {
        &self.ctx.calls
    }

    /// For how long its guards held writes.
    pub fn held_writes(&self) -> &HeldWrites {
        &self.ctx.held_writes
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes goals up.
    pub fn apply(self: &Arc<Self>, goals: Goals) {
        let mut t = self.lock();
        if goals.full {
            self.forget_gone(&mut t, &goals);
            let served = |g: &&ExportGoal| g.state == pool::goals::ExportState::Serving;
            let fresh = |k: &&ExportKey| !t.exports.contains_key(*k);
            self.ctx.subsystems.expect(goals.exports.iter().filter(served).map(|g| &g.key).filter(fresh));
        }
        for g in goals.exports {
            if let Some(e) = t.exports.get_mut(&g.key) {
                if newer(&mut e.epoch, g.epoch, &g.key) {
                    e.handle.set(g);
                }
                continue;
            }
            let (key, epoch) = (g.key.clone(), g.epoch);
            let handle = export::start(self.ctx.clone(), g);
            t.exports.insert(key, Entry { epoch, handle });
        }
        for g in goals.attachments {
            if let Some(e) = t.attachments.get_mut(&g.volume) {
                if newer(&mut e.epoch, g.epoch, &g.volume) {
                    e.handle.set(g);
                }
                continue;
            }
            let (volume, epoch) = (g.volume, g.epoch);
            let legs = t.legs.remove(&volume).unwrap_or_default();
            let handle = attachment::start(self.ctx.clone(), g, legs);
            t.attachments.insert(volume, Entry { epoch, handle });
        }
        drop(t);
        if goals.full {
            tokio::spawn(self.clone().review());
        }
    }

    /// Drops objects that are gone and on nobody's record.
    fn forget_gone(&self, t: &mut Table, goals: &Goals) {
        let volumes: BTreeSet<_> = goals.attachments.iter().map(|g| g.volume).collect();
        let keys: BTreeSet<_> = goals.exports.iter().map(|g| g.key.clone()).collect();
        let (absent_volumes, absent_exports) = self.ctx.book.absent();
        let gone_volumes: Vec<_> = absent_volumes.into_iter().filter(|v| !volumes.contains(v)).collect();
        let gone_exports: Vec<_> = absent_exports.into_iter().filter(|k| !keys.contains(k)).collect();
        for v in &gone_volumes {
            t.attachments.remove(v);
        }
        for k in &gone_exports {
            t.exports.remove(k);
        }
        self.ctx.book.forget(&gone_volumes, &gone_exports);
        // Only what is held on to here can be older than the goals that come.
        let held: BTreeSet<_> = t.exports.keys().map(|k| (k.disk, k.volume)).collect();
        self.ctx.disks.retirements().retain(|disk, volume| held.contains(&(disk, volume)));
    }

    /// Says what the kernel has beyond all goals. It is left alone: that nobody speaks of it does not mean that
    /// nobody uses it.
    async fn review(self: Arc<Self>) {
        let ground = self.ctx.ground.clone();
        let roles = match self.ctx.calls.run("review all devices".into(), move || ground.roles()).await {
            Ok(Ok(r)) => r,
            Ok(Err(e)) => return warn!(error = %e, "devices beyond the goals are not known"),
            Err(e) => return warn!(error = %e, "devices beyond the goals are not known"),
        };
        let mut strays: BTreeMap<VolumeId, Vec<String>> = BTreeMap::new();
        {
            let t = self.lock();
            let tags: BTreeSet<_> = t.exports.keys().map(export::plan::role).collect();
            for r in roles {
                let known = match &r {
                    DmRole::Slice(..) => tags.contains(&r),
                    other => t.attachments.contains_key(&other.volume()),
                };
                if known {
                    continue;
                }
                match &r {
                    DmRole::Slice(v, d, _) => {
                        warn!(volume = %v, disk = %d, device = r.dm_name(), "a slice that no goal speaks of: left alone");
                    }
                    other => strays.entry(other.volume()).or_default().push(other.dm_name()),
                }
            }
        }
        for (volume, names) in strays {
            warn!(%volume, devices = ?names, "devices that no goal speaks of: left alone");
            self.ctx.book.attachment(AttachmentReport {
                volume,
                epoch: Epoch::ZERO,
                standing: Standing::Unknown,
                held: false,
                busy: false,
                size: pool::units::Sectors::ZERO,
                queueing: vec![],
                mirror: None,
                reason: format!("no goal speaks of it: left alone ({})", names.join(", ")),
            });
        }
    }

    /// A thread that sleeps in the kernel until a device has an event, and tells those whose leg it was.
    fn hear_devices(self: &Arc<Self>) {
        let (ground, me) = (self.ctx.ground.clone(), Arc::downgrade(self));
        let body = move || {
            let mut before: BTreeMap<DmRole, u32> = BTreeMap::new();
            while me.strong_count() > 0 {
                match ground.dm_events(Duration::from_secs(5)) {
                    Ok(None) => {}
                    Ok(Some(now)) => {
                        let Some(agent) = me.upgrade() else { return };
                        let t = agent.lock();
                        for (r, n) in &now {
                            if let (DmRole::Leg(v, _) | DmRole::Mirror(v), true) =
                                (r, before.get(r) != Some(n))
                                && let Some(e) = t.attachments.get(v)
                            {
                                e.handle.poke();
                            }
                        }
                        before = now;
                    }
                    Err(e) => {
                        warn!(error = %e, "no notice from the kernel about paths");
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
            }
        };
        if let Err(e) = std::thread::Builder::new().name("dm-events".into()).spawn(body) {
            tracing::error!(error = %e, "no thread for notices about paths: a failed path is not tried again");
        }
    }
}

/// Whether a goal may be taken up; remembers its epoch if so.
fn newer(have: &mut Epoch, got: Epoch, what: &dyn std::fmt::Debug) -> bool {
    if got < *have {
        warn!(object = ?what, epoch = %got, newest = %have, "a goal of an older epoch: refused");
        return false;
    }
    *have = got;
    true
}
