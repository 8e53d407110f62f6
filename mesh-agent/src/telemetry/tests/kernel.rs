//! Records of the kernel: joined with the proxy's, or reported by themselves.

use mesh_common::{Direction, Event, EventKind, KernelClose, Path};

use super::fake::{closed, inbound, outbound, record, sum, telemetry};
use crate::telemetry::{Reason, Telemetry, TelemetryOptions};

fn defaults() -> TelemetryOptions {
    TelemetryOptions::default()
}

fn end(t: &Telemetry, cookie: u64, record: mesh_common::ConnRecord) {
    t.on_event(&Event {
        kind: EventKind::Closed as u32,
        pad: 0,
        cookie,
        record,
    });
}

#[test]
fn a_live_connection_shows_the_kernels_state_and_the_proxys_bytes() {
    let (t, store) = telemetry(defaults());
    let guard = t.open(outbound(11));
    guard.counters().add_sent(9);
    let mut kernel = record(Direction::Outbound, Path::Proxied);
    kernel.bytes_sent = 5;
    kernel.state = 8;
    store.put(11, kernel);
    let rows = t.open_connections();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].state.as_str(), rows[0].bytes_sent),
        ("close_wait", 9)
    );
    guard.finish(Reason::Completed);
}

#[test]
fn each_round_writes_what_changed_and_only_that() {
    let (t, store) = telemetry(defaults());
    let busy = t.open(outbound(11));
    let idle = t.open(outbound(12));
    let server = t.open(inbound(500));
    for cookie in [11, 12] {
        store.put(cookie, record(Direction::Outbound, Path::Proxied));
    }
    let mut kernel = record(Direction::Inbound, Path::Proxied);
    kernel.agent_cookie = 500;
    store.put(13, kernel);
    busy.counters().add_sent(100);
    busy.counters().add_received(7);
    server.counters().add_sent(3);
    t.refresh(10);
    let written = |cookie| store.get(cookie).map(|r| (r.bytes_sent, r.bytes_received));
    assert_eq!(written(11), Some((100, 7)));
    assert_eq!(written(12), Some((0, 0)));
    assert_eq!(written(13), Some((0, 3)), "the workload is the server");
    let mut writes = std::mem::take(&mut *crate::telemetry::lock(&store.writes));
    writes.sort_unstable();
    assert_eq!(writes, [11, 13]);
    t.refresh(20);
    assert!(
        crate::telemetry::lock(&store.writes).is_empty(),
        "nothing changed"
    );
    // What the kernel removed does not come back.
    store.remove(11);
    busy.counters().add_sent(1);
    t.refresh(30);
    assert_eq!(store.get(11), None);
    for guard in [busy, idle, server] {
        guard.finish(Reason::Completed);
    }
}

#[test]
fn the_final_record_of_a_proxied_connection_makes_no_second_line() {
    // Before the proxy finishes, after it, and before it even opened.
    for order in 0..3 {
        let (t, _) = telemetry(defaults());
        let mut kernel = closed(
            record(Direction::Outbound, Path::Proxied),
            KernelClose::FinLocalFirst,
        );
        kernel.srtt_us = 77;
        if order == 0 {
            end(&t, 11, kernel);
        }
        let guard = t.open(outbound(11));
        if order == 1 {
            end(&t, 11, kernel);
        }
        guard.finish(Reason::Completed);
        if order == 2 {
            end(&t, 11, kernel);
        }
        t.refresh(10);
        let rows = t.closed_connections();
        assert_eq!(rows.len(), 1, "order {order}");
        assert_eq!(rows[0].rtt_us, Some(77), "order {order}");
        let text = t.exposition();
        assert_eq!(sum(&text, "istio_tcp_connections_closed_total", &[]), 1);
    }
}

#[test]
fn a_proxied_record_that_nobody_claims_is_reported_in_the_end() {
    let (t, _) = telemetry(defaults());
    end(
        &t,
        11,
        closed(
            record(Direction::Outbound, Path::Proxied),
            KernelClose::Aborted,
        ),
    );
    assert!(t.closed_connections().is_empty());
    let later = std::time::Instant::now() + std::time::Duration::from_secs(11);
    t.shared.sweep_pending(later);
    let rows = t.closed_connections();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].reason.as_deref(), Some("aborted"));
    assert_eq!(rows[0].path, "proxied");
}

