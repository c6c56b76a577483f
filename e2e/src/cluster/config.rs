//! The configuration files of a lab's cluster.

use std::{net::TcpListener, path::Path};

use anyhow::Result;

use super::Spec;
use crate::lab::Node;

/// Where the plugin of a node speaks CSI.
pub(super) const NODE_SOCKET: &str = "/run/weir/csi.sock";

/// The controller's ports on the host's loopback.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) csi: u16,
    pub(super) nodes: u16,
}

impl Ports {
    /// Two that are free now. Another program may take them before the controller does: it then says so.
    pub(super) fn pick() -> Result<Self> {
        let (a, b) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        Ok(Self { csi: a.local_addr()?.port(), nodes: b.local_addr()?.port() })
    }
}

pub(super) fn controller(spec: &Spec, ports: Ports, dir: &Path) -> String {
    format!(
        "listen:\n  csi: tcp://127.0.0.1:{}\n  nodes: 127.0.0.1:{}\n\
         store:\n  path: {}\n\
         pools:\n- apiVersion: weir.storage/v1alpha1\n  kind: StoragePool\n  metadata:\n    name: default\n  spec:\n    \
         extentSize: {}\n    devices:\n    - serials: ['weir-*']\n",
        ports.csi,
        ports.nodes,
        dir.join("controller.redb").display(),
        spec.extent_size
    )
}

pub(super) fn node(node: &Node, ports: Ports) -> String {
    format!(
        "node: {}\ncontroller:\n  endpoint: http://10.0.2.2:{}\ncsi: unix://{NODE_SOCKET}\nstorage:\n  address: {}\n",
        node.name(),
        ports.nodes,
        node.storage_ip()
    )
}
