//! Tests of what an upstream says of its endpoints together.

use std::time::Duration;

use super::*;
use crate::model::{AppProtocol, CircuitBreaker, ResourceName, TrafficPolicy};

fn upstream(weights: &[u32]) -> Upstream {
    let endpoint = |(host, weight): (u8, &u32)| Endpoint {
        address: ([10, 1, 0, host], 80).into(),
        workload: None,
        weight: *weight,
        zone: None,
        node: None,
    };
    let port = Arc::new(ServicePort {
        name: None,
        port: 80,
        app_protocol: AppProtocol::Http,
        endpoints: (1..).zip(weights).map(endpoint).collect(),
    });
    let breaker = CircuitBreaker {
        failure_threshold: 1,
        failure_ratio: None,
        window: Duration::from_secs(10),
        min_volume: 1,
        recovery_timeout: Duration::from_secs(5),
        max_recovery_timeout: Duration::from_secs(60),
        success_threshold: 1,
        max_ejection_percent: 100,
    };
    let service = Arc::new(Service {
        name: ResourceName::new("shop", "web"),
        vips: vec![],
        ports: vec![Arc::clone(&port)],
        client_ip_affinity: false,
        traffic: Arc::new(TrafficPolicy {
            breaker: Some(breaker),
            ..TrafficPolicy::default()
        }),
    });
    let state = ServiceState::new();
    Upstream::next(&service, &port, false, None, &state, 0, Instant::now())
}

fn fail(upstream: &Upstream, index: usize, now: Instant) {
    let breaker = upstream.service.traffic.breaker.as_ref();
    let state = &upstream.endpoints[index].state;
    if let Some(attempt) = state.admit(breaker, &upstream.ejections, now) {
        attempt.request_failed("500", now, 0.0);
    }
}

#[test]
fn open_until_the_first_lets_a_probe_through() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    // One takes no traffic, whatever its breaker says.
    let upstream = upstream(&[1, 0, 1]);
    assert_eq!(upstream.open_until(start), None);
    fail(&upstream, 2, at(0));
    assert_eq!(upstream.open_until(at(1)), None, "another is there");
    fail(&upstream, 0, at(3));
    assert_eq!(upstream.open_until(at(4)), Some(at(5)), "the first of both");
    assert_eq!(upstream.open_until(at(5)), None);
}

#[test]
fn whom_the_balancer_may_take() {
    use balance::Target as _;
    let now = Instant::now();
    let upstream = upstream(&[1, 1]);
    let first = &upstream.endpoints[0];
    assert_eq!(first.usable(now), Usability::Ready);
    fail(&upstream, 0, now);
    assert_eq!(first.usable(now), Usability::Ejected);
    let later = now + Duration::from_secs(5);
    assert_eq!(first.usable(later), Usability::Ready, "for a probe");
    first.state.set_health(Health::Unhealthy);
    assert_eq!(first.usable(later), Usability::Unhealthy);
    let permit = first.state.acquire_request(None);
    assert_eq!(first.in_flight(), 1);
    drop(permit);
}
