//! TrafficPolicy: what is refused and with which words, what is odd, and what a policy comes to.

use std::{sync::Arc, time::Duration};

use super::messages::{check_owned, errors, warnings};
use crate::{
    api::{TrafficPolicySpec, parse_bytes},
    model::{self, HashKey, HealthProbe, Prefer, Strategy},
};

fn policy(name: &str, target: &str, spec: &str) -> String {
    format!(
        "apiVersion: mesh.covet.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: [{target}]\n{spec}"
    )
}

/// For Service s, which is there.
fn traffic(spec: &str) -> String {
    policy("t", "{kind: Service, name: s}", spec)
}

fn spec(text: &str) -> TrafficPolicySpec {
    match parse_bytes("f", traffic(text).as_bytes()) {
        Ok((config, _)) => config.traffic_policies[0].spec.clone(),
        Err(errors) => panic!("{errors:#?}\nof:\n{text}"),
    }
}

#[test]
fn values_of_the_wrong_kind() {
    check_owned(&[
        (
            traffic(
                "  loadBalancer: {strategy: fastest, slowStart: soon, panicThreshold: 101, locality: {threshold: 0}}\n  limits: {maxConnections: 0, maxPendingRequests: 0}\n  retry: {}\n",
            ),
            &[
                "f:6:28: spec.loadBalancer.strategy: expected one of round_robin, weighted_round_robin, least_connections, random, consistent_hash, peak_ewma, got \"fastest\"",
                "f:6:48: spec.loadBalancer.slowStart: expected a duration such as 500ms, 10s or 1m30s, got \"soon\"",
                "f:6:70: spec.loadBalancer.panicThreshold: expected 0..=100, got 101",
                "f:6:75: spec.loadBalancer.locality.prefer: required field is missing",
                "f:6:97: spec.loadBalancer.locality.threshold: expected 1..=100, got 0",
                "f:7:28: spec.limits.maxConnections: expected 1..=4294967295, got 0",
                "f:7:51: spec.limits.maxPendingRequests: expected 1..=1000000, got 0",
                "f:8:3: spec.retry: write retries",
            ],
        ),
        (
            traffic(
                "  loadBalancer:\n    strategy: consistent_hash\n    consistentHash: {header: a b, cookie: {name: a=b, path: x}, queryParameter: \"\"}\n",
            ),
            &[
                "f:8:30: spec.loadBalancer.consistentHash.header: expected the name of a header, got \"a b\"",
                "f:8:50: spec.loadBalancer.consistentHash.cookie.name: expected the name of a cookie: letters, digits, '-', '_' and '.', got \"a=b\"",
                "f:8:61: spec.loadBalancer.consistentHash.cookie.path: expected a path that begins with '/', without spaces and ';', got \"x\"",
                "f:8:81: spec.loadBalancer.consistentHash.queryParameter: expected the name of a query parameter, without '&', '=' and '#', got \"\"",
            ],
        ),
        (
            traffic(
                "  retries: {attempts: 11, on: [5xx], codes: [600, 504-502, 2xx], grpcCodes: [0, unavailable], budget: {percent: 101}}\n",
            ),
            &[
                "f:6:23: spec.retries.attempts: expected 0..=10, got 11",
                "f:6:32: spec.retries.on[0]: expected one of connect-failure, reset, refused-stream, attempt-timeout, got \"5xx\"",
                "f:6:46: spec.retries.codes[0]: expected 100..=599, got 600",
                "f:6:51: spec.retries.codes[1]: expected a range whose first status is not above its last, got \"504-502\"",
                "f:6:60: spec.retries.codes[2]: expected a status, 100..=599, or a range such as 502-504, got \"2xx\"",
                "f:6:78: spec.retries.grpcCodes[0]: expected 1..=16, got 0",
                "f:6:81: spec.retries.grpcCodes[1]: expected a status of gRPC but OK, by number (14) or by its name in capital letters (UNAVAILABLE), got \"unavailable\"",
                "f:6:113: spec.retries.budget.percent: expected a number, 0..=100, got 101",
            ],
        ),
        (
            traffic(
                "  rateLimits:\n  - {requests: 0, methods: [get], pathPrefix: x, key: {header: a}}\n  - {name: UP, requests: 1, methods: []}\n",
            ),
            &[
                "f:7:5: spec.rateLimits[0].name: required field is missing",
                "f:7:16: spec.rateLimits[0].requests: expected 1..=1000000, got 0",
                "f:7:29: spec.rateLimits[0].methods[0]: expected a method in capital letters, such as GET, got \"get\"",
                "f:7:47: spec.rateLimits[0].pathPrefix: expected a path that begins with '/', without '?' and '#', got \"x\"",
                "f:7:56: spec.rateLimits[0].key.header: unknown field, did you mean headers? expected one of clientIdentity, headers, path, sourceAddress",
                "f:8:12: spec.rateLimits[1].name: expected at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit, got \"UP\"",
                "f:8:38: spec.rateLimits[1].methods: expected 1 to 16 entries, got 0",
            ],
        ),
        (
            traffic(
                "  healthCheck: {tcp: {port: 80}, http: {path: x, host: \"a b\", expected: [99]}, grpc: {service: \"a b\"}, port: 0}\n",
            ),
            &[
                "f:6:23: spec.healthCheck.tcp.port: unknown field, expected none",
                "f:6:47: spec.healthCheck.http.path: expected a path that begins with '/', with a query if need be, got \"x\"",
                "f:6:56: spec.healthCheck.http.host: expected a host, with a port if need be, got \"a b\"",
                "f:6:74: spec.healthCheck.http.expected[0]: expected 100..=599, got 99",
                "f:6:96: spec.healthCheck.grpc.service: expected a service such as shop.v1.Cart, got \"a b\"",
                "f:6:110: spec.healthCheck.port: expected 1..=65535, got 0",
            ],
        ),
    ]);
}

