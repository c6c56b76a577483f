//! The imports of this node: one connection for each (lender's disk), shared by all volumes that lie there, and what
//! the kernel shows of them.
//!
//! Each connection has a task of its own, because connecting to a dead peer blocks for minutes and disconnecting for
//! half of one. The view of all imports is read once for everybody, on the kernel's notice; while somebody waits
//! for a path it is read a few times a second too. Connections that no volume here has asked for in the life of this
//! process are left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use pool::{
    ids::{DiskId, NodeName, SliceId, VolumeId},
    names,
};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use super::{
    calls::Calls,
    ground::{Fabric, Ground, Import},
};

/// How often the view is read while a path is missing.
const CARE: Duration = Duration::from_millis(200);
/// How long a connection that nobody wants any more is kept: the next volume may want it.
const LINGER: Duration = Duration::from_secs(3);
/// Pause before the first repetition of what failed, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// So many paths that fail again, none further than this from the one before, condemn a connection; and so long it is
/// given to recover.
const DOUBTS: u32 = 3;
const DOUBT: Duration = Duration::from_secs(5);
/// A slice that its lender has fenced looks the same from here, and a reset disturbs its neighbours: so each is further
/// from the last, up to this.
const FORGIVEN: Duration = Duration::from_secs(600);
/// How long an expected namespace may be missing before the lender is asked for its list again.
const RESCAN_AFTER: Duration = Duration::from_secs(1);

/// All imports.
pub struct Imports {
    ground: Arc<dyn Ground>,
    calls: Calls,
    node: NodeName,
    view: watch::Sender<Arc<Fabric>>,
    links: Mutex<BTreeMap<DiskId, Wanted>>,
    waiting: AtomicUsize,
    look: Notify,
    /// Readings begun so far: each has its number from here.
    readings: AtomicU64,
    /// The reading that the view is from; written under the view's lock only.
    shown: AtomicU64,
}

#[derive(Debug)]
struct Wanted {
    peer: (IpAddr, u16),
    by: BTreeMap<VolumeId, SliceId>,
    changed: Arc<Notify>,
    doubts: Doubts,
}

/// Paths over a connection that failed right after they were taken up again.
#[derive(Debug, Default)]
struct Doubts {
    count: u32,
    last: Option<Instant>,
    /// When it was made anew, and how long not to do so again.
    reset: Option<(Instant, Duration)>,
}

/// Somebody waits for a path or a namespace: the view is kept fresh as long as this lives.
pub struct Care(Arc<Imports>);

impl Drop for Care {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Imports {
    /// Reads the view and starts to keep it.
    pub fn start(ground: Arc<dyn Ground>, calls: Calls, node: NodeName) -> Arc<Self> {
        let i = Arc::new(Self::new(ground, calls, node));
        tokio::spawn(i.clone().keep_view());
        i.clone().hear();
        i
    }

    fn new(ground: Arc<dyn Ground>, calls: Calls, node: NodeName) -> Self {
        Self {
            ground,
            calls,
            node,
            view: watch::Sender::new(Arc::default()),
            links: Mutex::default(),
            waiting: AtomicUsize::new(0),
            look: Notify::new(),
            readings: AtomicU64::new(0),
            shown: AtomicU64::new(0),
        }
    }

    /// The view, now and from now on.
    pub fn view(&self) -> watch::Receiver<Arc<Fabric>> {
        self.view.subscribe()
    }

    /// What is known of a volume's slice on a disk.
    pub fn import(&self, volume: VolumeId, disk: DiskId) -> Option<Import> {
        self.view.borrow().imports.get(&names::slice_id(volume, disk, &self.node)).copied()
    }

    /// Keeps the view fresh while the returned value lives.
    pub fn care(self: &Arc<Self>) -> Care {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.look.notify_one();
        Care(self.clone())
    }

