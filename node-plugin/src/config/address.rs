//! From the storage setting to the address that other nodes are told. Reads the node's interfaces; changes nothing.

use std::{
    ffi::CStr,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket},
    ptr,
};

use super::{Endpoint, StorageNet};

/// Why there is no storage address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The interfaces cannot be listed.
    #[error("the node's network interfaces cannot be listed: {0}")]
    List(#[source] io::Error),
    /// No interface of this name has an address.
    #[error("interface {wanted:?} has no address; there are {}", list(.have))]
    NoInterface {
        /// The name.
        wanted: String,
        /// What there is.
        have: Vec<(String, IpAddr)>,
    },
    /// No address lies in the network.
    #[error("no address of this node lies in {wanted}; there are {}", list(.have))]
    NotInNetwork {
        /// The network.
        wanted: String,
        /// What there is.
        have: Vec<(String, IpAddr)>,
    },
    /// There is no way to the controller.
    #[error("no storage address is set, and there is no route to the controller at {endpoint}: {source}")]
    NoRoute {
        /// Where it is.
        endpoint: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn list(have: &[(String, IpAddr)]) -> String {
    if have.is_empty() {
        return "none".to_owned();
    }
    have.iter().map(|(n, a)| format!("{a} ({n})")).collect::<Vec<_>>().join(", ")
}

/// The address under which other nodes reach this node's exports.
pub fn storage_address(net: &StorageNet, controllers: &[Endpoint]) -> Result<IpAddr, AddressError> {
    match net {
        StorageNet::Address(a) => Ok(*a),
        StorageNet::Interface(name) => {
            let have = interfaces().map_err(AddressError::List)?;
            // IPv4 first: link-local IPv6 addresses need a scope that a bare address does not carry.
            let mut own: Vec<IpAddr> = have.iter().filter(|(n, _)| n == name).map(|(_, a)| *a).collect();
            own.sort_by_key(IpAddr::is_ipv6);
            own.first().copied().ok_or(AddressError::NoInterface { wanted: name.clone(), have })
        }
        StorageNet::Network(cidr) => {
            let have = interfaces().map_err(AddressError::List)?;
            let own = have.iter().find(|(_, a)| cidr.contains(*a)).map(|(_, a)| *a);
            own.ok_or(AddressError::NotInNetwork { wanted: cidr.to_string(), have })
        }
        StorageNet::TowardsController => towards(controllers),
    }
}

/// The address from which a controller would be reached; nothing is sent for it.
fn towards(controllers: &[Endpoint]) -> Result<IpAddr, AddressError> {
    let mut last = None;
    for e in controllers {
        match route(e.authority()) {
            Ok(a) => return Ok(a),
            Err(source) => last = Some(AddressError::NoRoute { endpoint: e.as_str().to_owned(), source }),
        }
    }
    Err(last.unwrap_or_else(|| AddressError::NoRoute {
        endpoint: String::new(),
        source: io::Error::from(io::ErrorKind::AddrNotAvailable),
    }))
}

fn route(authority: &str) -> io::Result<IpAddr> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for to in authority.to_socket_addrs()? {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        match UdpSocket::bind((any, 0)).and_then(|s| s.connect(to).and_then(|()| s.local_addr())) {
            Ok(own) => return Ok(own.ip()),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Names and addresses of the node's interfaces that are not loopback, in the kernel's order.
fn interfaces() -> io::Result<Vec<(String, IpAddr)>> {
    let mut head: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: getifaddrs writes one pointer, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut out = Vec::new();
    let mut at = head;
    while !at.is_null() {
        // SAFETY: the list that getifaddrs made is walked until its null end, before it is freed.
        let i = unsafe { &*at };
        if i.ifa_flags & libc::IFF_LOOPBACK as libc::c_uint == 0
            && let Some(a) = ip_of(i.ifa_addr)
        {
            // SAFETY: ifa_name is a zero-terminated text of the same list.
            let name = unsafe { CStr::from_ptr(i.ifa_name) }.to_string_lossy().into_owned();
            out.push((name, a));
        }
        at = i.ifa_next;
    }
    // SAFETY: `head` came from getifaddrs and is not used after this.
    unsafe { libc::freeifaddrs(head) };
    Ok(out)
}

fn ip_of(a: *const libc::sockaddr) -> Option<IpAddr> {
    if a.is_null() {
        return None;
    }
    // SAFETY: not null, and every sockaddr begins with its family.
    match i32::from(unsafe { (*a).sa_family }) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a sockaddr_in.
            let v4 = unsafe { &*a.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is a sockaddr_in6.
            let v6 = unsafe { &*a.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_reaches_itself_and_nobody_has_a_made_up_interface() {
        let to: Endpoint = "http://127.0.0.1:1".parse().unwrap();
        let got = storage_address(&StorageNet::TowardsController, &[to]).unwrap();
        assert!(got.is_loopback());
        let e = storage_address(&StorageNet::Interface("no-such0".into()), &[]).unwrap_err();
        assert!(e.to_string().contains("no-such0"), "{e}");
        let e = storage_address(&StorageNet::Network("203.0.113.0/24".parse().unwrap()), &[]).unwrap_err();
        assert!(e.to_string().contains("203.0.113.0/24"), "{e}");
    }
}
