//! One proxied connection as telemetry sees it, and the guard that reports its end exactly once.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mesh_common::{ConnRecord, KernelClose};
pub use mesh_common::{Direction, Path};

use super::{
    Reason, RequestGuard, RequestStart, lock,
    metrics::{Flow, SeriesCache},
    security::Principals,
    shared::Shared,
};
use crate::model::{ResourceName, SpiffeId};

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub addr: SocketAddr,
    /// The workload that owns the address, if the mesh knows one.
    pub workload: Option<ResourceName>,
}

/// What is spoken on the connection; the metric label `request_protocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Tcp,
    Http,
    Grpc,
}

impl Protocol {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    /// Requests are read from it.
    pub(super) const fn has_requests(self) -> bool {
        matches!(self, Self::Http | Self::Grpc)
    }
}

/// What is known when a connection was accepted.
#[derive(Clone, Debug)]
pub struct ConnMeta {
    pub direction: Direction,
    /// The enrolled workload on whose behalf the agent acts: the one that dialled (outbound) or was dialled (inbound).
    pub workload: ResourceName,
    /// Who dialled.
    pub source: Peer,
    /// What was dialled, before any choice of endpoint.
    pub original_dst: SocketAddr,
    /// The service that `original_dst` belongs to.
    pub service: Option<ResourceName>,
    pub protocol: Protocol,
    /// Cookie of the application's socket, the key of its kernel record; 0 when not known (inbound).
    pub app_cookie: u64,
    /// Cookie of the agent's socket towards the application (inbound), which the kernel notes in the record of the
    /// application's socket; 0 when not known yet: [`ConnGuard::set_agent_cookie`].
    pub agent_cookie: u64,
}

/// Payload bytes of one connection. The proxy adds to them as it copies; nobody else writes.
#[derive(Debug, Default)]
pub struct ByteCounters {
    /// From who dialled to who was dialled.
    pub sent: AtomicU64,
    /// From who was dialled to who dialled.
    pub received: AtomicU64,
}

impl ByteCounters {
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sent, received.
    pub fn get(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
        )
    }
}

/// A connection that lives or, in the ring of closed ones, has lived.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) meta: ConnMeta,
    /// Key in the table: the cookie that kernel records are joined by, or a number above [`ANONYMOUS`].
    pub(super) key: AtomicU64,
    pub(super) started: Instant,
    pub(super) started_at: SystemTime,
    pub(super) counters: Arc<ByteCounters>,
    /// Cookie of the application's socket, once known.
    pub(super) app_cookie: AtomicU64,
    pub(super) agent_cookie: AtomicU64,
    /// Microseconds; of the upstream leg.
    pub(super) rtt_us: AtomicU32,
    pub(super) retransmits: AtomicU32,
    /// Requests that have come on it.
    pub(super) requests: AtomicU64,
    /// [`Protocol`] as a number: the opening's, until it is known better.
    pub(super) protocol: AtomicU8,
    pub(super) series: SeriesCache,
    pub(super) progress: Mutex<Progress>,
}

/// Keys at and above this are not socket cookies (the kernel counts those up from 1).
pub(super) const ANONYMOUS: u64 = 1 << 63;

/// The agent's socket of the upstream leg, for as long as it lives.
pub trait LegProbe: Send + Sync {
    /// Smoothed round-trip time and retransmitted segments now (`TCP_INFO`).
    fn rtt(&self) -> Option<(Duration, u32)>;
}

/// What was already reported of a connection, and what was learned on the way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) upstream: Option<Peer>,
    /// What mutual TLS proved; `None` without it.
    pub(super) security: Option<Principals>,
    /// The AuthorizationPolicy that decided.
    pub(super) policy: Option<ResourceName>,
    /// The certificate of who dialled is not that of the workload which has its address.
    pub(super) stranger: bool,
    /// The connection to `upstream` stands; before that it is only tried.
    pub(super) established: bool,
    pub(super) probe: Option<Probe>,
    /// Metrics of the connection, resolved once. Set when its opening was counted.
    pub(super) flow: Option<Arc<Flow>>,
    /// Bytes already added to the metrics.
    pub(super) counted: (u64, u64),
    /// Bytes already written to the kernel's record, and whether it knows of mutual TLS.
    pub(super) stored: ((u64, u64), bool),
    /// When the counters were last seen to change.
    pub(super) last_change: Option<Instant>,
    /// The end was reported: nothing is counted any more.
    pub(super) done: bool,
    /// The kernel's final record of the application's socket, if it came before the proxy finished.
    pub(super) kernel: Option<Box<ConnRecord>>,
}