    /// A volume wants its slice of a lender's disk.
    pub fn want(self: &Arc<Self>, volume: VolumeId, disk: DiskId, peer: (IpAddr, u16)) {
        let slice = names::slice_id(volume, disk, &self.node);
        let mut links = self.lock();
        let fresh = !links.contains_key(&disk);
        let w = links.entry(disk).or_insert_with(|| Wanted {
            peer,
            by: BTreeMap::new(),
            changed: Arc::new(Notify::new()),
            doubts: Doubts::default(),
        });
        let known = w.by.insert(volume, slice).is_some() && w.peer == peer;
        w.peer = peer;
        if fresh {
            tokio::spawn(self.clone().keep_link(disk, w.changed.clone()));
        } else if !known {
            w.changed.notify_one();
        }
    }

    /// A path over a disk's connection failed right after it was taken up again, although the connection says that it
    /// is live. When that goes on, the connection is made anew.
    pub fn doubt(self: &Arc<Self>, disk: DiskId) {
        let now = Instant::now();
        let mut links = self.lock();
        let Some(w) = links.get_mut(&disk) else { return };
        if w.doubts.last.is_none_or(|t| now - t > DOUBT) {
            w.doubts.count = 0;
        }
        w.doubts.last = Some(now);
        w.doubts.count += 1;
        if w.doubts.count < DOUBTS || w.doubts.reset.is_some_and(|(t, wait)| now - t < wait) {
            return;
        }
        let nqn = names::subsystem_nqn(disk, &self.node);
        let Some(link) = self.view.borrow().links.iter().find(|l| l.nqn == nqn && l.live).cloned() else {
            return;
        };
        let wait = match w.doubts.reset {
            Some((t, wait)) if now - t < FORGIVEN => (wait * 2).min(FORGIVEN),
            Some(_) | None => DOUBT,
        };
        w.doubts = Doubts { reset: Some((now, wait)), ..Doubts::default() };
        warn!(%disk, link = link.name, "says that it is live and fails every request: reset");
        let (ground, what) = (self.ground.clone(), format!("reset {}", link.name));
        let call = self.calls.run(what, move || ground.reset(&link));
        tokio::spawn(async move {
            match call.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => warn!(%disk, error = %e, "not reset"),
                Err(e) => warn!(%disk, error = %e, "not reset"),
            }
        });
    }

    /// A volume wants no other disks than these any more.
    pub fn retain(&self, volume: VolumeId, keep: &BTreeSet<DiskId>) {
        for (disk, w) in self.lock().iter_mut().filter(|(d, _)| !keep.contains(d)) {
            if w.by.remove(&volume).is_some() && w.by.is_empty() {
                debug!(%disk, "no volume wants this connection any more");
                w.changed.notify_one();
            }
        }
    }