#[test]
fn what_waits_is_bounded_and_what_overflows_is_reported() {
    let (t, _) = telemetry(defaults());
    for cookie in 1..=5_000 {
        end(
            &t,
            cookie,
            closed(
                record(Direction::Outbound, Path::Proxied),
                KernelClose::Aborted,
            ),
        );
    }
    assert_eq!(t.closed_connections().len(), 5_000 - 4_096);
}

#[test]
fn each_path_past_the_proxy_is_counted_by_itself() {
    let (t, store) = telemetry(defaults());
    let seen = [
        (Path::Passthrough, "passthrough"),
        (Path::Unmeshed, "unmeshed"),
        (Path::Vouched, "vouched"),
    ];
    for (cookie, (path, _)) in (11..).zip(seen) {
        store.put(cookie, record(Direction::Inbound, path));
    }
    t.refresh(10);
    let text = t.exposition();
    for (_, path) in seen {
        let labels = [("path", path), ("direction", "inbound")];
        assert_eq!(sum(&text, "mesh_connections_active", &labels), 1, "{path}");
        let labels = [("path", path), ("direction", "outbound")];
        assert_eq!(sum(&text, "mesh_connections_active", &labels), 0, "{path}");
    }
}

#[test]
fn connections_past_the_proxy_are_counted_and_listed() {
    let (t, store) = telemetry(defaults());
    let mut kernel = record(Direction::Outbound, Path::Passthrough);
    (kernel.bytes_sent, kernel.bytes_received) = (10, 20);
    store.put(11, kernel);
    t.refresh(10);
    let labels = [
        ("source_workload", "client"),
        ("destination_workload", "web-1"),
    ];
    let text = t.exposition();
    assert_eq!(sum(&text, "istio_tcp_connections_opened_total", &labels), 1);
    assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &labels), 10);
    assert_eq!(
        sum(
            &text,
            "mesh_connections_active",
            &[("path", "passthrough"), ("direction", "outbound")]
        ),
        1
    );
    let rows = t.open_connections();
    assert_eq!(rows[0].workload.as_deref(), Some("shop/client"));
    assert_eq!(rows[0].upstream_workload.as_deref(), Some("shop/web-1"));
    assert_eq!(
        (rows[0].path.as_str(), rows[0].state.as_str()),
        ("passthrough", "established")
    );
    (kernel.bytes_sent, kernel.bytes_received) = (15, 20);
    store.remove(11);
    // The map is read before the ring buffer: its end must not be counted from nothing.
    t.refresh(20);
    end(&t, 11, closed(kernel, KernelClose::FinRemoteFirst));
    t.refresh(30);
    let text = t.exposition();
    assert_eq!(sum(&text, "istio_tcp_connections_opened_total", &labels), 1);
    assert_eq!(sum(&text, "istio_tcp_connections_closed_total", &labels), 1);
    assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &labels), 15);
    assert_eq!(sum(&text, "istio_tcp_sent_bytes_total", &labels), 20);
    assert_eq!(
        sum(&text, "mesh_connections_active", &[("path", "passthrough")]),
        0
    );
    let rows = t.closed_connections();
    assert_eq!((rows.len(), rows[0].duration_ms), (1, 2_500));
    assert_eq!(rows[0].reason.as_deref(), Some("completed"));
}

#[test]
fn listen_events_are_none_of_ours() {
    let (t, _) = telemetry(defaults());
    t.on_event(&Event {
        kind: EventKind::Listen as u32,
        pad: 0,
        cookie: 1,
        record: record(Direction::Inbound, Path::Unmeshed),
    });
    assert!(t.closed_connections().is_empty());
}

#[test]
fn an_end_while_the_map_is_read_is_counted_once() {
    let (t, store) = telemetry(defaults());
    let mut kernel = record(Direction::Outbound, Path::Passthrough);
    kernel.bytes_sent = 10;
    store.put(11, kernel);
    let ending = t.clone();
    *crate::telemetry::lock(&store.after_reading) = Some(super::fake::Hook(Box::new(move || {
        end(&ending, 11, closed(kernel, KernelClose::FinLocalFirst));
    })));
    t.refresh(10);
    let text = t.exposition();
    assert_eq!(sum(&text, "istio_tcp_connections_opened_total", &[]), 1);
    assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &[]), 10);
    assert_eq!(sum(&text, "mesh_connections_active", &[]), 0);
}
