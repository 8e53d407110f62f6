//! Names, keys, values and flag bits of the maps. Who owns which entry is documented beside each definition in
//! `mesh-ebpf/src/maps.rs`.

use crate::addr::Addr;

/// First port of the capture range. The ports are virtual: only captured sockets are steered from them.
pub const CAPTURE_PORT_BASE: u16 = 15100;
/// Ports in the capture range; a power of two.
pub const CAPTURE_PORTS: u16 = 1024;
/// Virtual port that the agent dials to prove that inbound steering works.
pub const SELF_TEST_PORT: u16 = 15009;
/// Port of the tunnel listener, on every address of a captured workload. An application cannot have it there.
pub const TUNNEL_PORT: u16 = 15008;

// Workload flags.
/// Capture what the workload dials.
pub const WL_OUTBOUND: u32 = 1;
/// Steer what dials the workload.
pub const WL_INBOUND: u32 = 1 << 1;
/// When the agent is gone: pass outbound connections plain.
pub const WL_OPEN_OUTBOUND: u32 = 1 << 2;
/// When the agent is gone: pass inbound connections plain.
pub const WL_OPEN_INBOUND: u32 = 1 << 3;
/// The pod has an IPv4 address to redirect to.
pub const WL_HAS_V4: u32 = 1 << 4;
/// The workload has rows in `exclusions`.
pub const WL_EXCL_CIDRS: u32 = 1 << 6;
/// The workload has rows in `excl_ports`.
pub const WL_EXCL_PORTS: u32 = 1 << 7;
/// The pod has an IPv6 address to redirect to.
pub const WL_HAS_V6: u32 = 1 << 5;
/// Nothing reaches the workload past the agent but exclusions, loopback and vouched tuples: not while the agent is
/// gone, whatever the fail policy, and not on a port that `listen_ports` does not have.
pub const WL_PROTECTED: u32 = 1 << 8;

/// Value of `workloads`; key: netns cookie. A row without flags is a workload being enrolled or released: its
/// listeners and connections are recorded, nothing is captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Where captured IPv4 connections are redirected to: the pod's own address, v4-mapped.
    pub addr4: [u8; 16],
    /// Where captured IPv6 connections are redirected to: the pod's own address.
    pub addr6: [u8; 16],
    /// `WL_*`.
    pub flags: u32,
    pub pad: u32,
}

/// Value of `pod_addrs`; key: address (16 bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodAddr {
    pub netns: u64,
}

/// Key of `exclusions` (longest-prefix match): traffic of this workload to this range is not captured.
/// `prefix_len` counts from the start of `netns`: 64 + the prefix of the v6 (or v4-mapped, so 96 more) range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExcludedCidr {
    pub netns: u64,
    pub ip: [u8; 16],
}

/// Key of `excl_ports`: connections of this workload to or on this port are not captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExcludedPort {
    pub netns: u64,
    pub port: u16,
    pub pad: [u8; 6],
}

/// Role of an agent's listener in `listeners`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    Outbound = 1,
    Inbound = 2,
    Tunnel = 3,
}

/// Key of the SOCKHASH `listeners`. `ip` is the pod's address that was dialled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    pub ip: [u8; 16],
    /// [`Role`].
    pub role: u32,
}

/// Key of `listen_ports`: an application of the workload listens here. Address zero (`::`) is any address of both
/// families; `::ffff:0.0.0.0` any IPv4 address. Value: u32, 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenKey {
    pub netns: u64,
    pub addr: Addr,
}

/// Value of `orig_dst`; key: [`crate::Tuple`] as the client's namespace sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrigDst {
    /// What the application dialled.
    pub dst: Addr,
    /// Cookie of the application's socket, the key of its record.
    pub client_cookie: u64,
    /// Monotonic nanoseconds; entries nobody took are swept by age.
    pub created_ns: u64,
}

/// The maps that a workload fills by what it does; each workload has a share of each, an index into [`Usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Share {
    OrigDst = 0,
    ListenPorts = 1,
    Clients = 2,
    Conns = 3,
}

/// How many [`Share`]s there are.
pub const SHARES: usize = 4;

impl Share {
    pub const ALL: [Self; SHARES] = [Self::OrigDst, Self::ListenPorts, Self::Clients, Self::Conns];

