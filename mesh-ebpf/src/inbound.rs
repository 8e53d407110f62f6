//! `sk_lookup` of a pod's network namespace: which listener gets a new connection.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action,
    helpers::generated::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release},
    programs::SkLookupContext,
};
use mesh_common::{
    Addr, Counter, ListenKey, ListenerKey, Role, SELF_TEST_PORT, TUNNEL_PORT, Tuple, WL_INBOUND,
    WL_OPEN_INBOUND, WL_PROTECTED, is_v4,
};

use crate::{
    exclude::is_excluded,
    maps::{count, listen_ports, listeners, orig_dst, pod_addrs, vouched, workloads},
    net::{self, AF_INET6, TCP},
};

const PASS: u32 = sk_action::SK_PASS;
/// The kernel answers with RST.
const DROP: u32 = sk_action::SK_DROP;

#[inline(always)]
pub fn steer(ctx: &SkLookupContext) -> u32 {
    let c = ctx.lookup;
    // SAFETY: fields of the context, all read before the first branch.
    let (family, protocol, remote4, remote6, remote_port, local4, local6, local_port) = unsafe {
        (
            read_volatile(addr_of!((*c).family)),
            read_volatile(addr_of!((*c).protocol)),
            read_volatile(addr_of!((*c).remote_ip4)),
            [
                read_volatile(addr_of!((*c).remote_ip6[0])),
                read_volatile(addr_of!((*c).remote_ip6[1])),
                read_volatile(addr_of!((*c).remote_ip6[2])),
                read_volatile(addr_of!((*c).remote_ip6[3])),
            ],
            read_volatile(addr_of!((*c).remote_port)),
            read_volatile(addr_of!((*c).local_ip4)),
            [
                read_volatile(addr_of!((*c).local_ip6[0])),
                read_volatile(addr_of!((*c).local_ip6[1])),
                read_volatile(addr_of!((*c).local_ip6[2])),
                read_volatile(addr_of!((*c).local_ip6[3])),
            ],
            read_volatile(addr_of!((*c).local_port)),
        )
    };
    if protocol != TCP {
        return PASS;
    }
    let (remote_ip, local_ip) = if family == AF_INET6 {
        (net::octets(remote6), net::octets(local6))
    } else {
        (net::mapped(remote4), net::mapped(local4))
    };
    let remote = Addr::new(remote_ip, u16::from_be(remote_port));
    let local = Addr::new(local_ip, local_port as u16);

    // SAFETY: entries are replaced as a whole by the agent.
    let Some(netns) = (unsafe { pod_addrs.get(local.ip) }).map(|pod| pod.netns) else {
        return PASS;
    };

    // A captured connection is known by its entry alone: an application may itself listen on a capture port or dial
    // from a secondary address.
    let tuple = Tuple {
        netns,
        src: remote,
        dst: local,
    };
    // SAFETY: only its presence is looked at.
    if unsafe { orig_dst.get(tuple) }.is_some() {
        return if assign(ctx, local.ip, Role::Outbound) {
            PASS
        } else {
            DROP
        };
    }
    if net::is_loopback(&remote.ip) {
        return PASS;
    }
    // SAFETY: as above.
    let Some(workload) = (unsafe { workloads.get(netns) }) else {
        return PASS;
    };
    // The agent tests steering before it turns it on: from the pod to itself, on ports of its own.
    let test = remote.ip == local.ip && (local.port == SELF_TEST_PORT || local.port == TUNNEL_PORT);
    if workload.flags & WL_INBOUND == 0 && !test {
        return PASS;
    }
    // Before exclusions and whatever listens there: the port is the mesh's, and what comes to it proves who it is.
    if local.port == TUNNEL_PORT {
        if assign(ctx, local.ip, Role::Tunnel) {
            count(Counter::SteeredTunnel);
            return PASS;
        }
        count(Counter::RefusedNoAgent);
        return DROP;
    }
    // SAFETY: the value is only read.
    if let Some(entry) = unsafe { vouched.get(tuple) }
        // SAFETY: a helper without preconditions.
        && unsafe { bpf_ktime_get_ns() } < entry.expires_ns
    {
        count(Counter::PassedVouched);
        return PASS;
    }
    let protected = workload.flags & WL_PROTECTED != 0;
    // The agent does not serve link-local addresses, which need a scope. They are known only to be closed by protection.
    let listens = !net::is_link_local(&local.ip) && application_listens(netns, &local);
    if (!listens && !protected) || is_excluded(netns, workload, &remote.ip, local.port) {
        return PASS;
    }
    if !listens {
        // Closed, or a listener that the agent does not know or cannot reach: a full map, a moment too early, bound to
        // a device. Never past the agent; a closed port would answer the same.
        count(Counter::RefusedProtected);
        return DROP;
    }
    if assign(ctx, local.ip, Role::Inbound) {
        count(Counter::SteeredInbound);
        return PASS;
    }
    if workload.flags & WL_OPEN_INBOUND != 0 && !protected {
        count(Counter::PassedNoAgent);
        PASS
    } else {
        count(Counter::RefusedNoAgent);
        DROP
    }
}

/// True if an application of the pod listens there; otherwise the kernel shall refuse as it would without a mesh.
#[inline(always)]
fn application_listens(netns: u64, local: &Addr) -> bool {
    let mut key = ListenKey {
        netns,
        addr: *local,
    };
    // SAFETY: only presence is looked at.
    unsafe {
        if listen_ports.get(key).is_some() {
            return true;
        }
        key.addr.ip = [0; 16];
        if listen_ports.get(key).is_some() {
            return true;
        }
        if !is_v4(&local.ip) {
            return false;
        }
        key.addr.ip = net::mapped(0);
        listen_ports.get(key).is_some()
    }
}

/// Gives the connection to the agent's listener; false when the agent has none there any more.
#[inline(always)]
fn assign(ctx: &SkLookupContext, ip: [u8; 16], role: Role) -> bool {
    let key = ListenerKey {
        ip,
        role: role as u32,
    };
    // SAFETY: the map is a SOCKHASH and the key is of its type; the reference is released on every path.
    unsafe {
        let sk = bpf_map_lookup_elem(
            core::ptr::addr_of!(listeners).cast_mut().cast(),
            core::ptr::addr_of!(key).cast(),
        );
        if sk.is_null() {
            return false;
        }
        let done = bpf_sk_assign(ctx.as_ptr(), sk, 0) == 0;
        bpf_sk_release(sk);
        done
    }
}
