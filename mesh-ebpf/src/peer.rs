//! getpeername() and the address that accept() returns: the real other end instead of the agent's.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{bindings::bpf_sock, programs::SockAddrContext};
use mesh_common::{Addr, SOCK_AGENT, SOCK_PEER};

use crate::{maps::sk_state, net};

const PROCEED: i32 = 1;

/// For an IPv4 socket.
#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: a field of the context.
    let sk = unsafe { read_volatile(addr_of!((*addr).__bindgen_anon_1.sk)) };
    if let Some(peer) = stored_peer(sk) {
        // SAFETY: writable fields of the context.
        unsafe {
            (*addr).user_ip4 = net::unmapped(&peer.ip);
            (*addr).user_port = u32::from(peer.port.to_be());
        }
    }
    PROCEED
}

/// For an IPv6 socket; an IPv4 peer stays v4-mapped.
#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: a field of the context.
    let sk = unsafe { read_volatile(addr_of!((*addr).__bindgen_anon_1.sk)) };
    if let Some(peer) = stored_peer(sk) {
        let words = net::words(&peer.ip);
        // SAFETY: writable fields of the context.
        unsafe {
            (*addr).user_ip6[0] = words[0];
            (*addr).user_ip6[1] = words[1];
            (*addr).user_ip6[2] = words[2];
            (*addr).user_ip6[3] = words[3];
            (*addr).user_port = u32::from(peer.port.to_be());
        }
    }
    PROCEED
}

/// The peer to show, if it is another than the kernel knows.
#[inline(always)]
fn stored_peer(sk: *mut bpf_sock) -> Option<Addr> {
    if sk.is_null() {
        return None;
    }
    let state = sk_state.get(sk)?;
    (state.flags & (SOCK_AGENT | SOCK_PEER) == SOCK_PEER).then_some(state.peer)
}
