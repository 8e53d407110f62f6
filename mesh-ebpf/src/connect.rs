//! connect(): captures what an enrolled workload dials by redirecting it to a capture port of the pod's own address,
//! and remembers in socket storage what was dialled.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_sk_release},
    programs::SockAddrContext,
};
use mesh_common::{
    Addr, CAPTURE_PORT_BASE, CAPTURE_PORTS, Counter, ListenerKey, Role, SOCK_AGENT, SOCK_CLIENT,
    SOCK_PEER, SOCK_SELF_TEST, Share, WL_HAS_V4, WL_HAS_V6, WL_OPEN_OUTBOUND, WL_OUTBOUND, is_v4,
};

use crate::{
    exclude::is_excluded,
    maps::{count, listeners, mesh_addrs, sk_state, workloads},
    net::{self, MPTCP, SOCK_STREAM, TCP},
    share,
};

/// What a connect program answers. A refusal to an application is a redirect to a port where nobody listens, so that it
/// sees ECONNREFUSED.
const PROCEED: i32 = 1;
/// EPERM, for the agent alone, which knows what it means.
const DENY: i32 = 0;

/// What becomes of a connect().
enum Answer {
    Proceed,
    Redirect(Addr),
    Deny,
}

/// connect() of an IPv4 socket.
#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    // Every field is read before the first branch: merged loads through a changed context pointer are refused.
    let addr = ctx.sock_addr;
    // SAFETY: fields of the context; the verifier checks each access.
    let (ip, port, kind, protocol, sk) = unsafe {
        (
            read_volatile(addr_of!((*addr).user_ip4)),
            read_volatile(addr_of!((*addr).user_port)),
            read_volatile(addr_of!((*addr).type_)),
            read_volatile(addr_of!((*addr).protocol)),
            read_volatile(addr_of!((*addr).__bindgen_anon_1.sk)),
        )
    };
    let dialled = Addr::new(net::mapped(ip), u16::from_be(port as u16));
    match answer(ctx, sk, kind, protocol, &dialled) {
        Answer::Proceed => {}
        // SAFETY: writable fields of the context.
        Answer::Redirect(to) => unsafe {
            (*addr).user_ip4 = net::unmapped(&to.ip);
            (*addr).user_port = u32::from(to.port.to_be());
        },
        Answer::Deny => return DENY,
    }
    PROCEED
}

/// connect() of an IPv6 socket, to an IPv6 or a v4-mapped address.
#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: fields of the context; the verifier checks each access.
    let (w0, w1, w2, w3, port, kind, protocol, sk) = unsafe {
        (
            read_volatile(addr_of!((*addr).user_ip6[0])),
            read_volatile(addr_of!((*addr).user_ip6[1])),
            read_volatile(addr_of!((*addr).user_ip6[2])),
            read_volatile(addr_of!((*addr).user_ip6[3])),
            read_volatile(addr_of!((*addr).user_port)),
            read_volatile(addr_of!((*addr).type_)),
            read_volatile(addr_of!((*addr).protocol)),
            read_volatile(addr_of!((*addr).__bindgen_anon_1.sk)),
        )
    };
    let dialled = Addr::new(net::octets([w0, w1, w2, w3]), u16::from_be(port as u16));
    match answer(ctx, sk, kind, protocol, &dialled) {
        Answer::Proceed => {}
        Answer::Redirect(to) => {
            let words = net::words(&to.ip);
            // SAFETY: writable fields of the context.
            unsafe {
                (*addr).user_ip6[0] = words[0];
                (*addr).user_ip6[1] = words[1];
                (*addr).user_ip6[2] = words[2];
                (*addr).user_ip6[3] = words[3];
                (*addr).user_port = u32::from(to.port.to_be());
            }
        }
        Answer::Deny => return DENY,
    }
    PROCEED
}

