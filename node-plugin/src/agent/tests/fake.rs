//! A kernel in memory that can stop working at any act, as it would for a process that is killed there.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kernel::{
    DevNo,
    dm::{DmError, Table, Target},
};
use pool::{
    ids::{DiskId, NodeName, SliceId},
    moving::Mirror,
    names::{self, DmRole},
    units::Sectors,
};
use rustix::io::Errno;

use crate::agent::{
    ground::{ExportSpec, Fabric, Found, Ground, Import, Link, Result, WriteActivity},
    pace::Foreground,
};

#[derive(Default)]
pub(crate) struct Device {
    pub(crate) found: Option<Found>,
    pub(crate) path_failed: bool,
    pub(crate) open: bool,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) devices: BTreeMap<DmRole, Device>,
    pub(crate) fabric: Fabric,
    pub(crate) exported: BTreeMap<SliceId, u32>,
    pub(crate) linked: bool,
    /// Percent of the time that copies have.
    pub(crate) copy_share: u32,
    pub(crate) held: bool,
    pub(crate) writing: bool,
    /// What the tops let through or failed, in order: for asserting what became of held writes.
    pub(crate) log: Vec<String>,
    /// Acts left before everything fails; `None`: never. An act takes effect in the same instant that it is counted.
    pub(crate) left: Option<u64>,
    /// Something about imports has changed and nobody has heard of it yet: the kernel loses no notice.
    noticed: bool,
    look: Look,
    minor: u32,
}

/// How looks at imports come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Look {
    #[default]
    AtOnce,
    /// The next one will be held.
    HoldNext,
    /// One has seen what there was and waits to be let go; others come back at once.
    Held,
}

pub(crate) struct Fake {
    pub(crate) world: Mutex<World>,
    changed: Condvar,
    pub(crate) looks: AtomicU64,
    pub(crate) acts: AtomicU64,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            world: Mutex::default(),
            changed: Condvar::new(),
            looks: AtomicU64::new(0),
            acts: AtomicU64::new(0),
        }
    }
}

fn error(op: &'static str, role: &DmRole, source: Errno) -> DmError {
    DmError::Ioctl { op, device: role.dm_name(), source }
}

impl Fake {
    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// An imported slice appears, as its lender would make it.
    pub(crate) fn import(&self, slice: SliceId, size: Sectors) {
        let mut w = self.lock();
        w.minor += 1;
        let dev = DevNo::new(259, w.minor);
        w.fabric.imports.insert(slice, Import { dev, size, live: true });
        w.noticed = true;
        self.changed.notify_all();
    }

    /// The kernel gives notice that something about imports has changed.
    pub(crate) fn notify(&self) {
        self.lock().noticed = true;
        self.changed.notify_all();
    }

    /// The next look at imports does not come back until [`Self::let_look_go`].
    pub(crate) fn hold_next_look(&self) {
        self.lock().look = Look::HoldNext;
    }

    pub(crate) fn holds_look(&self) -> bool {
        self.lock().look == Look::Held
    }

    pub(crate) fn let_look_go(&self) {
        self.lock().look = Look::AtOnce;
        self.changed.notify_all();
    }

    /// A disk's label is written; false when the process is dead.
    pub(crate) fn label(&self, disk: DiskId) -> bool {
        let mut w = self.lock();
        let alive = w.left != Some(0);
        if alive {
            w.log.push(format!("label {disk}"));
        }
        alive
    }

    /// Waits, as the kernel does, until nothing is queued any more by the legs that a device stands on. A process that is killed
    /// does not wait.
    fn drain(&self, role: &DmRole) {
        let waits = |w: &mut World| w.left != Some(0) && stands_on_queue(w, role);
        let mut w = self.lock();
        while waits(&mut w) {
            w = self.changed.wait_timeout(w, Duration::from_millis(10)).unwrap().0;
        }
    }

    /// The world for one act, while the process lives.
    fn act(&self, what: &str, role: &DmRole) -> Result<MutexGuard<'_, World>> {
        let mut w = self.lock();
        match &mut w.left {
            None => {}
            Some(0) => return Err(error("dead", role, Errno::IO).into()),
            Some(n) => *n -= 1,
        }
        self.acts.fetch_add(1, Ordering::SeqCst);
        w.log.push(format!("{what} {}", role.dm_name()));
        Ok(w)
    }
}

