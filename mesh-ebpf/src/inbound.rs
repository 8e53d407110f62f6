//! `sk_lookup` of a pod's network namespace: which listener gets a new connection.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action,
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release},
    programs::SkLookupContext,
};
use mesh_common::{
    Addr, Counter, ExcludedCidr, ExcludedPort, ListenKey, ListenerKey, Role, SELF_TEST_PORT, Tuple,
    WL_EXCL_CIDRS, WL_EXCL_PORTS, WL_INBOUND, WL_OPEN_INBOUND, Workload, is_v4,
};

use crate::{
    maps::{
        count, excl_ports, exclusions, listen_ports, listeners, orig_dst, pod_addrs, workloads,
    },
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
    // The agent tests steering before it turns it on: from the pod to itself, on a port of its own.
    let test = local.port == SELF_TEST_PORT && remote.ip == local.ip;
    if (workload.flags & WL_INBOUND == 0 && !test)
        || !application_listens(netns, &local)
        || is_excluded(netns, workload, &remote, local.port)
    {
        return PASS;
    }
    if assign(ctx, local.ip, Role::Inbound) {
        count(Counter::SteeredInbound);
        return PASS;
    }
    if workload.flags & WL_OPEN_INBOUND != 0 {
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

#[inline(always)]
fn is_excluded(netns: u64, workload: &Workload, remote: &Addr, local_port: u16) -> bool {
    if workload.flags & WL_EXCL_PORTS != 0 {
        let key = ExcludedPort {
            netns,
            port: local_port,
            pad: [0; 6],
        };
        // SAFETY: only its presence is looked at.
        if unsafe { excl_ports.get(key) }.is_some() {
            return true;
        }
    }
    if workload.flags & WL_EXCL_CIDRS != 0 {
        let key = Key::new(
            192,
            ExcludedCidr {
                netns,
                ip: remote.ip,
            },
        );
        return exclusions.get(&key).is_some();
    }
    false
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
