//! What happens to requests on their way, in the metrics.

use std::time::Instant;

use super::fake::{answered, get, http, name, outbound, sum, telemetry};
use crate::{
    resilience::{Cause, Kind, Transition},
    telemetry::{Detected, Mirror, Reason, Retry, TelemetryOptions},
};

#[test]
fn each_event_has_its_series() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let web = name("shop/web");
    let endpoint = "10.0.0.2:8080".parse().unwrap();
    let (kind, cause) = (Kind::Request, Cause::Ratio);
    let until = Instant::now();
    t.breaker(&web, endpoint, Transition::Opened { until, kind, cause });
    t.breaker(&web, endpoint, Transition::HalfOpen);
    t.breaker(&web, endpoint, Some(Transition::Closed));
    t.breaker(&web, endpoint, Transition::Refused { kind, cause });
    t.breaker(&web, endpoint, None);
    t.mirror(Mirror::Dropped);
    t.detected(Detected::ServerFirst);
    let text = t.exposition();
    let web = ("destination_service_name", "web");
    for (family, labels, n) in [
        (
            "mesh_breaker_transitions_total",
            &[web, ("to", "Open")][..],
            1,
        ),
        ("mesh_breaker_transitions_total", &[("to", "refused")], 1),
        ("mesh_breaker_transitions_total", &[], 4),
        ("mesh_mirrored_requests_total", &[("outcome", "dropped")], 1),
        (
            "mesh_protocol_detections_total",
            &[("outcome", "server_first")],
            1,
        ),
    ] {
        assert_eq!(sum(&text, family, labels), n, "{family} {labels:?}");
    }
}

#[test]
fn attempts_and_retries_are_counted_by_service() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let mut guard = http(&t, outbound(1)).request(get());
    for _ in 0..3 {
        guard.attempt("10.0.0.2:8080".parse().unwrap(), None);
    }
    guard.finish(Reason::Completed);
    for outcome in Retry::ALL {
        t.retry(Some(&name("shop/web")), *outcome);
    }
    let text = t.exposition();
    let service = ("destination_service_name", "web");
    assert_eq!(sum(&text, "mesh_request_attempts_total", &[service]), 3);
    for outcome in ["made", "succeeded", "budget_refused", "limit_reached"] {
        let labels = [service, ("outcome", outcome)];
        assert_eq!(
            sum(&text, "mesh_request_retries_total", &labels),
            1,
            "{outcome}"
        );
    }
}

#[test]
fn who_breaks_http_is_counted_for_requests_and_for_connections() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let connection = http(&t, outbound(1));
    connection.request(get()).finish(Reason::UpstreamProtocol);
    connection.request(get()).finish(Reason::BadRequest);
    connection.finish(Reason::ClientAbuse);
    t.open(outbound(2)).finish(Reason::NotHttp);
    t.open(outbound(3)).finish(Reason::Completed);
    let text = t.exposition();
    let family = "mesh_protocol_errors_total";
    for (side, cause) in [
        ("upstream", "upstream_protocol"),
        ("client", "bad_request"),
        ("client", "client_abuse"),
        ("client", "not_http"),
    ] {
        assert_eq!(
            sum(&text, family, &[("side", side), ("cause", cause)]),
            1,
            "{cause}"
        );
    }
    assert_eq!(sum(&text, family, &[]), 4);
}

#[test]
fn panic_is_a_state_and_its_beginnings_are_counted() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let web = name("shop/web");
    let read = || {
        let text = t.exposition();
        (
            sum(&text, "mesh_panic_mode", &[]),
            sum(&text, "mesh_panics_total", &[]),
        )
    };
    t.panic(&web, false);
    assert_eq!(read(), (0, 0));
    t.panic(&web, true);
    t.panic(&web, true);
    assert_eq!(read(), (1, 1));
    t.panic(&web, false);
    assert_eq!(read(), (0, 1));
}

#[test]
fn services_above_the_cap_share_a_series_and_make_room_when_gone() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let attempt = |service: &str| {
        let mut guard = http(&t, outbound(1)).request(get());
        guard.set_service(&name(service));
        guard.attempt("10.0.0.2:8080".parse().unwrap(), None);
        guard.finish(Reason::Completed);
    };
    for n in 0..2_010 {
        attempt(&format!("shop/s{n}"));
    }
    let family = "mesh_request_attempts_total";
    let text = t.exposition();
    assert_eq!(sum(&text, family, &[]), 2_010);
    let overflow = [("destination_service_name", "overflow")];
    assert_eq!(sum(&text, family, &overflow), 10);
    t.counts().traffic.retain(|service| *service.name != *"s1");
    attempt("shop/new");
    let new = [("destination_service_name", "new")];
    assert_eq!(sum(&t.exposition(), family, &new), 1);
    answered(&http(&t, outbound(1)), get(), 200);
}
