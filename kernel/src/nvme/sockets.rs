//! Dropping TCP connections from outside (`ss -K`), through sock_diag: how a connection to a dead peer is ended
//! without waiting for its time-outs. Needs INET_DIAG_DESTROY and the tcp_diag module in the kernel.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::NvmeError;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_HEADER: usize = 16;
/// struct inet_diag_req_v2: family, protocol, ext, pad, states, and the id.
const REQUEST: usize = 8 + ID;
/// struct inet_diag_sockid.
const ID: usize = 48;
/// Where the id stands in struct inet_diag_msg: behind family, state, timer, retrans.
const MSG_ID: usize = 4;
/// Every state but LISTEN (10) and TIME_WAIT (6).
const STATES: u32 = !(1 << 10 | 1 << 6);

/// Drops this host's TCP connections to a remote address and port; how many there were.
pub fn drop_sockets(remote: IpAddr, port: u16) -> Result<usize, NvmeError> {
    let fail = |op| move |source| NvmeError::SockDiag { op, source };
    let family = if remote.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let fd = open().map_err(fail("open"))?;
    let ids = dump(&fd, family).map_err(fail("list"))?;
    let mut dropped = 0;
    for id in ids.iter().filter(|id| peer(id, remote.is_ipv4()) == (remote, port)) {
        match destroy(&fd, family, id) {
            Ok(()) => dropped += 1,
            // It closed in between.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(fail("destroy")(e)),
        }
    }
    Ok(dropped)
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: plain socket(2); the descriptor is owned at once.
    let raw = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG)
    };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut b = Vec::with_capacity(NLMSG_HEADER + REQUEST);
    b.extend(((NLMSG_HEADER + REQUEST) as u32).to_ne_bytes());
    b.extend(kind.to_ne_bytes());
    b.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    b.extend(1u32.to_ne_bytes());
    b.extend(0u32.to_ne_bytes());
    b.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    b.extend(STATES.to_ne_bytes());
    b.extend(id);
    b
}

fn send(fd: &OwnedFd, b: &[u8]) -> io::Result<()> {
    // SAFETY: the buffer is as long as said.
    let n = unsafe { libc::send(fd.as_raw_fd(), b.as_ptr().cast(), b.len(), 0) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(fd: &OwnedFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as said.
    let n = unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

fn dump(fd: &OwnedFd, family: u8) -> io::Result<Vec<[u8; ID]>> {
    send(fd, &request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; ID]))?;
    let mut ids = Vec::new();
    let mut buf = vec![0; 64 << 10];
    loop {
        let n = receive(fd, &mut buf)?;
        if walk(&buf[..n], &mut ids)? {
            return Ok(ids);
        }
    }
}

/// Collects ids from the messages of one datagram; whether the end was among them.
fn walk(mut b: &[u8], ids: &mut Vec<[u8; ID]>) -> io::Result<bool> {
    while b.len() >= NLMSG_HEADER {
        let len = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize;
        let kind = u16::from_ne_bytes([b[4], b[5]]);
        let Some(body) = b.get(NLMSG_HEADER..len) else { return Err(io::ErrorKind::InvalidData.into()) };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                error_of(body)?;
                return Ok(true);
            }
            _ => {
                let id = body.get(MSG_ID..MSG_ID + ID).ok_or(io::ErrorKind::InvalidData)?;
                ids.push(id.try_into().expect("as long as an id"));
            }
        }
        b = b.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes(code.try_into().expect("four bytes")) {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(-e)),
    }
}

fn destroy(fd: &OwnedFd, family: u8, id: &[u8; ID]) -> io::Result<()> {
    send(fd, &request(SOCK_DESTROY, NLM_F_ACK, family, id))?;
    let mut buf = vec![0; 4096];
    let n = receive(fd, &mut buf)?;
    let body = buf[..n].get(NLMSG_HEADER..).ok_or(io::ErrorKind::InvalidData)?;
    error_of(body)
}

/// Remote address and port of an id: sport, dport (big-endian), source, destination.
fn peer(id: &[u8; ID], v4: bool) -> (IpAddr, u16) {
    let port = u16::from_be_bytes([id[2], id[3]]);
    let dst: [u8; 16] = id[20..36].try_into().expect("sixteen bytes");
    let addr = if v4 {
        IpAddr::V4(Ipv4Addr::new(dst[0], dst[1], dst[2], dst[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(dst))
    };
    (addr, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remote_end_of_an_id() {
        let mut id = [0u8; ID];
        id[2..4].copy_from_slice(&4420u16.to_be_bytes());
        id[20..24].copy_from_slice(&[10, 77, 0, 11]);
        assert_eq!(peer(&id, true), ("10.77.0.11".parse().unwrap(), 4420));
    }

    #[test]
    fn a_dump_is_walked_to_its_end() {
        let mut b = Vec::new();
        b.extend(((NLMSG_HEADER + 72) as u32).to_ne_bytes());
        b.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        b.resize(NLMSG_HEADER + 72, 0);
        b.extend(20u32.to_ne_bytes());
        b.extend(NLMSG_DONE.to_ne_bytes());
        b.resize(NLMSG_HEADER + 72 + 20, 0);
        let mut ids = Vec::new();
        assert!(walk(&b, &mut ids).unwrap());
        assert_eq!(ids.len(), 1);
        assert!(walk(&b[..40], &mut Vec::new()).is_err());
    }
}
