//! Connecting and disconnecting.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    time::Duration,
};

use super::{Controller, ControllerState, Endpoint, Nvme, NvmeError, Waited, drop_sockets};
use crate::sysfs;

/// How to connect. The defaults are those that the data path was proven with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Who we are; lenders admit by it.
    pub host_nqn: String,
    /// The host id that goes with it: the kernel refuses one host NQN under two ids.
    pub host_id: String,
    /// Our own address on the storage network, when the route does not choose it.
    pub host_traddr: Option<IpAddr>,
    /// After how many seconds without a connection I/O fails to the multipath device above.
    pub fast_io_fail_s: u32,
    /// How often the peer is asked whether it lives, in seconds.
    pub keep_alive_s: u32,
    /// Pause between two attempts to reconnect, in seconds.
    pub reconnect_delay_s: u32,
    /// I/O queues (TCP connections) of this controller.
    pub queues: u32,
}

/// Outcome of [`Nvme::ensure_connected`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connected {
    /// A new controller.
    New(Controller),
    /// The one that stood already, in whatever state.
    Existing(Controller),
}

impl Connected {
    /// The controller.
    pub fn controller(&self) -> &Controller {
        match self {
            Connected::New(c) | Connected::Existing(c) => c,
        }
    }
}

impl ConnectOptions {
    /// The options for a host. I/O queues: one a CPU, at most four, because a node has one controller for each
    /// pair of lender disk and consumer.
    pub fn new(host_nqn: impl Into<String>, host_id: impl Into<String>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self {
            host_nqn: host_nqn.into(),
            host_id: host_id.into(),
            host_traddr: None,
            fast_io_fail_s: 1,
            keep_alive_s: 1,
            reconnect_delay_s: 1,
            queues: cpus.min(4),
        }
    }

    fn render(&self, e: &Endpoint) -> Result<String, NvmeError> {
        for (what, value) in [("nqn", &e.nqn), ("hostnqn", &self.host_nqn), ("hostid", &self.host_id)] {
            // A comma would start another option.
            if value.is_empty() || value.contains([',', '\n', '\0']) {
                return Err(NvmeError::BadOption { what, value: value.clone() });
            }
        }
        let mut s = format!(
            "transport=tcp,traddr={},trsvcid={},nqn={},hostnqn={},hostid={}",
            e.traddr, e.trsvcid, e.nqn, self.host_nqn, self.host_id
        );
        if let Some(a) = self.host_traddr {
            s += &format!(",host_traddr={a}");
        }
        // ctrl_loss_tmo=-1: the kernel never gives up by itself, a lender that comes back is taken up again.
        s += &format!(
            ",ctrl_loss_tmo=-1,fast_io_fail_tmo={},keep_alive_tmo={},reconnect_delay={},nr_io_queues={}",
            self.fast_io_fail_s, self.keep_alive_s, self.reconnect_delay_s, self.queues
        );
        Ok(s)
    }
}

impl Nvme {
    /// The controller for an endpoint; connects when there is none. A controller that is connecting or
    /// resetting is returned as it is: it reconnects by itself. One that is being deleted does not count.
    pub fn ensure_connected(&self, e: &Endpoint, o: &ConnectOptions) -> Result<Connected, NvmeError> {
        if let Some(c) = self.find_controller(e)? {
            return Ok(Connected::Existing(c));
        }
        match self.connect(e, o) {
            Ok(name) => {
                let made = self.controllers()?.into_iter().find(|c| c.name == name);
                made.map(Connected::New).ok_or_else(|| NvmeError::Contradiction(e.nqn.clone()))
            }
            Err(NvmeError::Connect { source, .. }) if source.raw_os_error() == Some(libc::EALREADY) => {
                // Somebody else was faster, or one is being deleted right now.
                let found = self.find_controller(e)?;
                found.map(Connected::Existing).ok_or_else(|| NvmeError::Contradiction(e.nqn.clone()))
            }
            Err(other) => Err(other),
        }
    }