/// Whether a leg below a top queues for a path that has failed.
fn stands_on_queue(w: &World, top: &DmRole) -> bool {
    let table = |r: &DmRole| w.devices.get(r).and_then(|d| d.found.as_ref()?.table.as_ref());
    let below = |dev: DevNo| {
        table(top).is_some_and(|t| t.lines().iter().any(|l| l.target.render().contains(&dev.to_string())))
    };
    w.devices.iter().any(|(r, d)| {
        let queues = table(r).is_some_and(|t| {
            t.lines().iter().any(|l| matches!(l.target, Target::MultipathBio { queue_if_no_path: true, .. }))
        });
        matches!(r, DmRole::Leg(..))
            && d.path_failed
            && queues
            && d.found.as_ref().is_some_and(|f| below(f.dev))
    })
}

/// What a held write meets when the device above the write leg lets go of it.
fn release(w: &mut World, top: &DmRole) {
    let guard = w.devices.get(top).and_then(|d| d.found.as_ref()).and_then(|f| f.table.as_ref());
    let held_by = guard.is_some_and(|t| matches!(t.lines()[0].target, Target::Delay { .. }));
    if !held_by || !w.held {
        return;
    }
    let leg = w
        .devices
        .get(&DmRole::WriteLeg(top.volume()))
        .and_then(|d| d.found.as_ref())
        .and_then(|f| f.table.as_ref());
    let through = leg.is_some_and(|t| matches!(t.lines()[0].target, Target::Linear { .. }));
    w.log.push(if through { "held write went through" } else { "held write failed" }.into());
    w.held = false;
}

impl Ground for Fake {
    fn roles(&self) -> Result<Vec<DmRole>> {
        Ok(self.lock().devices.iter().filter(|(_, d)| d.found.is_some()).map(|(r, _)| r.clone()).collect())
    }

