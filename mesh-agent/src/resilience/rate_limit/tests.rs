//! Tests of rate limits: the algorithm against a naive bucket, several limits together, keys, header fields.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, Method};
use proptest::prelude::*;

use super::{
    gcra::{Answer, Rate},
    *,
};
use crate::model::{RateLimit, RateLimitKey, SpiffeId};

const SECOND: Duration = Duration::from_secs(1);

fn limit(name: &str, requests: u32, burst: u32, key: Vec<RateLimitKey>) -> RateLimit {
    RateLimit {
        name: name.into(),
        requests,
        per: SECOND,
        burst,
        key,
        methods: vec![],
        path_prefix: None,
        max_keys: 1_000,
        shadow: false,
    }
}

fn limiters(limits: impl IntoIterator<Item = RateLimit>) -> Limiters {
    let limits: Vec<_> = limits.into_iter().map(Arc::new).collect();
    Limiters::new(&limits)
}

/// A request, with everything that keys look at.
struct Client {
    identity: Option<SpiffeId>,
    source: IpAddr,
    method: Method,
    path: String,
    headers: HeaderMap,
}

impl Client {
    fn new(source: u8) -> Self {
        Self {
            identity: None,
            source: Ipv4Addr::new(10, 0, 0, source).into(),
            method: Method::GET,
            path: "/".into(),
            headers: HeaderMap::new(),
        }
    }

    fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            identity: self.identity.as_ref(),
            source: self.source,
            method: &self.method,
            path: &self.path,
            headers: &self.headers,
        }
    }

    fn identity(service_account: &str) -> Self {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{service_account}");
        Self {
            identity: Some(id.parse().unwrap()),
            ..Self::new(1)
        }
    }
}

fn allowed(limiters: &Limiters, client: &Client, now: Instant) -> bool {
    matches!(limiters.check(&client.facts(), now), Decision::Allowed(_))
}

/// How many of a hundred at once are allowed.
fn of_hundred(limiters: &Limiters, client: &Client, now: Instant) -> usize {
    (0..100).filter(|_| allowed(limiters, client, now)).count()
}

/// Of a limit, by name.
fn counts(limiters: &Limiters, name: &str) -> LimitCounts {
    let all = limiters.counts();
    all.iter().find(|(n, _)| &**n == name).unwrap().1
}