    /// A volume is gone from this node; `disks` are those that it had legs on, as far as the caller knows.
    pub fn release(self: &Arc<Self>, volume: VolumeId, disks: &BTreeSet<DiskId>) {
        self.retain(volume, &BTreeSet::new());
        let mut links = self.lock();
        // After a restart, nobody has asked for the connections of a volume that is to go.
        for disk in disks {
            let view = self.view.borrow().clone();
            let nqn = names::subsystem_nqn(*disk, &self.node);
            let Some(peer) = view.links.iter().find(|l| l.nqn == nqn).and_then(|l| l.peer) else { continue };
            links.entry(*disk).or_insert_with(|| {
                let changed = Arc::new(Notify::new());
                tokio::spawn(self.clone().keep_link(*disk, changed.clone()));
                Wanted { peer, by: BTreeMap::new(), changed, doubts: Doubts::default() }
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DiskId, Wanted>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the view whenever it may have changed.
    async fn keep_view(self: Arc<Self>) {
        loop {
            self.refresh().await;
            let cared = self.waiting.load(Ordering::Relaxed) > 0;
            if cared {
                tokio::time::sleep(CARE).await;
            } else {
                self.look.notified().await;
            }
        }
    }

    /// Reads the view anew. Several may do so at once, and one that is slow does not put back what a later one has seen: what
    /// changes after that one brings a notice of its own.
    async fn refresh(&self) {
        let ground = self.ground.clone();
        let number = self.readings.fetch_add(1, Ordering::Relaxed) + 1;
        match self.calls.run("read imports".into(), move || ground.fabric()).await {
            Ok(Ok(f)) => {
                self.view.send_if_modified(|v| {
                    if number < self.shown.load(Ordering::Relaxed) {
                        return false;
                    }
                    self.shown.store(number, Ordering::Relaxed);
                    let new = **v != f;
                    if new {
                        *v = Arc::new(f);
                    }
                    new
                });
            }
            Ok(Err(e)) => warn!(error = %e, "imports cannot be read; the last view stands"),
            Err(e) => warn!(error = %e, "imports were not read; the last view stands"),
        }
    }

    /// A thread that sleeps in the kernel until something about imports changes.
    fn hear(self: Arc<Self>) {
        let me = Arc::downgrade(&self);
        let runtime = tokio::runtime::Handle::current();
        let body = move || {
            let mut first = true;
            while let Some(i) = me.upgrade() {
                let ground = i.ground.clone();
                // The thread must not keep the agent alive.
                drop(i);
                // The first call only opens the ear: what has changed before it is looked at once.
                let patience = if first { Duration::ZERO } else { Duration::from_secs(5) };
                let heard = ground.fabric_changed(patience);
                let Some(i) = me.upgrade() else { return };
                match heard {
                    Ok(changed) => {
                        if changed || first {
                            runtime.block_on(i.refresh());
                        }
                        first = false;
                    }
                    Err(e) => {
                        warn!(error = %e, "no notice from the kernel about imports");
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
            }
        };
        if let Err(e) = std::thread::Builder::new().name("imports".into()).spawn(body) {
            tracing::error!(error = %e, "no thread for notices about imports; they are looked at only while waited for");
        }
    }

    /// The life of one connection, from the first volume that wants it to the last.
    async fn keep_link(self: Arc<Self>, disk: DiskId, changed: Arc<Notify>) {
        let nqn = names::subsystem_nqn(disk, &self.node);
        let mut pause = RETRY.0;
        let mut view = self.view.subscribe();
        loop {
            // From here on: what changes while this round decides is not to be slept through.
            view.mark_unchanged();
            let (peer, missing, wanted) = self.state_of(disk);
            if !wanted {
                if tokio::time::timeout(LINGER, changed.notified()).await.is_err()
                    && self.drop_link(disk, &nqn).await
                {
                    return;
                }
                continue;
            }
            self.drop_strays(&nqn, peer).await;
            let link =
                self.view.borrow().links.iter().find(|l| l.nqn == nqn && l.peer == Some(peer)).cloned();
            let wait = match link {
                None => {
                    match self.connect(disk, peer).await {
                        Ok(()) => {
                            info!(%disk, address = %peer.0, port = peer.1, "connected");
                            pause = RETRY.0;
                            self.refresh().await;
                            Some(RESCAN_AFTER)
                        }
                        Err(e) => {
                            warn!(%disk, address = %peer.0, port = peer.1, error = %e, "not connected");
                            pause = (pause * 2).min(RETRY.1);
                            self.refresh().await;
                            // What this attempt itself left in the view is no reason for the next one.
                            view.mark_unchanged();
                            Some(pause)
                        }
                    }
                }
                Some(link) if missing && link.live => {
                    let _fresh = self.care();
                    if tokio::time::timeout(RESCAN_AFTER, self.all_there(disk)).await.is_err() {
                        let ground = self.ground.clone();
                        match self
                            .calls
                            .run(format!("rescan {}", link.name), move || ground.rescan(&link))
                            .await
                        {
                            Ok(Ok(())) => {}
                            Ok(Err(e)) => debug!(%disk, error = %e, "no rescan"),
                            Err(e) => debug!(%disk, error = %e, "no rescan"),
                        }
                    }
                    Some(Duration::ZERO)
                }
                Some(_) => None,
            };
            let sleep = async {
                match wait {
                    Some(d) => tokio::time::sleep(d).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed.notified() => {}
                r = view.changed() => if r.is_err() { return },
                () = sleep => {}
            }
        }
    }

    /// Peer, whether a wanted slice is missing, whether any is wanted.
    fn state_of(&self, disk: DiskId) -> ((IpAddr, u16), bool, bool) {
        let view = self.view.borrow().clone();
        let links = self.lock();
        match links.get(&disk) {
            Some(w) => (w.peer, w.by.values().any(|s| !view.imports.contains_key(s)), !w.by.is_empty()),
            None => ((IpAddr::from([0, 0, 0, 0]), 0), false, false),
        }
    }

    async fn all_there(&self, disk: DiskId) {
        let mut view = self.view.subscribe();
        while self.state_of(disk).1 {
            if view.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn connect(&self, disk: DiskId, peer: (IpAddr, u16)) -> Result<(), String> {
        let ground = self.ground.clone();
        match self
            .calls
            .run(format!("connect to {}:{} for disk {disk}", peer.0, peer.1), move || {
                ground.connect(disk, peer.0, peer.1)
            })
            .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Ends connections to the same subsystem at an address that the lender no longer has.
    async fn drop_strays(&self, nqn: &str, peer: (IpAddr, u16)) {
        let strays: Vec<_> = self
            .view
            .borrow()
            .links
            .iter()
            .filter(|l| l.nqn == nqn && l.peer != Some(peer))
            .cloned()
            .collect();
        for l in strays {
            // What is in flight there fails, and goes on over the connection to where the disk is.
            info!(link = l.name, nqn, "the lender has moved to another address, or its disk to another node");
            let elsewhere = l.peer.is_some();
            self.disconnect(l, elsewhere).await;
        }
    }

    /// Ends a connection that nobody wants; true when it is forgotten.
    async fn drop_link(&self, disk: DiskId, nqn: &str) -> bool {
        let links: Vec<_> = self.view.borrow().links.iter().filter(|l| l.nqn == nqn).cloned().collect();
        for l in links {
            if self.state_of(disk).2 {
                return false;
            }
            self.disconnect(l, false).await;
        }
        self.refresh().await;
        let mut links = self.lock();
        if links.get(&disk).is_some_and(|w| w.by.is_empty()) {
            links.remove(&disk);
            return true;
        }
        false
    }

    async fn disconnect(&self, l: super::ground::Link, though_held: bool) {
        let (ground, name) = (self.ground.clone(), l.name.clone());
        match self.calls.run(format!("disconnect {name}"), move || ground.disconnect(&l, though_held)).await {
            Ok(Ok(true)) => info!(link = name, "disconnected"),
            Ok(Ok(false)) => info!(link = name, "a device of it is in use: left alone"),
            Ok(Err(e)) => warn!(link = name, error = %e, "not disconnected"),
            Err(e) => warn!(link = name, error = %e, "not disconnected"),
        }
    }
}

#[cfg(test)]
mod tests {
    use pool::units::Sectors;

    use super::*;
    use crate::agent::tests::fake::Fake;

    #[tokio::test]
    async fn a_slow_reading_does_not_put_back_what_a_later_one_has_seen() {
        let kernel = Arc::new(Fake::default());
        let node: NodeName = "n1".parse().unwrap();
        let imports = Arc::new(Imports::new(kernel.clone(), Calls::default(), node.clone()));
        let (volume, disk) = (VolumeId::from_u128(1), DiskId::from_u128(2));
        kernel.hold_next_look();
        let slow = tokio::spawn({
            let imports = imports.clone();
            async move { imports.refresh().await }
        });
        while !kernel.holds_look() {
            tokio::task::yield_now().await;
        }
        kernel.import(names::slice_id(volume, disk, &node), Sectors::new(8));
        imports.refresh().await;
        assert!(imports.import(volume, disk).is_some(), "the later reading");
        kernel.let_look_go();
        slow.await.unwrap();
        assert!(imports.import(volume, disk).is_some(), "the slow reading has put back what it saw");
    }
}
