//! Joins what the proxy knows with what the kernel recorded, for `connections`.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mesh_common::ConnRecord;

use super::{
    Reason,
    closed::{Closed, KernelConn, What},
    conn::{Conn, Path, direction_name, join_key, path_name, record_direction, record_path},
    lock,
    refresh::monotonic_ns,
    row::{Connection, tcp_state_name},
    security,
    shared::{Shared, known},
};

/// A pair of the two sides of one connection; at least one is there.
#[derive(Debug)]
pub(super) struct Joined<C> {
    pub(super) conn: Option<C>,
    pub(super) record: Option<(u64, ConnRecord)>,
}

/// Every connection and every record exactly once, together where their keys agree.
pub(super) fn join<C>(
    live: impl IntoIterator<Item = (u64, C)>,
    records: impl IntoIterator<Item = (u64, ConnRecord)>,
) -> Vec<Joined<C>> {
    let mut by_key: HashMap<u64, (u64, ConnRecord)> = HashMap::new();
    let mut alone = Vec::new();
    for (cookie, record) in records {
        match join_key(cookie, &record) {
            // Two records with one key cannot be; should the kernel say so, none is lost.
            Some(key) => alone.extend(by_key.insert(key, (cookie, record))),
            None => alone.push((cookie, record)),
        }
    }
    let mut joined: Vec<_> = live
        .into_iter()
        .map(|(key, conn)| Joined {
            conn: Some(conn),
            record: by_key.remove(&key),
        })
        .collect();
    joined.extend(
        alone
            .into_iter()
            .chain(by_key.into_values())
            .map(|record| Joined {
                conn: None,
                record: Some(record),
            }),
    );
    joined
}

impl Shared {
    /// Open connections, oldest first.
    pub(super) fn open_rows(&self) -> Vec<Connection> {
        // Before the table: a connection accepted in between would else seem to be the kernel's alone.
        let records = self.store().read_conns();
        let live = self
            .live
            .all()
            .into_iter()
            .map(|conn| (conn.key.load(Ordering::Relaxed), conn));
        let now = Instant::now();
        let mut rows: Vec<_> = join(live, records)
            .into_iter()
            .filter_map(|joined| match (joined.conn, joined.record) {
                (Some(conn), record) => Some(proxied(&conn, record.as_ref(), now)),
                (None, Some((cookie, record))) => {
                    Some(kernel_row(&self.kernel_conn(cookie, &record), true))
                }
                (None, None) => None,
            })
            .collect();
        rows.sort_by_key(|row| (row.started_unix_ms, row.app_cookie));
        rows
    }

    /// Closed connections that are kept, newest first.
    pub(super) fn closed_rows(&self) -> Vec<Connection> {
        let rows = lock(&self.closed).rows();
        rows.iter().map(closed_row).collect()
    }
}

fn proxied(conn: &Arc<Conn>, record: Option<&(u64, ConnRecord)>, now: Instant) -> Connection {
    let meta = &conn.meta;
    let (bytes_sent, bytes_received) = conn.workload_bytes();
    let (upstream, security, policy, source_workload) = {
        let progress = lock(&conn.progress);
        (
            progress.upstream.clone(),
            progress.security.clone(),
            text(progress.policy.as_ref()),
            progress.source_workload(meta),
        )
    };
    let record_of = record.map(|(_, r)| r);
    let rtt = known(conn.rtt_us.load(Ordering::Relaxed));
    Connection {
        workload: Some(meta.workload.to_string()),
        direction: direction_name(meta.direction).into(),
        path: path_name(Path::Proxied).into(),
        protocol: conn.protocol().as_str().into(),
        requests: conn.requests.load(Ordering::Relaxed),
        source: meta.source.addr.to_string(),
        source_workload: text(source_workload),
        original_dst: meta.original_dst.to_string(),
        service: text(meta.service.as_ref()),
        upstream: upstream.as_ref().map(|u| u.addr.to_string()),
        upstream_workload: upstream.and_then(|u| text(u.workload.as_ref())),
        state: record_of.map_or("open", |r| tcp_state_name(r.state)).into(),
        security: security::policy_name(security.as_ref()).into(),
        source_principal: security.as_ref().and_then(|s| text(s.source.as_ref())),
        destination_principal: security.as_ref().and_then(|s| text(s.destination.as_ref())),
        policy,
        started_unix_ms: unix_ms(conn.started_at),
        duration_ms: millis(now.saturating_duration_since(conn.started)),
        bytes_sent,
        bytes_received,
        rtt_us: rtt.or_else(|| known(record_of?.srtt_us)),
        retransmits: rtt
            .map(|_| conn.retransmits.load(Ordering::Relaxed))
            .or_else(|| Some(record_of?.retransmits)),
        reason: None,
        response_flags: None,
        caused_by: None,
        app_cookie: record.map_or_else(|| conn.app_cookie.load(Ordering::Relaxed), |(c, _)| *c),
        agent_cookie: conn.agent_cookie.load(Ordering::Relaxed),
    }
}

fn kernel_row(conn: &KernelConn, open: bool) -> Connection {
    let record = &conn.record;
    let (source, source_workload) = conn.source();
    let (destination, destination_workload) = conn.destination();
    let path = record_path(record);
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(record.start_ns));
    Connection {
        workload: text(conn.workload.as_ref()),
        direction: direction_name(record_direction(record)).into(),
        path: path_name(path).into(),
        protocol: "tcp".into(),
        source: source.to_string(),
        source_workload: text(source_workload),
        original_dst: std::net::SocketAddr::from(record.original_dst).to_string(),
        service: text(conn.service.as_ref()),
        // Where a proxied connection went only the proxy knows.
        upstream: (path != Path::Proxied).then(|| destination.to_string()),
        upstream_workload: text(destination_workload.filter(|_| path != Path::Proxied)),
        state: tcp_state_name(record.state).into(),
        security: security::of_record(record).into(),
        started_unix_ms: unix_ms(SystemTime::now() - age),
        duration_ms: millis(if open { age } else { conn.duration() }),
        bytes_sent: record.bytes_sent,
        bytes_received: record.bytes_received,
        rtt_us: known(record.srtt_us),
        retransmits: Some(record.retransmits),
        app_cookie: conn.cookie,
        agent_cookie: record.agent_cookie,
        ..Connection::default()
    }
}

fn closed_row(closed: &Closed) -> Connection {
    let row = match &closed.what {
        What::Kernel(conn) => kernel_row(conn, false),
        What::Proxied(conn) => {
            let cookie = conn.app_cookie.load(Ordering::Relaxed);
            let record = closed.kernel.as_deref().map(|r| (cookie, *r));
            proxied(conn, record.as_ref(), closed.ended)
        }
    };
    with_reason(row, closed.reason)
}

fn with_reason(row: Connection, reason: Reason) -> Connection {
    Connection {
        state: "closed".into(),
        reason: Some(reason.as_str().into()),
        response_flags: Some(reason.flag().into()),
        caused_by: Some(reason.party().as_str().into()),
        ..row
    }
}

fn text(name: Option<&impl ToString>) -> Option<String> {
    name.map(ToString::to_string)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map(millis).unwrap_or(0)
}
