//! Controllers and namespaces as sysfs shows them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pool::ids::SliceId;

use super::{Endpoint, Nvme, NvmeError};
use crate::{
    DevNo,
    sysfs::{self, AttrError},
    uevent,
};

/// State of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// Just made.
    New,
    /// Serves I/O.
    Live,
    /// Being reset after an error.
    Resetting,
    /// Trying to reach its peer again.
    Connecting,
    /// On its way out.
    Deleting,
    /// Given up.
    Dead,
    /// Something newer than this program.
    Other(String),
}

impl ControllerState {
    fn parse(s: &str) -> Self {
        match s {
            "new" => Self::New,
            "live" => Self::Live,
            "resetting" => Self::Resetting,
            "connecting" => Self::Connecting,
            s if s.starts_with("deleting") => Self::Deleting,
            "dead" => Self::Dead,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// Outcome of a wait for a controller's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The state that was accepted; `None`: the controller is gone.
    Met(Option<ControllerState>),
    /// The last state seen before the time ran out.
    TimedOut(Option<ControllerState>),
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// `nvme0`.
    pub name: String,
    /// `tcp`, `pcie`, ...
    pub transport: String,
    /// The subsystem.
    pub nqn: String,
    /// Who we are to it; empty for local ones.
    pub host_nqn: String,
    /// The peer's address, by key (`traddr`, `trsvcid`, `src_addr`).
    pub address: BTreeMap<String, String>,
    /// Its state.
    pub state: ControllerState,
}

impl Controller {
    /// Whether it is the connection to this endpoint.
    pub fn is(&self, e: &Endpoint) -> bool {
        self.transport == "tcp"
            && self.nqn == e.nqn
            && self.address.get("traddr").and_then(|a| a.parse().ok()) == Some(e.traddr)
            && self.address.get("trsvcid").and_then(|p| p.parse().ok()) == Some(e.trsvcid)
    }
}

/// A namespace's block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockNamespace {
    /// `nvme0n1`: changes when the namespace comes back after it was dropped.
    pub name: String,
    /// Its number.
    pub dev: DevNo,
    /// Its namespace number.
    pub nsid: u32,
    /// The subsystem.
    pub nqn: String,
}

impl Nvme {
    /// All controllers. What vanishes while it is read is left out.
    pub fn controllers(&self) -> Result<Vec<Controller>, NvmeError> {
        let dir = self.sys.join("class/nvme");
        let mut out = Vec::new();
        for name in sysfs::names(&dir)? {
            match read_controller(&dir.join(&name), &name) {
                Ok(c) => out.push(c),
                Err(e) if sysfs::is_gone(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(out)
    }

    /// The connection to an endpoint.
    pub fn find_controller(&self, e: &Endpoint) -> Result<Option<Controller>, NvmeError> {
        let usable = |c: &Controller| c.is(e) && c.state != ControllerState::Deleting;
        Ok(self.controllers()?.into_iter().find(usable))
    }

    /// A controller's state; `None` when it is gone.
    pub fn state(&self, name: &str) -> Result<Option<ControllerState>, NvmeError> {
        let path = self.sys.join("class/nvme").join(name).join("state");
        Ok(sysfs::read_opt(&path)?.map(|s| ControllerState::parse(&s)))
    }

    /// The block device of the namespace with this uuid. The hidden per-controller devices of native multipath
    /// carry the same uuid and are passed over. One that the lender has dropped may still be found for a moment
    /// while the kernel takes it away.
    pub fn find_namespace(&self, uuid: SliceId) -> Result<Option<BlockNamespace>, NvmeError> {
        let want = uuid.to_string();
        let dir = self.sys.join("block");
        for name in sysfs::names(&dir)? {
            let d = dir.join(&name);
            if !name.starts_with("nvme") || sysfs::read_opt(&d.join("uuid"))?.as_deref() != Some(&want) {
                continue;
            }
            match read_namespace(&d, &name) {
                Ok(Some(n)) => return Ok(Some(n)),
                Ok(None) => {}
                Err(e) if sysfs::is_gone(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    /// Waits for the namespace to appear, woken by block uevents.
    pub fn wait_for_namespace(&self, uuid: SliceId, within: Duration) -> Result<BlockNamespace, NvmeError> {
        uevent::wait_for(&["block", "nvme"], Instant::now() + within, || self.find_namespace(uuid))?
            .ok_or_else(|| NvmeError::NoNamespace { uuid: uuid.to_string() })
    }

    /// Waits until `ready` accepts a controller's state (`None`: it is gone), woken by uevents.
    pub fn wait_for_state(
        &self,
        name: &str,
        within: Duration,
        ready: impl Fn(Option<&ControllerState>) -> bool,
    ) -> Result<Waited, NvmeError> {
        let mut last = None;
        let met = uevent::wait_for(&["nvme"], Instant::now() + within, || {
            last = self.state(name)?;
            Ok::<_, NvmeError>(ready(last.as_ref()).then(|| last.clone()))
        })?;
        Ok(met.map_or(Waited::TimedOut(last), Waited::Met))
    }

    /// Where a controller's attributes are.
    pub(super) fn controller_dir(&self, name: &str) -> PathBuf {
        self.sys.join("class/nvme").join(name)
    }
}

fn read_controller(dir: &Path, name: &str) -> Result<Controller, AttrError> {
    Ok(Controller {
        name: name.to_owned(),
        transport: sysfs::read(&dir.join("transport"))?,
        nqn: sysfs::read(&dir.join("subsysnqn"))?,
        host_nqn: sysfs::read_opt(&dir.join("hostnqn"))?.unwrap_or_default(),
        address: parse_address(&sysfs::read_opt(&dir.join("address"))?.unwrap_or_default()),
        state: ControllerState::parse(&sysfs::read(&dir.join("state"))?),
    })
}

pub(super) fn read_namespace(dir: &Path, name: &str) -> Result<Option<BlockNamespace>, AttrError> {
    if sysfs::read(&dir.join("hidden"))? != "0" {
        return Ok(None);
    }
    let dev = sysfs::read(&dir.join("dev"))?;
    let Ok(dev) = dev.parse() else { return Ok(None) };
    Ok(Some(BlockNamespace {
        name: name.to_owned(),
        dev,
        nsid: u32::try_from(sysfs::read_num(&dir.join("nsid"))?).unwrap_or(0),
        nqn: sysfs::read(&dir.join("device/subsysnqn"))?,
    }))
}

/// `traddr=127.0.0.1,trsvcid=4420,src_addr=127.0.0.1`
fn parse_address(s: &str) -> BTreeMap<String, String> {
    s.split(',')
        .filter_map(|kv| kv.split_once('='))
        .map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn put(root: &Path, path: &str, value: &str) {
        let p = root.join(path);
        fs::create_dir_all(p.parent().unwrap()).unwrap();
        fs::write(p, format!("{value}\n")).unwrap();
    }

    #[test]
    fn controllers_and_namespaces_are_found() {
        let t = tempfile::tempdir().unwrap();
        let nvme = Nvme::at(t.path(), t.path().join("fabrics"));
        assert!(nvme.controllers().unwrap().is_empty());
        for (k, v) in [
            ("transport", "tcp"),
            ("subsysnqn", "nqn.s"),
            ("hostnqn", "nqn.h"),
            ("address", "traddr=127.0.0.1,trsvcid=4420,src_addr=127.0.0.1"),
            ("state", "live"),
        ] {
            put(t.path(), &format!("class/nvme/nvme0/{k}"), v);
        }
        let e = Endpoint { traddr: "127.0.0.1".parse().unwrap(), trsvcid: 4420, nqn: "nqn.s".into() };
        assert_eq!(nvme.find_controller(&e).unwrap().unwrap().state, ControllerState::Live);
        assert!(nvme.find_controller(&Endpoint { trsvcid: 1, ..e.clone() }).unwrap().is_none());
        put(t.path(), "class/nvme/nvme0/state", "deleting (no IO)");
        assert!(nvme.find_controller(&e).unwrap().is_none());

        let id = SliceId::from_u128(5);
        for (name, hidden) in [("nvme0c0n1", "1"), ("nvme0n1", "0")] {
            for (k, v) in
                [("uuid", id.to_string().as_str()), ("hidden", hidden), ("dev", "259:1"), ("nsid", "2")]
            {
                put(t.path(), &format!("block/{name}/{k}"), v);
            }
            put(t.path(), &format!("block/{name}/device/subsysnqn"), "nqn.s");
        }
        let n = nvme.find_namespace(id).unwrap().unwrap();
        assert_eq!((n.name.as_str(), n.dev, n.nsid), ("nvme0n1", DevNo::new(259, 1), 2));
        assert!(nvme.find_namespace(SliceId::from_u128(6)).unwrap().is_none());
    }
}