    /// What is counted when the map is full.
    pub const fn map_full(self) -> Counter {
        match self {
            Self::OrigDst => Counter::OrigDstFull,
            Self::ListenPorts => Counter::ListenFull,
            Self::Clients => Counter::ClientsFull,
            Self::Conns => Counter::ConnsFull,
        }
    }

    /// What is counted when the workload's share of it is.
    pub const fn share_full(self) -> Counter {
        match self {
            Self::OrigDst => Counter::OrigDstShare,
            Self::ListenPorts => Counter::ListenShare,
            Self::Clients => Counter::ClientsShare,
            Self::Conns => Counter::ConnsShare,
        }
    }
}

/// Value of `usage`; key: netns cookie. Arrays by [`Share`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries of this workload. Programs add and take away atomically; the agent, which cannot, sets it right now and
    /// then, so it may be off by a little, below zero too.
    pub held: [i64; SHARES],
    /// From so many on the map is full for this workload. Set by the agent.
    pub limit: [i64; SHARES],
}

/// Room of `clients`. The kernel program has to know it: it must not begin a connection that it cannot announce.
pub const CLIENTS_ENTRIES: usize = 65_536;
/// Kept free in `clients` as a whole for those that were let through at the same moment.
pub const CLIENTS_MARGIN: usize = 1_024;

/// Value of `vouched`; key: [`crate::Tuple`] as the destination sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vouched {
    /// Until when it may begin, monotonic nanoseconds.
    pub expires_ns: u64,
}

/// Value of `clients`; key: [`crate::Tuple`] of the agent's connection to the application.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Who really dialled.
    pub addr: Addr,
    /// Cookie of the agent's socket.
    pub agent_cookie: u64,
    /// Monotonic nanoseconds.
    pub created_ns: u64,
}

// Flags of socket storage.
/// The agent's own socket: never captured, recorded or counted as listening.
pub const SOCK_AGENT: u32 = 1;
/// `peer` holds what getpeername() and accept() show.
pub const SOCK_PEER: u32 = 1 << 1;
/// The agent's socket: `peer` is the client whose connection it carries to the application.
pub const SOCK_CLIENT: u32 = 1 << 2;
/// The agent's accepted socket: `peer` is the original destination, `cookie` the application's socket.
pub const SOCK_ORIG_DST: u32 = 1 << 3;
/// Captured as any application's, but not recorded: the agent's self-test.
pub const SOCK_SELF_TEST: u32 = 1 << 4;
/// The kernel keeps a record of this socket in `conns`.
pub const SOCK_RECORDED: u32 = 1 << 5;
/// The socket dialled (as opposed to: was accepted).
pub const SOCK_ACTIVE: u32 = 1 << 6;
/// A FIN of this socket was sent first.
pub const SOCK_FIN_LOCAL_FIRST: u32 = 1 << 7;
/// A FIN of the other side was received first.
pub const SOCK_FIN_REMOTE_FIRST: u32 = 1 << 8;
/// A FIN of the other side was received.
pub const SOCK_FIN_RECEIVED: u32 = 1 << 9;
/// A FIN of this socket was acknowledged.
pub const SOCK_FIN_ACKED: u32 = 1 << 10;

/// The agent's socket: its client could not be announced, the application would see the agent's own address.
pub const SOCK_CLIENT_LOST: u32 = 1 << 11;

/// Value of the socket storage `sk_state`. Made with BPF_F_CLONE, so that the children of the agent's listeners carry
/// the mark.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockState {
    /// `SOCK_*`.
    pub flags: u32,
    pub pad: u32,
    pub peer: Addr,
    /// See [`SOCK_ORIG_DST`].
    pub cookie: u64,
}

