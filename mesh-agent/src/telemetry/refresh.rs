//! Once a second: what the proxy counted goes to the metrics and into the kernel's records, what is old is forgotten.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use mesh_common::{ConnRecord, Direction};

use super::{
    conn::{Conn, join_key},
    lock,
    shared::Shared,
};

/// Between two rounds.
pub const REFRESH: Duration = Duration::from_secs(1);
/// Rounds between two readings of the whole map for the metrics of what the proxy does not carry.
const FULL_EVERY: u64 = 10;
/// An inbound connection younger than this does not make the agent read the whole map to find its record.
const SETTLED: Duration = Duration::from_secs(1);

impl Shared {
    /// Brings the metrics up to date.
    pub(super) fn flush(&self, now: Instant) {
        for conn in self.live.all() {
            self.count(&conn, &mut lock(&conn.progress), now, false);
        }
    }

    /// One round. It reads and writes BPF maps: not for a thread that serves connections.
    pub(super) fn refresh(&self, round: u64, now: Instant) {
        let mut unresolved = false;
        let mut changed: Vec<Arc<Conn>> = Vec::new();
        for conn in self.live.all() {
            let mut progress = lock(&conn.progress);
            self.count(&conn, &mut progress, now, false);
            if !progress.is_stored(conn.workload_bytes()) {
                unresolved |= conn.app_cookie.load(Ordering::Relaxed) == 0
                    && now.saturating_duration_since(conn.started) >= SETTLED;
                drop(progress);
                changed.push(conn);
            }
        }
        if unresolved || round.is_multiple_of(FULL_EVERY) {
            let records = self.read_kernel(now);
            self.resolve_inbound(&records);
        }
        for conn in changed {
            conn.measure();
            self.store_counts(&conn);
        }
        self.sweep_pending(now);
        lock(&self.closed).expire(now);
        if round.is_multiple_of(FULL_EVERY) {
            self.flows.expire(now);
            self.requests.expire(now);
            if let Some(services) = self.directory().services() {
                self.counts.traffic.retain(|s| services.contains(s));
            }
            if let Some(policies) = self.directory().policies() {
                self.counts.decisions.retain(|p| policies.contains(p));
            }
        }
    }

    /// Learns which record belongs to an inbound connection.
    fn resolve_inbound(&self, records: &[(u64, ConnRecord)]) {
        for (app_cookie, record) in records {
            if record.direction == Direction::Inbound as u8
                && let Some(key) = join_key(*app_cookie, record)
                && let Some(conn) = self.live.get(key)
            {
                conn.app_cookie.store(*app_cookie, Ordering::Relaxed);
            }
        }
    }

    /// Writes the proxy's counts, and whether there is mutual TLS, into the kernel's record. The kernel may change the record between the reading and
    /// the writing; what it then loses (a state, a time stamp) the next round or its final record puts right, and a
    /// record that it removed stays removed.
    fn store_counts(&self, conn: &Conn) {
        let app_cookie = conn.app_cookie.load(Ordering::Relaxed);
        if app_cookie == 0 {
            return;
        }
        let Some(mut record) = self.store().read_conn(app_cookie) else {
            return;
        };
        let bytes = conn.workload_bytes();
        (record.bytes_sent, record.bytes_received) = bytes;
        record.last_ns = monotonic_ns();
        let rtt = conn.rtt_us.load(Ordering::Relaxed);
        if rtt != 0 {
            record.srtt_us = rtt;
            record.retransmits = conn.retransmits.load(Ordering::Relaxed);
        }
        let secured = lock(&conn.progress).security.is_some();
        record.security = u8::from(secured);
        self.store().update_conn(app_cookie, &record);
        lock(&conn.progress).stored = (bytes, secured);
    }
}

/// The clock of the kernel's records (`bpf_ktime_get_ns`).
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
