//! What a TrafficPolicy comes to, with the defaults of docs/reference/defaults.md filled in.

use std::{sync::Arc, time::Duration};

use super::{
    Backoff, CircuitBreaker, ConnectionPool, ConsistentHash, HealthCheck, HttpProbe, Limits,
    LoadBalancer, Locality, Prefer, RateLimit, RateLimitKey, Retries, RetryBudget, RetryOn,
    Timeouts, TrafficPolicySpec,
};
use crate::{
    api::format::{GepDuration, StatusRange},
    model,
};

const DEFAULT_ATTEMPTS: u32 = 2;
const DEFAULT_RETRY_ON: [RetryOn; 3] = [
    RetryOn::ConnectFailure,
    RetryOn::Reset,
    RetryOn::RefusedStream,
];
/// What a proxy or an endpoint says that cannot serve now; 500 is an application's own answer.
const DEFAULT_RETRY_CODES: [(u16, u16); 1] = [(502, 504)];
const UNAVAILABLE: u8 = 14;

const DEFAULT_PENDING_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_MAX_KEYS: u32 = 10_000;

const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_EXPECTED: [(u16, u16); 1] = [(200, 299)];

impl TrafficPolicySpec {
    /// For a Service.
    pub fn effective(&self) -> model::TrafficPolicy {
        model::TrafficPolicy {
            load_balancer: self
                .load_balancer
                .as_ref()
                .map_or_else(Default::default, load_balancer),
            limits: self.limits.as_ref().map_or_else(Default::default, limits),
            pool: self
                .connection_pool
                .as_ref()
                .map_or_else(Default::default, pool),
            breaker: self.circuit_breaker.as_ref().map(breaker),
            connect_timeout: self.timeouts.and_then(|timeouts| or_none(timeouts.connect)),
            timeouts: self.timeouts.map_or_else(Default::default, |t| t.applied()),
            retry: self.retry(),
            retry_budget: self
                .retries
                .as_ref()
                .and_then(|retries| retries.budget)
                .map_or_else(Default::default, budget),
            rate_limits: self
                .rate_limits
                .iter()
                .flatten()
                .map(|limit| Arc::new(rate_limit(limit)))
                .collect(),
            health_check: self.health_check.as_ref().and_then(health_check),
            redistribute_unavailable: self.redistribute_unavailable.unwrap_or(false),
        }
    }

    /// `None`: only what is always repeated. A budget alone asks for no retries.
    pub fn retry(&self) -> Option<model::RetryPolicy> {
        let retries = self.retries.as_ref()?;
        let only_budget = Retries {
            budget: retries.budget,
            ..Retries::default()
        };
        if retries.budget.is_some() && *retries == only_budget {
            return None;
        }
        Some(retry(retries))
    }

    /// For a route: `Some(ZERO)` takes away what the policy of the Service says.
    pub fn route_timeouts(&self) -> model::Timeouts {
        let timeouts = self.timeouts.unwrap_or_default();
        model::Timeouts {
            request: timeouts.request.map(|d| d.0),
            attempt: timeouts.attempt.map(|d| d.0),
            idle: timeouts.idle.map(|d| d.0),
            max_stream: timeouts.max_stream.map(|d| d.0),
        }
    }
}

/// `0s` is none.
fn or_none(duration: Option<GepDuration>) -> Option<Duration> {
    duration.map(|d| d.0).filter(|d| !d.is_zero())
}

fn ranges(ranges: &[StatusRange]) -> Vec<(u16, u16)> {
    ranges.iter().map(|range| (range.from, range.to)).collect()
}

impl Timeouts {
    fn applied(&self) -> model::Timeouts {
        model::Timeouts {
            request: or_none(self.request),
            attempt: or_none(self.attempt),
            idle: or_none(self.idle),
            max_stream: or_none(self.max_stream),
        }
    }
}

