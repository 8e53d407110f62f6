//! The maps: what each holds, who inserts, who deletes, what happens when it is full. Layouts: `mesh-common`.

#![allow(non_upper_case_globals)]

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SockHash},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use mesh_common::{
    CLIENTS_ENTRIES, COUNTERS, Client, ConnRecord, Counter, Event, ExcludedCidr, ExcludedPort,
    ListenKey, ListenerKey, OrigDst, PodAddr, SHARES, SockState, Tuple, Usage, Vouched, Workload,
};

pub const LAZY: usize = BPF_F_NO_PREALLOC as usize;

/// Netns cookie -> workload. The agent inserts and deletes. Full: the pod is not enrolled, and the agent says so.
#[btf_map]
pub static workloads: HashMap<u64, Workload, 4_096, LAZY> = HashMap::new();

/// Address of a pod -> its netns, because `sk_lookup` cannot ask for the cookie. The agent inserts and deletes.
/// Full: the pod is not enrolled, and the agent says so.
#[btf_map]
pub static pod_addrs: HashMap<[u8; 16], PodAddr, 16_384, LAZY> = HashMap::new();

/// Ranges that a workload does not have captured; value 1. The agent inserts and deletes.
#[btf_map]
pub static exclusions: LpmTrie<ExcludedCidr, u32, 65_536> = LpmTrie::new();

/// Ports that a workload does not have captured; value 1. The agent inserts and deletes.
#[btf_map]
pub static excl_ports: HashMap<ExcludedPort, u32, 65_536, LAZY> = HashMap::new();

/// Addresses that only the mesh knows (virtual addresses of services): refused while the agent is away, also under
/// the fail policy `open`; value 1. The agent inserts and deletes. Full: such an address is passed on, and fails in the network.
#[btf_map]
pub static mesh_addrs: HashMap<[u8; 16], u32, 262_144, LAZY> = HashMap::new();

/// The agent's listeners. The agent inserts; the kernel removes a socket that closes, and by that everything here
/// knows at once that the agent is gone. Full: the pod is not enrolled.
#[btf_map]
pub static listeners: SockHash<ListenerKey, 65_536> = SockHash::new();

/// Where applications listen; value 1. Inserted here on listen(), and by the agent from sock_diag; deleted by the
/// agent only. Full: the port is not steered until there is room, and closed if the workload is protected; counted.
#[btf_map]
pub static listen_ports: HashMap<ListenKey, u32, 65_536, LAZY> = HashMap::new();

/// 4-tuple of a captured connection -> what the application dialled. Inserted here before the SYN; deleted here when
/// the agent's side is established or the connect fails, by the agent when nobody took it for minutes. Not LRU: that
/// could lose a live entry. Full: the connection is refused; counted.
#[btf_map]
pub static orig_dst: HashMap<Tuple, OrigDst, 65_536, LAZY> = HashMap::new();

/// 4-tuple of the agent's connection to an application -> the real client. Inserted and deleted like `orig_dst`.
/// Full: the agent's connect() fails, lest the application sees a loopback address as its client; counted.
#[btf_map]
pub static clients: HashMap<Tuple, Client, CLIENTS_ENTRIES, LAZY> = HashMap::new();

/// Socket cookie -> record of a connection of an enrolled workload. Inserted and deleted here; refreshed by the
/// agent, which also inserts and deletes those older than enrolment. Full: carried, not recorded; counted.
#[btf_map]
pub static conns: HashMap<u64, ConnRecord, 262_144, LAZY> = HashMap::new();

/// Netns cookie -> how much of the four maps above a workload has and may have. The agent inserts, deletes and
/// corrects; counted here. Full: the pod is not enrolled, and the agent says so.
#[btf_map]
pub static usage: HashMap<u64, Usage, 4_096, LAZY> = HashMap::new();

/// Entries of all workloads together, by `Share`; only that of `clients` is counted. Counted here, corrected by the
/// agent.
#[btf_map]
pub static totals: Array<i64, SHARES> = Array::new();

/// 4-tuples that this node vouches for, as the destination sees them: they pass to the application. The agent inserts
/// and sweeps what is too old; deleted here when the connection stands. Full: the agent is told, and nothing passes.
#[btf_map]
pub static vouched: HashMap<Tuple, Vouched, 16_384, LAZY> = HashMap::new();

/// A record of zeros, which new records begin as; never written. The stack has no room for one, and memory for each CPU
/// could be written by another event in the middle.
#[btf_map]
pub static blank: Array<ConnRecord, 1> = Array::new();

/// Final records, and news of listeners. Full: the event is lost and counted; the agent's one-second look repairs
/// what concerns listeners.
#[btf_map]
pub static events: RingBuf<Event, 4_194_304> = RingBuf::new();

/// One cell a [`Counter`], for each CPU.
#[btf_map]
pub static counters: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

/// Storage of one socket. Written by hand because the library's own type fixes its flags: BPF_F_CLONE gives the
/// children of the agent's listeners their mark.
#[repr(C)]
pub struct SkState {
    r#type: *const [i32; aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SockState,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields are never read; the loader takes the definition from their types.
unsafe impl Sync for SkState {}

impl SkState {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The storage of `sk`, if it has one. `sk` must not be null.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<&'static mut SockState> {
        self.lookup(sk, 0)
    }

    /// The storage of `sk`, made zeroed when it has none. `None` (counted) when memory is short.
    #[inline(always)]
    pub fn get_or_create(&self, sk: *mut bpf_sock) -> Option<&'static mut SockState> {
        let state = self.lookup(sk, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
        if state.is_none() {
            count(Counter::StorageFailed);
        }
        state
    }

    #[inline(always)]
    fn lookup(&self, sk: *mut bpf_sock, flags: u64) -> Option<&'static mut SockState> {
        // SAFETY: the verifier has checked `sk`; the value lives as long as the program runs, and one socket's events
        // are serialised by its lock.
        unsafe {
            let value = bpf_sk_storage_get(
                core::ptr::from_ref(self).cast_mut().cast(),
                sk.cast(),
                core::ptr::null_mut(),
                flags,
            );
            value.cast::<SockState>().as_mut()
        }
    }
}

/// Per-socket state. Made here or by the agent (for its own sockets); the kernel frees it with the socket.
#[btf_map]
pub static sk_state: SkState = SkState::new();

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(cell) = counters.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU cell, and this program is the only writer on this CPU.
        unsafe { *cell += 1 };
    }
}