impl Progress {
    /// The kernel's record has all that the agent adds to it.
    pub(super) fn is_stored(&self, bytes: (u64, u64)) -> bool {
        self.stored == (bytes, self.security.is_some())
    }

    /// The workload that dialled: by its address, unless its certificate says that it is another.
    pub(super) fn source_workload<'m>(&self, meta: &'m ConnMeta) -> Option<&'m ResourceName> {
        meta.source.workload.as_ref().filter(|_| !self.stranger)
    }
}

/// See [`LegProbe`].
pub(super) struct Probe(Weak<dyn LegProbe>);

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Probe({})", self.0.strong_count())
    }
}

impl Conn {
    pub(super) fn protocol(&self) -> Protocol {
        [Protocol::Tcp, Protocol::Http, Protocol::Grpc]
            .into_iter()
            .find(|p| *p as u8 == self.protocol.load(Ordering::Relaxed))
            .unwrap_or_default()
    }

    pub(super) fn set_rtt(&self, rtt: Duration, retransmits: u32) {
        let micros = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        self.rtt_us.store(micros, Ordering::Relaxed);
        self.retransmits.store(retransmits, Ordering::Relaxed);
    }

    /// Looks at the upstream leg again.
    pub(super) fn measure(&self) {
        let leg = lock(&self.progress).probe.as_ref().map(|p| p.0.clone());
        if let Some((rtt, retransmits)) = leg.and_then(|leg| leg.upgrade()?.rtt()) {
            self.set_rtt(rtt, retransmits);
        }
    }

    /// What the workload itself sent and received: an inbound connection's `sent` is the client's.
    pub(super) fn workload_bytes(&self) -> (u64, u64) {
        let (sent, received) = self.counters.get();
        match self.meta.direction {
            Direction::Outbound => (sent, received),
            Direction::Inbound => (received, sent),
        }
    }
}

/// Reports the end of one connection: exactly one access-log line, one closed connection in the metrics, one row among
/// the closed. Dropped without [`ConnGuard::finish`] it reports [`Reason::Internal`].
#[derive(Debug)]
#[must_use = "dropping the guard reports an internal error"]
pub struct ConnGuard {
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    reason: Option<Reason>,
}

impl ConnGuard {
    pub(super) fn new(shared: Arc<Shared>, conn: Arc<Conn>) -> Self {
        Self {
            shared,
            conn,
            reason: None,
        }
    }

    /// Says where the connection goes, or is tried to; the last call counts.
    pub fn set_upstream(&self, addr: SocketAddr, workload: Option<ResourceName>) {
        lock(&self.conn.progress).upstream = Some(Peer { addr, workload });
    }

    /// Says that the connection comes or goes through mutual TLS, and whom the certificates name; before
    /// [`Self::established`]. One of which this is never said is reported as not secured.
    ///
    /// Of an inbound connection the workload that dialled is known by its address; where that workload has another
    /// identity than the certificate, the connection is reported with the principal alone.
    pub fn set_security(&self, source: Option<SpiffeId>, destination: Option<SpiffeId>) {
        let stranger = source
            .as_ref()
            .is_some_and(|id| self.shared.is_stranger(&self.conn.meta, id));
        let mut progress = lock(&self.conn.progress);
        progress.security = Some(Principals {
            source,
            destination,
        });
        progress.stranger = stranger;
    }

    /// Says which AuthorizationPolicy allows or denies the connection; the last call counts. `None`: none by itself (an
    /// ALLOW policy that does not match denies, but so do all the others).
    pub fn set_policy(&self, policy: impl Into<Option<ResourceName>>) {
        lock(&self.conn.progress).policy = policy.into();
    }

