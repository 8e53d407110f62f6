//! Services and their endpoints as the catalog holds them at a scrape: what is in flight, budgets, breakers.

use std::sync::Arc;

use super::families::Families;
use crate::{
    model::ResourceName,
    resilience::{BreakerState, LimitCounts},
};

/// Series of endpoints; the rest is left out of a scrape.
const MAX_ENDPOINTS: usize = 10_000;

/// One service.
#[derive(Clone, Debug)]
pub struct ServiceGauge {
    pub name: ResourceName,
    /// Requests under way.
    pub in_flight: u64,
    /// Requests that wait for a limit.
    pub pending: u64,
    /// Retries that the budget would allow now; `None`: it has none.
    pub budget: Option<f64>,
    /// Rate limits by name.
    pub limits: Vec<(Arc<str>, LimitCounts)>,
    /// Only those with a breaker.
    pub endpoints: Vec<EndpointGauge>,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct EndpointGauge {
    /// IP and port.
    pub address: String,
    pub breaker: BreakerState,
}

/// Connections for requests, pooled by endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolGauge {
    pub open: u64,
    /// Those of them that wait for a request.
    pub idle: u64,
    /// Since the agent began: made, ended, taken again, found dead when idle.
    pub opened: u64,
    pub closed: u64,
    pub reused: u64,
    pub stale: u64,
}

pub(super) fn encode_pool(pool: &PoolGauge, out: &mut Families<'_>) -> std::fmt::Result {
    out.gauges(
        "mesh_pool_connections",
        "Connections for requests now open, and those of them that wait for a request",
        [("open", pool.open), ("idle", pool.idle)]
            .map(|(state, n)| ([("state", state.to_owned())], n as f64)),
    )?;
    out.counters(
        "mesh_pool_events",
        "Connections for requests: made, ended, taken again, found dead when idle",
        "event",
        [
            ("opened", pool.opened),
            ("closed", pool.closed),
            ("reused", pool.reused),
            ("stale", pool.stale),
        ],
    )
}

fn encode_limits(services: &[ServiceGauge], out: &mut Families<'_>) -> std::fmt::Result {
    let rows = services.iter().flat_map(|service| {
        service.limits.iter().flat_map(move |(limit, counts)| {
            [
                ("allowed", counts.allowed),
                ("refused", counts.refused),
                ("shadow", counts.shadow_refused),
            ]
            .map(|(outcome, n)| {
                let labels = [
                    ("destination_service_name", &*service.name.name),
                    ("destination_service_namespace", &*service.name.namespace),
                    ("limit", &**limit),
                    ("outcome", outcome),
                ];
                (labels, n)
            })
        })
    });
    out.labelled_counters(
        "mesh_rate_limit_decisions",
        "Decisions of rate limits, by limit",
        rows,
    )
}

/// 0, 1 and 2 in the gauge.
const fn value(state: BreakerState) -> f64 {
    match state {
        BreakerState::Closed => 0.0,
        BreakerState::HalfOpen => 1.0,
        BreakerState::Open { .. } => 2.0,
    }
}

pub(super) fn encode(services: &[ServiceGauge], out: &mut Families<'_>) -> std::fmt::Result {
    encode_limits(services, out)?;
    let labels = |service: &ServiceGauge| {
        [
            ("destination_service_name", service.name.name.to_string()),
            (
                "destination_service_namespace",
                service.name.namespace.to_string(),
            ),
        ]
    };
    let by_service = |read: fn(&ServiceGauge) -> Option<f64>| {
        services
            .iter()
            .filter_map(move |service| Some((labels(service), read(service)?)))
    };
    out.gauges(
        "mesh_requests_in_flight",
        "Requests to the service now under way from this node",
        by_service(|s| Some(s.in_flight as f64)),
    )?;
    out.gauges(
        "mesh_requests_pending",
        "Requests to the service that now wait for one of its limits",
        by_service(|s| Some(s.pending as f64)),
    )?;
    out.gauges(
        "mesh_retry_budget_balance",
        "Retries that the service's budget would allow now",
        by_service(|s| s.budget),
    )?;
    out.gauges(
        "mesh_endpoints_ejected",
        "Endpoints of the service whose breaker is open",
        services
            .iter()
            .filter(|s| !s.endpoints.is_empty())
            .map(|s| {
                let open = s
                    .endpoints
                    .iter()
                    .filter(|e| matches!(e.breaker, BreakerState::Open { .. }));
                (labels(s), open.count() as f64)
            }),
    )?;
    out.gauges(
        "mesh_breaker_state",
        "State of the endpoint's circuit breaker: 0 closed, 1 half open, 2 open",
        services
            .iter()
            .flat_map(|s| s.endpoints.iter().map(move |e| (s, e)))
            .take(MAX_ENDPOINTS)
            .map(|(service, endpoint)| {
                let [name, namespace] = labels(service);
                let labels = [name, namespace, ("endpoint", endpoint.address.clone())];
                (labels, value(endpoint.breaker))
            }),
    )
}
