//! Names and addresses of a lab, the same for host and node: everything follows from a node's number.

use std::net::Ipv4Addr;

/// The host, as nodes see it on eth0.
pub const HOST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Serial number of the disk that holds a node's own state (/var/lib/weir and /scratch).
pub const STATE_SERIAL: &str = "state";
/// Nodes are numbered from 1 to this.
pub const MAX_NODES: u8 = 99;

/// A node's network devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// eth0: the way to the host, where controllers live.
    Control,
    /// eth1: the way to the other nodes, for NVMe/TCP and migrations.
    Storage,
}

/// All of them, in the order in which a node has them.
pub const NICS: [Nic; 2] = [Nic::Control, Nic::Storage];

impl Nic {
    /// The device's name in the node.
    #[must_use]
    pub fn guest_name(self) -> &'static str {
        match self {
            Nic::Control => "eth0",
            Nic::Storage => "eth1",
        }
    }

    /// The device's name in QEMU.
    #[must_use]
    pub fn qemu_name(self) -> &'static str {
        match self {
            Nic::Control => "control",
            Nic::Storage => "storage",
        }
    }
}

/// A node's name: n1, n2, ...
#[must_use]
pub fn node(number: u8) -> String {
    format!("n{number}")
}

/// Its address on eth1.
#[must_use]
pub fn storage_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

/// Its address on `nic`. The control network is private to each node, so all have the same there.
#[must_use]
pub fn guest_ip(nic: Nic, number: u8) -> Ipv4Addr {
    match nic {
        Nic::Control => Ipv4Addr::new(10, 0, 2, 15),
        Nic::Storage => storage_ip(number),
    }
}

/// The device's MAC address.
#[must_use]
pub fn mac(nic: Nic, number: u8) -> String {
    let kind = match nic {
        Nic::Control => 0,
        Nic::Storage => 1,
    };
    format!("52:54:00:77:{kind:02x}:{number:02x}")
}

/// Serial number of a node's pool disk; virtio-blk allows 20 bytes.
#[must_use]
pub fn disk_serial(number: u8, disk: u8) -> String {
    format!("weir-n{number}-d{disk}")
}