#[test]
fn fields_that_contradict_each_other() {
    check_owned(&[
        (
            traffic(
                "  circuitBreaker: {window: 10s, minVolume: 3, recoveryTimeout: 20s, maxRecoveryTimeout: 10s}\n  timeouts: {connect: 0s}\n",
            ),
            &[
                "f:6:28: spec.circuitBreaker.window: window means nothing without failureRatio",
                "f:6:44: spec.circuitBreaker.minVolume: minVolume means nothing without failureRatio",
                "f:6:89: spec.circuitBreaker.maxRecoveryTimeout: expected at least recoveryTimeout, 20s, got 10s",
                "f:7:23: spec.timeouts.connect: expected more than 0s, got 0s",
            ],
        ),
        (
            traffic("  circuitBreaker: {failureRatio: 50, maxEjectionPercent: 0}\n"),
            &[
                "f:6:34: spec.circuitBreaker.failureRatio: expected a number, 0.001..=1, got 50",
                "f:6:58: spec.circuitBreaker.maxEjectionPercent: expected 1..=100, got 0",
            ],
        ),
        (
            traffic("  loadBalancer: {consistentHash: {header: a, sourceAddress: false}}\n"),
            &[
                "f:6:18: spec.loadBalancer.consistentHash: a key means nothing without strategy consistent_hash",
                "f:6:18: spec.loadBalancer.consistentHash: expected exactly one of header, cookie, queryParameter, sourceAddress, got header, sourceAddress",
                "f:6:61: spec.loadBalancer.consistentHash.sourceAddress: expected true, or leave it out, got false",
            ],
        ),
        (
            traffic("  loadBalancer: {strategy: consistent_hash, consistentHash: {}}\n"),
            &[
                "f:6:45: spec.loadBalancer.consistentHash: expected exactly one of header, cookie, queryParameter, sourceAddress, got none",
            ],
        ),
        (
            traffic("  limits: {maxPendingRequests: 5}\n"),
            &[
                "f:6:32: spec.limits.maxPendingRequests: nothing waits without a limit of connections or requests",
            ],
        ),
        (
            traffic(
                "  limits: {maxRequests: 5, pendingTimeout: 0s}\n  connectionPool: {idleTimeout: 0s}\n",
            ),
            &[
                "f:6:44: spec.limits.pendingTimeout: pendingTimeout means nothing without maxPendingRequests",
                "f:6:44: spec.limits.pendingTimeout: expected more than 0s, got 0s",
                "f:7:33: spec.connectionPool.idleTimeout: expected more than 0s, got 0s",
            ],
        ),
        (
            traffic(
                "  retries: {codes: [200-599], attemptTimeout: 1s, backoff: {base: 1s, max: 500ms}, budget: {window: 500ms}}\n  timeouts: {attempt: 1s}\n",
            ),
            &[
                "f:6:21: spec.retries.codes[0]: expected statuses of failure, 400..=599, got 200-599",
                "f:6:47: spec.retries.attemptTimeout: the same as timeouts.attempt, which is given too",
                "f:6:76: spec.retries.backoff.max: expected at least base, 1s, got 500ms",
                "f:6:101: spec.retries.budget.window: expected 1s to 60s, got 500ms",
            ],
        ),
        (
            traffic(
                "  rateLimits:\n  - {name: a, requests: 1, per: 50ms, maxKeys: 5}\n  - {name: a, requests: 1, key: {}}\n  - {name: b, requests: 1, key: {path: false}}\n",
            ),
            &[
                "f:7:33: spec.rateLimits[0].per: expected 100ms to 24h, got 50ms",
                "f:7:48: spec.rateLimits[0].maxKeys: maxKeys means nothing without key",
                "f:8:12: spec.rateLimits[1].name: name \"a\" is given twice",
                "f:8:28: spec.rateLimits[1].key: expected at least one of clientIdentity, sourceAddress, headers, path, got none",
                "f:9:40: spec.rateLimits[2].key.path: expected true, or leave it out, got false",
            ],
        ),
        (
            traffic("  healthCheck: {interval: 1s, timeout: 2s}\n"),
            &[
                "f:6:3: spec.healthCheck: expected exactly one of tcp, http, grpc, got none",
                "f:6:40: spec.healthCheck.timeout: expected at most interval, 1s, got 2s",
            ],
        ),
        (
            traffic("  healthCheck: {tcp: {}, grpc: {}}\n"),
            &["f:6:3: spec.healthCheck: expected exactly one of tcp, http, grpc, got tcp, grpc"],
        ),
    ]);
}

