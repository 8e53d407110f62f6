//! One end for each connection, whatever way it ends.

use std::{sync::atomic::Ordering, time::Duration};

use super::fake::{inbound, outbound, sum, telemetry};
use crate::telemetry::{Reason, TelemetryOptions};

#[test]
fn finished_once_counted_once() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let guard = t.open(outbound(11));
    assert_eq!(t.active(), 1);
    guard.set_upstream(
        "10.0.0.2:8080".parse().unwrap(),
        Some(super::fake::name("shop/web-1")),
    );
    guard.counters().add_sent(100);
    guard.counters().add_received(2000);
    guard.set_rtt(Duration::from_micros(250), 3);
    guard.finish(Reason::Completed);
    assert_eq!(t.active(), 0);
    let closed = t.closed_connections();
    assert_eq!(closed.len(), 1);
    let row = &closed[0];
    assert_eq!(row.reason.as_deref(), Some("completed"));
    assert_eq!((row.bytes_sent, row.bytes_received), (100, 2000));
    assert_eq!((row.rtt_us, row.retransmits), (Some(250), Some(3)));
    assert_eq!(row.upstream_workload.as_deref(), Some("shop/web-1"));
    let text = t.exposition();
    let labels = [
        ("source_workload", "client"),
        ("destination_workload", "web-1"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("response_flags", "-"),
    ];
    assert_eq!(sum(&text, "istio_tcp_connections_opened_total", &labels), 1);
    assert_eq!(sum(&text, "istio_tcp_connections_closed_total", &labels), 1);
    // Istio's names are the destination's view.
    assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &labels), 100);
    assert_eq!(sum(&text, "istio_tcp_sent_bytes_total", &labels), 2000);
}

#[test]
fn dropped_without_finish_is_an_internal_error() {
    let (t, _) = telemetry(TelemetryOptions::default());
    drop(t.open(outbound(11)));
    let closed = t.closed_connections();
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].reason.as_deref(), Some("internal_error"));
    let text = t.exposition();
    assert_eq!(
        sum(
            &text,
            "mesh_connections_closed_total",
            &[("reason", "internal_error")]
        ),
        1
    );
}

#[test]
fn a_panic_in_the_task_still_reports() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let guard = t.open(outbound(11));
    let task = std::thread::spawn(move || {
        let _guard = guard;
        panic!("as a bug would");
    });
    assert!(task.join().is_err());
    assert_eq!(t.closed_connections().len(), 1);
    assert_eq!(t.active(), 0);
}

#[test]
fn refusals_are_counted_by_reason() {
    let (t, _) = telemetry(TelemetryOptions::default());
    t.open(outbound(1)).finish(Reason::NoEndpoints);
    t.open(outbound(2)).finish(Reason::UpstreamRefused);
    t.refused(Reason::NoDescriptors);
    let text = t.exposition();
    let refused = |reason| {
        sum(
            &text,
            "mesh_connections_refused_total",
            &[("reason", reason)],
        )
    };
    assert_eq!(refused("no_endpoints"), 1);
    assert_eq!(refused("no_descriptors"), 1);
    assert_eq!(
        refused("upstream_refused"),
        0,
        "the upstream refused, not the agent"
    );
    assert_eq!(
        sum(
            &text,
            "istio_tcp_connections_closed_total",
            &[("response_flags", "UH")]
        ),
        1
    );
}

#[test]
fn bytes_of_a_long_connection_are_counted_while_it_lives_and_once() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let guard = t.open(outbound(11));
    guard.set_upstream("10.0.0.2:8080".parse().unwrap(), None);
    guard.established(None);
    let mut expected = 0;
    for n in 1..5 {
        guard.counters().add_sent(n);
        expected += n;
        let text = t.exposition();
        assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &[]), expected);
        assert_eq!(sum(&text, "istio_tcp_connections_opened_total", &[]), 1);
        t.refresh(n);
    }
    guard.counters().add_sent(10);
    guard.finish(Reason::Completed);
    let text = t.exposition();
    assert_eq!(
        sum(&text, "istio_tcp_received_bytes_total", &[]),
        expected + 10
    );
    assert_eq!(sum(&text, "istio_tcp_connections_opened_total", &[]), 1);
}

#[test]
fn scrapes_and_rounds_while_connections_end_count_each_once() {
    let (t, _) = telemetry(TelemetryOptions::default());
    const EACH: u64 = 500;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|w| {
                let t = &t;
                scope.spawn(move || {
                    for n in 0..EACH {
                        let guard = t.open(outbound(1 + w * EACH + n));
                        guard.set_upstream("10.0.0.2:8080".parse().unwrap(), None);
                        guard.counters().add_sent(3);
                        guard.finish(Reason::Completed);
                    }
                })
            })
            .collect();
        while workers.iter().any(|w| !w.is_finished()) {
            t.refresh(1);
            t.exposition();
        }
    });
    let text = t.exposition();
    assert_eq!(
        sum(&text, "istio_tcp_connections_opened_total", &[]),
        4 * EACH
    );
    assert_eq!(
        sum(&text, "istio_tcp_connections_closed_total", &[]),
        4 * EACH
    );
    assert_eq!(
        sum(&text, "istio_tcp_received_bytes_total", &[]),
        3 * 4 * EACH
    );
    assert_eq!(t.active(), 0);
}

