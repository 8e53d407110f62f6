//! What the agent reports: the reason a connection ended, metrics, the access log, the table of connections.
//!
//! The proxy calls [`Telemetry::open`] for each connection that it accepts and keeps the [`ConnGuard`]; the end of the
//! guard is the end of the connection. Connections that the proxy does not carry come from the kernel's records.

mod access;
mod closed;
mod conn;
mod directory;
mod events;
mod kernel;
mod line;
mod live;
pub mod logging;
mod metrics;
pub(crate) mod process;
pub mod reason;
mod refresh;
mod request;
mod row;
mod rows;
pub(crate) mod security;
mod shared;
mod tap;
#[cfg(test)]
mod tests;
mod trace;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use crate::model::ResourceName;
pub use access::TARGET as ACCESS_TARGET;
pub use conn::{ByteCounters, ConnGuard, ConnMeta, Direction, LegProbe, Path, Peer, Protocol};
pub use directory::{ConnStore, Directory, NoDirectory, NoStore};
use mesh_common::{Event, EventKind};
use metrics::{AgentCollector, Counts, Flows, Metrics, Requests};
pub use metrics::{
    AgentGauges, AgentSource, CONTENT_TYPE, CertificateGauge, ConfigGauges, Detected,
    EndpointGauge, FileGauge, HealthChange, HealthGauges, IdentityGauges, MapGauge, Mirror,
    Outcome, PoolGauge, Retry, Role, ServiceGauge, TunnelGauge,
};
pub use reason::{Party, Reason};
pub use refresh::REFRESH;
pub use request::{RequestBytes, RequestGuard, RequestStart};
pub use row::Connection;
use shared::{ActiveCounts, Shared};
pub use tap::{StatusFilter, Tap, TapFilter, TapRefused, TappedRequest};
pub use trace::{B3, Exporter, TraceContext, TraceParent, TracingError, TracingOptions};

/// Bounds of what telemetry keeps.
#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    /// The node's name, for `mesh_build_info`.
    pub node: String,
    /// Closed connections that are kept, and how long.
    pub closed_max: usize,
    pub closed_age: Duration,
    /// Label sets of the TCP metrics; what is above is counted in the overflow series.
    pub flows_max: usize,
    /// After this long without a connection a label set is forgotten.
    pub flows_idle: Duration,
    /// Series of the metrics of requests; each has three histograms.
    pub requests_max: usize,
    /// Queries of requests go to the access log; they may hold secrets.
    pub log_query: bool,
}

impl Default for TelemetryOptions {
    fn default() -> Self {
        Self {
            node: String::new(),
            closed_max: 10_000,
            closed_age: Duration::from_secs(600),
            flows_max: 5_000,
            flows_idle: Duration::from_secs(600),
            requests_max: 2_000,
            log_query: false,
        }
    }
}

/// Metrics, access log and the table of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    source: Arc<AgentSourceSlot>,
}

type AgentSourceSlot = Slot<dyn AgentSource>;

/// A part that is composed later.
struct Slot<T: ?Sized>(Arc<OnceLock<Arc<T>>>);

impl<T: ?Sized> std::fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({})", self.0.get().is_some())
    }
}

impl Telemetry {
    pub fn new(options: TelemetryOptions) -> Self {
        let now = Instant::now();
        let flows = Arc::new(Flows::new(options.flows_max, options.flows_idle, now));
        let requests = Arc::new(Requests::new(options.requests_max, options.flows_idle, now));
        let counts = Arc::new(Counts::default());
        let taps = Arc::default();
        let active = Arc::new(ActiveCounts::default());
        let source = Arc::new(OnceLock::new());
        let metrics = Metrics::new(
            flows.clone(),
            requests.clone(),
            AgentCollector {
                node: options.node.clone(),
                counts: counts.clone(),
                flows: flows.clone(),
                requests: requests.clone(),
                active: active.clone(),
                source: source.clone(),
            },
        );
        let shared = Shared {
            live: live::Live::default(),
            closed: Mutex::new(closed::Ring::new(options.closed_max, options.closed_age)),
            pending: Mutex::new(HashMap::new()),
            kernel_live: Mutex::default(),
            flows,
            requests,
            access: OnceLock::new(),
            taps,
            tracing: OnceLock::new(),
            counts,
            active,
            directory: OnceLock::new(),
            store: OnceLock::new(),
            options,
        };
        Self {
            shared: Arc::new(shared),
            metrics: Arc::new(metrics),
            source: Arc::new(Slot(source)),
        }
    }