proptest! {
    /// A bucket as one would explain it, in exact fractions: tokens in units of 1/per, filled by `requests` of them each
    /// nanosecond, up to the burst.
    #[test]
    fn as_a_naive_bucket(
        requests in 1u32..5_000,
        per in prop_oneof![1u64..2_000, 1_000_000u64..10_000_000_000],
        burst in 0u32..50,
        gaps in prop::collection::vec(0u64..3_000_000_000, 1..200),
        scale in 0u32..24,
    ) {
        let rate = Rate::new(&RateLimit { per: Duration::from_nanos(per), ..limit("x", requests, burst, vec![]) });
        let token = u128::from(per);
        let size = u128::from(burst.max(1)) * token;
        let (mut tokens, mut full, mut now) = (size, 0, 7_000_000_000_000u64);
        for gap in gaps {
            let gap = gap >> scale;
            now += gap;
            tokens = (tokens + u128::from(gap) * u128::from(requests)).min(size);
            let fits = tokens >= token;
            match rate.ask(full, now) {
                Answer::Fits { full: next } => {
                    prop_assert!(fits);
                    tokens -= token;
                    full = next;
                }
                Answer::Refused { wait } => {
                    prop_assert!(!fits);
                    // Exact to the nanosecond: then it fits, and not before.
                    let wait = wait.as_nanos() as u64;
                    let later = matches!(rate.ask(full, now + wait), Answer::Fits { .. });
                    let earlier = matches!(rate.ask(full, now + wait - 1), Answer::Fits { .. });
                    prop_assert!(later && !earlier);
                }
            }
            prop_assert_eq!(u128::from(rate.remaining(full, now)), tokens / token);
            let missing = (size - tokens).div_ceil(u128::from(requests));
            prop_assert_eq!(rate.until_full(full, now).as_nanos(), missing);
        }
    }

    /// Several limits at once against as many naive ones: all are asked, then all are charged or none.
    #[test]
    fn all_or_none(
        rates in prop::collection::vec((1u32..8, 1u32..6, 0u8..3, any::<bool>()), 1..4),
        steps in prop::collection::vec((0u64..400, 0u8..3), 1..120),
    ) {
        let limits: Vec<RateLimit> = rates.iter().enumerate().map(|(i, (requests, burst, key, shadow))| {
            let key = [RateLimitKey::SourceAddress, RateLimitKey::Path][..usize::from(*key)].to_vec();
            RateLimit { shadow: *shadow, ..limit(&i.to_string(), *requests, *burst, key) }
        }).collect();
        let limiters = limiters(limits.clone());
        // Tokens times 1,000 by limit and client; a client has one path.
        let mut buckets = vec![[0u64; 3]; limits.len()];
        for (bucket, limit) in buckets.iter_mut().zip(&limits) {
            *bucket = [u64::from(limit.burst) * 1_000; 3];
        }
        let start = Instant::now();
        let mut at = 0;
        for (gap, who) in steps {
            at += gap;
            for (bucket, limit) in buckets.iter_mut().zip(&limits) {
                for tokens in bucket {
                    *tokens = (*tokens + gap * u64::from(limit.requests)).min(u64::from(limit.burst) * 1_000);
                }
            }
            let slot = |limit: &RateLimit| if limit.key.is_empty() { 0 } else { usize::from(who) };
            let fits: Vec<bool> = buckets.iter().zip(&limits).map(|(b, l)| b[slot(l)] >= 1_000).collect();
            let refused: Vec<usize> = (0..limits.len()).filter(|i| !fits[*i] && !limits[*i].shadow).collect();
            let decision = limiters.check(&Client::new(who).facts(), start + Duration::from_millis(at));
            match decision {
                Decision::Allowed(_) => prop_assert!(refused.is_empty()),
                Decision::Refused(refusal) => {
                    let specific = refused.iter().max_by_key(|i| (limits[**i].key.len(), std::cmp::Reverse(**i)));
                    let named: Option<usize> = refusal.quota.limit.name.parse().ok();
                    prop_assert_eq!(named.as_ref(), specific);
                }
            }
            if refused.is_empty() {
                for (i, bucket) in buckets.iter_mut().enumerate() {
                    if fits[i] {
                        bucket[slot(&limits[i])] -= 1_000;
                    }
                }
            }
        }
    }
}

#[test]
fn a_refusal_by_the_specific_limit_leaves_the_common_one() {
    let limiters = limiters([
        limit("all", 10, 10, vec![]),
        limit("each", 2, 2, vec![RateLimitKey::ClientIdentity]),
    ]);
    let now = Instant::now();
    let (greedy, modest) = (Client::identity("greedy"), Client::identity("modest"));
    assert_eq!(of_hundred(&limiters, &greedy, now), 2);
    let Decision::Refused(refusal) = limiters.check(&greedy.facts(), now) else {
        panic!("allowed");
    };
    assert_eq!(&*refusal.quota.limit.name, "each");
    assert_eq!(refusal.wait, SECOND / 2);
    assert_eq!(of_hundred(&limiters, &modest, now), 2);
    let of_each = counts(&limiters, "each");
    assert_eq!((of_each.allowed, of_each.refused), (4, 99 + 98));
    let of_all = counts(&limiters, "all");
    assert_eq!((of_all.allowed, of_all.refused), (4, 0));
}

#[test]
fn a_refusal_by_the_common_limit_leaves_the_specific_one() {
    let limiters = limiters([
        limit("all", 1, 1, vec![]),
        limit("each", 2, 2, vec![RateLimitKey::SourceAddress]),
    ]);
    let start = Instant::now();
    let client = Client::new(1);
    assert_eq!(of_hundred(&limiters, &client, start), 1);
    let Decision::Allowed(Some(quota)) = limiters.check(&client.facts(), start + SECOND) else {
        panic!("refused");
    };
    // 2 - 1 + 1 (a second's worth, to the burst) - 1: the hundred refused cost nothing.
    assert_eq!((&*quota.limit.name, quota.remaining), ("all", 0));
    assert_eq!(counts(&limiters, "each").allowed, 2);
    assert_eq!(counts(&limiters, "each").refused, 0);
}

