//! Requests in the metrics, and what becomes of the connections that they come on.

use std::time::{Duration, Instant};

use http::StatusCode;

use super::fake::{answered, get, http, inbound, name, outbound, sum, telemetry};
use crate::telemetry::{Reason, RequestStart, TelemetryOptions};

fn grpc() -> RequestStart {
    RequestStart {
        grpc: true,
        ..get()
    }
}

#[test]
fn a_request_is_counted_once_by_how_it_was_answered() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let connection = http(&t, outbound(1));
    answered(&connection, get(), 200);
    answered(&connection, get(), 200);
    answered(&connection, get(), 503);
    let text = t.exposition();
    let ours = [
        ("reporter", "source"),
        ("source_workload", "client"),
        ("destination_workload", "web-1"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("request_protocol", "http"),
        ("response_flags", "-"),
        ("grpc_response_status", ""),
        ("connection_security_policy", "none"),
    ];
    let by_code = |code: &'static str| [&ours[..], &[("response_code", code)]].concat();
    assert_eq!(sum(&text, "istio_requests_total", &by_code("200")), 2);
    assert_eq!(sum(&text, "istio_requests_total", &by_code("503")), 1);
    assert_eq!(sum(&text, "istio_requests_total", &[]), 3);
    for family in [
        "istio_request_duration_milliseconds",
        "istio_request_bytes",
        "istio_response_bytes",
    ] {
        let count = sum(&text, &format!("{family}_count"), &by_code("200"));
        assert_eq!(count, 2, "{family}");
        let all = [&by_code("200")[..], &[("le", "+Inf")]].concat();
        assert_eq!(sum(&text, &format!("{family}_bucket"), &all), 2, "{family}");
    }
    assert_eq!(sum(&text, "istio_request_bytes_sum", &[]), 9);
    assert_eq!(sum(&text, "istio_response_bytes_sum", &[]), 15);
    let reason = [("reason", "completed"), ("reporter", "source")];
    assert_eq!(sum(&text, "mesh_requests_total", &reason), 3);
    assert_eq!(sum(&text, "mesh_request_attempts_total", &[]), 3);
}

#[test]
fn istios_labels_of_requests_are_complete() {
    let (t, _) = telemetry(TelemetryOptions::default());
    answered(&http(&t, outbound(1)), get(), 200);
    let text = t.exposition();
    let line = text
        .lines()
        .find(|l| l.starts_with("istio_requests_total{"))
        .unwrap();
    let labels: Vec<&str> = line
        .split_once('{')
        .unwrap()
        .1
        .split("\",")
        .filter_map(|pair| pair.split('=').next())
        .collect();
    // The 23 of the TCP families, which their own test lists, and two more.
    assert_eq!(labels.len(), 25, "{labels:?}");
    for label in ["response_code", "grpc_response_status", "response_flags"] {
        assert!(labels.contains(&label), "{label}");
    }
}

#[test]
fn a_guard_that_is_dropped_says_that_the_client_went() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let connection = http(&t, outbound(1));
    let guard = connection.request(get());
    let active = |reporter| {
        sum(
            &t.exposition(),
            "mesh_requests_active",
            &[("reporter", reporter)],
        )
    };
    assert_eq!(active("source"), 1);
    drop(guard);
    assert_eq!((active("source"), active("destination")), (0, 0));
    let labels = [("response_code", "0"), ("response_flags", "DC")];
    assert_eq!(sum(&t.exposition(), "istio_requests_total", &labels), 1);
}

#[test]
fn grpc_is_counted_by_its_status_and_no_client_makes_up_new_ones() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let connection = http(&t, outbound(1));
    for code in [0, 14, 2, 77, 4_000_000_000] {
        let mut guard = connection.request(grpc());
        guard.response_started(StatusCode::OK);
        guard.set_grpc_status(code);
        guard.finish(Reason::Completed);
    }
    let text = t.exposition();
    let of = |code| {
        let labels = [("request_protocol", "grpc"), ("grpc_response_status", code)];
        sum(&text, "istio_requests_total", &labels)
    };
    assert_eq!((of("0"), of("14"), of("2"), of("77")), (1, 1, 3, 0));
}