    fn device(&self, role: &DmRole) -> Result<Option<Found>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        Ok(self.lock().devices.get(role).and_then(|d| d.found.clone()))
    }

    fn set_table(&self, role: &DmRole, table: &Table, read_only: bool) -> Result<()> {
        self.drain(role);
        let mut w = self.act("set", role)?;
        release(&mut w, role);
        w.minor += 1;
        let fresh = DevNo::new(253, w.minor);
        let d = w.devices.entry(role.clone()).or_default();
        let dev = d.found.as_ref().map_or(fresh, |f| f.dev);
        // Another path works until it fails.
        d.path_failed &= d.found.as_ref().and_then(|f| f.table.as_ref()) == Some(table);
        // A mirror is whole at once.
        let mirror = matches!(table.lines()[0].target, Target::Mirror { .. }).then_some(Mirror::Whole);
        d.found = Some(Found {
            mirror,
            dev,
            table: Some(table.clone()),
            suspended: false,
            preloaded: false,
            read_only,
            write_back: true,
            node_ok: true,
        });
        Ok(())
    }

    fn clear(&self, role: &DmRole) -> Result<()> {
        if let Some(f) = self.act("clear", role)?.devices.get_mut(role).and_then(|d| d.found.as_mut()) {
            f.preloaded = false;
        }
        Ok(())
    }

    fn remove(&self, role: &DmRole) -> Result<()> {
        let w = self.lock();
        let dev = w.devices.get(role).and_then(|d| d.found.as_ref()).map(|f| f.dev);
        let used = |t: &Table| {
            dev.is_some_and(|d| t.lines().iter().any(|l| l.target.render().contains(&d.to_string())))
        };
        let busy = w.devices.get(role).is_some_and(|d| d.open)
            || w.devices.values().filter_map(|d| d.found.as_ref()?.table.as_ref()).any(used);
        drop(w);
        if busy {
            return Err(error("remove", role, Errno::BUSY).into());
        }
        self.act("remove", role)?.devices.remove(role);
        Ok(())
    }

    fn paths(&self, role: &DmRole) -> Result<Vec<(DevNo, bool)>> {
        let w = self.lock();
        let Some(d) = w.devices.get(role) else { return Ok(vec![]) };
        let table = d.found.as_ref().and_then(|f| f.table.as_ref());
        let path = |l: &kernel::dm::Line| match l.target {
            Target::MultipathBio { path, .. } => path.map(|p| (p, !d.path_failed)),
            _ => None,
        };
        Ok(table.into_iter().flat_map(Table::lines).filter_map(path).collect())
    }

    fn reinstate(&self, role: &DmRole, _: DevNo) -> Result<()> {
        if let Some(d) = self.act("reinstate", role)?.devices.get_mut(role) {
            d.path_failed = false;
        }
        Ok(())
    }

    fn fail_queued(&self, role: &DmRole) -> Result<()> {
        let mut w = self.act("fail queued of", role)?;
        let Some(f) = w.devices.get_mut(role).and_then(|d| d.found.as_mut()) else { return Ok(()) };
        if let Some(t) = &f.table {
            let len = t.len();
            let path = match t.lines()[0].target {
                Target::MultipathBio { path, .. } => path,
                _ => None,
            };
            f.table = Table::single(len, Target::MultipathBio { path, queue_if_no_path: false }).ok();
        }
        Ok(())
    }

    fn holds_write(&self, _: &DmRole) -> Result<bool> {
        Ok(self.lock().held)
    }

    fn write_activity(&self, _: DevNo) -> Result<WriteActivity> {
        let completed = if self.lock().writing { self.looks.fetch_add(1, Ordering::SeqCst) } else { 0 };
        Ok(WriteActivity { completed, in_flight: 0 })
    }

    fn dm_events(&self, timeout: Duration) -> Result<Option<BTreeMap<DmRole, u32>>> {
        std::thread::sleep(timeout.min(Duration::from_millis(50)));
        Ok(None)
    }

    fn fabric(&self) -> Result<Fabric> {
        let mut w = self.lock();
        let seen = w.fabric.clone();
        if w.look == Look::HoldNext {
            w.look = Look::Held;
            drop(self.changed.wait_while(w, |w| w.look == Look::Held).unwrap());
        }
        Ok(seen)
    }

    fn fabric_changed(&self, timeout: Duration) -> Result<bool> {
        let pause = timeout.min(Duration::from_millis(50));
        let (mut w, _) = self.changed.wait_timeout_while(self.lock(), pause, |w| !w.noticed).unwrap();
        Ok(std::mem::take(&mut w.noticed))
    }

    fn connect(&self, disk: DiskId, address: IpAddr, port: u16) -> Result<()> {
        let mut w = self.lock();
        let nqn = names::subsystem_nqn(disk, &"n1".parse().unwrap());
        if !w.fabric.links.iter().any(|l| l.nqn == nqn) {
            let name = format!("nvme{}", w.fabric.links.len());
            w.fabric.links.push(Link { name, nqn, peer: Some((address, port)), live: true });
        }
        Ok(())
    }

    fn foreground(&self) -> Result<Foreground> {
        Ok(Foreground::default())
    }

    fn set_copy_share(&self, percent: u32) -> Result<()> {
        self.lock().copy_share = percent;
        Ok(())
    }

    fn rescan(&self, _: &Link) -> Result<()> {
        Ok(())
    }

    fn reset(&self, link: &Link) -> Result<()> {
        self.lock().log.push(format!("reset {}", link.nqn));
        Ok(())
    }

    fn disconnect(&self, link: &Link, _: bool) -> Result<bool> {
        self.lock().fabric.links.retain(|l| l != link);
        Ok(true)
    }

    fn exported(&self, _: DiskId, _: &NodeName) -> Result<BTreeMap<SliceId, u32>> {
        Ok(self.lock().exported.clone())
    }

    fn export(&self, spec: &ExportSpec, nsid: Option<u32>) -> Result<u32> {
        let mut w = self.act("export", &spec.role)?;
        let n = nsid.unwrap_or(w.exported.len() as u32 + 1);
        w.exported.insert(spec.slice, n);
        Ok(n)
    }

    fn link(&self, spec: &ExportSpec) -> Result<()> {
        self.act("link", &spec.role)?.linked = true;
        Ok(())
    }

    fn resize_export(&self, _: &ExportSpec, _: u32) -> Result<()> {
        Ok(())
    }

    fn unexport(&self, spec: &ExportSpec, _: u32) -> Result<()> {
        self.act("unexport", &spec.role)?.exported.remove(&spec.slice);
        Ok(())
    }
}
