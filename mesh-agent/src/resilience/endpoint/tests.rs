//! Tests of endpoint states together: what one service port may eject, and what a dropped attempt leaves behind.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn policy(percent: u32) -> CircuitBreaker {
    CircuitBreaker {
        failure_threshold: 2,
        failure_ratio: None,
        window: Duration::from_secs(10),
        min_volume: 10,
        recovery_timeout: Duration::from_secs(5),
        max_recovery_timeout: Duration::from_secs(60),
        success_threshold: 1,
        max_ejection_percent: percent,
    }
}

struct Port {
    endpoints: Vec<Arc<EndpointState>>,
    ejections: Arc<Ejections>,
    policy: CircuitBreaker,
}

impl Port {
    fn new(endpoints: u32, percent: u32) -> Self {
        Self {
            endpoints: (0..endpoints).map(|_| EndpointState::settled()).collect(),
            ejections: Ejections::new(endpoints),
            policy: policy(percent),
        }
    }

    fn admit(&self, index: usize, now: Instant) -> Option<Attempt> {
        self.endpoints[index].admit(Some(&self.policy), &self.ejections, now)
    }

    fn fail(&self, index: usize, now: Instant) {
        for _ in 0..2 {
            if let Some(attempt) = self.admit(index, now) {
                attempt.failed("refused", now, 0.0);
            }
        }
    }

    fn not_closed(&self, now: Instant) -> usize {
        let state = |e: &&Arc<EndpointState>| e.breaker_state(now) != BreakerState::Closed;
        self.endpoints.iter().filter(state).count()
    }
}

#[test]
fn half_of_the_endpoints_stay() {
    let now = Instant::now();
    let port = Port::new(4, 50);
    for index in 0..4 {
        port.fail(index, now);
    }
    assert_eq!(port.not_closed(now), 2);
    assert!(port.admit(0, now).is_none());
    assert!(port.admit(3, now).is_some());
}

#[test]
fn the_only_endpoint_stays_but_at_a_hundred_percent() {
    let now = Instant::now();
    for (percent, open) in [(50, 0), (99, 0), (100, 1)] {
        let port = Port::new(1, percent);
        port.fail(0, now);
        assert_eq!(port.not_closed(now), open, "{percent} %");
    }
}

#[test]
fn a_probe_whose_task_dies_is_given_back() {
    let now = Instant::now();
    let later = now + Duration::from_secs(5);
    let port = Port::new(2, 50);
    port.fail(0, now);
    let probe = port.admit(0, later).unwrap();
    assert!(probe.is_probe());
    assert!(port.admit(0, later).is_none());
    drop(probe);
    let again = port.admit(0, later).unwrap();
    assert_eq!(again.succeeded(later), Some(Transition::Closed));
    assert_eq!(port.ejections.ejected(), 0);
    assert_eq!(
        port.endpoints[0].ramping_since(),
        Some(later),
        "slow start follows"
    );
}

#[test]
fn a_removed_endpoint_gives_its_place_back() {
    let now = Instant::now();
    let mut port = Port::new(2, 50);
    port.fail(0, now);
    port.fail(1, now);
    assert_eq!(port.not_closed(now), 1);
    port.endpoints.remove(0);
    port.endpoints.push(EndpointState::new(now));
    assert_eq!(port.ejections.ejected(), 0);
    port.fail(0, now);
    assert_eq!(port.not_closed(now), 1);
}

#[test]
fn fewer_endpoints_call_the_excess_back() {
    let now = Instant::now();
    let mut port = Port::new(4, 50);
    port.fail(0, now);
    port.fail(1, now);
    port.endpoints.truncate(2);
    port.ejections.set_endpoints(2);
    assert!(
        port.admit(0, now).is_some(),
        "pardoned: one of two may be open"
    );
    assert!(port.admit(1, now).is_none());
    assert_eq!(port.not_closed(now), 1);
}

#[test]
fn a_policy_without_breaker_forgets_it() {
    let now = Instant::now();
    let port = Port::new(2, 50);
    port.fail(0, now);
    let attempt = port.endpoints[0].admit(None, &port.ejections, now).unwrap();
    attempt.failed("timed out", now, 0.0);
    assert_eq!(port.not_closed(now), 0);
    assert_eq!(port.ejections.ejected(), 0);
    let last = port.endpoints[0].last_failure().unwrap();
    assert_eq!(&*last.error, "timed out");
}

#[test]
fn permits_outlive_the_holder_of_the_state() {
    let state = EndpointState::settled();
    let permit = state.acquire(Some(1)).unwrap();
    assert_eq!(state.in_flight(), 1);
    assert!(state.acquire(Some(1)).is_none());
    drop(permit);
    assert_eq!(state.in_flight(), 0);
}

proptest! {
    /// Never more than the maximum is ejected, whatever the endpoints do, and the count is what the states say.
    #[test]
    fn never_ejects_more_than_the_maximum(
        count in 1u32..12,
        percent in 0u32..=100,
        steps in prop::collection::vec((0usize..12, any::<bool>(), 0u64..4, 0.0f64..1.0), 1..150),
    ) {
        let port = Port::new(count, percent);
        let mut now = Instant::now();
        for (index, ok, gap, random) in steps {
            now += Duration::from_secs(gap);
            if let Some(attempt) = port.admit(index % count as usize, now) {
                if ok {
                    attempt.succeeded(now);
                } else {
                    attempt.failed("refused", now, random);
                }
            }
            let limit = crate::resilience::may_eject(count, percent) as usize;
            prop_assert!(port.not_closed(now) <= limit);
            prop_assert_eq!(port.not_closed(now), port.ejections.ejected() as usize);
        }
    }
}