    /// Connects; the controller's name.
    fn connect(&self, e: &Endpoint, o: &ConnectOptions) -> Result<String, NvmeError> {
        let options = o.render(e)?;
        let open = |source| NvmeError::Fabrics { path: self.fabrics.clone(), source };
        let failed = |source: io::Error| NvmeError::Connect {
            nqn: e.nqn.clone(),
            traddr: e.traddr,
            trsvcid: e.trsvcid,
            source,
        };
        let mut f = File::options().read(true).write(true).open(&self.fabrics).map_err(open)?;
        // One write(2): the kernel parses each write by itself.
        let n = f.write(options.as_bytes()).map_err(failed)?;
        if n != options.len() {
            return Err(failed(io::ErrorKind::WriteZero.into()));
        }
        let mut answer = [0; 64];
        let n = f.read(&mut answer).map_err(failed)?;
        let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
        parse_instance(&answer).map(|i| format!("nvme{i}")).ok_or(NvmeError::Answer(answer))
    }

    /// Looks for namespaces again, for when the peer's notice was lost.
    pub fn rescan_controller(&self, name: &str) -> Result<(), NvmeError> {
        Ok(sysfs::write(&self.controller_dir(name).join("rescan_controller"), "1")?)
    }

    /// Deletes a controller; what is queued in it fails. No error when it is gone already.
    ///
    /// On a live controller whose peer is dead this blocks until the I/O time-out. `peer_is_gone` drops its
    /// connections first, which starts error recovery at once, and waits a little for the state `connecting`,
    /// from where deleting takes well under a second. It drops the connections of every controller to that
    /// address and port: those of a peer that lives reconnect by themselves.
    pub fn disconnect(&self, c: &Controller, peer_is_gone: bool) -> Result<(), NvmeError> {
        if peer_is_gone && self.state(&c.name)? == Some(ControllerState::Live) {
            let addr = c.address.get("traddr").and_then(|a| a.parse::<IpAddr>().ok());
            let port = c.address.get("trsvcid").and_then(|p| p.parse::<u16>().ok());
            if let (Some(addr), Some(port)) = (addr, port) {
                drop_sockets(addr, port)?;
                // Whatever comes of it, the delete follows; it is only slower when the state has not changed.
                let settled = self.wait_for_state(&c.name, Duration::from_secs(2), |s| {
                    !matches!(s, Some(ControllerState::Live | ControllerState::Resetting))
                })?;
                if settled == Waited::Met(None) {
                    return Ok(());
                }
            }
        }
        match sysfs::write(&self.controller_dir(&c.name).join("delete_controller"), "1") {
            Err(e) if !sysfs::is_gone(&e) => Err(e.into()),
            _ => Ok(()),
        }
    }
}

/// `instance=3,cntlid=1`
fn parse_instance(s: &str) -> Option<u32> {
    s.trim().split(',').find_map(|kv| kv.strip_prefix("instance="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_that_were_proven() {
        let e = Endpoint { traddr: "10.77.0.11".parse().unwrap(), trsvcid: 4420, nqn: "nqn.s".into() };
        let mut o = ConnectOptions::new("nqn.h", "2c1a");
        o.queues = 2;
        assert_eq!(
            o.render(&e).unwrap(),
            "transport=tcp,traddr=10.77.0.11,trsvcid=4420,nqn=nqn.s,hostnqn=nqn.h,hostid=2c1a,\
             ctrl_loss_tmo=-1,fast_io_fail_tmo=1,keep_alive_tmo=1,reconnect_delay=1,nr_io_queues=2"
        );
        o.host_nqn = "nqn.h,hostid=x".into();
        assert!(matches!(o.render(&e), Err(NvmeError::BadOption { what: "hostnqn", .. })));
    }

    #[test]
    fn the_answer_of_a_connect() {
        assert_eq!(parse_instance("instance=3,cntlid=1\n"), Some(3));
        assert_eq!(parse_instance("cntlid=1"), None);
        assert_eq!(parse_instance(""), None);
    }
}