#[test]
fn names_of_other_meshes_and_versions() {
    check_owned(&[(
        traffic(
            "  outlierDetection: {}\n  tls: {}\n  rateLimit: {}\n  timeouts: {backendRequest: 1s}\n  retries: {perTryTimeout: 1s}\n",
        ),
        &[
            "f:6:3: spec.outlierDetection: write circuitBreaker",
            "f:7:3: spec.tls: not supported: mTLS between workloads is of the mesh, see MeshPolicy spec.mtls",
            "f:8:3: spec.rateLimit: write rateLimits, a list",
            "f:9:14: spec.timeouts.backendRequest: write timeouts.attempt",
            "f:10:13: spec.retries.perTryTimeout: write timeouts.attempt",
        ],
    )]);
}

#[test]
fn targets() {
    let service = "{kind: Service, name: s}";
    check_owned(&[
        (
            format!(
                "{}---\n{}",
                policy("t", service, ""),
                policy("u", service, "")
            ),
            &[
                "f:11:38: spec.targetRefs[0].name: Service default/s already has TrafficPolicy default/t (f:5)",
            ],
        ),
        (
            format!(
                "{}---\n{}",
                policy("t", "{kind: HTTPRoute, name: s}", ""),
                policy(
                    "u",
                    "{kind: Service, name: s}, {kind: GRPCRoute, name: s}, {kind: HTTPRoute, name: s}",
                    ""
                )
            ),
            &[
                "f:11:94: spec.targetRefs[2].name: HTTPRoute default/s already has TrafficPolicy default/t (f:5)",
            ],
        ),
        (
            policy("t", "{kind: Deployment, name: s, namespace: x}", ""),
            &[
                "f:5:23: spec.targetRefs[0].kind: expected one of Service, HTTPRoute, GRPCRoute, got \"Deployment\"",
                "f:5:44: spec.targetRefs[0].namespace: not supported: a TrafficPolicy applies to Services and routes of its own namespace",
            ],
        ),
        (
            policy(
                "t",
                "{kind: HTTPRoute, name: s, group: \"\"}, {kind: Service, name: s, group: gateway.networking.k8s.io}, {kind: HTTPRoute, name: s}",
                "",
            ),
            &[
                "f:5:50: spec.targetRefs[0].group: expected \"gateway.networking.k8s.io\" for HTTPRoute, got \"\"",
                "f:5:87: spec.targetRefs[1].group: expected \"\" for Service, got \"gateway.networking.k8s.io\"",
                "f:5:139: spec.targetRefs[2].name: HTTPRoute s is given twice",
            ],
        ),
    ]);
}

