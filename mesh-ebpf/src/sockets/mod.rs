//! `sock_ops`: original destinations, real clients, listen ports, and the record of each connection.

mod accepted;
mod dialled;
mod listen;
mod record;
mod state;

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_PARSE_HDR_OPT_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    programs::SockOpsContext,
};
use mesh_common::Addr;

use crate::{
    maps::workloads,
    net::{self, AF_INET6},
};

/// What the programs need of the context, read once and before the first branch.
pub struct Socket<'a> {
    ctx: &'a SockOpsContext,
    sk: *mut bpf_sock,
    netns: u64,
    local: Addr,
    remote: Addr,
    old_state: u32,
    new_state: u32,
    tcp_flags: u32,
    cb_flags: u32,
    srtt_us: u32,
    retransmits: u32,
    snd_una: u32,
    snd_nxt: u32,
    bytes_acked: u64,
    bytes_received: u64,
}

impl Socket<'_> {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is that of this call.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// Asks for more callbacks on this socket. Flags of other programs stay.
    #[inline(always)]
    fn want(&self, flags: u32) {
        // SAFETY: the context is that of this call.
        unsafe { bpf_sock_ops_cb_flags_set(self.ctx.ops, (self.cb_flags | flags) as i32) };
    }

    /// Gives a callback up again.
    #[inline(always)]
    fn unwant(&self, flags: u32) {
        // SAFETY: the context is that of this call.
        unsafe { bpf_sock_ops_cb_flags_set(self.ctx.ops, (self.cb_flags & !flags) as i32) };
    }
}

#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) {
    let c = ctx.ops;
    // SAFETY: fields of the context; the verifier checks each access.
    let op = unsafe { read_volatile(addr_of!((*c).op)) };
    // Most calls are for other events (window sizes, ECN, header options of others): leave before any work.
    if op != BPF_SOCK_OPS_TCP_CONNECT_CB
        && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_STATE_CB
        && op != BPF_SOCK_OPS_TCP_LISTEN_CB
        && op != BPF_SOCK_OPS_PARSE_HDR_OPT_CB
    {
        return;
    }
    // SAFETY: the context is that of this call.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: only its presence is looked at.
    if unsafe { workloads.get(netns) }.is_none() {
        return;
    }
    // SAFETY: fields of the context.
    let socket = unsafe {
        let family = read_volatile(addr_of!((*c).family));
        let local4 = read_volatile(addr_of!((*c).local_ip4));
        let remote4 = read_volatile(addr_of!((*c).remote_ip4));
        let local6 = [
            read_volatile(addr_of!((*c).local_ip6[0])),
            read_volatile(addr_of!((*c).local_ip6[1])),
            read_volatile(addr_of!((*c).local_ip6[2])),
            read_volatile(addr_of!((*c).local_ip6[3])),
        ];
        let remote6 = [
            read_volatile(addr_of!((*c).remote_ip6[0])),
            read_volatile(addr_of!((*c).remote_ip6[1])),
            read_volatile(addr_of!((*c).remote_ip6[2])),
            read_volatile(addr_of!((*c).remote_ip6[3])),
        ];
        let local_port = read_volatile(addr_of!((*c).local_port));
        // In the upper half, in network order.
        let remote_port = read_volatile(addr_of!((*c).remote_port));
        let sk = read_volatile(addr_of!((*c).__bindgen_anon_2.sk));
        let (local_ip, remote_ip) = if family == AF_INET6 {
            (net::octets(local6), net::octets(remote6))
        } else {
            (net::mapped(local4), net::mapped(remote4))
        };
        Socket {
            ctx,
            sk,
            netns,
            local: Addr::new(local_ip, local_port as u16),
            remote: Addr::new(remote_ip, u16::from_be((remote_port >> 16) as u16)),
            old_state: read_volatile(addr_of!((*c).__bindgen_anon_1.args[0])),
            new_state: read_volatile(addr_of!((*c).__bindgen_anon_1.args[1])),
            tcp_flags: read_volatile(addr_of!((*c).skb_tcp_flags)),
            cb_flags: read_volatile(addr_of!((*c).bpf_sock_ops_cb_flags)),
            srtt_us: read_volatile(addr_of!((*c).srtt_us)),
            retransmits: read_volatile(addr_of!((*c).total_retrans)),
            snd_una: read_volatile(addr_of!((*c).snd_una)),
            snd_nxt: read_volatile(addr_of!((*c).snd_nxt)),
            bytes_acked: read_volatile(addr_of!((*c).bytes_acked)),
            bytes_received: read_volatile(addr_of!((*c).bytes_received)),
        }
    };
    if socket.sk.is_null() {
        return;
    }
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dialled::on_connect(&socket),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted::on_established(&socket),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listen::on_listen(&socket),
        BPF_SOCK_OPS_STATE_CB => state::on_change(&socket),
        _ => state::on_header(&socket),
    }
}
