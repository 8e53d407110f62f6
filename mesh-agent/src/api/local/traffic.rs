//! Checks of one TrafficPolicy that a schema cannot say.

use std::{collections::HashSet, time::Duration};

use super::super::{
    error::Problem,
    format::GepDuration,
    kinds::{
        CircuitBreaker, ConnectionPool, HealthCheck, Limits, LoadBalancer, RateLimit, Retries,
        TargetKind, Timeouts, TrafficPolicy,
    },
    path::Path,
};
use crate::model::Strategy;

pub(super) fn check(policy: &TrafficPolicy, problems: &mut Vec<Problem>) {
    let spec = &policy.spec;
    targets(policy, problems);
    if let Some(lb) = &spec.load_balancer {
        load_balancer(lb, problems);
    }
    if let Some(l) = &spec.limits {
        limits(l, problems);
    }
    if let Some(p) = &spec.connection_pool {
        pool(p, problems);
    }
    if let Some(b) = &spec.circuit_breaker {
        breaker(b, problems);
    }
    if let Some(t) = &spec.timeouts {
        timeouts(t, spec.retries.as_ref(), problems);
    }
    if let Some(r) = &spec.retries {
        retries(r, problems);
    }
    rate_limits(spec.rate_limits.as_deref().unwrap_or_default(), problems);
    if let Some(h) = &spec.health_check {
        health_check(h, problems);
    }
}

fn targets(policy: &TrafficPolicy, problems: &mut Vec<Problem>) {
    let mut seen = HashSet::new();
    for (index, target) in policy.spec.target_refs.iter().enumerate() {
        let at = Path::of("spec.targetRefs").index(index);
        let kind = target.kind.as_str();
        if !seen.insert((target.kind, &target.name)) {
            let message = format!("{kind} {} is given twice", target.name);
            problems.push(Problem::new(at.key("name"), message));
        }
        if let Some(group) = &target.group
            && group != target.kind.group()
        {
            let expected = format!("{:?} for {kind}", target.kind.group());
            let got = format_args!("{group:?}");
            problems.push(Problem::expected(at.key("group"), expected, got));
        }
    }
    of_services_only(policy, problems);
}

/// A route has no endpoints and no budget of its own.
fn of_services_only(policy: &TrafficPolicy, problems: &mut Vec<Problem>) {
    let spec = &policy.spec;
    let mut kinds = spec.target_refs.iter().map(|target| target.kind);
    let Some(route) = kinds.find(|kind| *kind != TargetKind::Service) else {
        return;
    };
    let timeouts = spec.timeouts.as_ref();
    let budget = spec.retries.as_ref().and_then(|retries| retries.budget);
    for (set, field) in [
        (spec.load_balancer.is_some(), "loadBalancer"),
        (spec.limits.is_some(), "limits"),
        (spec.connection_pool.is_some(), "connectionPool"),
        (spec.circuit_breaker.is_some(), "circuitBreaker"),
        (spec.rate_limits.is_some(), "rateLimits"),
        (spec.health_check.is_some(), "healthCheck"),
        (
            timeouts.is_some_and(|t| t.connect.is_some()),
            "timeouts.connect",
        ),
        (budget.is_some(), "retries.budget"),
    ] {
        if set {
            let path = Path::of("spec").join(&Path::of(field));
            let message = format!(
                "of a Service, and the policy is for a {}: only retries, timeouts and redistributeUnavailable can be set for a route",
                route.as_str()
            );
            problems.push(
                Problem::new(path, message).wanted("a TrafficPolicy of its own for the Service"),
            );
        }
    }
}

fn load_balancer(lb: &LoadBalancer, problems: &mut Vec<Problem>) {
    let Some(hash) = &lb.consistent_hash else {
        return;
    };
    let path = Path::of("spec.loadBalancer.consistentHash");
    if lb.strategy != Strategy::ConsistentHash {
        let message = "a key means nothing without strategy consistent_hash";
        problems.push(Problem::new(path.clone(), message).wanted("strategy consistent_hash"));
    }
    let given = [
        (hash.header.is_some(), "header"),
        (hash.cookie.is_some(), "cookie"),
        (hash.query_parameter.is_some(), "queryParameter"),
        (hash.source_address.is_some(), "sourceAddress"),
    ];
    exactly_one(&path, &given, problems);
    only_true(&path, hash.source_address, "sourceAddress", problems);
}

