//! What the kernel reports: final records from the ring buffer, and connections that the proxy does not carry.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::ConnRecord;

use super::{
    Reason,
    access::{self, Line},
    closed::{Closed, KernelConn, What},
    conn::{
        Path, direction_name, join_key, kernel_reason, path_name, record_direction, record_path,
    },
    lock,
    metrics::{Flow, FlowKey},
    security,
    shared::{KernelCounts, Shared, known},
};

/// Final records that wait for the proxy to open their connection; above this the oldest is reported as it is.
const MAX_PENDING: usize = 4096;
/// How long they wait.
const PENDING_FOR: Duration = Duration::from_secs(10);

/// What was already counted of an open connection that only the kernel sees.
#[derive(Debug)]
pub(super) struct KernelFlow {
    flow: Arc<Flow>,
    counted: (u64, u64),
    /// Full readings that did not show it; its end is on its way, or was lost.
    missed: u8,
}

/// Open connections that only the kernel sees.
#[derive(Debug, Default)]
pub(super) struct KernelLive {
    flows: HashMap<u64, KernelFlow>,
    /// Ends reported while the map is being read: the reading may still show them.
    ended: Option<HashSet<u64>>,
}

impl KernelLive {
    fn end(&mut self, cookie: u64) -> Option<KernelFlow> {
        if let Some(ended) = &mut self.ended {
            ended.insert(cookie);
        }
        self.flows.remove(&cookie)
    }
}

impl Shared {
    /// A connection of an enrolled workload was closed.
    pub(super) fn on_closed(&self, app_cookie: u64, record: &ConnRecord, now: Instant) {
        let Some(key) = join_key(app_cookie, record) else {
            return self.report_kernel(app_cookie, record, now);
        };
        if let Some(conn) = self.live.get(key) {
            let mut progress = lock(&conn.progress);
            if !progress.done {
                progress.kernel = Some(Box::new(*record));
                return;
            }
        }
        if lock(&self.closed).attach(key, record) {
            return;
        }
        let evicted = {
            let mut pending = lock(&self.pending);
            let oldest = (pending.len() >= MAX_PENDING)
                .then(|| pending.iter().min_by_key(|(_, (at, ..))| *at))
                .flatten()
                .map(|(key, _)| *key);
            let evicted = oldest.and_then(|key| pending.remove(&key));
            pending.insert(key, (now, app_cookie, *record));
            evicted
        };
        if let Some((_, cookie, record)) = evicted {
            self.report_kernel(cookie, &record, now);
        }
    }

    /// Reports what nobody claimed: the agent that carried it is gone, or it was refused before it was opened.
    pub(super) fn sweep_pending(&self, now: Instant) {
        let old: Vec<_> = {
            let mut pending = lock(&self.pending);
            let keys: Vec<u64> = pending
                .iter()
                .filter(|(_, (at, ..))| now.saturating_duration_since(*at) >= PENDING_FOR)
                .map(|(key, _)| *key)
                .collect();
            keys.iter()
                .filter_map(|key| Some((*key, pending.remove(key)?)))
                .collect()
        };
        for (key, (_, cookie, record)) in old {
            // The proxy may have finished it between the two looks of on_closed.
            if !lock(&self.closed).attach(key, &record) {
                self.report_kernel(cookie, &record, now);
            }
        }
    }

    pub(super) fn kernel_conn(&self, cookie: u64, record: &ConnRecord) -> KernelConn {
        let directory = self.directory();
        let inbound = record.direction == mesh_common::Direction::Inbound as u8;
        let remote = std::net::SocketAddr::from(record.remote).ip();
        let original = std::net::SocketAddr::from(record.original_dst).ip();
        KernelConn {
            cookie,
            record: *record,
            workload: directory.workload_by_netns(record.netns),
            peer: directory.workload_by_address(remote),
            service: match inbound {
                true => directory.service_in_front(record.local.into()),
                false => directory.service_by_address(original),
            },
        }
    }