#[test]
fn two_connections_with_one_cookie_stay_apart() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let first = t.open(outbound(5));
    let second = t.open(outbound(5));
    assert_eq!(t.open_connections().len(), 2);
    first.finish(Reason::Completed);
    assert_eq!(t.open_connections().len(), 1);
    second.finish(Reason::Completed);
    assert_eq!(t.open_connections().len(), 0);
}

#[test]
fn an_inbound_connections_bytes_are_the_workloads() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let guard = t.open(inbound(0));
    guard.set_agent_cookie(99);
    guard.set_upstream(
        "127.0.0.1:8080".parse().unwrap(),
        Some(super::fake::name("shop/web-1")),
    );
    guard.counters().sent.store(10, Ordering::Relaxed);
    guard.counters().received.store(70, Ordering::Relaxed);
    let row = &t.open_connections()[0];
    assert_eq!((row.bytes_sent, row.bytes_received), (70, 10));
    assert_eq!(row.agent_cookie, 99);
    guard.finish(Reason::Completed);
    let text = t.exposition();
    let labels = [
        ("reporter", "destination"),
        ("source_workload", "client"),
        ("destination_workload", "web-1"),
        ("destination_app", "web-1-app"),
        ("destination_canonical_revision", "v2"),
    ];
    assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &labels), 10);
    assert_eq!(sum(&text, "istio_tcp_sent_bytes_total", &labels), 70);
}

#[test]
fn the_ring_forgets_by_number_and_age() {
    let (t, _) = telemetry(TelemetryOptions {
        closed_max: 2,
        closed_age: Duration::ZERO,
        ..TelemetryOptions::default()
    });
    for n in 1..=3 {
        t.open(outbound(n)).finish(Reason::Completed);
    }
    let cookies: Vec<_> = t
        .closed_connections()
        .iter()
        .map(|c| c.app_cookie)
        .collect();
    assert_eq!(cookies, [3, 2]);
    t.refresh(1);
    assert_eq!(t.closed_kept(), 0);
}

#[test]
fn a_candidate_that_is_only_tried_is_not_what_was_opened() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let opened = |t: &crate::telemetry::Telemetry, to| {
        sum(
            &t.exposition(),
            "istio_tcp_connections_opened_total",
            &[("destination_workload", to)],
        )
    };
    let guard = t.open(outbound(11));
    let upstream = |name| {
        guard.set_upstream(
            "10.0.0.2:8080".parse().unwrap(),
            Some(super::fake::name(name)),
        );
    };
    upstream("shop/web-1");
    assert_eq!(opened(&t, "web-1"), 0);
    upstream("shop/web-2");
    guard.established(None);
    assert_eq!(
        (opened(&t, "web-1"), opened(&t, "web-2")),
        (0, 1),
        "at once, idle as it is"
    );
    guard.finish(Reason::Completed);
    assert_eq!((opened(&t, "web-1"), opened(&t, "web-2")), (0, 1));
}

struct Leg;

impl crate::telemetry::LegProbe for Leg {
    fn rtt(&self) -> Option<(Duration, u32)> {
        Some((Duration::from_micros(350), 2))
    }
}

#[test]
fn the_upstream_leg_is_measured_while_it_lives() {
    let (t, store) = telemetry(TelemetryOptions::default());
    let guard = t.open(outbound(11));
    store.put(
        11,
        super::fake::record(
            crate::telemetry::Direction::Outbound,
            crate::telemetry::Path::Proxied,
        ),
    );
    let leg: std::sync::Arc<dyn crate::telemetry::LegProbe> = std::sync::Arc::new(Leg);
    guard.established(Some(std::sync::Arc::downgrade(&leg)));
    guard.counters().add_sent(1);
    t.refresh(1);
    assert_eq!(
        store.get(11).map(|r| (r.srtt_us, r.retransmits)),
        Some((350, 2))
    );
    assert_eq!(t.open_connections()[0].rtt_us, Some(350));
    drop(leg);
    guard.counters().add_sent(1);
    t.refresh(2);
    assert_eq!(
        store.get(11).map(|r| r.srtt_us),
        Some(350),
        "the last that was seen"
    );
    guard.finish(Reason::Completed);
}

#[test]
fn a_round_that_still_holds_a_finished_connection_counts_nothing() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let guard = t.open(outbound(11));
    guard.established(None);
    let held = t.shared.live.get(11).unwrap();
    guard.counters().add_sent(1);
    guard.finish(Reason::Completed);
    held.counters.add_sent(1);
    let mut progress = crate::telemetry::lock(&held.progress);
    let counted = t
        .shared
        .count(&held, &mut progress, std::time::Instant::now(), false);
    assert!(counted.is_none());
    drop(progress);
    let text = t.exposition();
    assert_eq!(sum(&text, "istio_tcp_connections_opened_total", &[]), 1);
    assert_eq!(sum(&text, "istio_tcp_received_bytes_total", &[]), 1);
}