#[test]
fn a_route_takes_only_what_is_of_requests() {
    let route = "{kind: GRPCRoute, group: gateway.networking.k8s.io, name: r}";
    let message = "of a Service, and the policy is for a GRPCRoute: only retries, timeouts and redistributeUnavailable can be set for a route";
    let text = policy(
        "t",
        route,
        "  loadBalancer: {}\n  limits: {maxRequests: 1}\n  connectionPool: {}\n  circuitBreaker: {}\n  rateLimits: [{name: a, requests: 1}]\n  healthCheck: {tcp: {}}\n  timeouts: {connect: 1s, request: 2s}\n  retries: {attempts: 1, budget: {percent: 5}}\n  redistributeUnavailable: true\n",
    );
    let places = [
        "6:3: spec.loadBalancer",
        "7:3: spec.limits",
        "8:3: spec.connectionPool",
        "9:3: spec.circuitBreaker",
        "10:3: spec.rateLimits",
        "11:3: spec.healthCheck",
        "12:23: spec.timeouts.connect",
        "13:26: spec.retries.budget",
    ];
    let expected: Vec<String> = places.map(|p| format!("f:{p}: {message}")).into();
    assert_eq!(errors(&text), expected);
}

#[test]
fn odd_but_legal() {
    assert_eq!(
        warnings(&traffic(
            "  limits: {maxConnections: 3, maxConnectionsPerEndpoint: 4, maxRequests: 1, maxRequestsPerEndpoint: 2}\n  timeouts: {request: 1s, attempt: 2s}\n  retries: {attempts: 0, codes: [503]}\n"
        )),
        [
            "f:5:38: spec.targetRefs[0].name: there is no Service default/s: the policy does nothing for it",
            "f:6:58: spec.limits.maxConnectionsPerEndpoint: 4 can never be reached, since maxConnections is 3",
            "f:6:101: spec.limits.maxRequestsPerEndpoint: 2 can never be reached, since maxRequests is 1",
            "f:7:36: spec.timeouts.attempt: 2s can never be reached, since request is 1s",
            "f:8:23: spec.retries.attempts: with attempts 0 nothing is repeated, and the other fields mean nothing",
        ]
    );
    let route = policy(
        "t",
        "{kind: HTTPRoute, name: r}",
        "  timeouts: {request: 0s}\n",
    );
    assert_eq!(
        warnings(&route),
        [
            "f:5:40: spec.targetRefs[0].name: there is no HTTPRoute default/r: the policy does nothing for it"
        ]
    );
}

#[test]
fn an_empty_policy_is_the_default() {
    assert_eq!(spec("").effective(), model::TrafficPolicy::default());
    let empty = "  loadBalancer: {}\n  limits: {}\n  connectionPool: {}\n  timeouts: {}\n";
    assert_eq!(spec(empty).effective(), model::TrafficPolicy::default());
}

