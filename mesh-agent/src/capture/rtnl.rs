//! The addresses of a network namespace over rtnetlink: read, and told of changes.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::OwnedFd,
};

use super::netlink::{Netlink, attributes, u32_at};

const RTM_GETADDR: u16 = 22;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFADDRMSG: usize = 8;

/// An address of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub ip: IpAddr,
    /// False while duplicate detection runs or after it failed: the kernel does not serve it (yet).
    pub usable: bool,
}

/// IPv6 link-local: it needs a scope, and only neighbours on the wire can dial it. The agent serves none of them; they are
/// known to the kernel programs so that they are closed where a workload is protected.
pub(super) fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A socket that becomes readable when an address of the calling thread's namespace changes.
pub(super) fn subscribe() -> io::Result<OwnedFd> {
    Netlink::subscribe(RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR)
}

/// Addresses that others can dial: all but loopback ones.
pub(super) fn addresses(socket: &mut Netlink) -> io::Result<Vec<Address>> {
    let mut found = Vec::new();
    socket.dump(RTM_GETADDR, &[0; IFADDRMSG], |body| {
        found.extend(parse(body));
    })?;
    Ok(found)
}

pub(super) fn parse(body: &[u8]) -> Option<Address> {
    let mut flags = u32::from(*body.get(2)?);
    let (mut local, mut address) = (None, None);
    for (kind, payload) in attributes(body.get(IFADDRMSG..)?) {
        match kind {
            IFA_ADDRESS => address = ip(payload),
            IFA_LOCAL => local = ip(payload),
            IFA_FLAGS => flags = u32_at(payload, 0).unwrap_or(flags),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end.
    let ip = local.or(address)?;
    let wanted = match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified(),
    };
    wanted.then_some(Address {
        ip,
        // One that nothing is served on is known early rather than late.
        usable: flags & IFA_F_DADFAILED == 0
            && (flags & IFA_F_TENTATIVE == 0 || is_link_local(&ip)),
    })
}

fn ip(payload: &[u8]) -> Option<IpAddr> {
    match payload.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(payload).ok()?)),
        16 => Some(IpAddr::V6(Ipv6Addr::from(
            <[u8; 16]>::try_from(payload).ok()?,
        ))),
        _ => None,
    }
}
