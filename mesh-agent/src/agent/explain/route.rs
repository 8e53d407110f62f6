//! What of a request routes and traffic policies decide.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::request::Parts;

use super::refused;
use crate::{
    admin::api::{BoundMatch, Verdict},
    agent::routes::bound,
    api::GepDuration,
    catalog::{Snapshot, Upstream},
    proxy::Plan,
    routing::{Listed, RequestView},
    telemetry::Reason,
};

/// The way of a request.
#[derive(Default)]
pub(super) struct Way {
    pub(super) route: Option<BoundMatch>,
    pub(super) traffic: Vec<String>,
    /// Of the backends that may get it.
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// It goes nowhere: the rule answers itself, or nothing matches.
    pub(super) answer: Option<Verdict>,
}

/// By the functions that decide on real requests.
pub(super) fn of(
    catalog: &Snapshot,
    namespace: &str,
    dialled: &Arc<Upstream>,
    address: SocketAddr,
    request: &Parts,
) -> Way {
    let service = &dialled.service.name;
    let port = dialled.port.port;
    let Some(table) = catalog.routes(namespace, service, port) else {
        return Way {
            traffic: traffic(dialled, &Plan::of(&dialled.service.traffic, None)),
            upstreams: vec![Arc::clone(dialled)],
            ..Way::default()
        };
    };
    let view = RequestView {
        method: &request.method,
        uri: &request.uri,
        headers: &request.headers,
    };
    let Some(found) = table.find(view) else {
        return Way {
            answer: Some(refused(Reason::RouteNotFound)),
            ..Way::default()
        };
    };
    let is_it = |listed: &Listed<'_>| std::ptr::eq(listed.matched, found.matched);
    let order = table
        .iter()
        .position(|listed| is_it(&listed))
        .unwrap_or_default();
    let listed = Listed {
        rule: found.rule,
        matched: found.matched,
    };
    let ipv6 = address.is_ipv6();
    let weighty = found
        .rule
        .backends
        .iter()
        .filter(|backend| backend.weight > 0);
    let upstreams: Vec<_> = weighty
        .filter_map(|backend| {
            let (name, port) = backend.service.as_ref().ok()?;
            catalog.backend(name, *port, ipv6).cloned()
        })
        .collect();
    let answer = if found.rule.filters.redirect.is_some() {
        Some(Verdict {
            allowed: true,
            why: "the rule answers with a redirect".to_owned(),
            ..Verdict::default()
        })
    } else {
        upstreams
            .is_empty()
            .then(|| refused(Reason::BackendNotFound))
    };
    Way {
        route: Some(bound(catalog, listed, (service, port), None, order + 1)),
        traffic: upstreams
            .first()
            .map(|upstream| {
                traffic(
                    upstream,
                    &Plan::of(&upstream.service.traffic, Some(found.rule)),
                )
            })
            .unwrap_or_default(),
        upstreams,
        answer,
    }
}

/// Timeouts, retries, limits, breaker; what is not set is left out, but for the defaults that surprise.
fn traffic(upstream: &Upstream, plan: &Plan<'_>) -> Vec<String> {
    let policy = &upstream.service.traffic;
    let mut lines = Vec::new();
    let timeouts = [
        ("request", plan.timeouts.request),
        ("attempt", plan.timeouts.attempt),
        ("idle", plan.timeouts.idle),
        ("max stream", plan.timeouts.max_stream),
    ];
    let set: Vec<String> = timeouts
        .into_iter()
        .filter_map(|(name, timeout)| Some(format!("{name} {}", shown(timeout?))))
        .collect();
    lines.push(match set.as_slice() {
        [] => "timeouts: none but for connecting".to_owned(),
        set => format!("timeouts: {}", set.join(", ")),
    });
    lines.push(match &plan.retry {
        None => "retries: only where no server has begun with the request".to_owned(),
        Some(retry) => {
            let conditions = &retry.conditions;
            let codes = conditions
                .status_codes
                .iter()
                .map(|(from, to)| match from == to {
                    true => from.to_string(),
                    false => format!("{from}-{to}"),
                });
            let named = [
                (conditions.connect_failure, "connect failure"),
                (conditions.reset, "reset"),
                (conditions.refused_stream, "refused stream"),
                (conditions.attempt_timeout, "attempt timeout"),
            ];
            let named = named
                .into_iter()
                .filter(|(on, _)| *on)
                .map(|(_, name)| name.to_owned());
            let grpc = conditions
                .grpc_codes
                .iter()
                .map(|code| format!("grpc {code}"));
            let all: Vec<String> = named.chain(codes).chain(grpc).collect();
            let methods = match retry.non_idempotent {
                true => "all methods",
                false => "idempotent methods",
            };
            format!(
                "retries: up to {} of {methods}, on {}",
                retry.attempts,
                all.join(", ")
            )
        }
    });
    let limits = [
        ("requests", policy.limits.max_requests),
        (
            "requests per endpoint",
            policy.limits.max_requests_per_endpoint,
        ),
        ("connections", policy.limits.max_connections),
        (
            "connections per endpoint",
            policy.limits.max_connections_per_endpoint,
        ),
        ("pending", policy.limits.max_pending_requests),
    ];
    let set: Vec<String> = limits
        .into_iter()
        .filter_map(|(name, limit)| Some(format!("{} {name}", limit?)))
        .collect();
    if !set.is_empty() {
        lines.push(format!("limits: {}", set.join(", ")));
    }
    if let Some(breaker) = &policy.breaker {
        lines.push(format!(
            "circuit breaker: opens after {} failures in a row, at most {} % of the endpoints",
            breaker.failure_threshold, breaker.max_ejection_percent
        ));
    }
    for limit in &policy.rate_limits {
        lines.push(format!(
            "rate limit {}: {} in {}, at the destination",
            limit.name,
            limit.requests,
            shown(limit.per)
        ));
    }
    lines
}

fn shown(duration: Duration) -> String {
    GepDuration(duration).to_string()
}
