//! Making nvmet so, step by step, each of which may find anything that a crash has left.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{
    MAX_NAMESPACES, NamespaceSpec, Nvmet, NvmetError, PortAddr,
    observe::{Namespace, numbers},
};
use crate::{
    Ensured,
    sysfs::{self, AttrError},
};

/// What initiators see as the model of every device of ours.
const MODEL: &str = "Weir";

impl Nvmet {
    /// The port that listens on `addr` over TCP; its number. Made when there is none. Nothing listens before
    /// the first subsystem is linked.
    pub fn ensure_port(&self, addr: &PortAddr) -> Result<(u32, Ensured), NvmetError> {
        let (traddr, trsvcid) = (addr.traddr.to_string(), addr.trsvcid.to_string());
        let ids = numbers(sysfs::names(&self.ports())?);
        let mut half_made = None;
        for &id in &ids {
            let p = self.observe_port(id)?;
            if p.trtype == "tcp" && p.traddr == traddr && p.trsvcid == trsvcid {
                return Ok((id, Ensured::Identity));
            }
            // configfs shows zeroes or nothing for what was never set; only an unused port may be taken.
            if p.trtype.is_empty() && p.subsystems.is_empty() {
                half_made = Some(id);
            }
        }
        let id = half_made.unwrap_or_else(|| (1..).find(|n| !ids.contains(n)).unwrap_or(1));
        self.write_port(id, addr)?;
        Ok((id, Ensured::Created))
    }

    fn write_port(&self, id: u32, addr: &PortAddr) -> Result<(), NvmetError> {
        let dir = self.port(id);
        make_dir(&dir)?;
        make_dir_if_plain(&dir.join("subsystems"))?;
        let family = if addr.traddr.is_ipv4() { "ipv4" } else { "ipv6" };
        sysfs::write(&dir.join("addr_adrfam"), family)?;
        sysfs::write(&dir.join("addr_traddr"), &addr.traddr.to_string())?;
        sysfs::write(&dir.join("addr_trsvcid"), &addr.trsvcid.to_string())?;
        // Last: a port without a transport is how a half-made one is recognised.
        sysfs::write(&dir.join("addr_trtype"), "tcp")?;
        Ok(())
    }

    /// The subsystem with this NQN, open to one host only. Not reachable before [`Nvmet::ensure_linked`].
    pub fn ensure_subsystem(&self, nqn: &str, host: &str) -> Result<Ensured, NvmetError> {
        let dir = self.subsystem(nqn);
        let fresh = make_dir(&dir)?;
        let mut changed = self.set(&dir.join("attr_allow_any_host"), "0")?;
        for sub in ["allowed_hosts", "namespaces"] {
            make_dir_if_plain(&dir.join(sub))?;
        }
        // Serial and model can only be set until the first host has seen them: what differs on a subsystem
        // that was seen stays.
        if fresh {
            sysfs::write(&dir.join("attr_serial"), &serial(nqn))?;
            let model = dir.join("attr_model");
            if model.exists() {
                sysfs::write(&model, MODEL)?;
            }
        }
        make_dir(&self.host(host))?;
        changed |= make_link(&self.host(host), &dir.join("allowed_hosts").join(host))?;
        for other in sysfs::names(&dir.join("allowed_hosts"))? {
            if other != host {
                remove_link(&dir.join("allowed_hosts").join(other))?;
                changed = true;
            }
        }
        Ok(match (fresh, changed) {
            (true, _) => Ensured::Created,
            (false, true) => Ensured::Swapped,
            (false, false) => Ensured::Identity,
        })
    }