    /// Says that the connection upstream stands: from now on it counts as opened to where [`Self::set_upstream`] said.
    /// With the leg given, its round-trip time is looked at while it lives. One that ends without this is counted at
    /// its end.
    pub fn established(&self, leg: Option<Weak<dyn LegProbe>>) {
        let mut progress = lock(&self.conn.progress);
        progress.established = true;
        progress.probe = leg.map(Probe);
    }

    /// Says the cookie of the agent's socket towards the application (inbound), when it was not known at the opening.
    pub fn set_agent_cookie(&self, cookie: u64) {
        self.shared.set_agent_cookie(&self.conn, cookie);
    }

    /// Where the proxy counts the bytes.
    pub fn counters(&self) -> &Arc<ByteCounters> {
        &self.conn.counters
    }

    /// Smoothed round-trip time and retransmitted segments of the upstream leg (`TCP_INFO`).
    pub fn set_rtt(&self, rtt: Duration, retransmits: u32) {
        self.conn.set_rtt(rtt, retransmits);
    }

    /// Says that requests are read from the connection: they are reported, each by its own guard, and the connection is
    /// neither counted in the TCP metrics nor written to the access log, unless it ends without a request (then there is
    /// a line, with its reason). Before [`Self::established`]: what was counted as a TCP connection stays one.
    pub fn set_protocol(&self, protocol: Protocol) {
        self.conn.protocol.store(protocol as u8, Ordering::Relaxed);
    }

    /// A request has come on the connection.
    pub fn request(&self, start: RequestStart) -> RequestGuard {
        RequestGuard::new(Arc::clone(&self.shared), Arc::clone(&self.conn), start)
    }

    /// The connection ended. The counters must be final.
    pub fn finish(mut self, reason: Reason) {
        self.reason = Some(reason);
    }
}

impl Drop for ConnGuard {
    fn drop(&mut self) {
        let reason = self.reason.take().unwrap_or(Reason::Internal);
        self.shared.finish(&self.conn, reason);
    }
}

/// The key by which a kernel record is joined with what the proxy knows: an outbound connection by the application's
/// socket, an inbound one by the agent's. Cookies come from one counter for all namespaces, so the two never collide.
/// `None`: the proxy knows nothing of it.
pub(super) fn join_key(app_cookie: u64, record: &ConnRecord) -> Option<u64> {
    if record.path != Path::Proxied as u8 {
        return None;
    }
    if record.direction == Direction::Inbound as u8 {
        (record.agent_cookie != 0).then_some(record.agent_cookie)
    } else {
        Some(app_cookie)
    }
}

/// The reason of a connection that only the kernel has seen.
pub(super) fn kernel_reason(record: &ConnRecord) -> Reason {
    const COMPLETED: [u8; 2] = [
        KernelClose::FinLocalFirst as u8,
        KernelClose::FinRemoteFirst as u8,
    ];
    if COMPLETED.contains(&record.close_reason) {
        Reason::Completed
    } else if record.close_reason == KernelClose::ConnectFailed as u8 {
        Reason::ConnectFailed
    } else {
        Reason::Aborted
    }
}

/// `outbound` or `inbound`.
pub(super) const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

/// Direction of a record; the kernel writes no other values.
pub(super) fn record_direction(record: &ConnRecord) -> Direction {
    if record.direction == Direction::Inbound as u8 {
        Direction::Inbound
    } else {
        Direction::Outbound
    }
}

/// Path of a record; the kernel writes no other values.
pub(super) fn record_path(record: &ConnRecord) -> Path {
    match record.path {
        p if p == Path::Passthrough as u8 => Path::Passthrough,
        p if p == Path::Unmeshed as u8 => Path::Unmeshed,
        p if p == Path::Vouched as u8 => Path::Vouched,
        _ => Path::Proxied,
    }
}

/// `proxied`, `passthrough` or `unmeshed`.
pub(super) const fn path_name(path: Path) -> &'static str {
    match path {
        Path::Proxied => "proxied",
        Path::Passthrough => "passthrough",
        Path::Unmeshed => "unmeshed",
        Path::Vouched => "vouched",
    }
}