#[test]
fn every_field_arrives() {
    let text = r#"
  loadBalancer:
    strategy: consistent_hash
    slowStart: 30s
    consistentHash: {cookie: {name: s, path: /a, ttl: 1h}}
    locality: {prefer: zone, threshold: 60}
    panicThreshold: 0
  limits: {maxConnections: 1, maxConnectionsPerEndpoint: 1, maxRequests: 2, maxRequestsPerEndpoint: 2, maxPendingRequests: 3}
  connectionPool: {idleTimeout: 1s, maxRequestsPerConnection: 2, maxIdlePerEndpoint: 0, maxConcurrentStreams: 4, maxConnectionAge: 5s}
  retries:
    attempts: 3
    on: [attempt-timeout]
    codes: [500, 502-504, "429"]
    grpcCodes: [ABORTED, 14]
    nonIdempotent: true
    backoff: {base: 1s}
    attemptTimeout: 2s
    budget: {percent: 12.5, window: 20s, minPerSecond: 0}
  timeouts: {connect: 1s, request: 2s, idle: 3s, maxStream: 0s}
  rateLimits:
  - {name: a, requests: 10, per: 1m, burst: 0, key: {clientIdentity: true, sourceAddress: true, path: true, headers: [X-Tenant]}, methods: [GET], pathPrefix: /api, maxKeys: 5, shadow: true}
  - {name: b, requests: 7}
  healthCheck: {http: {path: "/ok?a=b", host: "x:80", expected: [200, 300-399]}, interval: 5s, timeout: 1s, healthyThreshold: 4, unhealthyThreshold: 5, port: 81}
  redistributeUnavailable: true
"#;
    let got = spec(text).effective();
    let secs = Duration::from_secs;
    let expected = model::TrafficPolicy {
        load_balancer: model::LoadBalancer {
            strategy: Strategy::ConsistentHash,
            slow_start: Some(secs(30)),
            hash: HashKey::Cookie {
                name: "s".into(),
                path: Some("/a".into()),
                ttl: Some(secs(3600)),
            },
            locality: model::Locality {
                prefer: Prefer::Zone,
                threshold: 60,
            },
            panic_threshold: 0,
        },
        limits: model::Limits {
            max_connections: Some(1),
            max_connections_per_endpoint: Some(1),
            max_requests: Some(2),
            max_requests_per_endpoint: Some(2),
            max_pending_requests: Some(3),
            pending_timeout: Some(secs(1)),
        },
        pool: model::ConnectionPool {
            idle_timeout: secs(1),
            max_requests_per_connection: Some(2),
            max_idle_per_endpoint: 0,
            max_concurrent_streams: 4,
            max_connection_age: Some(secs(5)),
        },
        breaker: None,
        connect_timeout: Some(secs(1)),
        timeouts: model::Timeouts {
            request: Some(secs(2)),
            attempt: None,
            idle: Some(secs(3)),
            max_stream: None,
        },
        retry: Some(model::RetryPolicy {
            attempts: 3,
            conditions: model::RetryConditions {
                attempt_timeout: true,
                status_codes: vec![(500, 500), (502, 504), (429, 429)],
                grpc_codes: vec![10, 14],
                ..model::RetryConditions::default()
            },
            non_idempotent: true,
            backoff: model::Backoff {
                base: secs(1),
                max: secs(10),
            },
            attempt_timeout: Some(secs(2)),
        }),
        retry_budget: model::RetryBudget {
            percent: 12.5,
            window: secs(20),
            min_per_second: 0,
        },
        rate_limits: vec![
            Arc::new(model::RateLimit {
                name: "a".into(),
                requests: 10,
                per: secs(60),
                burst: 0,
                key: vec![
                    model::RateLimitKey::ClientIdentity,
                    model::RateLimitKey::SourceAddress,
                    model::RateLimitKey::Path,
                    model::RateLimitKey::Header(http::HeaderName::from_static("x-tenant")),
                ],
                methods: vec!["GET".into()],
                path_prefix: Some("/api".into()),
                max_keys: 5,
                shadow: true,
            }),
            Arc::new(model::RateLimit {
                name: "b".into(),
                requests: 7,
                per: secs(1),
                burst: 7,
                key: Vec::new(),
                methods: Vec::new(),
                path_prefix: None,
                max_keys: 10_000,
                shadow: false,
            }),
        ],
        health_check: Some(model::HealthCheck {
            probe: HealthProbe::Http {
                path: "/ok?a=b".into(),
                host: Some("x:80".into()),
                expected: vec![(200, 200), (300, 399)],
            },
            interval: secs(5),
            timeout: secs(1),
            healthy_threshold: 4,
            unhealthy_threshold: 5,
            port: Some(81),
        }),
        redistribute_unavailable: true,
    };
    assert_eq!(got, expected);
}

#[test]
fn defaults_of_what_is_asked_for() {
    let retry = spec("  retries: {}\n").effective().retry.unwrap();
    let expected = model::RetryPolicy {
        attempts: 2,
        conditions: model::RetryConditions {
            connect_failure: true,
            reset: true,
            refused_stream: true,
            attempt_timeout: false,
            status_codes: vec![(502, 504)],
            grpc_codes: vec![14],
        },
        non_idempotent: false,
        backoff: model::Backoff::default(),
        attempt_timeout: None,
    };
    assert_eq!(retry, expected);
    // A budget alone asks for no retries.
    let budget = spec("  retries: {budget: {percent: 5}}\n").effective();
    assert_eq!(budget.retry, None);
    assert_eq!(budget.retry_budget.percent, 5.0);

    let probe = |text: &str| spec(text).effective().health_check.unwrap();
    let check = probe("  healthCheck: {http: {}, interval: 1s}\n");
    assert_eq!(
        check.probe,
        HealthProbe::Http {
            path: "/".into(),
            host: None,
            expected: vec![(200, 299)]
        }
    );
    assert_eq!(check.timeout, Duration::from_secs(1));
    assert_eq!((check.healthy_threshold, check.unhealthy_threshold), (2, 3));
    let check = probe("  healthCheck: {grpc: {}}\n");
    assert_eq!(check.probe, HealthProbe::Grpc { service: "".into() });
    assert_eq!(check.interval, Duration::from_secs(10));
    assert_eq!(check.timeout, Duration::from_secs(2));
    assert_eq!(probe("  healthCheck: {tcp: {}}\n").probe, HealthProbe::Tcp);
}

#[test]
fn a_route_policy_tells_none_from_absent() {
    let timeouts = spec("  timeouts: {request: 0s, idle: 1s}\n").route_timeouts();
    let expected = model::Timeouts {
        request: Some(Duration::ZERO),
        idle: Some(Duration::from_secs(1)),
        ..model::Timeouts::default()
    };
    assert_eq!(timeouts, expected);
}
