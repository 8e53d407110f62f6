//! The record of one connection, as it stands in the map `conns` and, final, in the ring buffer `events`.

use crate::addr::Addr;

/// Which side the workload is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// The workload dialled.
    Outbound = 1,
    /// The workload was dialled.
    Inbound = 2,
}

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Path {
    /// Through the agent.
    Proxied = 1,
    /// Seen, but not captured (excluded, or the agent was away and the fail policy is open).
    Passthrough = 2,
    /// Older than the enrolment of its workload.
    Unmeshed = 3,
    /// Passed because this node vouched for it (`vouched`).
    Vouched = 4,
}

/// Why a connection ended, as far as the kernel can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KernelClose {
    /// It lives.
    Open = 0,
    /// Both sides sent FIN, or may have; the workload's side first.
    FinLocalFirst = 1,
    /// The remote side sent FIN first.
    FinRemoteFirst = 2,
    /// RST, or a timeout, before FINs were exchanged.
    Aborted = 3,
    /// It never was established.
    ConnectFailed = 4,
}

/// One connection of one application socket of an enrolled workload; Key: socket cookie.
///
/// Inserted by `sock_ops` (by the agent for sockets older than enrolment), refreshed by the agent each second, removed
/// at close by `sock_ops` (by the agent for those older than enrolment).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnRecord {
    /// Network-namespace cookie of the workload.
    pub netns: u64,
    /// The workload's address and port.
    pub local: Addr,
    /// The other end as the application sees it: for a captured outbound connection the address that it dialled.
    pub remote: Addr,
    /// The address that the application dialled (outbound) or that the client dialled (inbound).
    pub original_dst: Addr,
    /// Cookie of the agent's socket at the other end of a proxied connection; 0 when not known or not proxied.
    pub agent_cookie: u64,
    /// When it was begun (dialled or accepted), monotonic nanoseconds.
    pub start_ns: u64,
    /// When its state or its counters last changed, monotonic nanoseconds.
    pub last_ns: u64,
    /// Payload bytes that the workload sent and the other side acknowledged.
    pub bytes_sent: u64,
    /// Payload bytes that the workload received.
    pub bytes_received: u64,
    /// Smoothed round-trip time in microseconds; of the upstream leg when proxied.
    pub srtt_us: u32,
    /// Segments sent again; of the upstream leg when proxied.
    pub retransmits: u32,
    /// TCP state, numbers of the kernel (`TCP_ESTABLISHED` = 1 ...).
    pub state: u8,
    /// [`Direction`].
    pub direction: u8,
    /// [`Path`].
    pub path: u8,
    /// [`KernelClose`].
    pub close_reason: u8,
    /// 1: carried with mutual TLS, as the agent says; 0: not, or not known.
    pub security: u8,
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<ConnRecord>() == 8 + 3 * 24 + 5 * 8 + 16);

/// What a ring-buffer record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// A connection ended; `record` is final and `cookie` its key.
    Closed = 1,
    /// A socket of the workload began or ceased to listen; `record.local` says where. The agent looks again.
    Listen = 2,
}

/// A record of the ring buffer `events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// [`EventKind`].
    pub kind: u32,
    pub pad: u32,
    /// Cookie of the application's socket.
    pub cookie: u64,
    pub record: ConnRecord,
}

const _: () = assert!(size_of::<Event>() == 16 + size_of::<ConnRecord>());