/// Of alternatives that are fields of one mapping.
fn exactly_one(path: &Path, given: &[(bool, &str)], problems: &mut Vec<Problem>) {
    let names = |fields: &[&str]| fields.join(", ");
    let all: Vec<&str> = given.iter().map(|(_, name)| *name).collect();
    let set: Vec<&str> = given.iter().filter(|(set, _)| *set).map(|f| f.1).collect();
    if set.len() != 1 {
        let got = match set.is_empty() {
            true => "none".to_owned(),
            false => names(&set),
        };
        let expected = format!("exactly one of {}", names(&all));
        problems.push(Problem::expected(path.clone(), expected, got));
    }
}

/// A flag that is there only to be set.
fn only_true(path: &Path, flag: Option<bool>, field: &str, problems: &mut Vec<Problem>) {
    if flag == Some(false) {
        let problem = Problem::expected(path.key(field), "true, or leave it out", "false");
        problems.push(problem);
    }
}

fn more_than_zero(
    path: &Path,
    fields: &[(Option<GepDuration>, &str)],
    problems: &mut Vec<Problem>,
) {
    for (duration, field) in fields {
        if duration.is_some_and(|duration| duration.0.is_zero()) {
            problems.push(Problem::expected(path.key(field), "more than 0s", "0s"));
        }
    }
}

fn limits(limits: &Limits, problems: &mut Vec<Problem>) {
    let path = Path::of("spec.limits");
    for (all, each, [all_field, each_field]) in [
        (
            limits.max_connections,
            limits.max_connections_per_endpoint,
            ["maxConnections", "maxConnectionsPerEndpoint"],
        ),
        (
            limits.max_requests,
            limits.max_requests_per_endpoint,
            ["maxRequests", "maxRequestsPerEndpoint"],
        ),
    ] {
        if let (Some(all), Some(each)) = (all, each)
            && each > all
        {
            let message = format!("{each} can never be reached, since {all_field} is {all}");
            problems.push(Problem::warning(path.key(each_field), message));
        }
    }
    let limited = [
        limits.max_connections,
        limits.max_connections_per_endpoint,
        limits.max_requests,
        limits.max_requests_per_endpoint,
    ];
    if limits.max_pending_requests.is_some() && limited.iter().all(Option::is_none) {
        let message = "nothing waits without a limit of connections or requests";
        problems.push(
            Problem::new(path.key("maxPendingRequests"), message)
                .wanted("one of the other limits as well"),
        );
    }
    if limits.pending_timeout.is_some() && limits.max_pending_requests.is_none() {
        let message = "pendingTimeout means nothing without maxPendingRequests";
        problems.push(
            Problem::new(path.key("pendingTimeout"), message).wanted("maxPendingRequests as well"),
        );
    }
    more_than_zero(
        &path,
        &[(limits.pending_timeout, "pendingTimeout")],
        problems,
    );
}

fn pool(pool: &ConnectionPool, problems: &mut Vec<Problem>) {
    let path = Path::of("spec.connectionPool");
    let fields = [
        (pool.idle_timeout, "idleTimeout"),
        (pool.max_connection_age, "maxConnectionAge"),
    ];
    more_than_zero(&path, &fields, problems);
}

fn breaker(breaker: &CircuitBreaker, problems: &mut Vec<Problem>) {
    let path = Path::of("spec.circuitBreaker");
    if breaker.failure_ratio.is_none() {
        for (set, field) in [
            (breaker.window.is_some(), "window"),
            (breaker.min_volume.is_some(), "minVolume"),
        ] {
            if set {
                let message = format!("{field} means nothing without failureRatio");
                problems
                    .push(Problem::new(path.key(field), message).wanted("failureRatio as well"));
            }
        }
    }
    let positive = [
        (breaker.window, "window"),
        (breaker.recovery_timeout, "recoveryTimeout"),
        (breaker.max_recovery_timeout, "maxRecoveryTimeout"),
    ];
    more_than_zero(&path, &positive, problems);
    let first = breaker.recovery_timeout();
    if let Some(longest) = breaker.max_recovery_timeout
        && longest.0 < first
        && !longest.0.is_zero()
    {
        let expected = format!("at least recoveryTimeout, {}", GepDuration(first));
        let problem = Problem::expected(path.key("maxRecoveryTimeout"), expected, longest);
        problems.push(problem);
    }
}

