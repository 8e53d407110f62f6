//! A socket dials: the SYN is about to be sent and the 4-tuple is known.

use aya_ebpf::{bindings::BPF_SOCK_OPS_STATE_CB_FLAG, helpers::generated::bpf_ktime_get_ns};
use aya_log_ebpf::warn;
use mesh_common::{
    Client, Direction, OrigDst, Path, SOCK_ACTIVE, SOCK_AGENT, SOCK_CLIENT, SOCK_CLIENT_LOST,
    SOCK_PEER, SOCK_SELF_TEST, Share, SockState, Tuple,
};

use super::{Socket, record};
use crate::{
    maps::{clients, orig_dst, sk_state},
    net, share,
};

#[inline(always)]
pub fn on_connect(socket: &Socket<'_>) {
    match sk_state.get(socket.sk) {
        Some(state) if state.flags & SOCK_AGENT != 0 => {
            if state.flags & SOCK_CLIENT != 0 {
                announce_client(socket, state);
            }
        }
        Some(state) => application(socket, state),
        None => {
            if net::is_loopback(&socket.remote.ip) {
                return;
            }
            if let Some(state) = sk_state.get_or_create(socket.sk) {
                application(socket, state);
            }
        }
    }
}

/// The agent dials an application on behalf of a client: the application's side will ask who.
#[inline(always)]
fn announce_client(socket: &Socket<'_>, state: &mut SockState) {
    let tuple = Tuple {
        netns: socket.netns,
        src: socket.local,
        dst: socket.remote,
    };
    // SAFETY: a helper without preconditions.
    let created_ns = unsafe { bpf_ktime_get_ns() };
    let client = Client {
        addr: state.peer,
        agent_cookie: socket.cookie(),
        created_ns,
    };
    if share::insert(&clients, Share::Clients, socket.netns, &tuple, &client).is_err() {
        // There was room when connect() began. The agent looks for this before it carries anything.
        state.flags |= SOCK_CLIENT_LOST;
        return;
    }
    // For a connect that fails: the entry must go.
    socket.want(BPF_SOCK_OPS_STATE_CB_FLAG);
}

#[inline(always)]
fn application(socket: &Socket<'_>, state: &mut SockState) {
    state.flags = (state.flags & (SOCK_PEER | SOCK_SELF_TEST)) | SOCK_ACTIVE;
    let captured = state.flags & SOCK_PEER != 0;
    if !captured && net::is_loopback(&socket.remote.ip) {
        return;
    }
    let cookie = socket.cookie();
    if captured {
        let tuple = Tuple {
            netns: socket.netns,
            src: socket.local,
            dst: socket.remote,
        };
        // SAFETY: a helper without preconditions.
        let created_ns = unsafe { bpf_ktime_get_ns() };
        let entry = OrigDst {
            dst: state.peer,
            client_cookie: cookie,
            created_ns,
        };
        if share::insert(&orig_dst, Share::OrigDst, socket.netns, &tuple, &entry).is_err() {
            // Nothing will be steered: the connection is refused by the kernel.
            warn!(
                socket.ctx,
                "orig_dst is full, or the share of the workload: a connection is refused"
            );
        }
    }
    if state.flags & SOCK_SELF_TEST == 0 {
        let (path, remote) = if captured {
            (Path::Proxied, state.peer)
        } else {
            (Path::Passthrough, socket.remote)
        };
        record::begin(
            socket,
            state,
            cookie,
            record::New {
                direction: Direction::Outbound,
                path,
                remote,
                original_dst: remote,
                agent_cookie: 0,
                tcp_state: super::state::SYN_SENT,
            },
        );
    }
    socket.want(BPF_SOCK_OPS_STATE_CB_FLAG);
}
