//! The life of a proxied connection: opened, counted, finished.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mesh_common::ConnRecord;

use super::{
    Reason, TelemetryOptions,
    access::{self, Line, RequestLog},
    closed::{Closed, Ring, What},
    conn::{
        ByteCounters, Conn, ConnMeta, Direction, Path, Peer, Progress, direction_name, path_name,
    },
    directory::{ConnStore, Directory, NoDirectory, NoStore},
    kernel::KernelLive,
    live::Live,
    lock,
    metrics::{Counts, Flow, FlowKey, Flows, Requests, SeriesCache},
    security::{self, Principals},
    tap::Taps,
    trace::Tracing,
};
use crate::model::{ResourceName, SpiffeId};

/// What every guard refers to.
pub(super) struct Shared {
    pub(super) options: TelemetryOptions,
    pub(super) live: Live,
    pub(super) closed: Mutex<Ring>,
    /// Final records of proxied connections that the proxy has not opened yet: a client that connects, sends and
    /// closes is gone before its connection is accepted.
    pub(super) pending: Mutex<HashMap<u64, (Instant, u64, ConnRecord)>>,
    /// What was counted of open connections that only the kernel sees, by cookie.
    pub(super) kernel_live: Mutex<KernelLive>,
    pub(super) flows: Arc<Flows>,
    pub(super) requests: Arc<Requests>,
    /// Where the lines of requests go; unset while there is no log.
    pub(super) access: OnceLock<RequestLog>,
    pub(super) taps: Arc<Taps>,
    /// Unset while there is no collector.
    pub(super) tracing: OnceLock<Tracing>,
    pub(super) counts: Arc<Counts>,
    pub(super) active: Arc<ActiveCounts>,
    pub(super) directory: OnceLock<Arc<dyn Directory>>,
    pub(super) store: OnceLock<Arc<dyn ConnStore>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn directory(&self) -> &dyn Directory {
        self.directory.get().map_or(&NoDirectory, |d| &**d)
    }

    pub(super) fn store(&self) -> &dyn ConnStore {
        self.store.get().map_or(&NoStore, |s| &**s)
    }

    pub(super) fn open(&self, meta: ConnMeta) -> Arc<Conn> {
        let cookie = match meta.direction {
            Direction::Outbound => meta.app_cookie,
            Direction::Inbound => meta.agent_cookie,
        };
        let conn = Arc::new(Conn {
            key: AtomicU64::new(0),
            started: Instant::now(),
            started_at: SystemTime::now(),
            counters: Arc::new(ByteCounters::default()),
            app_cookie: AtomicU64::new(meta.app_cookie),
            agent_cookie: AtomicU64::new(meta.agent_cookie),
            rtt_us: AtomicU32::new(0),
            retransmits: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            protocol: AtomicU8::new(meta.protocol as u8),
            series: SeriesCache::default(),
            progress: Mutex::new(Progress::default()),
            meta,
        });
        self.live.insert(cookie, &conn);
        self.active.proxied(conn.meta.direction, 1);
        self.claim_pending(cookie, &conn);
        conn
    }

    pub(super) fn set_agent_cookie(&self, conn: &Arc<Conn>, cookie: u64) {
        conn.agent_cookie.store(cookie, Ordering::Relaxed);
        if conn.meta.direction == Direction::Inbound && cookie != 0 {
            self.live.remove(conn);
            self.live.insert(cookie, conn);
            self.claim_pending(cookie, conn);
        }
    }

    /// A final record that came before the connection was opened.
    fn claim_pending(&self, key: u64, conn: &Conn) {
        if key == 0 {
            return;
        }
        let taken = lock(&self.pending).remove(&key);
        if let Some((_, app_cookie, record)) = taken {
            conn.app_cookie.store(app_cookie, Ordering::Relaxed);
            lock(&conn.progress).kernel = Some(Box::new(record));
        }
    }

    /// Whether the certificate of who dialled names somebody else than the workload that has its address. The trust
    /// domain does not matter: the handshake has let in the mesh's own and its aliases only.
    pub(super) fn is_stranger(&self, meta: &ConnMeta, id: &SpiffeId) -> bool {
        if meta.direction == Direction::Outbound {
            return false;
        }
        let Some(name) = &meta.source.workload else {
            return false;
        };
        self.directory().workload(name).is_none_or(|workload| {
            (
                workload.identity.namespace(),
                workload.identity.service_account(),
            ) != (id.namespace(), id.service_account())
        })
    }

    /// Adds what the connection carried since the last time to the metrics. The flow is resolved once, when it is
    /// known where the connection went; `last`: it will not be known better.
    pub(super) fn count(
        &self,
        conn: &Conn,
        progress: &mut Progress,
        now: Instant,
        last: bool,
    ) -> Option<Arc<Flow>> {
        if progress.done {
            return None;
        }
        let (sent, received) = conn.counters.get();
        let (request, response) = (
            sent.saturating_sub(progress.counted.0),
            received.saturating_sub(progress.counted.1),
        );
        // One with requests is counted by them.
        if progress.flow.is_none() && conn.protocol().has_requests() {
            return None;
        }
        let moved = request > 0 || response > 0;
        if progress.flow.is_none() && (last || moved || progress.established) {
            let flow = self
                .flows
                .resolve(&flow_key(conn, progress), self.directory(), now);
            flow.add_opened();
            progress.flow = Some(flow);
        }
        let flow = progress.flow.clone()?;
        if moved {
            flow.add_bytes(request, response);
            progress.counted = (sent, received);
            progress.last_change = Some(now);
        }
        Some(flow)
    }

