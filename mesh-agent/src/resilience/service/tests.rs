//! Tests of the limits of a service as requests meet them.

use tokio::time::{Instant, sleep};

use super::*;

fn limits(requests: u32, pending: Option<u32>) -> Limits {
    Limits {
        max_requests: Some(requests),
        max_pending_requests: pending,
        ..Limits::default()
    }
}

/// As the proxy calls it.
async fn acquire(state: &ServiceState, limits: &Limits) -> Result<Permit, Busy> {
    let until = || sleep(ServiceState::pending_timeout(limits));
    state.acquire_request(limits, until).await
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_the_limit_refuses_at_once() {
    let state = ServiceState::new();
    let limits = limits(2, None);
    let start = Instant::now();
    let first = acquire(&state, &limits).await;
    let second = acquire(&state, &limits).await;
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(acquire(&state, &limits).await.err(), Some(Busy::Limit));
    drop(first);
    assert!(acquire(&state, &limits).await.is_ok());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_queue_has_a_bound_and_a_deadline() {
    let state = ServiceState::new();
    let limits = Limits {
        pending_timeout: Some(Duration::from_millis(300)),
        ..limits(1, Some(2))
    };
    let start = Instant::now();
    let held = acquire(&state, &limits).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let state = Arc::clone(&state);
            tokio::spawn(async move { acquire(&state, &limits).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(state.waiting(), 2);
    assert_eq!(acquire(&state, &limits).await.err(), Some(Busy::QueueFull));
    assert_eq!(start.elapsed(), Duration::ZERO);
    for task in waiting {
        assert_eq!(task.await.unwrap().err(), Some(Busy::TimedOut));
    }
    assert_eq!(start.elapsed().as_millis(), 300);
    assert_eq!(state.waiting(), 0);
    drop(held);
    assert!(acquire(&state, &limits).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_who_waits() {
    let state = ServiceState::new();
    let limits = limits(1, Some(10));
    let held = acquire(&state, &limits).await;
    let earlier = tokio::spawn({
        let state = Arc::clone(&state);
        async move { acquire(&state, &limits).await.map(|_| Instant::now()) }
    });
    tokio::task::yield_now().await;
    // Given back and wanted again before the one who waits could run.
    drop(held);
    let later = acquire(&state, &limits).await;
    assert!(later.is_ok());
    assert!(earlier.is_finished(), "served first");
}

#[tokio::test(start_paused = true)]
async fn a_raised_limit_serves_those_who_wait() {
    let state = ServiceState::new();
    let old = limits(1, Some(10));
    let _held = acquire(&state, &old).await;
    // Who waits for a place asks with the limits of the policy as it is then.
    let allowed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let task = tokio::spawn({
        let (state, allowed) = (Arc::clone(&state), Arc::clone(&allowed));
        async move {
            let until = || sleep(Duration::from_secs(1));
            let take = || {
                allowed
                    .load(std::sync::atomic::Ordering::SeqCst)
                    .then_some(())
            };
            state.acquire_place(&old, until, take).await
        }
    });
    tokio::task::yield_now().await;
    assert_eq!(state.waiting(), 1);
    allowed.store(true, std::sync::atomic::Ordering::SeqCst);
    let start = Instant::now();
    state.update(&TrafficPolicy::default());
    assert_eq!(task.await.unwrap(), Ok(()));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_place_at_an_endpoint_is_waited_for() {
    let state = ServiceState::new();
    let endpoint = crate::resilience::EndpointState::with(None, Some(state.places()));
    let limits = Limits {
        max_requests_per_endpoint: Some(1),
        max_pending_requests: Some(1),
        ..Limits::default()
    };
    let held = endpoint.acquire_request(Some(1));
    let task = tokio::spawn({
        let (state, endpoint) = (Arc::clone(&state), Arc::clone(&endpoint));
        async move {
            let until = || sleep(Duration::from_secs(1));
            state
                .acquire_place(&limits, until, || endpoint.acquire_request(Some(1)))
                .await
        }
    });
    sleep(Duration::from_millis(200)).await;
    let start = Instant::now();
    drop(held);
    assert!(task.await.unwrap().is_ok());
    assert_eq!(start.elapsed(), Duration::ZERO);
    // The bound is the service's: both lines together.
    assert_eq!(state.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_goes_away_leaves_its_place() {
    let state = ServiceState::new();
    let limits = limits(1, Some(1));
    let held = acquire(&state, &limits).await;
    let gone = tokio::time::timeout(Duration::from_millis(10), acquire(&state, &limits)).await;
    assert!(gone.is_err());
    assert_eq!(state.waiting(), 0);
    drop(held);
    assert!(acquire(&state, &limits).await.is_ok());
}
