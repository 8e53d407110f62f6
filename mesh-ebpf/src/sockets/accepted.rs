//! A passively opened socket is established, before accept() can return it.

use aya_ebpf::bindings::BPF_SOCK_OPS_STATE_CB_FLAG;
use mesh_common::{Direction, Path, SOCK_AGENT, SOCK_ORIG_DST, SOCK_PEER, Share, SockState, Tuple};

use super::{Socket, record, state::ESTABLISHED};
use crate::{
    maps::{clients, conns, orig_dst, sk_state, vouched},
    net, share,
};

#[inline(always)]
pub fn on_established(socket: &Socket<'_>) {
    let tuple = Tuple {
        netns: socket.netns,
        src: socket.remote,
        dst: socket.local,
    };
    match sk_state.get(socket.sk) {
        Some(state) if state.flags & SOCK_AGENT != 0 => {
            take_original_destination(socket, state, &tuple)
        }
        _ => application(socket, &tuple),
    }
}

/// The agent's child of a captured connection: what was dialled moves into its own storage, where the agent reads it.
#[inline(always)]
fn take_original_destination(socket: &Socket<'_>, state: &mut SockState, tuple: &Tuple) {
    // SAFETY: the entry belongs to this connection; nobody else touches it until it is removed below.
    let Some(entry) = (unsafe { orig_dst.get(tuple) }).copied() else {
        return;
    };
    state.peer = entry.dst;
    state.cookie = entry.client_cookie;
    state.flags |= SOCK_ORIG_DST;
    share::remove(&orig_dst, Share::OrigDst, socket.netns, tuple);
    if let Some(rec) = conns.get_ptr_mut(entry.client_cookie) {
        // SAFETY: a live value of the map; the field has one writer.
        unsafe { (*rec).agent_cookie = socket.cookie() };
    }
}

/// An application accepts.
#[inline(always)]
fn application(socket: &Socket<'_>, tuple: &Tuple) {
    // SAFETY: as above.
    let client = (unsafe { clients.get(tuple) }).copied();
    if client.is_none() && net::is_loopback(&socket.remote.ip) {
        return;
    }
    let Some(state) = sk_state.get_or_create(socket.sk) else {
        return;
    };
    let (path, remote, agent_cookie) = match client {
        Some(client) => {
            share::remove(&clients, Share::Clients, socket.netns, tuple);
            state.peer = client.addr;
            state.flags = SOCK_PEER;
            (Path::Proxied, client.addr, client.agent_cookie)
        }
        None => {
            state.flags = 0;
            // Taken: the next connection with this tuple needs another word.
            let path = if vouched.remove(tuple).is_ok() {
                Path::Vouched
            } else {
                Path::Passthrough
            };
            (path, socket.remote, 0)
        }
    };
    let cookie = socket.cookie();
    record::begin(
        socket,
        state,
        cookie,
        record::New {
            direction: Direction::Inbound,
            path,
            remote,
            original_dst: socket.local,
            agent_cookie,
            tcp_state: ESTABLISHED,
        },
    );
    socket.want(BPF_SOCK_OPS_STATE_CB_FLAG);
}