    /// The namespace, enabled. When it is served otherwise, it is disabled first: the initiator loses the
    /// device for that moment.
    pub fn ensure_namespace(&self, nqn: &str, spec: &NamespaceSpec) -> Result<Ensured, NvmetError> {
        // The kernel counts to MAX_NAMESPACES, whatever their numbers; 0 and the broadcast number are refused.
        if spec.nsid == 0 || spec.nsid > MAX_NAMESPACES {
            return Err(NvmetError::BadNsid(spec.nsid));
        }
        let uuid = spec.uuid.to_string();
        self.refuse_second_uuid(nqn, spec, &uuid)?;
        let dir = self.namespace(nqn, spec.nsid);
        let fresh = make_dir(&dir)?;
        let found = if fresh { None } else { Some(self.observe_namespace(nqn, spec.nsid)?) };
        let want = Namespace { nsid: spec.nsid, device: Some(spec.device.clone()), uuid, enabled: true };
        if found.as_ref() == Some(&want) {
            return Ok(Ensured::Identity);
        }
        let was_enabled = found.is_some_and(|f| f.enabled);
        if was_enabled {
            sysfs::write(&dir.join("enable"), "0")?;
        }
        let made = sysfs::write(&dir.join("device_path"), &spec.device.to_string_lossy())
            .and_then(|()| sysfs::write(&dir.join("device_uuid"), &want.uuid))
            .and_then(|()| sysfs::write(&dir.join("enable"), "1"));
        if let Err(e) = made {
            // Nothing of a namespace that never served is worth keeping.
            let removed = if fresh { fs::remove_dir(&dir) } else { Ok(()) };
            return Err(match removed {
                Ok(()) => e.into(),
                Err(r) => {
                    NvmetError::RollbackFailed { cause: e, rollback: AttrError::new("remove", &dir, r) }
                }
            });
        }
        Ok(if was_enabled { Ensured::Swapped } else { Ensured::Created })
    }

    fn refuse_second_uuid(&self, nqn: &str, spec: &NamespaceSpec, uuid: &str) -> Result<(), NvmetError> {
        for nsid in numbers(sysfs::names(&self.namespaces(nqn))?) {
            let taken = nsid != spec.nsid
                && sysfs::read_opt(&self.namespace(nqn, nsid).join("device_uuid"))?.as_deref() == Some(uuid);
            if taken {
                return Err(NvmetError::UuidTaken {
                    nqn: nqn.to_owned(),
                    uuid: uuid.to_owned(),
                    found: nsid,
                    wanted: spec.nsid,
                });
            }
        }
        Ok(())
    }

    /// Serves the subsystem on the port: the last step of an export. The first link makes the port listen.
    pub fn ensure_linked(&self, port: u32, nqn: &str) -> Result<Ensured, NvmetError> {
        if !self.port(port).is_dir() {
            return Err(NvmetError::NoPort(port));
        }
        let made = make_link(&self.subsystem(nqn), &self.port(port).join("subsystems").join(nqn))?;
        Ok(if made { Ensured::Created } else { Ensured::Identity })
    }

    /// A whole export in the one right order. After a restart of the lender, `namespaces` must be all that the
    /// subsystem is to have: the initiator reconnects as soon as the subsystem is linked, and drops for good what
    /// it does not find then (a namespace that follows comes back under another device number). Namespaces that
    /// are served already and not named here stay.
    pub fn export(
        &self,
        addr: &PortAddr,
        nqn: &str,
        host: &str,
        namespaces: &[NamespaceSpec],
    ) -> Result<Ensured, NvmetError> {
        let mut all = vec![self.ensure_subsystem(nqn, host)?];
        for ns in namespaces {
            all.push(self.ensure_namespace(nqn, ns)?);
        }
        let (port, made) = self.ensure_port(addr)?;
        all.push(made);
        all.push(self.ensure_linked(port, nqn)?);
        Ok(if all.iter().all(|e| *e == Ensured::Identity) {
            Ensured::Identity
        } else if all.contains(&Ensured::Swapped) {
            Ensured::Swapped
        } else {
            Ensured::Created
        })
    }

