//! Tests of the decision, sentence by sentence of the retry rules.

use proptest::prelude::*;

use super::*;
use crate::model::RetryConditions;

const MS: Duration = Duration::from_millis(1);

/// Everything is listed.
fn policy(attempts: u32) -> RetryPolicy {
    RetryPolicy {
        attempts,
        conditions: RetryConditions {
            connect_failure: true,
            reset: true,
            refused_stream: true,
            attempt_timeout: true,
            status_codes: vec![(502, 504), (429, 429)],
            grpc_codes: vec![14],
        },
        non_idempotent: false,
        backoff: Backoff {
            base: 10 * MS,
            max: 100 * MS,
        },
        attempt_timeout: None,
    }
}

fn about() -> Circumstances {
    Circumstances {
        can_replay: true,
        another: false,
        left: None,
        now: Instant::now(),
        random: 0.0,
    }
}

fn status(code: u16) -> Outcome {
    answered(code, None, None)
}

fn answered(code: u16, grpc: Option<u32>, pushback: Option<Pushback>) -> Outcome {
    Outcome::Answered {
        status: StatusCode::from_u16(code).unwrap(),
        grpc,
        pushback,
    }
}

const RESET: Outcome = Outcome::Broken {
    idle: false,
    nothing_sent: false,
};
const UNSENT: Outcome = Outcome::Broken {
    idle: true,
    nothing_sent: true,
};
const STALE: Outcome = Outcome::Broken {
    idle: true,
    nothing_sent: false,
};

/// The decisions about outcomes one after the other, with all the budget that is wanted.
fn run(
    policy: Option<&RetryPolicy>,
    method: &Method,
    about: Circumstances,
    outcomes: &[Outcome],
) -> Vec<Next> {
    let budget = Budget::default();
    let plenty = RetryBudget {
        min_per_second: u32::MAX,
        ..RetryBudget::default()
    };
    let mut retries = Retries::new(policy, method);
    outcomes
        .iter()
        .map(|outcome| retries.next(outcome, &about, &budget, &plenty))
        .collect()
}

fn first(policy: Option<&RetryPolicy>, method: &Method, outcome: Outcome) -> Next {
    run(policy, method, about(), &[outcome])[0]
}

const RETRY: Next = Next::After(Duration::from_millis(10));

#[test]
fn each_condition_by_itself_and_by_method() {
    // What is listed; what happens; whether GET and POST are repeated. The last of a row: without a policy.
    let none = RetryConditions::default;
    let unsent = Outcome::Broken {
        idle: false,
        nothing_sent: true,
    };
    for (listed, outcome, get, post) in [
        (
            RetryConditions {
                connect_failure: true,
                ..none()
            },
            Outcome::NotConnected,
            true,
            true,
        ),
        (
            RetryConditions {
                reset: true,
                ..none()
            },
            RESET,
            true,
            false,
        ),
        (
            RetryConditions {
                reset: true,
                ..none()
            },
            unsent,
            true,
            true,
        ),
        (
            RetryConditions {
                refused_stream: true,
                ..none()
            },
            Outcome::StreamRefused,
            true,
            true,
        ),
        (
            RetryConditions {
                attempt_timeout: true,
                ..none()
            },
            Outcome::TimedOut,
            true,
            false,
        ),
        (
            RetryConditions {
                status_codes: vec![(500, 503)],
                ..none()
            },
            status(503),
            true,
            false,
        ),
        (
            RetryConditions {
                grpc_codes: vec![14],
                ..none()
            },
            answered(200, Some(14), None),
            true,
            true,
        ),
    ] {
        let decide = |conditions: &RetryConditions, method: &Method| {
            let policy = RetryPolicy {
                conditions: conditions.clone(),
                ..policy(3)
            };
            // The second time, for the first may be the one on a fresh connection.
            *run(
                Some(&policy),
                method,
                about(),
                &[Outcome::StreamRefused, outcome],
            )
            .last()
            .unwrap()
        };
        let expected = |yes: bool| if yes { RETRY } else { Next::Pass };
        let name = format!("{outcome:?}");
        let got = decide(&listed, &Method::GET);
        assert!(matches!(got, Next::After(_)) == get, "GET {name}: {got:?}");
        let got = decide(&listed, &Method::POST);
        assert!(
            matches!(got, Next::After(_)) == post,
            "POST {name}: {got:?}"
        );
        assert_eq!(decide(&none(), &Method::GET), expected(false), "{name}");
    }
    let policy = policy(3);
    assert_eq!(first(Some(&policy), &Method::GET, status(500)), Next::Pass);
    assert_eq!(first(Some(&policy), &Method::GET, status(429)), RETRY);
    assert_eq!(
        first(Some(&policy), &Method::GET, Outcome::Final),
        Next::Pass
    );
    let other = answered(200, Some(13), None);
    assert_eq!(first(Some(&policy), &Method::POST, other), Next::Pass);
}

