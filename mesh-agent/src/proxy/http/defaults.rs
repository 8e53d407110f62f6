//! docs/reference/defaults.md says what the code does: every number of its tables is compared with the code's own.

use std::{fs, path::Path, sync::Arc, time::Duration};

use super::{
    body::{CLIENT_SILENCE, CONTINUE_WAIT},
    headers::{MAX_HEADER_BYTES, MAX_HEADERS, MAX_URI},
    outbound::REPLAY,
    pool::RESTED,
    reply,
    server::ServerSettings,
};
use crate::{
    api::parse_bytes,
    balance,
    catalog::Catalog,
    health,
    model::{ConnectionPool, LoadBalancer, Locality, TrafficPolicy},
    proxy::{ProxyOptions, limits::FREE_FACTOR},
    resilience::ServiceState,
    telemetry::Reason,
};

/// Every resource that a policy can have, with nothing said in it.
const POLICY: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  circuitBreaker: {}
  retries: {}
  rateLimits: [{name: all, requests: 7}]
  healthCheck: {tcp: {}}
";

/// A number with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Plain(f64),
    Percent(f64),
    Bytes(f64),
    Time(Duration),
}
use Number::{Bytes, Percent, Plain, Time};

fn plain(n: impl Into<f64>) -> Number {
    Plain(n.into())
}

fn percent(n: impl Into<f64>) -> Number {
    Percent(n.into())
}

fn bytes(n: usize) -> Number {
    Bytes(n as f64)
}

/// The rows that quote numbers, with those of the code. A text that is no row is known by its begin.
fn expected() -> Vec<(&'static str, Vec<Number>)> {
    let policy = policy();
    let options = ProxyOptions::for_nofile(1 << 20);
    let server = ServerSettings::default();
    let pool = ConnectionPool::default();
    let breaker = policy.breaker.unwrap();
    let retry = policy.retry.as_ref().unwrap();
    let budget = policy.retry_budget;
    let limit = &policy.rate_limits[0];
    let check = policy.health_check.as_ref().unwrap();
    let status = |reason| plain(reply::status(reason).as_u16());
    let codes = &retry.conditions.status_codes;
    let (bound, of) = balance::LOAD_BOUND;
    let factor = FREE_FACTOR as f64;
    let times = retry.backoff.max.as_secs_f64() / retry.backoff.base.as_secs_f64();
    vec![
        (
            "bounded load of `consistent_hash`",
            vec![percent((bound * 100 / of) as f64)],
        ),
        (
            "`locality.threshold`",
            vec![percent(Locality::DEFAULT_THRESHOLD)],
        ),
        (
            "`loadBalancer.panicThreshold`",
            vec![percent(LoadBalancer::default().panic_threshold)],
        ),
        (
            "`limits.pendingTimeout`",
            vec![Time(ServiceState::pending_timeout(&policy.limits))],
        ),
        (
            "connections of the agent",
            vec![percent(100.0 * factor / (factor + 1.0))],
        ),
        (
            "`connectionPool.idleTimeout`",
            vec![Time(pool.idle_timeout)],
        ),
        (
            "`connectionPool.maxIdlePerEndpoint`",
            vec![plain(pool.max_idle_per_endpoint)],
        ),
        (
            "`connectionPool.maxConcurrentStreams`",
            vec![plain(pool.max_concurrent_streams)],
        ),
        (
            "idle HTTP/1 connections for POST and PATCH",
            vec![Time(RESTED)],
        ),
        (
            "TCP keepalive, on both sides",
            vec![
                Time(options.keepalive.idle),
                Time(options.keepalive.interval),
                Time(options.keepalive.user_timeout),
            ],
        ),
        ("`failureThreshold`", vec![plain(breaker.failure_threshold)]),
        (
            "`window`, `minVolume`",
            vec![Time(breaker.window), plain(breaker.min_volume)],
        ),
        (
            "`recoveryTimeout`, `maxRecoveryTimeout`",
            vec![
                Time(breaker.recovery_timeout),
                Time(breaker.max_recovery_timeout),
            ],
        ),
        ("`successThreshold`", vec![plain(breaker.success_threshold)]),
        (
            "`maxEjectionPercent`",
            vec![plain(breaker.max_ejection_percent)],
        ),
        ("`attempts`", vec![plain(retry.attempts)]),
        (
            "`codes`",
            codes
                .iter()
                .flat_map(|(from, to)| *from..=*to)
                .map(plain)
                .collect(),
        ),
        ("`backoff`", vec![Time(retry.backoff.base), plain(times)]),
        (
            "`budget`",
            vec![
                percent(budget.percent),
                Time(budget.window),
                plain(budget.min_per_second),
            ],
        ),
        ("A body is kept for a retry", vec![bytes(REPLAY)]),
        (
            "`timeouts.connect`",
            vec![Time(options.connect_timeout), Time(options.attempt_timeout)],
        ),
        ("headers of a request", vec![Time(server.header_timeout)]),
        (
            "a request's body with a declared length",
            vec![Time(CLIENT_SILENCE)],
        ),
        (
            "a client's connection between requests",
            vec![Time(server.idle_timeout)],
        ),
        ("`Expect: 100-continue`", vec![Time(CONTINUE_WAIT)]),
        (
            "header fields of a request",
            vec![plain(MAX_HEADERS as u32)],
        ),
        ("request line and headers", vec![bytes(MAX_HEADER_BYTES)]),
        ("URI", vec![bytes(MAX_URI)]),
        (
            "requests at once on a client's HTTP/2 connection",
            vec![plain(server.max_streams)],
        ),
        (
            "HTTP/2 windows",
            vec![
                bytes(server.stream_window as usize),
                bytes(server.connection_window as usize),
            ],
        ),
        ("`rateLimits[].per`", vec![Time(limit.per)]),
        ("`rateLimits[].maxKeys`", vec![plain(limit.max_keys)]),
        (
            "`healthCheck.interval`, `timeout`",
            vec![Time(check.interval), Time(check.timeout)],
        ),
        (
            "`healthCheck.healthyThreshold`, `unhealthyThreshold`",
            vec![
                plain(check.healthy_threshold),
                plain(check.unhealthy_threshold),
            ],
        ),
        (
            "checks at once in one agent",
            vec![plain(health::AT_ONCE as u32)],
        ),
        (
            "a route, and no rule matches",
            vec![status(Reason::RouteNotFound)],
        ),
        (
            "the share of a backend without a ready endpoint",
            vec![status(Reason::NoEndpoints)],
        ),
    ]
}