    /// Stops serving a namespace: when this returns, nothing of it reaches the device any more. The device
    /// vanishes at the initiator. No error when there is no such namespace.
    pub fn disable_namespace(&self, nqn: &str, nsid: u32) -> Result<Ensured, NvmetError> {
        let enable = self.namespace(nqn, nsid).join("enable");
        match sysfs::read_opt(&enable)?.as_deref() {
            None | Some("0") => Ok(Ensured::Identity),
            Some(_) => {
                sysfs::write(&enable, "0")?;
                Ok(Ensured::Swapped)
            }
        }
    }

    /// Disables and removes a namespace.
    pub fn remove_namespace(&self, nqn: &str, nsid: u32) -> Result<Ensured, NvmetError> {
        self.disable_namespace(nqn, nsid)?;
        remove_dir(&self.namespace(nqn, nsid))
    }

    /// Removes a subsystem that has no namespaces left; `false` when it has some and stays. Connections to it
    /// end. Its host entry goes when no other subsystem admits that host.
    pub fn remove_subsystem_if_empty(&self, nqn: &str) -> Result<bool, NvmetError> {
        if !sysfs::names(&self.namespaces(nqn))?.is_empty() {
            return Ok(false);
        }
        for port in numbers(sysfs::names(&self.ports())?) {
            remove_link(&self.port(port).join("subsystems").join(nqn))?;
        }
        let allowed = self.subsystem(nqn).join("allowed_hosts");
        let hosts = sysfs::names(&allowed)?;
        for host in &hosts {
            remove_link(&allowed.join(host))?;
        }
        remove_dir(&self.subsystem(nqn))?;
        let still: Vec<String> =
            self.observe()?.subsystems.into_iter().flat_map(|s| s.allowed_hosts).collect();
        for host in hosts.iter().filter(|h| !still.contains(h)) {
            remove_dir(&self.host(host))?;
        }
        Ok(true)
    }

    /// Removes a port that serves nothing; `false` when it serves something and stays.
    pub fn remove_port_if_unused(&self, port: u32) -> Result<bool, NvmetError> {
        if !sysfs::names(&self.port(port).join("subsystems"))?.is_empty() {
            return Ok(false);
        }
        remove_dir(&self.port(port))?;
        Ok(true)
    }

    /// Writes an attribute unless it has that value; whether it was written.
    fn set(&self, path: &Path, value: &str) -> Result<bool, AttrError> {
        if sysfs::read_opt(path)?.as_deref() == Some(value) {
            return Ok(false);
        }
        sysfs::write(path, value)?;
        Ok(true)
    }
}

/// A serial number of 16 hex digits (the field has 20 bytes) that stays the same for an NQN: FNV-1a.
fn serial(nqn: &str) -> String {
    let h =
        nqn.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{h:016x}")
}

/// Makes a folder; whether it was missing.
fn make_dir(path: &Path) -> Result<bool, AttrError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(AttrError::new("make", path, e)),
    }
}

/// configfs fills a new folder by itself; an ordinary file system under an injected root does not.
fn make_dir_if_plain(path: &Path) -> Result<(), AttrError> {
    if path.is_dir() { Ok(()) } else { make_dir(path).map(drop) }
}

/// Links; whether it was missing.
fn make_link(target: &Path, link: &PathBuf) -> Result<bool, AttrError> {
    match symlink(target, link) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(AttrError::new(format!("link {} as", target.display()), link, e)),
    }
}

fn remove_link(link: &Path) -> Result<(), AttrError> {
    match fs::remove_file(link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(AttrError::new("remove", link, e)),
        _ => Ok(()),
    }
}

