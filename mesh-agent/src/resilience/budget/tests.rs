//! Tests of the budget against a plain list of everything that happened.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn policy(percent: f64, window: u64, min_per_second: u32) -> RetryBudget {
    RetryBudget {
        percent,
        window: Duration::from_secs(window),
        min_per_second,
    }
}

#[test]
fn ten_a_second_without_any_requests() {
    let (budget, policy) = (Budget::default(), RetryBudget::default());
    let start = Instant::now();
    let allowed = |at: Duration| {
        (0..50)
            .filter(|_| budget.try_retry(&policy, start + at))
            .count()
    };
    assert_eq!(allowed(Duration::ZERO), 10);
    assert_eq!(allowed(Duration::from_millis(900)), 0);
    assert_eq!(allowed(Duration::from_millis(1_050)), 10);
}

#[test]
fn a_fifth_of_the_requests_and_no_more() {
    let (budget, policy) = (Budget::default(), policy(20.0, 10, 0));
    let start = Instant::now();
    for request in 0..1_000u64 {
        budget.request(start + Duration::from_millis(request));
    }
    let at = |ms| start + Duration::from_millis(ms);
    let allowed = (0..1_000)
        .filter(|_| budget.try_retry(&policy, at(1_000)))
        .count();
    assert_eq!(allowed, 200);
    // The requests leave the window, and before the retries do.
    assert!(!budget.try_retry(&policy, at(10_900)));
    for _ in 0..10 {
        budget.request(at(12_000));
    }
    let allowed = (0..10).filter(|_| budget.try_retry(&policy, at(12_000)));
    assert_eq!(allowed.count(), 2);
}

#[test]
fn nothing_is_allowed_by_a_budget_of_nothing() {
    let budget = Budget::default();
    let now = Instant::now();
    for _ in 0..100 {
        budget.request(now);
    }
    assert!(!budget.try_retry(&policy(0.0, 10, 0), now));
}

#[test]
fn another_window_starts_afresh() {
    let budget = Budget::default();
    let now = Instant::now();
    for _ in 0..100 {
        budget.request(now);
    }
    let long = policy(20.0, 60, 0);
    assert!(!budget.try_retry(&long, now));
    for _ in 0..10 {
        budget.request(now);
    }
    // Up to a fortieth of the window, 1.5 s, is given away, and how much of it depends on when the test runs.
    assert!(budget.try_retry(&long, now + Duration::from_secs(58)));
}

#[test]
fn the_balance_is_what_would_be_allowed() {
    let budget = Budget::default();
    let now = Instant::now();
    let policy = RetryBudget::default();
    for requests in [0, 10, 100, 1_000] {
        for _ in 0..requests {
            budget.request(now);
        }
        let said = budget.balance(&policy, now);
        let allowed = (0..10_000).take_while(|_| budget.try_retry(&policy, now));
        assert_eq!(allowed.count() as u64, said, "after {requests} more");
        assert_eq!(budget.balance(&policy, now), 0);
    }
}

/// Retries of many threads at once are never more than the budget either.
#[test]
fn exact_under_threads() {
    let budget = Budget::default();
    let now = Instant::now();
    let policy = policy(20.0, 10, 0);
    let allowed = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    budget.request(now);
                    if budget.try_retry(&policy, now) {
                        allowed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let allowed = allowed.into_inner();
    assert!((3_000..=4_000).contains(&allowed), "{allowed} of 20,000");
}

proptest! {
    /// In no window are there more retries than the share of its requests, but for those within the floor of their
    /// second; and where a window shorter by a fortieth has room, the retry is allowed.
    #[test]
    fn never_exceeded_in_any_window(
        percent in 0u32..=100,
        window in 1u64..20,
        min_per_second in 0u32..6,
        steps in prop::collection::vec((0u64..700, 0u8..10), 1..300),
    ) {
        let policy = policy(f64::from(percent), window, min_per_second);
        let budget = Budget::default();
        budget.update(&policy);
        let start = Instant::now();
        let mut requests: Vec<u64> = Vec::new();
        let mut retries: Vec<u64> = Vec::new();
        let mut at = 0;
        for (gap, action) in steps {
            at += gap;
            let now = start + Duration::from_millis(at);
            if action < 6 {
                budget.request(now);
                requests.push(at);
                continue;
            }
            let within = |events: &[u64], ms: f64| events.iter().filter(|t| ((at - **t) as f64) < ms).count() as f64;
            let has_room = |requests_in: f64, retries_in: f64, second: f64| {
                (within(&retries, retries_in) + 1.0) * 100.0 <= f64::from(percent) * within(&requests, requests_in)
                    || within(&retries, second) + 1.0 <= f64::from(min_per_second)
            };
            let (window, second) = (window as f64 * 1_000.0, 1_000.0);
            let exact = has_room(window, window, second);
            // Never laxer than the exact windows are, at whatever moment one looks; never stricter than by a fortieth.
            let strict = has_room(window * 39.0 / 40.0, window * 41.0 / 40.0, second * 41.0 / 40.0);
            let allowed = budget.try_retry(&policy, now);
            prop_assert!(exact || !allowed, "allowed at {at}");
            prop_assert!(allowed || !strict, "refused at {at}");
            if allowed {
                retries.push(at);
            }
        }
    }
}