fn timeouts(timeouts: &Timeouts, retries: Option<&Retries>, problems: &mut Vec<Problem>) {
    let path = Path::of("spec.timeouts");
    more_than_zero(&path, &[(timeouts.connect, "connect")], problems);
    let of_retries = retries.and_then(|retries| retries.attempt_timeout);
    if of_retries.is_some() && timeouts.attempt.is_some() {
        let message = "the same as timeouts.attempt, which is given too";
        problems.push(
            Problem::new(Path::of("spec.retries.attemptTimeout"), message).wanted("one of the two"),
        );
    }
    let Some(request) = timeouts.request.filter(|request| !request.0.is_zero()) else {
        return;
    };
    for (attempt, path) in [
        (timeouts.attempt, path.key("attempt")),
        (of_retries, Path::of("spec.retries.attemptTimeout")),
    ] {
        if let Some(attempt) = attempt
            && attempt > request
        {
            let message = format!("{attempt} can never be reached, since request is {request}");
            problems.push(Problem::warning(path, message));
        }
    }
}

fn retries(retries: &Retries, problems: &mut Vec<Problem>) {
    let path = Path::of("spec.retries");
    for (index, codes) in retries.codes.iter().flatten().enumerate() {
        if codes.from < 400 {
            let path = path.key("codes").index(index);
            problems.push(Problem::expected(
                path,
                "statuses of failure, 400..=599",
                codes,
            ));
        }
    }
    more_than_zero(
        &path,
        &[(retries.attempt_timeout, "attemptTimeout")],
        problems,
    );
    if let Some(backoff) = &retries.backoff {
        let path = path.key("backoff");
        more_than_zero(
            &path,
            &[(backoff.base, "base"), (backoff.max, "max")],
            problems,
        );
        let base = backoff.effective().base;
        if let Some(max) = backoff.max
            && max.0 < base
            && !max.0.is_zero()
        {
            let expected = format!("at least base, {}", GepDuration(base));
            problems.push(Problem::expected(path.key("max"), expected, max));
        }
    }
    let budget = retries.budget.unwrap_or_default();
    if let Some(window) = budget.window
        && !(Duration::from_secs(1)..=Duration::from_secs(60)).contains(&window.0)
    {
        let path = path.key("budget").key("window");
        problems.push(Problem::expected(path, "1s to 60s", window));
    }
    if retries.attempts == Some(0) {
        let others = Retries {
            attempts: Some(0),
            budget: retries.budget,
            ..Retries::default()
        };
        if *retries != others {
            let message = "with attempts 0 nothing is repeated, and the other fields mean nothing";
            problems.push(Problem::warning(path.key("attempts"), message));
        }
    }
}

fn rate_limits(limits: &[RateLimit], problems: &mut Vec<Problem>) {
    let mut names = HashSet::new();
    for (index, limit) in limits.iter().enumerate() {
        let path = Path::of("spec.rateLimits").index(index);
        if !names.insert(&limit.name) {
            let message = format!("name {:?} is given twice", limit.name);
            problems.push(Problem::new(path.key("name"), message));
        }
        if let Some(per) = limit.per
            && !(Duration::from_millis(100)..=Duration::from_secs(24 * 3600)).contains(&per.0)
        {
            problems.push(Problem::expected(path.key("per"), "100ms to 24h", per));
        }
        match &limit.key {
            None if limit.max_keys.is_some() => {
                let message = "maxKeys means nothing without key";
                problems.push(Problem::new(path.key("maxKeys"), message).wanted("key as well"));
            }
            None => {}
            Some(key) => {
                let path = path.key("key");
                if key.client_identity.is_none()
                    && key.source_address.is_none()
                    && key.headers.is_none()
                    && key.path.is_none()
                {
                    let expected = "at least one of clientIdentity, sourceAddress, headers, path";
                    problems.push(Problem::expected(path.clone(), expected, "none"));
                }
                for (flag, field) in [
                    (key.client_identity, "clientIdentity"),
                    (key.source_address, "sourceAddress"),
                    (key.path, "path"),
                ] {
                    only_true(&path, flag, field, problems);
                }
            }
        }
    }
}

fn health_check(check: &HealthCheck, problems: &mut Vec<Problem>) {
    let path = Path::of("spec.healthCheck");
    let given = [
        (check.tcp.is_some(), "tcp"),
        (check.http.is_some(), "http"),
        (check.grpc.is_some(), "grpc"),
    ];
    exactly_one(&path, &given, problems);
    let fields = [(check.interval, "interval"), (check.timeout, "timeout")];
    more_than_zero(&path, &fields, problems);
    if let Some(timeout) = check.timeout
        && timeout.0 > check.interval()
        && check.interval.is_none_or(|interval| !interval.0.is_zero())
    {
        let expected = format!("at most interval, {}", GepDuration(check.interval()));
        problems.push(Problem::expected(path.key("timeout"), expected, timeout));
    }
}
