//! Reading nvmet back.

use std::path::PathBuf;

use super::{Nvmet, NvmetError};
use crate::sysfs::{self, AttrError};

/// All of nvmet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Ports by number.
    pub ports: Vec<Port>,
    /// Subsystems by NQN.
    pub subsystems: Vec<Subsystem>,
    /// Host NQNs that exist.
    pub hosts: Vec<String>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub id: u32,
    /// Its transport; empty when it was made but not set up.
    pub trtype: String,
    /// Its address.
    pub traddr: String,
    /// Its TCP port.
    pub trsvcid: String,
    /// NQNs that it serves.
    pub subsystems: Vec<String>,
}

/// A subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// Its NQN.
    pub nqn: String,
    /// Whether anybody may connect.
    pub allow_any_host: bool,
    /// Host NQNs that may connect.
    pub allowed_hosts: Vec<String>,
    /// Its namespaces by number.
    pub namespaces: Vec<Namespace>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its number.
    pub nsid: u32,
    /// The device behind it; `None` when it was made but not set up.
    pub device: Option<PathBuf>,
    /// Its uuid as text.
    pub uuid: String,
    /// Whether it is served.
    pub enabled: bool,
}

impl Tree {
    /// The subsystem with this NQN.
    pub fn subsystem(&self, nqn: &str) -> Option<&Subsystem> {
        self.subsystems.iter().find(|s| s.nqn == nqn)
    }

    /// The namespace with this uuid in a subsystem.
    pub fn namespace(&self, nqn: &str, uuid: &str) -> Option<&Namespace> {
        self.subsystem(nqn)?.namespaces.iter().find(|n| n.uuid == uuid)
    }
}

impl Nvmet {
    /// Everything that nvmet has. What vanishes while it is read is left out.
    pub fn observe(&self) -> Result<Tree, NvmetError> {
        let mut tree = Tree { hosts: sysfs::names(&self.root.join("hosts"))?, ..Tree::default() };
        for id in numbers(sysfs::names(&self.ports())?) {
            tree.ports.extend(gone_is_none(self.observe_port(id))?);
        }
        for nqn in sysfs::names(&self.subsystems())? {
            tree.subsystems.extend(gone_is_none(self.observe_subsystem(&nqn))?);
        }
        Ok(tree)
    }

    pub(super) fn observe_port(&self, id: u32) -> Result<Port, AttrError> {
        let dir = self.port(id);
        Ok(Port {
            id,
            trtype: sysfs::read(&dir.join("addr_trtype"))?,
            traddr: sysfs::read(&dir.join("addr_traddr"))?,
            trsvcid: sysfs::read(&dir.join("addr_trsvcid"))?,
            subsystems: sysfs::names(&dir.join("subsystems"))?,
        })
    }

    fn observe_subsystem(&self, nqn: &str) -> Result<Subsystem, AttrError> {
        let dir = self.subsystem(nqn);
        let mut namespaces = Vec::new();
        for nsid in numbers(sysfs::names(&dir.join("namespaces"))?) {
            namespaces.extend(gone_is_none(self.observe_namespace(nqn, nsid))?);
        }
        Ok(Subsystem {
            nqn: nqn.to_owned(),
            allow_any_host: sysfs::read(&dir.join("attr_allow_any_host"))? != "0",
            allowed_hosts: sysfs::names(&dir.join("allowed_hosts"))?,
            namespaces,
        })
    }

    pub(super) fn observe_namespace(&self, nqn: &str, nsid: u32) -> Result<Namespace, AttrError> {
        let dir = self.namespace(nqn, nsid);
        // An unset path prints as "(null)".
        let device = Some(sysfs::read(&dir.join("device_path"))?).filter(|p| !p.is_empty() && p != "(null)");
        Ok(Namespace {
            nsid,
            device: device.map(PathBuf::from),
            uuid: sysfs::read(&dir.join("device_uuid"))?,
            enabled: sysfs::read(&dir.join("enable"))? == "1",
        })
    }

    /// The lowest namespace number of a subsystem that is free.
    pub fn free_nsid(&self, nqn: &str) -> Result<u32, NvmetError> {
        let used = numbers(sysfs::names(&self.namespaces(nqn))?);
        (1..=super::MAX_NAMESPACES)
            .find(|n| !used.contains(n))
            .ok_or_else(|| NvmetError::Full(nqn.to_owned()))
    }
}

pub(super) fn numbers(names: Vec<String>) -> Vec<u32> {
    let mut n: Vec<u32> = names.iter().filter_map(|s| s.parse().ok()).collect();
    n.sort_unstable();
    n
}

fn gone_is_none<T>(r: Result<T, AttrError>) -> Result<Option<T>, AttrError> {
    match r {
        Ok(v) => Ok(Some(v)),
        Err(e) if sysfs::is_gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}