/// Every way out of this has written or cleared the destination that storage remembers: storage survives AF_UNSPEC and
/// failed connects.
#[inline(always)]
fn answer(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    kind: u32,
    protocol: u32,
    dialled: &Addr,
) -> Answer {
    if kind != SOCK_STREAM || (protocol != TCP && protocol != MPTCP) || sk.is_null() {
        return Answer::Proceed;
    }
    let stored = sk_state.get(sk);
    if let Some(state) = &stored
        && state.flags & SOCK_AGENT != 0
    {
        return if state.flags & SOCK_CLIENT == 0 {
            Answer::Proceed
        } else {
            on_behalf_of_a_client(ctx)
        };
    }
    // The agent tests capture before it turns it on for applications.
    let self_test = match &stored {
        Some(state) => state.flags & SOCK_SELF_TEST != 0,
        None => false,
    };
    let to = decide(ctx, dialled, self_test);
    match (to, stored) {
        (Some(to), Some(state)) => {
            state.flags = (state.flags & SOCK_SELF_TEST) | SOCK_PEER;
            state.peer = *dialled;
            Answer::Redirect(to)
        }
        (Some(to), None) => {
            // Without storage there is no original destination: the redirected connection is then refused, because
            // nothing is steered from a capture port without it.
            if let Some(state) = sk_state.get_or_create(sk) {
                state.flags = SOCK_PEER;
                state.peer = *dialled;
            }
            Answer::Redirect(to)
        }
        (None, Some(state)) => {
            state.flags &= SOCK_SELF_TEST;
            Answer::Proceed
        }
        (None, None) => Answer::Proceed,
    }
}

/// The agent dials an application. Where the client could not be announced the application would see a loopback
/// address, which many trust: not even the handshake may happen.
#[inline(always)]
fn on_behalf_of_a_client(ctx: &SockAddrContext) -> Answer {
    // SAFETY: the context is that of this call.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if !share::has_room(Share::Clients, netns) {
        count(Counter::ClientsShare);
        return Answer::Deny;
    }
    if !share::clients_has_room() {
        count(Counter::ClientsFull);
        return Answer::Deny;
    }
    Answer::Proceed
}

/// Whether and where to redirect.
#[inline(always)]
fn decide(ctx: &SockAddrContext, dialled: &Addr, self_test: bool) -> Option<Addr> {
    // SAFETY: the context is that of this call.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries are replaced as a whole by the agent; a torn read is a read of the old or the new policy.
    let workload = unsafe { workloads.get(netns) }?;
    if (workload.flags & WL_OUTBOUND == 0 && !self_test)
        || dialled.port == 0
        || net::is_left_alone(&dialled.ip)
    {
        return None;
    }
    let v4 = is_v4(&dialled.ip);
    let (has, ip) = if v4 {
        (WL_HAS_V4, workload.addr4)
    } else {
        (WL_HAS_V6, workload.addr6)
    };
    if workload.flags & has == 0 {
        return None;
    }
    if !self_test && is_excluded(netns, workload, &dialled.ip, dialled.port) {
        count(Counter::Excluded);
        return None;
    }
    if !agent_listens(ip) {
        // SAFETY: as above.
        let only_mesh = unsafe { mesh_addrs.get(dialled.ip) }.is_some();
        if workload.flags & WL_OPEN_OUTBOUND != 0 && !only_mesh {
            count(Counter::PassedNoAgent);
            return None;
        }
        count(Counter::RefusedNoAgent);
    } else {
        count(Counter::CapturedOutbound);
    }
    let offset = net::hash_destination(&dialled.ip, dialled.port) & u32::from(CAPTURE_PORTS - 1);
    Some(Addr::new(ip, CAPTURE_PORT_BASE + offset as u16))
}

/// True while the agent's outbound listener for this address is open: the kernel removes closed sockets.
#[inline(always)]
fn agent_listens(ip: [u8; 16]) -> bool {
    let key = ListenerKey {
        ip,
        role: Role::Outbound as u32,
    };
    // SAFETY: the map is a SOCKHASH and the key is of its type; the reference is released at once.
    unsafe {
        let sk = bpf_map_lookup_elem(
            core::ptr::addr_of!(listeners).cast_mut().cast(),
            core::ptr::addr_of!(key).cast(),
        );
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk);
    }
    true
}