fn load_balancer(lb: &LoadBalancer) -> model::LoadBalancer {
    let default = model::LoadBalancer::default();
    model::LoadBalancer {
        strategy: lb.strategy,
        slow_start: or_none(lb.slow_start),
        hash: lb
            .consistent_hash
            .as_ref()
            .map_or(model::HashKey::SourceAddress, hash_key),
        locality: lb.locality.map_or(default.locality, locality),
        panic_threshold: lb.panic_threshold.unwrap_or(default.panic_threshold),
    }
}

fn hash_key(hash: &ConsistentHash) -> model::HashKey {
    if let Some(header) = &hash.header {
        model::HashKey::Header(header.0.clone())
    } else if let Some(cookie) = &hash.cookie {
        model::HashKey::Cookie {
            name: cookie.name.0.as_str().into(),
            path: cookie.path.as_deref().map(Into::into),
            ttl: or_none(cookie.ttl),
        }
    } else if let Some(parameter) = &hash.query_parameter {
        model::HashKey::QueryParameter(parameter.as_str().into())
    } else {
        model::HashKey::SourceAddress
    }
}

fn locality(locality: Locality) -> model::Locality {
    model::Locality {
        prefer: match locality.prefer {
            Prefer::None => model::Prefer::None,
            Prefer::Zone => model::Prefer::Zone,
            Prefer::Node => model::Prefer::Node,
        },
        threshold: locality
            .threshold
            .unwrap_or(model::Locality::DEFAULT_THRESHOLD),
    }
}

fn limits(limits: &Limits) -> model::Limits {
    model::Limits {
        max_connections: limits.max_connections,
        max_connections_per_endpoint: limits.max_connections_per_endpoint,
        max_requests: limits.max_requests,
        max_requests_per_endpoint: limits.max_requests_per_endpoint,
        max_pending_requests: limits.max_pending_requests,
        pending_timeout: limits
            .max_pending_requests
            .map(|_| or_none(limits.pending_timeout).unwrap_or(DEFAULT_PENDING_TIMEOUT)),
    }
}

fn pool(pool: &ConnectionPool) -> model::ConnectionPool {
    let default = model::ConnectionPool::default();
    model::ConnectionPool {
        idle_timeout: or_none(pool.idle_timeout).unwrap_or(default.idle_timeout),
        max_requests_per_connection: pool.max_requests_per_connection,
        max_idle_per_endpoint: pool
            .max_idle_per_endpoint
            .unwrap_or(default.max_idle_per_endpoint),
        max_concurrent_streams: pool
            .max_concurrent_streams
            .unwrap_or(default.max_concurrent_streams),
        max_connection_age: or_none(pool.max_connection_age),
    }
}

fn breaker(breaker: &CircuitBreaker) -> model::CircuitBreaker {
    model::CircuitBreaker {
        failure_threshold: breaker.failure_threshold.unwrap_or(5),
        failure_ratio: breaker.failure_ratio,
        window: breaker.window.map_or(Duration::from_secs(10), |d| d.0),
        min_volume: breaker.min_volume.unwrap_or(10),
        recovery_timeout: breaker.recovery_timeout(),
        max_recovery_timeout: breaker.max_recovery_timeout.map_or_else(
            || breaker.recovery_timeout().max(Duration::from_secs(300)),
            |d| d.0,
        ),
        success_threshold: breaker.success_threshold.unwrap_or(1),
        max_ejection_percent: breaker.max_ejection_percent.unwrap_or(50),
    }
}

fn retry(retries: &Retries) -> model::RetryPolicy {
    let on = retries.on.as_deref().unwrap_or(&DEFAULT_RETRY_ON);
    model::RetryPolicy {
        attempts: retries.attempts.unwrap_or(DEFAULT_ATTEMPTS),
        conditions: model::RetryConditions {
            connect_failure: on.contains(&RetryOn::ConnectFailure),
            reset: on.contains(&RetryOn::Reset),
            refused_stream: on.contains(&RetryOn::RefusedStream),
            attempt_timeout: on.contains(&RetryOn::AttemptTimeout),
            status_codes: match &retries.codes {
                Some(codes) => ranges(codes),
                None => DEFAULT_RETRY_CODES.to_vec(),
            },
            grpc_codes: match &retries.grpc_codes {
                Some(codes) => codes.iter().map(|code| code.0).collect(),
                None => vec![UNAVAILABLE],
            },
        },
        non_idempotent: retries.non_idempotent.unwrap_or(false),
        backoff: retries.backoff.unwrap_or_default().effective(),
        attempt_timeout: or_none(retries.attempt_timeout),
    }
}