#[test]
fn through_two_agents_there_is_one_of_each_reporter() {
    let (source, _) = telemetry(TelemetryOptions::default());
    let (destination, _) = telemetry(TelemetryOptions::default());
    let (client, server) = (
        "spiffe://cluster.local/ns/shop/sa/default".parse().unwrap(),
        "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
    );
    let mut guard = http(&source, outbound(1)).request(get());
    guard.attempt("10.0.0.2:8080".parse().unwrap(), Some(&name("shop/web-1")));
    guard.set_security(Some(&client), Some(&server));
    guard.response_started(StatusCode::OK);
    guard.finish(Reason::Completed);
    // What the tunnel proved is known of the connection here.
    let connection = http(&destination, inbound(7));
    connection.set_security(Some(client), Some(server));
    answered(&connection, get(), 200);

    for (t, reporter) in [(&source, "source"), (&destination, "destination")] {
        let text = t.exposition();
        assert_eq!(sum(&text, "istio_requests_total", &[]), 1);
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("destination_workload", "web-1"),
            ("connection_security_policy", "mutual_tls"),
            (
                "source_principal",
                "spiffe://cluster.local/ns/shop/sa/default",
            ),
            (
                "destination_principal",
                "spiffe://cluster.local/ns/shop/sa/web",
            ),
        ];
        assert_eq!(sum(&text, "istio_requests_total", &labels), 1, "{reporter}");
    }
}

#[test]
fn a_connection_with_requests_is_none_of_the_tcp_metrics() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let connection = http(&t, outbound(1));
    connection.established(None);
    answered(&connection, get(), 200);
    let row = &t.open_connections()[0];
    assert_eq!((row.protocol.as_str(), row.requests), ("http", 1));
    assert_eq!((row.bytes_sent, row.bytes_received), (3, 5));
    t.refresh(0);
    connection.finish(Reason::Completed);
    let row = &t.closed_connections()[0];
    assert_eq!((row.protocol.as_str(), row.requests), ("http", 1));
    let text = t.exposition();
    for family in ["opened", "closed"] {
        let name = format!("istio_tcp_connections_{family}_total");
        assert_eq!(sum(&text, &name, &[]), 0, "{family}");
    }
    assert_eq!(sum(&text, "istio_tcp_sent_bytes_total", &[]), 0);
    assert_eq!(sum(&text, "istio_requests_total", &[]), 1);
}

#[test]
fn the_service_that_a_route_chose_is_the_destination() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let mut guard = http(&t, outbound(1)).request(get());
    guard.set_service(&name("shop/web-canary"));
    guard.finish(Reason::NoEndpoints);
    let labels = [
        ("destination_service_name", "web-canary"),
        ("response_flags", "UH"),
    ];
    assert_eq!(sum(&t.exposition(), "istio_requests_total", &labels), 1);
}

#[test]
fn above_the_cap_series_are_shared_and_no_request_is_lost() {
    let (t, _) = telemetry(TelemetryOptions {
        requests_max: 5,
        ..TelemetryOptions::default()
    });
    let connection = http(&t, outbound(1));
    for n in 0..20 {
        let mut guard = connection.request(get());
        guard.set_service(&name(&format!("shop/s{n}")));
        guard.finish(Reason::NoEndpoints);
    }
    for status in 200..300 {
        answered(&connection, get(), status);
    }
    let text = t.exposition();
    assert_eq!(sum(&text, "istio_requests_total", &[]), 120);
    assert_eq!(sum(&text, "mesh_metrics_request_series", &[]), 5);
    assert_eq!(sum(&text, "mesh_metrics_request_overflow_total", &[]), 115);
    let series = text
        .lines()
        .filter(|l| l.starts_with("istio_requests_total{"))
        .count();
    assert!(series <= 5 + 65, "{series}");
    let overflow = [("destination_service", "overflow")];
    assert_eq!(sum(&text, "istio_requests_total", &overflow), 115);
    assert_eq!(sum(&text, "mesh_requests_total", &[]), 120);
}

#[test]
fn idle_series_go_and_those_of_living_connections_stay() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let old = http(&t, outbound(1));
    answered(&old, get(), 200);
    old.finish(Reason::Completed);
    let living = http(&t, inbound(7));
    answered(&living, get(), 200);
    let later = Instant::now() + t.options().flows_idle + Duration::from_secs(1);
    t.shared.requests.expire(later);
    let text = t.exposition();
    assert_eq!(
        sum(&text, "istio_requests_total", &[("reporter", "source")]),
        0
    );
    assert_eq!(
        sum(
            &text,
            "istio_requests_total",
            &[("reporter", "destination")]
        ),
        1
    );
    assert_eq!(sum(&text, "mesh_metrics_request_series", &[]), 1);
    living.finish(Reason::Completed);
    t.shared.requests.expire(later);
    assert_eq!(sum(&t.exposition(), "istio_requests_total", &[]), 0);
}