fn policy() -> Arc<TrafficPolicy> {
    let (config, _) = parse_bytes("policy.yaml", POLICY.as_bytes()).unwrap();
    let catalog = Catalog::new("n1");
    let source = catalog.register();
    catalog.apply(source, config);
    let snapshot = catalog.snapshot();
    let service = snapshot.services().next().unwrap();
    Arc::clone(&service.traffic)
}

/// Every row of a table whose second column is a default, and the lines of text: what they are called, and what they say.
fn rows(page: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut defaults = false;
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(row) = line.strip_prefix('|') else {
            found.push((line.to_owned(), line.to_owned()));
            continue;
        };
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        if lines.peek().is_some_and(|next| next.starts_with("| ---")) {
            defaults = cells[1].starts_with("default");
        } else if defaults && !line.starts_with("| ---") {
            found.push((cells[0].to_owned(), cells[1].to_owned()));
        }
    }
    found
}

/// Numbers as they are written, `10,000` and `2.5s` among them; not those in names, such as HTTP/2.
fn numbers(text: &str) -> Vec<Number> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let named = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'/');
        let is_inside = |i: usize| {
            bytes[i].is_ascii_digit()
                || (matches!(bytes[i], b',' | b'.')
                    && bytes.get(i + 1).is_some_and(u8::is_ascii_digit))
        };
        let end = (at..bytes.len())
            .find(|&i| !is_inside(i))
            .unwrap_or(bytes.len());
        let value: f64 = text[at..end].replace(',', "").parse().unwrap();
        at = end;
        if named {
            continue;
        }
        let rest = text[end..].strip_prefix(' ').unwrap_or(&text[end..]);
        let unit = rest
            .split(|c: char| !c.is_ascii_alphabetic() && c != '%')
            .next()
            .unwrap_or_default();
        found.push(match unit {
            "%" => Percent(value),
            "KiB" => Bytes(value * 1024.0),
            "MiB" => Bytes(value * 1024.0 * 1024.0),
            "ms" => Time(Duration::from_secs_f64(value / 1000.0)),
            "s" => Time(Duration::from_secs_f64(value)),
            "m" => Time(Duration::from_secs_f64(value * 60.0)),
            "h" => Time(Duration::from_secs_f64(value * 3600.0)),
            _ => Plain(value),
        });
    }
    found
}

#[test]
fn the_page_of_defaults_says_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/defaults.md");
    let page = fs::read_to_string(path).unwrap();
    let rows = rows(&page);
    let expected = expected();
    for (name, expected) in &expected {
        let row = rows.iter().find(|(row, _)| row.starts_with(name));
        let Some((_, says)) = row else {
            panic!("no row {name}");
        };
        assert_eq!(&numbers(says), expected, "row {name}: {says}");
    }
    for (name, says) in rows.iter().filter(|(name, says)| name != says) {
        let known = expected.iter().any(|(row, _)| row == name);
        assert!(
            known || numbers(says).is_empty(),
            "row {name} quotes a number that nothing compares: {says}"
        );
    }
}

#[test]
fn numbers_are_found_as_they_are_written() {
    let found = numbers("HTTP/2 and `h2c`: `2.5s`, 10,000; 502, 503 or 70 % of 60 KiB in 5m (1 h)");
    let hour = Duration::from_secs(3600);
    assert_eq!(
        found,
        [
            Time(Duration::from_millis(2500)),
            Plain(10_000.0),
            Plain(502.0),
            Plain(503.0),
            Percent(70.0),
            Bytes(61_440.0),
            Time(hour / 12),
            Time(hour)
        ]
    );
}