#[test]
fn the_maximum_holds_under_threads() {
    let port = Port::new(8, 50);
    let now = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let port = &port;
            scope.spawn(move || {
                for round in 0..500u64 {
                    let at = now + Duration::from_secs(round);
                    port.fail((thread + round as usize) % 8, at);
                    assert!(port.ejections.ejected() <= 4);
                    if let Some(attempt) = port.admit(thread, at) {
                        attempt.succeeded(at);
                    }
                }
            });
        }
    });
}

/// What is read without the lock is what the breaker says, and `admits` tells what `admit` does.
#[test]
fn what_is_read_without_the_lock_is_right() {
    let start = Instant::now();
    let port = Port::new(2, 50);
    let state = &port.endpoints[0];
    let at = |ms| start + Duration::from_millis(ms);
    assert!(state.admits(start));
    port.fail(0, start);
    assert_eq!(state.open_until(at(0)), Some(at(5_000)));
    assert!(!state.admits(at(4_999)) && !state.usable(at(4_999)));
    assert!(state.admits(at(5_000)));
    assert_eq!(state.breaker_state(at(5_000)), BreakerState::HalfOpen);
    let probe = port.admit(0, at(5_000)).unwrap();
    assert_eq!(probe.transition(), Some(Transition::HalfOpen));
    assert!(!state.admits(at(5_001)), "its probe is out");
    assert_eq!(state.breaker_state(at(5_001)), BreakerState::HalfOpen);
    assert_eq!(state.open_until(at(5_001)), None);
    drop(probe);
    assert!(state.admits(at(5_001)), "given back");
    let probe = port.admit(0, at(5_001)).unwrap();
    probe.answered(at(5_002));
    assert!(!state.admits(at(5_003)) && state.admits(at(6_002)));
    drop(probe);
    let last = port.admit(0, at(6_003)).unwrap();
    assert_eq!(last.request_succeeded(at(6_004)), Some(Transition::Closed));
    assert_eq!(state.breaker_state(at(6_004)), BreakerState::Closed);
}

#[test]
fn the_last_one_opens_at_a_hundred_percent_and_says_until_when() {
    let now = Instant::now();
    let port = Port::new(1, 100);
    for _ in 0..2 {
        let attempt = port.admit(0, now).unwrap();
        attempt.request_failed("503 Service Unavailable", now, 0.0);
    }
    assert!(port.admit(0, now).is_none());
    let until = now + Duration::from_secs(5);
    assert_eq!(port.endpoints[0].open_until(now), Some(until));
    let last = port.endpoints[0].last_failure().unwrap();
    assert_eq!(&*last.error, "503 Service Unavailable");
}

#[test]
fn a_connect_for_a_request_counts_once_and_the_request_by_itself() {
    let now = Instant::now();
    let port = Port::new(2, 50);
    let connect = || port.admit(0, now).unwrap();
    connect().failed("refused", now, 0.0);
    // It connects, and the request fails: no second failure of the same kind.
    let attempt = connect();
    attempt.connected(now);
    assert_eq!(attempt.request_failed("reset", now, 0.0), None);
    assert_eq!(connect().failed("refused", now, 0.0), None);
    assert!(connect().request_failed("reset", now, 0.0).is_some());
}

#[test]
fn a_refused_ejection_is_told() {
    let now = Instant::now();
    let port = Port::new(1, 50);
    let fail = || port.admit(0, now).unwrap().failed("refused", now, 0.0);
    assert_eq!(fail(), None);
    assert!(matches!(fail(), Some(Transition::Refused { .. })));
    assert_eq!(fail(), None);
}

/// An active pass does not bring back what live traffic has put out, and a failed check opens no breaker.
#[test]
fn active_checks_and_the_breaker_are_apart() {
    let now = Instant::now();
    let port = Port::new(2, 50);
    let [first, second] = &port.endpoints[..] else {
        panic!("two");
    };
    port.fail(0, now);
    assert_eq!(first.set_health(Health::Healthy), Health::Unknown);
    assert!(!first.usable(now));
    assert!(port.admit(0, now).is_none());
    assert_eq!(second.set_health(Health::Unhealthy), Health::Unknown);
    assert!(!second.usable(now));
    assert_eq!(second.breaker_state(now), BreakerState::Closed);
    assert_eq!(second.set_health(Health::Healthy), Health::Unhealthy);
    assert!(second.usable(now));
}

#[test]
fn work_is_requests_once_there_are_any() {
    let state = EndpointState::settled();
    let _connections = [state.acquire(None), state.acquire(None)];
    assert_eq!(state.work(), 2);
    let request = state.acquire_request(None);
    assert_eq!((state.work(), state.requests_in_flight()), (1, 1));
    assert!(state.acquire_request(Some(1)).is_none());
    drop(request);
    assert_eq!(state.work(), 0);
}

#[test]
fn latency_is_remembered_and_a_failure_is_slow() {
    let now = Instant::now();
    let state = EndpointState::settled();
    assert_eq!(state.load(now), None);
    state.observe(Duration::from_millis(5), true, now);
    let before = state.load(now).unwrap();
    state.observe(Duration::from_millis(1), false, now);
    assert!(state.load(now).unwrap() > before);
}