#[test]
fn shadow_counts_and_refuses_nothing() {
    let limiters = limiters([RateLimit {
        shadow: true,
        ..limit("trial", 1, 3, vec![])
    }]);
    let client = Client::new(1);
    assert_eq!(of_hundred(&limiters, &client, Instant::now()), 100);
    let counted = LimitCounts {
        allowed: 3,
        refused: 0,
        shadow_refused: 97,
    };
    assert_eq!(counts(&limiters, "trial"), counted);
}

#[test]
fn keys_tell_clients_apart() {
    let name = HeaderName::from_static("x-user");
    let with_header = |value: Option<&'static str>| {
        let mut client = Client::new(1);
        if let Some(value) = value {
            client.headers.insert("x-user", value.parse().unwrap());
        }
        client
    };
    let with_path = |path: &str| Client {
        path: path.into(),
        ..Client::new(1)
    };
    let now = Instant::now();
    // The key, and clients of which the first two share a bucket and the third has another.
    for (key, [one, same, other]) in [
        (
            RateLimitKey::ClientIdentity,
            [
                Client::identity("a"),
                Client {
                    source: Ipv4Addr::new(10, 9, 9, 9).into(),
                    ..Client::identity("a")
                },
                Client::identity("b"),
            ],
        ),
        // Without an identity: the address.
        (
            RateLimitKey::ClientIdentity,
            [Client::new(1), Client::new(1), Client::new(2)],
        ),
        (
            RateLimitKey::ClientIdentity,
            [Client::new(1), Client::new(1), Client::identity("a")],
        ),
        (
            RateLimitKey::SourceAddress,
            [Client::new(1), Client::identity("a"), Client::new(2)],
        ),
        (
            RateLimitKey::Header(name.clone()),
            [
                with_header(Some("ann")),
                with_header(Some("ann")),
                with_header(Some("bob")),
            ],
        ),
        // Leaving the header out does not help: all without share a bucket.
        (
            RateLimitKey::Header(name),
            [with_header(None), Client::new(7), with_header(Some(""))],
        ),
        (
            RateLimitKey::Path,
            [with_path("/a"), with_path("/a"), with_path("/a/b")],
        ),
    ] {
        let limiters = limiters([limit("keyed", 1, 1, vec![key.clone()])]);
        assert!(allowed(&limiters, &one, now), "{key:?}");
        assert!(!allowed(&limiters, &same, now), "{key:?}");
        assert!(allowed(&limiters, &other, now), "{key:?}");
    }
}

#[test]
fn only_what_matches_is_charged() {
    let limiters = limiters([RateLimit {
        methods: vec!["POST".into()],
        path_prefix: Some("/v2/".into()),
        ..limit("some", 1, 1, vec![])
    }]);
    let now = Instant::now();
    let client = |method: Method, path: &str| Client {
        method,
        path: path.into(),
        ..Client::new(1)
    };
    assert!(allowed(&limiters, &client(Method::POST, "/v2"), now));
    for (method, path, expected) in [
        (Method::POST, "/v2", false),
        (Method::POST, "/v2/x", false),
        (Method::POST, "/v2example", true),
        (Method::POST, "/", true),
        (Method::GET, "/v2", true),
    ] {
        let got = allowed(&limiters, &client(method.clone(), path), now);
        assert_eq!(got, expected, "{method} {path}");
    }
    let Decision::Allowed(quota) = limiters.check(&client(Method::GET, "/").facts(), now) else {
        panic!("refused");
    };
    assert_eq!(quota, None, "no limit applies");
}

