//! The running kernel behind [`Ground`].
//!
//! Invariants: devices are found by their UUID, namespaces by theirs. Nothing here decides anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use kernel::{
    DevNo,
    block::{BlockDevice, parse_diskstats},
    dm::{self, Control, DeviceSpec, DmError, EventPoll, Table},
    nvme::{ConnectOptions, ControllerState, Endpoint, Nvme, NvmeError},
    nvmet::{NamespaceSpec, Nvmet, PortAddr},
    uevent::{Next, Uevents},
};
use pool::{
    ids::{DiskId, NodeName, SliceId},
    moving::Mirror,
    names::{self, DmRole},
    units::Sectors,
};

use super::{
    ground::{ExportSpec, Fabric, Found, Ground, GroundError, Import, Link, Result, WriteActivity},
    pace::Foreground,
};
use crate::flow::areas;

/// The running kernel.
#[derive(Debug)]
pub struct Kernel {
    control: Control,
    nvme: Nvme,
    options: ConnectOptions,
    listen: PortAddr,
    node: NodeName,
    uevents: std::sync::OnceLock<Uevents>,
    dm_poll: std::sync::OnceLock<EventPoll>,
    /// The port is shared by all subsystems: one at a time makes it.
    port: std::sync::Mutex<()>,
}

impl Kernel {
    /// The kernel of this node, which exports at `listen`.
    pub fn open(node: &NodeName, listen: SocketAddr) -> Result<Self> {
        let mut options = ConnectOptions::new(names::host_nqn(node), names::host_id(node));
        options.host_traddr = Some(listen.ip()).filter(|a| !a.is_unspecified());
        // One second was too short for a lender whose CPUs are busy: it drops a consumer that lives.
        options.keep_alive_s = 2;
        Ok(Self {
            control: Control::open()?,
            nvme: Nvme::new(),
            options,
            listen: PortAddr { traddr: listen.ip(), trsvcid: listen.port() },
            node: node.clone(),
            uevents: std::sync::OnceLock::new(),
            dm_poll: std::sync::OnceLock::new(),
            port: std::sync::Mutex::new(()),
        })
    }

    fn spec(&self, e: &ExportSpec) -> (String, NamespaceSpec) {
        let device = dm::dev_node_path(&e.role.dm_name());
        (names::subsystem_nqn(e.disk, &e.consumer), NamespaceSpec { nsid: 0, device, uuid: e.slice })
    }

    /// How far a mirror is; `None` for another table.
    fn progress(&self, uuid: &str, table: &Table) -> Result<Option<Mirror>> {
        let [dm::Line { target: dm::Target::Mirror { region, .. }, len, .. }] = table.lines() else {
            return Ok(None);
        };
        let s = self.control.status_mirror(uuid)?;
        let copied = Sectors::new(s.in_sync.saturating_mul(region.get())).min(*len);
        Ok(Some(match s.legs.iter().all(|(_, letter)| *letter == 'A') {
            false => Mirror::Broken,
            true if s.is_complete() => Mirror::Whole,
            true => Mirror::Copying(copied.to_bytes(), len.to_bytes()),
        }))
    }

    /// As `Control::ensure_device`, for a device that refuses writes itself.
    fn set_read_only(&self, role: &DmRole, table: &Table) -> Result<()> {
        let (name, uuid) = (role.dm_name(), role.dm_uuid());
        let fresh = self.control.info_opt(&uuid)?.is_none();
        if fresh {
            self.control.create(&name, &uuid)?;
            areas::begin(&self.control, role, table);
        }
        let made = self.control.load(&uuid, table, true).and_then(|()| self.control.resume(&uuid));
        match made {
            Ok(info) => Ok(dm::ensure_dev_node(&name, info.dev).map(drop)?),
            Err(cause) if fresh => match self.control.remove(&uuid, false) {
                Ok(()) => Err(cause.into()),
                Err(rollback) => {
                    Err(DmError::RollbackFailed { cause: Box::new(cause), rollback: Box::new(rollback) }
                        .into())
                }
            },
            Err(cause) => Err(cause.into()),
        }
    }
}

