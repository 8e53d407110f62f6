//! What happens to requests on their way, in the metrics.

use std::time::Instant;

use super::fake::{name, sum, telemetry};
use crate::resilience::{Cause, Kind, Transition};
use crate::telemetry::{
    Detected, HealthChange, Mirror, PoolEvent, RateLimitOutcome, Retry, Side, TelemetryOptions,
};

#[test]
fn each_event_has_its_series() {
    let (t, _) = telemetry(TelemetryOptions::default());
    let web = name("shop/web");
    let endpoint = "10.0.0.2:8080".parse().unwrap();
    for outcome in Retry::ALL {
        t.retry(Some(&web), *outcome);
    }
    let (kind, cause) = (Kind::Request, Cause::Ratio);
    let until = Instant::now();
    t.breaker(&web, endpoint, Transition::Opened { until, kind, cause });
    t.breaker(&web, endpoint, Transition::HalfOpen);
    t.breaker(&web, endpoint, Some(Transition::Closed));
    t.breaker(&web, endpoint, Transition::Refused { kind, cause });
    t.breaker(&web, endpoint, None);
    t.rate_limit(Some(&web), "per-client", RateLimitOutcome::Refused);
    t.rate_limit(Some(&web), "per-client", RateLimitOutcome::Refused);
    t.rate_limit(None, "per-client", RateLimitOutcome::Shadow);
    t.health(
        &web,
        endpoint,
        HealthChange::Unhealthy,
        "connection refused",
    );
    t.mirror(Mirror::Dropped);
    t.detected(Detected::ServerFirst);
    t.protocol_error(Side::Client, "rapid_reset");
    for event in [
        PoolEvent::Opened,
        PoolEvent::Opened,
        PoolEvent::Closed,
        PoolEvent::Idle,
    ] {
        t.pool(event);
    }
    let text = t.exposition();
    for (family, labels, n) in [
        (
            "mesh_request_retries_total",
            &[("outcome", "budget_refused")][..],
            1,
        ),
        (
            "mesh_request_retries_total",
            &[("destination_service_name", "web")],
            4,
        ),
        ("mesh_breaker_transitions_total", &[("to", "Open")], 1),
        ("mesh_breaker_transitions_total", &[("to", "refused")], 1),
        ("mesh_breaker_transitions_total", &[], 4),
        (
            "mesh_rate_limit_decisions_total",
            &[
                ("limit", "per-client"),
                ("outcome", "refused"),
                ("destination_service_name", "web"),
            ],
            2,
        ),
        (
            "mesh_rate_limit_decisions_total",
            &[("destination_service_name", "-"), ("outcome", "shadow")],
            1,
        ),
        (
            "mesh_health_check_transitions_total",
            &[("to", "unhealthy")],
            1,
        ),
        ("mesh_mirrored_requests_total", &[("outcome", "dropped")], 1),
        (
            "mesh_protocol_detections_total",
            &[("outcome", "server_first")],
            1,
        ),
        (
            "mesh_protocol_errors_total",
            &[("side", "client"), ("cause", "rapid_reset")],
            1,
        ),
        ("mesh_pool_connections", &[("state", "open")], 1),
        ("mesh_pool_connections", &[("state", "idle")], 1),
    ] {
        assert_eq!(sum(&text, family, labels), n, "{family} {labels:?}");
    }
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
fn services_and_limits_above_the_caps_share_a_series() {
    let (t, _) = telemetry(TelemetryOptions::default());
    for n in 0..2_010 {
        t.retry(Some(&name(&format!("shop/s{n}"))), Retry::Made);
    }
    let web = name("shop/s0");
    for n in 0..100 {
        t.rate_limit(Some(&web), &format!("limit-{n}"), RateLimitOutcome::Allowed);
    }
    let text = t.exposition();
    assert_eq!(sum(&text, "mesh_request_retries_total", &[]), 2_010);
    let overflow = [("destination_service_name", "overflow")];
    assert_eq!(sum(&text, "mesh_request_retries_total", &overflow), 10);
    assert_eq!(sum(&text, "mesh_rate_limit_decisions_total", &[]), 100);
    assert_eq!(
        sum(
            &text,
            "mesh_rate_limit_decisions_total",
            &[("limit", "overflow")]
        ),
        36
    );
    // A service that is gone makes room.
    t.counts().traffic.retain(|service| *service.name != *"s1");
    t.retry(Some(&name("shop/new")), Retry::Made);
    let new = [("destination_service_name", "new")];
    assert_eq!(sum(&t.exposition(), "mesh_request_retries_total", &new), 1);
}
