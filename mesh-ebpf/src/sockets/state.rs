//! TCP state changes of a recorded socket, up to its end.
//!
//! The kernel's byte counters contain SYN and FIN; what is subtracted follows from the states passed.

use aya_ebpf::{
    bindings::BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG, helpers::generated::bpf_ktime_get_ns,
};
use mesh_common::{
    KernelClose, SOCK_ACTIVE, SOCK_AGENT, SOCK_CLIENT, SOCK_FIN_ACKED, SOCK_FIN_LOCAL_FIRST,
    SOCK_FIN_RECEIVED, SOCK_FIN_REMOTE_FIRST, SOCK_PEER, SOCK_RECORDED, Share, SockState, Tuple,
};

use super::{Socket, listen, record};
use crate::{
    maps::{clients, conns, orig_dst, sk_state},
    share,
};

/// TCP states, numbers of the kernel.
pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

const TCP_FLAG_FIN: u32 = 1;

#[inline(always)]
pub fn on_change(socket: &Socket<'_>) {
    let (old, new) = (socket.old_state as u8, socket.new_state as u8);
    let Some(state) = sk_state.get(socket.sk) else {
        if old == LISTEN {
            listen::on_close(socket);
        }
        return;
    };
    let connect_failed = old == SYN_SENT && new == CLOSE;
    if state.flags & SOCK_AGENT != 0 {
        // Also after a handshake: an application that does not accept never takes the entry.
        if new == CLOSE && state.flags & SOCK_CLIENT != 0 {
            share::remove(&clients, Share::Clients, socket.netns, &tuple(socket));
        }
        return;
    }
    if old == LISTEN {
        listen::on_close(socket);
        return;
    }
    if connect_failed && state.flags & SOCK_PEER != 0 {
        share::remove(&orig_dst, Share::OrigDst, socket.netns, &tuple(socket));
    }
    if state.flags & SOCK_RECORDED == 0 {
        return;
    }
    match new {
        FIN_WAIT1 => {
            state.flags |= SOCK_FIN_LOCAL_FIRST;
            // After FIN_WAIT2 the states no longer say whether the other side's FIN came: look at the headers.
            socket.want(BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
        }
        FIN_WAIT2 => state.flags |= SOCK_FIN_ACKED,
        CLOSE_WAIT => state.flags |= SOCK_FIN_RECEIVED | SOCK_FIN_REMOTE_FIRST,
        CLOSING => state.flags |= SOCK_FIN_RECEIVED,
        _ => {}
    }
    let cookie = socket.cookie();
    if new == CLOSE {
        end(socket, state, cookie, old);
    } else if let Some(rec) = conns.get_ptr_mut(cookie) {
        // SAFETY: a live value of the map. The agent may write at the same time; its refresh repairs what is lost.
        unsafe {
            (*rec).state = new;
            (*rec).last_ns = bpf_ktime_get_ns();
        }
    }
}

/// A segment for a socket that has sent FIN.
#[inline(always)]
pub fn on_header(socket: &Socket<'_>) {
    if socket.tcp_flags & TCP_FLAG_FIN == 0 {
        return;
    }
    if let Some(state) = sk_state.get(socket.sk)
        && state.flags & SOCK_RECORDED != 0
    {
        state.flags |= SOCK_FIN_RECEIVED;
        socket.unwant(BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
    }
}

#[inline(always)]
fn end(socket: &Socket<'_>, state: &mut SockState, cookie: u64, old: u8) {
    let flags = state.flags;
    let acked = flags & SOCK_FIN_ACKED != 0
        || ((old == LAST_ACK || old == CLOSING) && socket.snd_una == socket.snd_nxt);
    let syn = u64::from(flags & SOCK_ACTIVE != 0 && old != SYN_SENT);
    let sent = socket.bytes_acked.saturating_sub(syn + u64::from(acked));
    let received = socket
        .bytes_received
        .saturating_sub(u64::from(flags & SOCK_FIN_RECEIVED != 0));
    let reason = if old == SYN_SENT {
        KernelClose::ConnectFailed
    } else if flags & SOCK_FIN_REMOTE_FIRST != 0 && old == LAST_ACK && acked {
        KernelClose::FinRemoteFirst
    } else if flags & SOCK_FIN_LOCAL_FIRST != 0 && (old == FIN_WAIT2 || (old == CLOSING && acked)) {
        KernelClose::FinLocalFirst
    } else {
        KernelClose::Aborted
    };
    record::finish(socket, cookie, sent, received, reason);
    state.flags &= SOCK_PEER;
}

#[inline(always)]
fn tuple(socket: &Socket<'_>) -> Tuple {
    Tuple {
        netns: socket.netns,
        src: socket.local,
        dst: socket.remote,
    }
}
