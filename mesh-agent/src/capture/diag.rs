//! TCP sockets of a namespace over sock_diag: listeners, connections, TCP_INFO of one.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use mesh_common::Addr;

use super::netlink::{Netlink, attributes, u32_at, u64_at};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;

/// TCP states, numbers of the kernel.
pub(super) mod state {
    pub(crate) const ESTABLISHED: u8 = 1;
    pub(crate) const SYN_SENT: u8 = 2;
    pub(crate) const SYN_RECV: u8 = 3;
    pub(crate) const FIN_WAIT1: u8 = 4;
    pub(crate) const FIN_WAIT2: u8 = 5;
    pub(crate) const TIME_WAIT: u8 = 6;
    pub(crate) const CLOSE: u8 = 7;
    pub(crate) const CLOSE_WAIT: u8 = 8;
    pub(crate) const LAST_ACK: u8 = 9;
    pub(crate) const LISTEN: u8 = 10;
    pub(crate) const CLOSING: u8 = 11;
    pub(crate) const NEW_SYN_RECV: u8 = 12;
}

/// Sets of states, as sock_diag filters them.
pub(super) const LISTENING: u32 = 1 << state::LISTEN;
pub(super) const HALF_OPEN: u32 = 1 << state::SYN_RECV | 1 << state::NEW_SYN_RECV;
/// Every state in which a connection has two live ends.
pub(super) const CONNECTED: u32 = 1 << state::ESTABLISHED
    | 1 << state::FIN_WAIT1
    | 1 << state::FIN_WAIT2
    | 1 << state::CLOSE_WAIT
    | 1 << state::LAST_ACK
    | 1 << state::CLOSING;

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Socket {
    pub cookie: u64,
    pub state: u8,
    /// Its own family; the addresses of a v6 socket may be v4-mapped.
    pub v6: bool,
    pub v6only: bool,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Index of the device it is bound to (SO_BINDTODEVICE); 0 for none.
    pub device: u32,
    /// Of a listener: connections that wait for accept().
    pub receive_queue: u32,
    /// No process has it: it was closed, or not accepted yet.
    pub orphan: bool,
    /// None for TIME_WAIT and request sockets.
    pub info: Option<Info>,
}

/// What we take from TCP_INFO.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Info {
    pub rtt_us: u32,
    pub retransmits: u32,
    /// Counts SYN and FIN as a byte each; see [`payload_bytes`].
    pub bytes_acked: u64,
    /// Counts a FIN as a byte.
    pub bytes_received: u64,
}

/// Payload bytes sent (and acknowledged) and received, SYN and FIN taken off (architecture.md, section 4).
pub(super) fn payload_bytes(info: Info, tcp_state: u8, dialled: bool) -> (u64, u64) {
    let fin_acked = matches!(tcp_state, state::FIN_WAIT2 | state::TIME_WAIT);
    let fin_received = matches!(
        tcp_state,
        state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING | state::TIME_WAIT
    );
    (
        info.bytes_acked
            .saturating_sub(u64::from(dialled) + u64::from(fin_acked)),
        info.bytes_received.saturating_sub(u64::from(fin_received)),
    )
}