#[test]
fn idempotent_methods_by_default() {
    let policy = policy(1);
    for (method, expected) in [
        ("GET", RETRY),
        ("HEAD", RETRY),
        ("OPTIONS", RETRY),
        ("TRACE", RETRY),
        ("PUT", RETRY),
        ("DELETE", RETRY),
        ("POST", Next::Pass),
        ("PATCH", Next::Pass),
        ("CONNECT", Next::Pass),
        ("PURGE", Next::Pass),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(
            first(Some(&policy), &method, status(503)),
            expected,
            "{method}"
        );
    }
    let all = RetryPolicy {
        non_idempotent: true,
        ..policy
    };
    assert_eq!(first(Some(&all), &Method::POST, status(503)), RETRY);
    assert_eq!(first(Some(&all), &Method::POST, RESET), RETRY);
}

#[test]
fn without_a_policy_only_what_no_server_began() {
    for method in [Method::GET, Method::POST] {
        for outcome in [
            RESET,
            Outcome::TimedOut,
            status(503),
            answered(200, Some(14), None),
        ] {
            assert_eq!(first(None, &method, outcome), Next::Pass, "{outcome:?}");
        }
        // No other endpoint is left.
        assert_eq!(first(None, &method, Outcome::NotConnected), Next::Pass);
        for outcome in [UNSENT, Outcome::StreamRefused] {
            let twice = run(None, &method, about(), &[outcome; 2]);
            assert_eq!(twice, [Next::FreshConnection, Next::Pass], "{outcome:?}");
        }
    }
    assert_eq!(first(None, &Method::GET, STALE), Next::FreshConnection);
}

/// The server may have read it before it closed the connection.
#[test]
fn a_post_that_met_a_stale_connection_is_not_sent_again() {
    assert_eq!(first(None, &Method::POST, STALE), Next::Pass);
    assert_eq!(first(Some(&policy(3)), &Method::POST, STALE), Next::Pass);
    let meant = RetryPolicy {
        non_idempotent: true,
        ..policy(3)
    };
    let next = first(Some(&meant), &Method::POST, STALE);
    assert_eq!(next, Next::FreshConnection);
}

#[test]
fn the_search_for_an_endpoint_is_no_retry() {
    let another = Circumstances {
        another: true,
        ..about()
    };
    let empty = RetryBudget {
        percent: 0.0,
        min_per_second: 0,
        ..RetryBudget::default()
    };
    let one = policy(1);
    for policy in [None, Some(&one)] {
        let mut retries = Retries::new(policy, &Method::POST);
        for _ in 0..10 {
            let next = retries.next(&Outcome::NotConnected, &another, &Budget::default(), &empty);
            assert_eq!(next, Next::NextEndpoint);
        }
        assert_eq!(retries.made(), 0);
    }
}

#[test]
fn a_stale_connection_costs_neither_count_nor_budget() {
    let policy = policy(1);
    let outcomes = [STALE, STALE, STALE];
    assert_eq!(
        run(Some(&policy), &Method::GET, about(), &outcomes),
        [Next::FreshConnection, RETRY, Next::Exhausted]
    );
    let empty = RetryBudget {
        percent: 0.0,
        min_per_second: 0,
        ..RetryBudget::default()
    };
    let mut retries = Retries::new(Some(&policy), &Method::POST);
    let next = retries.next(&UNSENT, &about(), &Budget::default(), &empty);
    assert_eq!(next, Next::FreshConnection);
}

#[test]
fn attempts_counts_retries() {
    let three = policy(3);
    assert_eq!(
        run(Some(&three), &Method::GET, about(), &[status(503); 5]),
        [RETRY, RETRY, RETRY, Next::Exhausted, Next::Exhausted]
    );
    assert_eq!(
        first(Some(&policy(0)), &Method::GET, status(503)),
        Next::Pass
    );
}

#[test]
fn what_cannot_be_sent_again_is_not() {
    let gone = Circumstances {
        can_replay: false,
        another: true,
        ..about()
    };
    let policy = policy(3);
    for outcome in [STALE, RESET, Outcome::StreamRefused, status(503)] {
        let next = run(Some(&policy), &Method::GET, gone, &[outcome]);
        assert_eq!(next, [Next::Pass], "{outcome:?}");
    }
}

#[test]
fn the_budget_refuses() {
    let budget = Budget::default();
    let (policy, about) = (policy(100), about());
    let shared = RetryBudget::default();
    let mut retries = Retries::new(Some(&policy), &Method::GET);
    let decisions: Vec<Next> = (0..12)
        .map(|_| retries.next(&status(503), &about, &budget, &shared))
        .collect();
    assert!(decisions[..10].iter().all(|next| *next == RETRY));
    assert_eq!(decisions[10..], [Next::BudgetEmpty, Next::BudgetEmpty]);
    // The budget is the service's: another request finds it as empty.
    let mut other = Retries::new(Some(&policy), &Method::GET);
    let next = other.next(&status(503), &about, &budget, &shared);
    assert_eq!(next, Next::BudgetEmpty);
}