impl Backoff {
    pub(crate) fn effective(&self) -> model::Backoff {
        let base = or_none(self.base).unwrap_or(model::Backoff::default().base);
        model::Backoff {
            base,
            max: or_none(self.max).unwrap_or(base * 10),
        }
    }
}

fn budget(budget: RetryBudget) -> model::RetryBudget {
    let default = model::RetryBudget::default();
    model::RetryBudget {
        percent: budget.percent.unwrap_or(default.percent),
        window: or_none(budget.window).unwrap_or(default.window),
        min_per_second: budget.min_per_second.unwrap_or(default.min_per_second),
    }
}

fn rate_limit(limit: &RateLimit) -> model::RateLimit {
    model::RateLimit {
        name: limit.name.as_str().into(),
        requests: limit.requests,
        per: limit.per(),
        burst: limit.burst.unwrap_or(limit.requests),
        key: limit.key.as_ref().map(rate_limit_key).unwrap_or_default(),
        methods: limit
            .methods
            .iter()
            .flatten()
            .map(|method| method.as_str().into())
            .collect(),
        path_prefix: limit.path_prefix.as_deref().map(Into::into),
        max_keys: limit.max_keys.unwrap_or(DEFAULT_MAX_KEYS),
        shadow: limit.shadow.unwrap_or(false),
    }
}

impl RateLimit {
    pub(crate) fn per(&self) -> Duration {
        or_none(self.per).unwrap_or(Duration::from_secs(1))
    }
}

fn rate_limit_key(key: &RateLimitKey) -> Vec<model::RateLimitKey> {
    let flag = |set: Option<bool>, key| (set == Some(true)).then_some(key);
    let headers = key.headers.iter().flatten();
    [
        flag(key.client_identity, model::RateLimitKey::ClientIdentity),
        flag(key.source_address, model::RateLimitKey::SourceAddress),
        flag(key.path, model::RateLimitKey::Path),
    ]
    .into_iter()
    .flatten()
    .chain(headers.map(|header| model::RateLimitKey::Header(header.0.clone())))
    .collect()
}

/// `None`: it says no probe, which the checks of the resource refuse.
fn health_check(check: &HealthCheck) -> Option<model::HealthCheck> {
    let probe = if check.tcp.is_some() {
        model::HealthProbe::Tcp
    } else if let Some(http) = &check.http {
        http_probe(http)
    } else {
        let grpc = check.grpc.as_ref()?;
        model::HealthProbe::Grpc {
            service: grpc.service.as_deref().unwrap_or_default().into(),
        }
    };
    let interval = check.interval();
    Some(model::HealthCheck {
        probe,
        interval,
        timeout: or_none(check.timeout).unwrap_or(DEFAULT_CHECK_TIMEOUT.min(interval)),
        healthy_threshold: check.healthy_threshold.unwrap_or(2),
        unhealthy_threshold: check.unhealthy_threshold.unwrap_or(3),
        port: check.port.map(|port| port.0),
    })
}

impl HealthCheck {
    pub(crate) fn interval(&self) -> Duration {
        or_none(self.interval).unwrap_or(DEFAULT_CHECK_INTERVAL)
    }
}

fn http_probe(http: &HttpProbe) -> model::HealthProbe {
    model::HealthProbe::Http {
        path: http.path.as_deref().unwrap_or("/").into(),
        host: http.host.as_deref().map(Into::into),
        expected: match &http.expected {
            Some(expected) => ranges(expected),
            None => DEFAULT_EXPECTED.to_vec(),
        },
    }
}