#[test]
fn the_rate_holds_over_time() {
    let limiters = limiters([limit("rate", 100, 5, vec![])]);
    let client = Client::new(1);
    let start = Instant::now();
    let passed = (0..10_000u64)
        .filter(|ms| allowed(&limiters, &client, start + Duration::from_millis(*ms)))
        .count();
    // Ten seconds' worth but for the last token, and the burst.
    assert_eq!(passed, 999 + 5);
}

#[test]
fn memory_for_keys_is_bounded_and_the_least_recent_goes() {
    let limiters = limiters([RateLimit {
        max_keys: 2,
        per: 1_000 * SECOND,
        ..limit("few", 1, 1, vec![RateLimitKey::SourceAddress])
    }]);
    let now = Instant::now();
    let ask = |source| allowed(&limiters, &Client::new(source), now);
    assert!(ask(1) && ask(2));
    assert!(!ask(1), "1 is the more recent now");
    assert!(ask(3), "takes the place of 2");
    assert!(!ask(1), "still there");
    assert!(ask(2), "was forgotten, so it is as new");
}

#[test]
fn an_update_keeps_what_is_unchanged() {
    let (first, second) = (
        Arc::new(limit("a", 1, 5, vec![])),
        Arc::new(limit("b", 1, 50, vec![RateLimitKey::Path])),
    );
    let limiters = Limiters::new(&[Arc::clone(&first), Arc::clone(&second)]);
    let (client, now) = (Client::new(1), Instant::now());
    assert_eq!(of_hundred(&limiters, &client, now), 5);
    // The same in another allocation and order; one in shadow mode.
    let shadow = RateLimit {
        shadow: true,
        ..(*second).clone()
    };
    limiters.update(&[Arc::new(shadow), Arc::new((*first).clone())]);
    assert_eq!(of_hundred(&limiters, &client, now), 0);
    assert_eq!(counts(&limiters, "a").allowed, 5);
    let larger = RateLimit {
        burst: 7,
        ..(*first).clone()
    };
    limiters.update(&[Arc::new(larger)]);
    assert_eq!(of_hundred(&limiters, &client, now), 7, "a new bucket");
    assert_eq!(counts(&limiters, "a").allowed, 12, "and the old counts");
    limiters.update(&[]);
    assert!(limiters.is_empty());
    assert_eq!(of_hundred(&limiters, &client, now), 100);
}

#[test]
fn header_fields() {
    let limiters = limiters([RateLimit {
        per: 60 * SECOND,
        ..limit("a \"b\"\u{e4}", 120, 120, vec![])
    }]);
    let (client, now) = (Client::new(1), Instant::now());
    for _ in 0..20 {
        limiters.check(&client.facts(), now);
    }
    let Decision::Allowed(Some(quota)) = limiters.check(&client.facts(), now) else {
        panic!("refused");
    };
    assert_eq!(quota.policy_field(), r#""a \"b\"";q=120;w=60"#);
    // 21 tokens are missing, two come in a second.
    assert_eq!(quota.field(), r#""a \"b\"";r=99;t=11"#);
    assert_eq!(of_hundred(&limiters, &client, now), 99);
    let Decision::Refused(refusal) = limiters.check(&client.facts(), now) else {
        panic!("allowed");
    };
    assert_eq!(refusal.quota.field(), r#""a \"b\"";r=0;t=60"#);
    assert_eq!(refusal.wait, SECOND / 2);
    let odd = Quota {
        limit: Arc::new(RateLimit {
            per: SECOND / 2,
            ..limit("x", 5, 5, vec![])
        }),
        ..quota
    };
    assert_eq!(odd.policy_field(), r#""x";q=5"#);
}

/// Many threads at once: the bucket is exact.
#[test]
fn exact_under_threads() {
    let limiters = limiters([
        limit("all", 1, 500, vec![]),
        limit("each", 1, 300, vec![RateLimitKey::SourceAddress]),
    ]);
    let now = Instant::now();
    let passed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let limiters = &limiters;
                scope.spawn(move || {
                    let client = Client::new(thread % 2);
                    (0..1_000)
                        .filter(|_| allowed(limiters, &client, now))
                        .count()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(passed, 500);
}