#[test]
fn backoff_doubles_with_full_jitter_above_the_least_wait() {
    let policy = policy(6);
    for (random, expected) in [
        (0.0, [10, 10, 10, 10, 10]),
        (0.5, [15, 25, 45, 55, 55]),
        (1.0, [20, 40, 80, 100, 100]),
    ] {
        let about = Circumstances { random, ..about() };
        let waits = run(Some(&policy), &Method::GET, about, &[status(503); 5]);
        assert_eq!(waits, expected.map(|ms| Next::After(ms * MS)), "{random}");
    }
    let odd = RetryPolicy {
        backoff: Backoff {
            base: 50 * MS,
            max: 20 * MS,
        },
        ..policy
    };
    let next = first(Some(&odd), &Method::GET, status(503));
    assert_eq!(next, Next::After(50 * MS), "the least wait wins");
}

#[test]
fn the_server_says_when() {
    let policy = policy(3);
    let second = Duration::from_secs(1);
    for (pushback, left, expected) in [
        (Pushback::Least(second), None, Next::After(second)),
        (Pushback::Least(Duration::ZERO), None, RETRY),
        (Pushback::Exactly(MS), None, Next::After(MS)),
        (
            Pushback::Exactly(second),
            Some(2 * second),
            Next::After(second),
        ),
        (Pushback::Never, None, Next::Pass),
        (Pushback::Least(11 * second), None, Next::Pass),
        (Pushback::Exactly(11 * second), None, Next::Pass),
        (Pushback::Least(2 * second), Some(second), Next::Pass),
        (Pushback::Exactly(second), Some(second), Next::Pass),
    ] {
        let outcome = answered(503, Some(14), Some(pushback));
        let about = Circumstances { left, ..about() };
        let next = run(Some(&policy), &Method::POST, about, &[outcome]);
        assert_eq!(next, [expected], "{pushback:?} {left:?}");
    }
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::NotConnected),
        Just(Outcome::StreamRefused),
        any::<(bool, bool)>()
            .prop_map(|(idle, nothing_sent)| Outcome::Broken { idle, nothing_sent }),
        Just(Outcome::TimedOut),
        Just(Outcome::Final),
        (
            400u16..600,
            proptest::option::of(0u32..17),
            0u8..4,
            0u64..20_000
        )
            .prop_map(|(code, grpc, kind, ms)| {
                let wait = Duration::from_millis(ms);
                let pushback = match kind {
                    0 => None,
                    1 => Some(Pushback::Never),
                    2 => Some(Pushback::Least(wait)),
                    _ => Some(Pushback::Exactly(wait)),
                };
                answered(code, grpc, pushback)
            }),
    ]
}

proptest! {
    /// Whatever happens: no more retries than attempts, one fresh connection, no wait that is too long, nothing that is
    /// not idempotent is repeated after it may have been processed, and what cannot be replayed never.
    #[test]
    fn invariants(
        attempts in 0u32..5,
        get in any::<bool>(),
        steps in prop::collection::vec((outcomes(), any::<(bool, bool)>(), 0.0f64..1.0), 1..30),
    ) {
        let policy = policy(attempts);
        let method = if get { Method::GET } else { Method::POST };
        let budget = Budget::default();
        let mut retries = Retries::new(Some(&policy), &method);
        let (mut made, mut fresh) = (0, 0);
        for (outcome, (can_replay, another), random) in steps {
            let about = Circumstances { can_replay, another, random, ..about() };
            let next = retries.next(&outcome, &about, &budget, &RetryBudget::default());
            match next {
                Next::After(wait) => {
                    made += 1;
                    prop_assert!(wait <= LONGEST_WAIT);
                    let processed = !matches!(
                        outcome,
                        Outcome::NotConnected
                            | Outcome::StreamRefused
                            | Outcome::Broken { nothing_sent: true, .. }
                            | Outcome::Answered { grpc: Some(_), .. }
                    );
                    prop_assert!(get || !processed, "{outcome:?}");
                }
                Next::FreshConnection => fresh += 1,
                Next::NextEndpoint => prop_assert_eq!(outcome, Outcome::NotConnected),
                Next::Pass | Next::Exhausted | Next::BudgetEmpty => {}
            }
            let goes_on = matches!(next, Next::After(_) | Next::FreshConnection | Next::NextEndpoint);
            prop_assert!(can_replay || !goes_on);
            prop_assert!(outcome != Outcome::Final || next == Next::Pass);
        }
        prop_assert!(made <= attempts && made == retries.made());
        prop_assert!(fresh <= 1);
    }
}