/// Lazily opened shared handle.
fn opened<T, E>(
    cell: &std::sync::OnceLock<T>,
    open: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<&T, E> {
    if cell.get().is_none() {
        let made = open()?;
        // Somebody else may have been faster; either serves.
        drop(cell.set(made));
    }
    Ok(cell.get().expect("set just now or before"))
}

impl Ground for Kernel {
    fn roles(&self) -> Result<Vec<DmRole>> {
        Ok(self.control.list()?.iter().filter_map(|d| DmRole::parse(d.uuid.as_deref()?)).collect())
    }

    fn device(&self, role: &DmRole) -> Result<Option<Found>> {
        let uuid = role.dm_uuid();
        let Some((info, table)) = self.control.look(&uuid)? else { return Ok(None) };
        let write_back = info.active && BlockDevice::new(info.dev)?.write_back()?;
        let node = DevNo::of_path(&dm::dev_node_path(&role.dm_name()));
        let mirror = match (&table, role) {
            (Some(t), DmRole::Mirror(_)) => self.progress(&uuid, t)?,
            _ => None,
        };
        Ok(Some(Found {
            dev: info.dev,
            table,
            suspended: info.suspended,
            preloaded: info.inactive,
            read_only: info.read_only,
            write_back,
            node_ok: node.is_ok_and(|d| d == info.dev),
            mirror,
        }))
    }

    fn set_table(&self, role: &DmRole, table: &Table, read_only: bool) -> Result<()> {
        if read_only {
            return self.set_read_only(role, table);
        }
        let spec = DeviceSpec { name: role.dm_name(), uuid: role.dm_uuid(), table: table.clone() };
        let count = |c: &Control| areas::begin(c, role, table);
        let (done, info) = self.control.ensure_device_with(&spec, count)?;
        // The same table again, because the device's abilities or its mode have to be worked out anew.
        if done == kernel::Ensured::Identity && !info.suspended {
            self.control.swap(&spec.uuid, table)?;
        }
        Ok(())
    }

    fn clear(&self, role: &DmRole) -> Result<()> {
        Ok(self.control.clear_preloaded(&role.dm_uuid())?)
    }

    fn remove(&self, role: &DmRole) -> Result<()> {
        Ok(self.control.ensure_removed(&role.dm_name(), &role.dm_uuid()).map(drop)?)
    }

    fn paths(&self, role: &DmRole) -> Result<Vec<(DevNo, bool)>> {
        let s = self.control.status_multipath(&role.dm_uuid())?;
        Ok(s.paths.into_iter().map(|(d, state, _)| (d, state == dm::PathState::Active)).collect())
    }

    fn reinstate(&self, role: &DmRole, path: DevNo) -> Result<()> {
        Ok(self.control.reinstate_path(&role.dm_uuid(), path)?)
    }

    fn fail_queued(&self, role: &DmRole) -> Result<()> {
        Ok(self.control.set_queueing(&role.dm_uuid(), false)?)
    }

    fn holds_write(&self, role: &DmRole) -> Result<bool> {
        Ok(self.control.status_delay(&role.dm_uuid())?.writes > 0)
    }

    fn write_activity(&self, dev: DevNo) -> Result<WriteActivity> {
        let d = BlockDevice::new(dev)?;
        let s = d.stat()?;
        Ok(WriteActivity { completed: s.writes + s.discards, in_flight: d.inflight()?.writes })
    }

    fn dm_events(&self, timeout: Duration) -> Result<Option<BTreeMap<DmRole, u32>>> {
        if !opened(&self.dm_poll, EventPoll::new)?.wait(Some(timeout))? {
            return Ok(None);
        }
        let one = |d: dm::ListedDevice| Some((DmRole::parse(d.uuid.as_deref()?)?, d.event_nr));
        Ok(Some(self.control.list()?.into_iter().filter_map(one).collect()))
    }

    fn fabric(&self) -> Result<Fabric> {
        let mut links = Vec::new();
        for c in self.nvme.controllers()? {
            // On one machine with several nodes in it (a test), others' connections are not ours.
            let ours = names::parse_subsystem_nqn(&c.nqn).is_some() && c.host_nqn == self.options.host_nqn;
            if !ours || c.state == ControllerState::Deleting {
                continue;
            }
            let peer = c.address.get("traddr").and_then(|a| a.parse().ok());
            let port = c.address.get("trsvcid").and_then(|a| a.parse().ok());
            let live = c.state == ControllerState::Live;
            links.push(Link { name: c.name, nqn: c.nqn, peer: peer.zip(port), live });
        }
        let live: BTreeSet<&str> = links.iter().filter(|l| l.live).map(|l| l.nqn.as_str()).collect();
        let mut imports = BTreeMap::new();
        for n in self.nvme.namespaces()? {
            let live = live.contains(n.block.nqn.as_str());
            imports.insert(n.uuid, Import { dev: n.block.dev, size: n.size, live });
        }
        Ok(Fabric { imports, links })
    }

    fn fabric_changed(&self, timeout: Duration) -> Result<bool> {
        let events = opened(&self.uevents, || Uevents::open().map_err(NvmeError::from))?;
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match events.next(Some(left)).map_err(NvmeError::from)? {
                Next::Event(e) if e.subsystem == "nvme" => return Ok(true),
                Next::Event(e) if e.subsystem == "block" && e.devpath.contains("/nvme") => return Ok(true),
                Next::Event(_) => {}
                Next::Lost => return Ok(true),
                Next::TimedOut => return Ok(false),
            }
        }
    }

    fn connect(&self, disk: DiskId, address: IpAddr, port: u16) -> Result<()> {
        let nqn = names::subsystem_nqn(disk, &self.node);
        let e = Endpoint { traddr: address, trsvcid: port, nqn };
        Ok(self.nvme.ensure_connected(&e, &self.options).map(drop)?)
    }

    fn foreground(&self) -> Result<Foreground> {
        let is_top =
            |d: &dm::ListedDevice| matches!(d.uuid.as_deref().and_then(DmRole::parse), Some(DmRole::Top(_)));
        let tops: BTreeSet<DevNo> =
            self.control.list()?.iter().filter(|d| is_top(d)).map(|d| d.dev).collect();
        let text = std::fs::read_to_string("/proc/diskstats").map_err(GroundError::Stats)?;
        let ours = parse_diskstats(&text).into_iter().filter(|(dev, ..)| tops.contains(dev));
        Ok(ours.fold(Foreground::default(), |f, (_, _, s)| Foreground {
            ios: f.ios.saturating_add(s.reads).saturating_add(s.writes),
            ms: f.ms.saturating_add(s.read_ms).saturating_add(s.write_ms),
        }))
    }

    fn set_copy_share(&self, percent: u32) -> Result<()> {
        Ok(dm::set_mirror_throttle(percent)?)
    }

    fn rescan(&self, link: &Link) -> Result<()> {
        Ok(self.nvme.rescan_controller(&link.name)?)
    }

    fn reset(&self, link: &Link) -> Result<()> {
        Ok(self.nvme.reset_controller(&link.name)?)
    }

    fn disconnect(&self, link: &Link, though_held: bool) -> Result<bool> {
        for n in self.nvme.namespaces()?.iter().filter(|n| n.block.nqn == link.nqn) {
            if !though_held && self.nvme.is_held(&n.block.name)? {
                return Ok(false);
            }
        }
        let Some(c) = self.nvme.controllers()?.into_iter().find(|c| c.name == link.name && c.nqn == link.nqn)
        else {
            return Ok(true);
        };
        // Whether the peer lives is not known, and a delete that waits for a dead one takes half a minute. It
        // runs off every path that anybody waits for, and dropping the sockets would disturb the other
        // connections to the same lender: so only a connection that is not live is helped along.
        self.nvme.disconnect(&c, false)?;
        Ok(true)
    }

    fn exported(&self, disk: DiskId, consumer: &NodeName) -> Result<BTreeMap<SliceId, u32>> {
        let list = Nvmet::open()?.namespaces_of(&names::subsystem_nqn(disk, consumer))?;
        Ok(list.into_iter().filter_map(|(u, n)| Some((u.parse().ok()?, n))).collect())
    }

    fn export(&self, e: &ExportSpec, nsid: Option<u32>) -> Result<u32> {
        let nvmet = Nvmet::open()?;
        let (nqn, mut spec) = self.spec(e);
        nvmet.ensure_subsystem(&nqn, &names::host_nqn(&e.consumer))?;
        spec.nsid = match nsid {
            Some(n) => n,
            None => nvmet.free_nsid(&nqn)?,
        };
        nvmet.ensure_namespace(&nqn, &spec)?;
        Ok(spec.nsid)
    }

    fn link(&self, e: &ExportSpec) -> Result<()> {
        let (nvmet, nqn) = (Nvmet::open()?, self.spec(e).0);
        let port = {
            let _one_at_a_time = self.port.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            nvmet.ensure_port(&self.listen)?.0
        };
        nvmet.ensure_linked(port, &nqn)?;
        Ok(())
    }

    fn resize_export(&self, e: &ExportSpec, nsid: u32) -> Result<()> {
        Ok(Nvmet::open()?.revalidate_namespace(&self.spec(e).0, nsid)?)
    }

    fn unexport(&self, e: &ExportSpec, nsid: u32) -> Result<()> {
        let nvmet = Nvmet::open()?;
        let nqn = self.spec(e).0;
        nvmet.remove_namespace(&nqn, nsid)?;
        nvmet.remove_subsystem_if_empty(&nqn)?;
        Ok(())
    }
}