    /// The end of a connection; called once, by its guard.
    pub(super) fn finish(&self, conn: &Arc<Conn>, reason: Reason) {
        let now = Instant::now();
        self.live.remove(conn);
        self.active.proxied(conn.meta.direction, -1);
        let (upstream, kernel, security, policy, source_workload) = {
            let mut progress = lock(&conn.progress);
            if let Some(flow) = self.count(conn, &mut progress, now, true) {
                flow.add_closed(reason);
                self.flows.touch(&flow, now);
            }
            // The ring may keep the connection for long; its flow must not seem in use.
            progress.flow = None;
            progress.probe = None;
            progress.done = true;
            (
                progress.upstream.clone(),
                progress.kernel.take(),
                progress.security.clone(),
                progress.policy.clone(),
                progress.source_workload(&conn.meta),
            )
        };
        conn.series.clear();
        self.counts.traffic.violation(reason);
        // Its requests have said it all.
        if conn.requests.load(Ordering::Relaxed) == 0 {
            if reason.is_refusal() {
                self.counts.add_refused(reason);
            }
            let line = Ended {
                upstream: upstream.as_ref(),
                security: security.as_ref(),
                policy: policy.as_ref(),
                source_workload,
                duration: now.saturating_duration_since(conn.started),
                reason,
            };
            write_line(conn, &line);
        }
        let closed = Closed {
            what: What::Proxied(conn.clone()),
            reason,
            ended: now,
            kernel,
        };
        let key = conn.key.load(Ordering::Relaxed);
        lock(&self.closed).push(key, closed);
    }
}

/// What is known of a connection only at its end.
struct Ended<'a> {
    upstream: Option<&'a Peer>,
    security: Option<&'a Principals>,
    policy: Option<&'a ResourceName>,
    source_workload: Option<&'a ResourceName>,
    duration: Duration,
    reason: Reason,
}

fn write_line(conn: &Conn, ended: &Ended<'_>) {
    let security = ended.security;
    let (bytes_sent, bytes_received) = conn.workload_bytes();
    let rtt_us = known(conn.rtt_us.load(Ordering::Relaxed));
    access::write(&Line {
        direction: direction_name(conn.meta.direction),
        path: path_name(Path::Proxied),
        protocol: conn.protocol().as_str(),
        workload: Some(&conn.meta.workload),
        source: conn.meta.source.addr,
        source_workload: ended.source_workload,
        source_principal: security.and_then(|s| s.source.as_ref()),
        destination_principal: security.and_then(|s| s.destination.as_ref()),
        security: security::policy_name(security),
        policy: ended.policy,
        original_dst: conn.meta.original_dst,
        service: conn.meta.service.as_ref(),
        upstream: ended.upstream.map(|u| u.addr),
        upstream_workload: ended.upstream.and_then(|u| u.workload.as_ref()),
        bytes_sent,
        bytes_received,
        duration: ended.duration,
        rtt_us,
        retransmits: rtt_us.map(|_| conn.retransmits.load(Ordering::Relaxed)),
        reason: ended.reason,
    });
}

/// Zero is "never measured".
pub(super) fn known(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}

fn flow_key(conn: &Conn, progress: &Progress) -> FlowKey {
    let meta = &conn.meta;
    let inbound = meta.direction == Direction::Inbound;
    let upstream = progress.upstream.as_ref().and_then(|u| u.workload.clone());
    let (source, destination) = if inbound {
        (
            progress.source_workload(meta).cloned(),
            Some(meta.workload.clone()),
        )
    } else {
        (Some(meta.workload.clone()), upstream)
    };
    FlowKey {
        inbound,
        source,
        destination,
        service: meta.service.clone(),
        security: progress.security.clone(),
    }
}

/// Open connections by direction and path.
#[derive(Debug, Default)]
pub(super) struct ActiveCounts {
    /// Outbound, inbound.
    proxied: [AtomicI64; 2],
    /// As of the last full reading of the map.
    kernel: Mutex<KernelCounts>,
}

/// Those that only the kernel sees.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KernelCounts([[i64; 2]; KERNEL_PATHS.len()]);

const KERNEL_PATHS: [Path; 3] = [Path::Passthrough, Path::Unmeshed, Path::Vouched];

impl KernelCounts {
    pub(super) fn add(&mut self, path: Path, direction: Direction) {
        if let Some(i) = KERNEL_PATHS.iter().position(|p| *p == path) {
            self.0[i][usize::from(direction == Direction::Inbound)] += 1;
        }
    }
}

impl ActiveCounts {
    fn proxied(&self, direction: Direction, by: i64) {
        self.proxied[usize::from(direction == Direction::Inbound)].fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn set_kernel(&self, counts: KernelCounts) {
        *lock(&self.kernel) = counts;
    }

    pub(super) fn proxied_total(&self) -> u64 {
        let sum: i64 = self.proxied.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        u64::try_from(sum).unwrap_or(0)
    }

    /// Direction, path, number.
    pub(super) fn get(&self) -> Vec<(&'static str, &'static str, i64)> {
        let proxied = [0, 1].map(|i| self.proxied[i].load(Ordering::Relaxed));
        let kernel = *lock(&self.kernel);
        std::iter::once((Path::Proxied, proxied))
            .chain(KERNEL_PATHS.into_iter().zip(kernel.0))
            .flat_map(|(path, [outbound, inbound])| {
                [
                    ("outbound", path_name(path), outbound),
                    ("inbound", path_name(path), inbound),
                ]
            })
            .collect()
    }
}
