//! What a decision of `resilience` costs: nanoseconds for one, alone and from as many threads as there are processors.
//!
//! `cargo bench -p mesh-agent --bench resilience [-- FILTER]` prints the table of docs/benchmarks.md: the best of several
//! rounds. Several threads share everything, which is the worst case: all requests of the agent go to one endpoint of
//! one service.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, StatusCode};
use mesh_agent::{
    model::{
        Backoff, CircuitBreaker, RateLimit, RateLimitKey, RetryBudget, RetryConditions,
        RetryPolicy, SpiffeId, TrustDomain,
    },
    resilience::{
        Budget, Circumstances, Ejections, EndpointState, Limiters, Outcome, RequestFacts, Retries,
        ServiceState, Verdict,
    },
};

/// Decisions in a row, and how often.
const DECISIONS: u32 = 20_000;
const ROUNDS: u32 = 20;

/// One decision, the n-th of a thread.
type Decide<'d> = &'d (dyn Fn(u32, Instant) + Sync);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    println!("| decision | one thread, ns | all threads, ns each |");
    println!("| --- | ---: | ---: |");
    let line = |name: &str, decide: Decide<'_>| {
        if name.contains(&filter) {
            let (alone, together) = (measure(1, decide), measure(threads(), decide));
            println!("| {name} | {alone:.0} | {together:.0} |");
        }
    };

    let state = ServiceState::new();
    line("permit of the service, no limit", &|_, _| {
        black_box(state.requests.acquire(None));
    });
    line("permit of the service, a limit", &|_, _| {
        black_box(state.requests.acquire(Some(1_000)));
    });

    let endpoint = EndpointState::settled();
    let ejections = Ejections::new(1);
    for (name, ratio) in [
        ("breaker: admit and success, rows only", None),
        ("breaker: admit and success, rows and ratio", Some(0.5)),
    ] {
        let policy = breaker(ratio);
        line(name, &|_, now| {
            if let Some(attempt) = endpoint.admit(Some(&policy), &ejections, now) {
                black_box(attempt.request_ended(Verdict::Success, "", now, 0.0));
            }
        });
    }
    line("no breaker: admit and success", &|_, now| {
        if let Some(attempt) = endpoint.admit(None, &ejections, now) {
            black_box(attempt.request_ended(Verdict::Success, "", now, 0.0));
        }
    });
    line("latency: observe", &|_, now| {
        endpoint.observe(Duration::from_millis(1), true, now);
    });
    line("latency: load", &|_, now| {
        black_box(endpoint.load(now));
    });

    let budget = Budget::default();
    let shares = RetryBudget::default();
    line("budget: count a request", &|_, now| budget.request(now));
    line("budget: ask for a retry", &|_, now| {
        black_box(budget.try_retry(&shares, now));
    });
    let policy = retries();
    let fine = Outcome::Answered {
        status: StatusCode::OK,
        grpc: None,
        pushback: None,
    };
    line("retry: nothing to repeat", &|_, now| {
        let mut retries = Retries::new(Some(&policy), &Method::GET);
        let about = Circumstances {
            can_replay: true,
            another: true,
            left: None,
            now,
            random: 0.5,
        };
        black_box(retries.next(black_box(&fine), &about, &budget, &shares));
    });

    let identity = SpiffeId::new(&TrustDomain::default(), "shop", "web")?;
    let key = RateLimitKey::ClientIdentity;
    for (name, limits) in [
        ("rate limit: one for all", vec![limit("all", vec![])]),
        (
            "rate limit: one by identity",
            vec![limit("each", vec![key.clone()])],
        ),
        (
            "rate limit: by identity, by identity and path, for all",
            vec![
                limit("all", vec![]),
                limit("each", vec![key.clone()]),
                limit("path", vec![key, RateLimitKey::Path]),
            ],
        ),
        (
            "rate limit: by address, 10,000 of them, 5,000 remembered",
            vec![limit("address", vec![RateLimitKey::SourceAddress])],
        ),
    ] {
        let limiters = Limiters::new(&limits);
        let headers = HeaderMap::new();
        let many = name.contains("10,000");
        line(name, &|n, now| {
            let host = if many { n % 10_000 } else { 1 };
            let facts = RequestFacts {
                identity: (!many).then_some(&identity),
                source: IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + host)),
                method: &Method::GET,
                path: "/catalog/items/17",
                headers: &headers,
            };
            black_box(limiters.check(&facts, now));
        });
    }
    Ok(())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Nanoseconds of one decision of a thread.
fn measure(threads: usize, decide: Decide<'_>) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let round = || {
            let started = Instant::now();
            for n in 0..DECISIONS {
                // The clock is read once for a request, whatever is decided with it.
                decide(n, black_box(started));
            }
            started.elapsed().as_nanos() as f64 / f64::from(DECISIONS)
        };
        let slowest = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(round)).collect();
            let own = round();
            others
                .into_iter()
                .filter_map(|other| other.join().ok())
                .fold(own, f64::max)
        });
        best = best.min(slowest);
    }
    best
}

fn breaker(failure_ratio: Option<f64>) -> CircuitBreaker {
    CircuitBreaker {
        failure_threshold: 5,
        failure_ratio,
        window: Duration::from_secs(10),
        min_volume: 10,
        recovery_timeout: Duration::from_secs(10),
        max_recovery_timeout: Duration::from_secs(300),
        success_threshold: 1,
        max_ejection_percent: 50,
    }
}

fn retries() -> RetryPolicy {
    RetryPolicy {
        attempts: 2,
        conditions: RetryConditions {
            connect_failure: true,
            reset: true,
            refused_stream: true,
            attempt_timeout: false,
            status_codes: vec![(502, 504)],
            grpc_codes: vec![14],
        },
        non_idempotent: false,
        backoff: Backoff::default(),
        attempt_timeout: None,
    }
}

fn limit(name: &str, key: Vec<RateLimitKey>) -> Arc<RateLimit> {
    Arc::new(RateLimit {
        name: name.into(),
        requests: 1_000_000,
        per: Duration::from_secs(1),
        burst: 1_000_000_000,
        key,
        methods: vec![],
        path_prefix: None,
        max_keys: 5_000,
        shadow: false,
    })
}