    /// The end of a connection that the proxy knows nothing of.
    fn report_kernel(&self, cookie: u64, record: &ConnRecord, now: Instant) {
        let conn = self.kernel_conn(cookie, record);
        let reason = kernel_reason(record);
        let known_flow = lock(&self.kernel_live).end(cookie);
        let counted = self.count_kernel(&conn, known_flow, now);
        counted.flow.add_closed(reason);
        self.flows.touch(&counted.flow, now);
        self.log_kernel(&conn, reason);
        lock(&self.closed).push(
            0,
            Closed {
                what: What::Kernel(Box::new(conn)),
                reason,
                ended: now,
                kernel: None,
            },
        );
    }

    fn count_kernel(
        &self,
        conn: &KernelConn,
        known: Option<KernelFlow>,
        now: Instant,
    ) -> KernelFlow {
        let mut entry = known.unwrap_or_else(|| {
            let key = FlowKey {
                inbound: conn.inbound(),
                source: conn.source().1.cloned(),
                destination: conn.destination().1.cloned(),
                service: conn.service.clone(),
                security: None,
            };
            let flow = self.flows.resolve(&key, self.directory(), now);
            flow.add_opened();
            KernelFlow {
                flow,
                counted: (0, 0),
                missed: 0,
            }
        });
        let (sent, received) = (conn.record.bytes_sent, conn.record.bytes_received);
        let sent_more = sent.saturating_sub(entry.counted.0);
        let received_more = received.saturating_sub(entry.counted.1);
        if conn.inbound() {
            entry.flow.add_bytes(received_more, sent_more);
        } else {
            entry.flow.add_bytes(sent_more, received_more);
        }
        entry.counted = (sent.max(entry.counted.0), received.max(entry.counted.1));
        entry
    }

    fn log_kernel(&self, conn: &KernelConn, reason: Reason) {
        let record = &conn.record;
        let (source, source_workload) = conn.source();
        let (_, upstream_workload) = conn.destination();
        let proxied = record_path(record) == Path::Proxied;
        access::write(&Line {
            direction: direction_name(record_direction(record)),
            path: path_name(record_path(record)),
            protocol: "tcp",
            workload: conn.workload.as_ref(),
            source,
            source_workload,
            source_principal: None,
            destination_principal: None,
            security: security::of_record(record),
            policy: None,
            original_dst: record.original_dst.into(),
            service: conn.service.as_ref(),
            upstream: (!proxied).then(|| conn.destination().0),
            upstream_workload: upstream_workload.filter(|_| !proxied),
            bytes_sent: record.bytes_sent,
            bytes_received: record.bytes_received,
            duration: conn.duration(),
            rtt_us: known(record.srtt_us),
            retransmits: Some(record.retransmits),
            reason,
        });
    }

    /// Reads the whole map and counts the open connections that only the kernel sees.
    pub(super) fn read_kernel(&self, now: Instant) -> Vec<(u64, ConnRecord)> {
        lock(&self.kernel_live).ended = Some(HashSet::new());
        let records = self.store().read_conns();
        let mut active = KernelCounts::default();
        // Held throughout: an end reported meanwhile must find what was counted.
        let mut live = lock(&self.kernel_live);
        let ended = live.ended.take().unwrap_or_default();
        let mut before = std::mem::take(&mut live.flows);
        for (cookie, record) in &records {
            let path = record_path(record);
            if path == Path::Proxied || ended.contains(cookie) {
                continue;
            }
            let conn = self.kernel_conn(*cookie, record);
            active.add(path, record_direction(record));
            let mut entry = self.count_kernel(&conn, before.remove(cookie), now);
            entry.missed = 0;
            live.flows.insert(*cookie, entry);
        }
        for (cookie, mut entry) in before {
            entry.missed += 1;
            if entry.missed < 2 {
                live.flows.insert(cookie, entry);
            }
        }
        drop(live);
        self.active.set_kernel(active);
        records
    }
}