/// Index into the per-CPU array `counters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// `orig_dst` was full: the connection was refused.
    OrigDstFull = 0,
    /// `conns` was full: the connection is carried but not recorded.
    ConnsFull = 1,
    /// `listen_ports` was full: connections to the port are not captured until the agent looks again.
    ListenFull = 2,
    /// `clients` was full: the connection was refused.
    ClientsFull = 3,
    /// Socket storage could not be had.
    StorageFailed = 4,
    /// The ring buffer was full: a final record was lost.
    EventsFull = 5,
    /// Connections captured on their way out.
    CapturedOutbound = 6,
    /// Connections steered on their way in.
    SteeredInbound = 7,
    /// Connections refused because the agent was gone.
    RefusedNoAgent = 8,
    /// Connections passed plain because the agent was gone and the fail policy is open.
    PassedNoAgent = 9,
    /// Connections not captured because of an exclusion.
    Excluded = 10,
    /// Tunnels steered to the agent.
    SteeredTunnel = 11,
    /// Connections to a protected workload refused because no application is known to listen there.
    RefusedProtected = 12,
    /// As [`Self::OrigDstFull`], for the workload's share.
    OrigDstShare = 13,
    /// As [`Self::ConnsFull`], for the workload's share.
    ConnsShare = 14,
    /// As [`Self::ListenFull`], for the workload's share.
    ListenShare = 15,
    /// As [`Self::ClientsFull`], for the workload's share.
    ClientsShare = 16,
    /// Connections passed because this node vouched for them.
    PassedVouched = 17,
}

/// Entries of `counters`.
pub const COUNTERS: u32 = 18;

impl Counter {
    /// Every counter with the value of its metric label.
    pub const ALL: [(Counter, &'static str); COUNTERS as usize] = [
        (Counter::OrigDstFull, "orig_dst_full"),
        (Counter::ConnsFull, "conns_full"),
        (Counter::ListenFull, "listen_ports_full"),
        (Counter::ClientsFull, "clients_full"),
        (Counter::StorageFailed, "storage_failed"),
        (Counter::EventsFull, "events_full"),
        (Counter::CapturedOutbound, "captured_outbound"),
        (Counter::SteeredInbound, "steered_inbound"),
        (Counter::RefusedNoAgent, "refused_no_agent"),
        (Counter::PassedNoAgent, "passed_no_agent"),
        (Counter::Excluded, "excluded"),
        (Counter::SteeredTunnel, "steered_tunnel"),
        (Counter::RefusedProtected, "refused_protected"),
        (Counter::OrigDstShare, "orig_dst_share"),
        (Counter::ConnsShare, "conns_share"),
        (Counter::ListenShare, "listen_ports_share"),
        (Counter::ClientsShare, "clients_share"),
        (Counter::PassedVouched, "passed_vouched"),
    ];
}

// Map names, at most 15 characters (the kernel cuts the rest).
pub const MAP_WORKLOADS: &str = "workloads";
pub const MAP_POD_ADDRS: &str = "pod_addrs";
pub const MAP_EXCLUSIONS: &str = "exclusions";
pub const MAP_EXCL_PORTS: &str = "excl_ports";
pub const MAP_MESH_ADDRS: &str = "mesh_addrs";
pub const MAP_LISTENERS: &str = "listeners";
pub const MAP_LISTEN_PORTS: &str = "listen_ports";
pub const MAP_ORIG_DST: &str = "orig_dst";
pub const MAP_CLIENTS: &str = "clients";
pub const MAP_CONNS: &str = "conns";
pub const MAP_USAGE: &str = "usage";
pub const MAP_TOTALS: &str = "totals";
pub const MAP_VOUCHED: &str = "vouched";
pub const MAP_SK_STATE: &str = "sk_state";
pub const MAP_EVENTS: &str = "events";
pub const MAP_COUNTERS: &str = "counters";

const _: () = assert!(
    size_of::<Workload>() == 40
        && size_of::<ListenerKey>() == 20
        && size_of::<ListenKey>() == 32
        && size_of::<OrigDst>() == 40
        && size_of::<Client>() == 40
        && size_of::<Usage>() == 64
        && size_of::<Vouched>() == 8
        && size_of::<SockState>() == 40
        && size_of::<ExcludedCidr>() == 24
        && size_of::<ExcludedPort>() == 16
);

#[cfg(feature = "user")]
mod user {
    #![allow(unsafe_code)]
    macro_rules! pod {
        ($($t:ty),* $(,)?) => {$(
            // SAFETY: repr(C), no implicit padding (asserted beside the definition), every bit pattern is valid.
            unsafe impl aya::Pod for $t {}
        )*};
    }
    pod!(
        crate::Addr,
        crate::Tuple,
        crate::ConnRecord,
        crate::Event,
        super::Workload,
        super::PodAddr,
        super::ExcludedCidr,
        super::ExcludedPort,
        super::ListenerKey,
        super::ListenKey,
        super::OrigDst,
        super::Client,
        super::Usage,
        super::Vouched,
        super::SockState,
    );
}