    /// Where names come from. The first call counts.
    pub fn set_directory(&self, directory: Arc<dyn Directory>) {
        // A second part would be a mistake of the composition root; the first stays.
        let _ = self.shared.directory.set(directory);
    }

    /// Where the kernel's records are. The first call counts.
    pub fn set_store(&self, store: Arc<dyn ConnStore>) {
        let _ = self.shared.store.set(store);
    }

    /// Where the metrics of the other parts come from. The first call counts.
    pub fn set_agent_source(&self, source: Arc<dyn AgentSource>) {
        let _ = self.source.0.set(source);
    }

    pub fn options(&self) -> &TelemetryOptions {
        &self.shared.options
    }

    /// A connection was accepted.
    pub fn open(&self, meta: ConnMeta) -> ConnGuard {
        let conn = self.shared.open(meta);
        ConnGuard::new(self.shared.clone(), conn)
    }

    /// A connection was refused before anything was known of it (no descriptors, a limit). One that has a guard is
    /// counted by the guard.
    pub fn refused(&self, reason: Reason) {
        self.shared.counts.add_refused(reason);
    }

    /// A TLS handshake with another agent failed. `cause`: a fixed word, it is a metric label.
    pub fn handshake_failed(&self, role: Role, cause: &'static str) {
        self.shared.counts.handshakes.add_failed(role, cause);
    }

    /// A TLS handshake with another agent succeeded.
    pub fn handshake_done(&self, role: Role, took: Duration) {
        self.shared.counts.handshakes.add_done(role, took);
    }

    /// AuthorizationPolicy was asked about a connection. `policy`: the one that decided; `None`: none applies (allowed),
    /// or none of those that apply matches (denied).
    pub fn decision(&self, policy: Option<&ResourceName>, outcome: Outcome) {
        self.shared.counts.decisions.add(policy, outcome);
    }

    /// A workload could not be enrolled. `reason`: a fixed word, it is a metric label.
    pub fn enrolment_error(&self, reason: &'static str) {
        self.shared.counts.add_enrolment_error(reason);
    }

    /// A change of configuration was refused.
    pub fn config_rejected(&self, source: &str) {
        self.shared.counts.add_config_rejected(source);
    }

    /// A record of the kernel's ring buffer. Only ends of connections are of interest here.
    pub fn on_event(&self, event: &Event) {
        if event.kind == EventKind::Closed as u32 {
            self.on_closed(event.cookie, &event.record);
        }
    }

    /// The kernel's final record of a connection of an enrolled workload; `cookie`: of the application's socket.
    pub fn on_closed(&self, cookie: u64, record: &mesh_common::ConnRecord) {
        self.shared.on_closed(cookie, record, Instant::now());
    }

    /// Proxied connections now open.
    pub fn active(&self) -> u64 {
        self.shared.active.proxied_total()
    }

    /// Closed connections now kept.
    pub fn closed_kept(&self) -> usize {
        lock(&self.shared.closed).len()
    }

    /// Shows finished requests as they come, those that match.
    ///
    /// # Errors
    /// As many taps are open as may be.
    pub fn tap(&self, filter: TapFilter) -> Result<Tap, TapRefused> {
        self.shared.taps.open(filter)
    }

    /// Open connections, oldest first. Reads the whole BPF map.
    pub fn open_connections(&self) -> Vec<Connection> {
        self.shared.open_rows()
    }

    /// Closed connections that are kept, newest first.
    pub fn closed_connections(&self) -> Vec<Connection> {
        self.shared.closed_rows()
    }

    /// The text of `/metrics`; [`CONTENT_TYPE`].
    pub fn exposition(&self) -> String {
        self.shared.flush(Instant::now());
        self.metrics.encode()
    }

    /// One round of the upkeep that [`Telemetry::run`] does each second.
    pub fn refresh(&self, round: u64) {
        self.shared.refresh(round, Instant::now());
    }

    /// The upkeep, until the task is aborted.
    pub async fn run(self) {
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for round in 0.. {
            tick.tick().await;
            let telemetry = self.clone();
            // Map reads are system calls, thousands of them when there are thousands of connections.
            if tokio::task::spawn_blocking(move || telemetry.refresh(round))
                .await
                .is_err()
            {
                tracing::error!(
                    "a round of the telemetry upkeep failed; the next one is due in a second"
                );
            }
        }
    }

    /// Where the access log of requests goes. The first call counts.
    fn log_requests(&self, log: access::RequestLog) {
        let _ = self.shared.access.set(log);
    }

    pub(crate) fn counts(&self) -> Arc<Counts> {
        self.shared.counts.clone()
    }
}

/// Locks; a panic elsewhere does not make the table unusable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