/// Hands every TCP socket of the namespace in one of `states` to `each`, both families.
pub(super) fn dump(
    socket: &mut Netlink,
    states: u32,
    with_info: bool,
    mut each: impl FnMut(Socket),
) -> io::Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let body = request(family as u8, states, with_info);
        match socket.dump(SOCK_DIAG_BY_FAMILY, &body, |message| {
            if let Some(found) = parse(message) {
                each(found);
            }
        }) {
            // A kernel without IPv6.
            Err(e) if family == libc::AF_INET6 && e.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Looks one connection up by its addresses, in a hash (a dump walks the whole table of the machine); `None` when it
/// is gone or another socket has its addresses now.
pub(super) fn find(
    socket: &mut Netlink,
    local: &Addr,
    remote: &Addr,
    cookie: u64,
) -> io::Result<Option<Socket>> {
    match socket.get(SOCK_DIAG_BY_FAMILY, &one(local, remote, cookie)) {
        Ok(answer) => Ok(answer
            .as_deref()
            .and_then(parse)
            .filter(|s| s.cookie == cookie)),
        // The addresses live on, the cookie does not.
        Err(e) if e.raw_os_error() == Some(libc::ESTALE) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Ends one connection as if by a reset from both sides: the peer gets RST, the application ECONNABORTED. False when it is
/// gone already.
///
/// # Errors
/// EOPNOTSUPP: the kernel was built without `CONFIG_INET_DIAG_DESTROY`.
pub(super) fn destroy(
    socket: &mut Netlink,
    local: &Addr,
    remote: &Addr,
    cookie: u64,
) -> io::Result<bool> {
    match socket.act(SOCK_DESTROY, &one(local, remote, cookie)) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The request for one connection.
fn one(local: &Addr, remote: &Addr, cookie: u64) -> [u8; REQUEST] {
    let family = if local.is_v4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut body = request(family as u8, u32::MAX, true);
    put(&mut body, 8, &local.port.to_be_bytes());
    put(&mut body, 10, &remote.port.to_be_bytes());
    put(&mut body, 12, address(local));
    put(&mut body, 28, address(remote));
    put(&mut body, 48, &(cookie as u32).to_ne_bytes());
    put(&mut body, 52, &((cookie >> 32) as u32).to_ne_bytes());
    body
}

fn address(a: &Addr) -> &[u8] {
    if a.is_v4() {
        a.ip.get(12..).unwrap_or_default()
    } else {
        &a.ip
    }
}

/// struct inet_diag_req_v2.
fn request(family: u8, states: u32, with_info: bool) -> [u8; REQUEST] {
    let mut body = [0; REQUEST];
    let ext = if with_info {
        1 << (INET_DIAG_INFO - 1)
    } else {
        0
    };
    put(&mut body, 0, &[family, libc::IPPROTO_TCP as u8, ext, 0]);
    put(&mut body, 4, &states.to_ne_bytes());
    // INET_DIAG_NOCOOKIE
    put(&mut body, 48, &[0xff; 8]);
    body
}

fn put(body: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = body.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// struct inet_diag_msg and the attributes after it.
pub(super) fn parse(message: &[u8]) -> Option<Socket> {
    let v6 = i32::from(*message.first()?) == libc::AF_INET6;
    let endpoint = |port_at: usize, ip_at: usize| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(message.get(port_at..port_at + 2)?.try_into().ok()?);
        let ip = if v6 {
            IpAddr::V6(Ipv6Addr::from(
                <[u8; 16]>::try_from(message.get(ip_at..ip_at + 16)?).ok()?,
            ))
        } else {
            IpAddr::from(<[u8; 4]>::try_from(message.get(ip_at..ip_at + 4)?).ok()?)
        };
        Some(SocketAddr::new(ip, port))
    };
    let mut socket = Socket {
        state: *message.get(1)?,
        v6,
        v6only: false,
        local: endpoint(4, 8)?,
        remote: endpoint(6, 24)?,
        device: u32_at(message, 40)?,
        cookie: u64::from(u32_at(message, 44)?) | u64::from(u32_at(message, 48)?) << 32,
        receive_queue: u32_at(message, 56)?,
        orphan: u32_at(message, 68)? == 0,
        info: None,
    };
    for (kind, payload) in attributes(message.get(MESSAGE..).unwrap_or_default()) {
        match kind {
            INET_DIAG_SKV6ONLY => socket.v6only = payload.first() == Some(&1),
            INET_DIAG_INFO => socket.info = tcp_info(payload),
            _ => {}
        }
    }
    Some(socket)
}

/// struct tcp_info, offsets of the UAPI.
fn tcp_info(payload: &[u8]) -> Option<Info> {
    Some(Info {
        rtt_us: u32_at(payload, 68)?,
        retransmits: u32_at(payload, 100)?,
        bytes_acked: u64_at(payload, 120)?,
        bytes_received: u64_at(payload, 128)?,
    })
}
