//! The agent's listeners inside a pod: one for each role and family, on a loopback address and a port of the kernel's
//! choice, reached through `sk_lookup` only.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd},
};

use mesh_common::{ListenerKey, Role, SOCK_AGENT, ip_key};

use super::{maps::Maps, pool::tcp_socket};

const BACKLOG: i32 = 4096;
/// The roles that have listeners.
pub(super) const ROLES: [Role; 3] = [Role::Outbound, Role::Inbound, Role::Tunnel];

/// One listener.
pub(super) struct Listener {
    pub role: Role,
    pub v6: bool,
    pub socket: TcpListener,
    /// `SO_COOKIE`, to find it in sock_diag.
    pub cookie: u64,
}

/// Makes the listeners; runs inside the pod's namespace. A namespace without IPv6 has none for IPv6.
pub(super) fn make(maps: &Maps) -> io::Result<Vec<Listener>> {
    let mut made = Vec::with_capacity(2 * ROLES.len());
    for v6 in [false, true] {
        for role in ROLES {
            match listener(role, v6, maps) {
                Ok(l) => made.push(l),
                Err(e) if v6 && is_without_ipv6(&e) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(made)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL]
        .map(Some)
        .contains(&error.raw_os_error())
}

fn listener(role: Role, v6: bool, maps: &Maps) -> io::Result<Listener> {
    // Marked before listen(), or sock_ops would take it for an application's; children inherit the mark.
    let socket = tcp_socket(v6, SOCK_AGENT, maps)?;
    // An application may bind the same port on the wildcard address, which needs this on both sides.
    socket.set_reuse_address(true)?;
    let loopback: IpAddr = if v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    socket.bind(&SocketAddr::new(loopback, 0).into())?;
    socket.listen(BACKLOG)?;
    let cookie = rustix::net::sockopt::socket_cookie(&socket)?;
    Ok(Listener {
        role,
        v6,
        socket: socket.into(),
        cookie,
    })
}

/// Makes `address` of the pod lead to the listeners. Replaces what stood there.
pub(super) fn register(maps: &Maps, listeners: &[Listener], address: IpAddr) -> io::Result<()> {
    for l in listeners.iter().filter(|l| l.v6 == address.is_ipv6()) {
        let key = ListenerKey {
            ip: ip_key(address),
            role: l.role as u32,
        };
        maps.listeners
            .insert(&key, &(l.socket.as_fd().as_raw_fd() as u32))?;
    }
    Ok(())
}

/// Takes `address` back.
pub(super) fn unregister(maps: &Maps, address: IpAddr) -> io::Result<()> {
    for role in ROLES {
        maps.listeners.remove(&ListenerKey {
            ip: ip_key(address),
            role: role as u32,
        })?;
    }
    Ok(())
}