fn remove_dir(dir: &Path) -> Result<Ensured, NvmetError> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(Ensured::Swapped),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ensured::Identity),
        Err(e) => Err(AttrError::new("remove", dir, e).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool::ids::SliceId;

    fn fake() -> (tempfile::TempDir, Nvmet) {
        let t = tempfile::tempdir().unwrap();
        for d in ["subsystems", "ports", "hosts"] {
            fs::create_dir(t.path().join(d)).unwrap();
        }
        let n = Nvmet::at(t.path()).unwrap();
        (t, n)
    }

    fn spec() -> NamespaceSpec {
        NamespaceSpec { nsid: 3, device: "/dev/mapper/x".into(), uuid: SliceId::from_u128(9) }
    }

    const ADDR: PortAddr =
        PortAddr { traddr: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), trsvcid: 4420 };

    #[test]
    fn an_export_is_made_once() {
        let (_t, n) = fake();
        assert_eq!(n.export(&ADDR, "nqn.s", "nqn.h", &[spec()]).unwrap(), Ensured::Created);
        assert_eq!(n.export(&ADDR, "nqn.s", "nqn.h", &[spec()]).unwrap(), Ensured::Identity);
        let tree = n.observe().unwrap();
        let ns = tree.namespace("nqn.s", &spec().uuid.to_string()).unwrap();
        assert_eq!((ns.nsid, ns.enabled, ns.device.as_deref()), (3, true, Some(Path::new("/dev/mapper/x"))));
        assert_eq!(tree.ports[0].subsystems, ["nqn.s"]);
        assert_eq!(tree.subsystems[0].allowed_hosts, ["nqn.h"]);
        assert!(!tree.subsystems[0].allow_any_host);
        assert_eq!(n.free_nsid("nqn.s").unwrap(), 1);
    }

    #[test]
    fn leftovers_of_a_crash_are_finished() {
        let (t, n) = fake();
        // A port without a transport, a namespace that was never enabled, another host still admitted.
        fs::create_dir_all(t.path().join("ports/1/subsystems")).unwrap();
        for a in ["addr_trtype", "addr_traddr", "addr_trsvcid"] {
            fs::write(t.path().join("ports/1").join(a), "\n").unwrap();
        }
        n.ensure_subsystem("nqn.s", "nqn.old").unwrap();
        let dir = t.path().join("subsystems/nqn.s/namespaces/3");
        fs::create_dir(&dir).unwrap();
        for (a, v) in [("device_path", "(null)\n"), ("device_uuid", "x\n"), ("enable", "0\n")] {
            fs::write(dir.join(a), v).unwrap();
        }
        assert_eq!(n.observe().unwrap().subsystems[0].namespaces[0].device, None);
        n.export(&ADDR, "nqn.s", "nqn.h", &[spec()]).unwrap();
        let tree = n.observe().unwrap();
        assert_eq!(tree.ports.len(), 1);
        assert_eq!(tree.subsystems[0].allowed_hosts, ["nqn.h"]);
        assert!(tree.subsystems[0].namespaces[0].enabled);
    }

    #[test]
    fn one_uuid_has_one_number() {
        let (_t, n) = fake();
        n.export(&ADDR, "nqn.s", "nqn.h", &[spec()]).unwrap();
        let other = NamespaceSpec { nsid: 4, ..spec() };
        assert!(matches!(n.ensure_namespace("nqn.s", &other), Err(NvmetError::UuidTaken { found: 3, .. })));
        for nsid in [0, 1025, u32::MAX] {
            assert!(matches!(
                n.ensure_namespace("nqn.s", &NamespaceSpec { nsid, ..spec() }),
                Err(NvmetError::BadNsid(_))
            ));
        }
    }

    #[test]
    fn a_subsystem_with_namespaces_stays() {
        let (_t, n) = fake();
        n.export(&ADDR, "nqn.s", "nqn.h", &[spec()]).unwrap();
        assert!(!n.remove_subsystem_if_empty("nqn.s").unwrap());
        assert_eq!(n.disable_namespace("nqn.s", 3).unwrap(), Ensured::Swapped);
        assert_eq!(n.disable_namespace("nqn.s", 3).unwrap(), Ensured::Identity);
        assert_eq!(n.disable_namespace("nqn.s", 7).unwrap(), Ensured::Identity);
    }

    #[test]
    fn serials_are_stable_and_fit() {
        assert_eq!(serial("nqn.s"), serial("nqn.s"));
        assert_ne!(serial("nqn.s"), serial("nqn.t"));
        assert_eq!(serial("").len(), 16);
    }
}
