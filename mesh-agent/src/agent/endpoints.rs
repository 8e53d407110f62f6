//! The endpoints of a service as `mesh-agent endpoints` shows them.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::view::{breaker, protocol, strategy, unix_ms};
use crate::{
    admin::{api, named},
    balance::{AGGRESSION, slow_start_share},
    catalog::{Snapshot, Upstream, UpstreamEndpoint},
    health::{Board, Key},
    model::Service,
    resilience::{BreakerState, Health},
};

/// The same moment on both clocks.
#[derive(Clone, Copy)]
struct Moment {
    now: Instant,
    wall: SystemTime,
}

impl Moment {
    fn unix_ms(&self, at: Instant) -> u64 {
        unix_ms(match at.checked_duration_since(self.now) {
            Some(ahead) => self.wall + ahead,
            None => self.wall - self.now.saturating_duration_since(at),
        })
    }
}

/// The ports of every service with that name, NAME or NAMESPACE/NAME.
pub(super) fn endpoints(
    snapshot: &Snapshot,
    board: &Board,
    wanted: &str,
    namespace: Option<&str>,
) -> Result<Vec<api::PortEndpoints>, String> {
    let moment = Moment {
        now: Instant::now(),
        wall: SystemTime::now(),
    };
    let mut found = false;
    let mut ports = Vec::new();
    for service in snapshot.services() {
        let of_namespace = namespace.is_none_or(|ns| *ns == *service.name.namespace);
        if !of_namespace || !named(wanted, &service.name.to_string()) {
            continue;
        }
        found = true;
        ports.extend(of_service(snapshot, board, service, moment));
    }
    if found {
        return Ok(ports);
    }
    let within = namespace.map_or_else(String::new, |ns| format!(" in namespace {ns}"));
    Err(format!(
        "there is no service {wanted}{within}; see mesh-agent services"
    ))
}

fn of_service(
    snapshot: &Snapshot,
    board: &Board,
    service: &Arc<Service>,
    moment: Moment,
) -> Vec<api::PortEndpoints> {
    let mut seen: Vec<(u16, &Arc<Upstream>)> = Vec::new();
    for (port, upstream) in snapshot.served(service) {
        // Addresses of one family share the upstream.
        if !seen.iter().any(|(_, known)| Arc::ptr_eq(known, upstream)) {
            seen.push((port, upstream));
        }
    }
    seen.sort_by_key(|(port, _)| *port);
    let mut ports: Vec<api::PortEndpoints> = Vec::new();
    for (port, upstream) in seen {
        let details = upstream.endpoints.iter().map(|endpoint| {
            let key = Key {
                service: service.name.clone(),
                port,
                endpoint: endpoint.endpoint.address,
            };
            detail(service, endpoint, board, &key, moment)
        });
        match ports.last_mut() {
            // The other family of the same port.
            Some(last) if last.port == port => last.endpoints.extend(details),
            _ => ports.push(api::PortEndpoints {
                service: service.name.to_string(),
                port,
                name: upstream.port.name.clone(),
                protocol: protocol(&upstream.port.app_protocol),
                strategy: strategy(service),
                connections: upstream.state.connections.in_use(),
                max_connections: service.traffic.limits.max_connections,
                requests: upstream.state.requests.in_use(),
                max_requests: service.traffic.limits.max_requests,
                endpoints: details.collect(),
            }),
        }
    }
    ports
}

fn detail(
    service: &Service,
    endpoint: &UpstreamEndpoint,
    board: &Board,
    key: &Key,
    moment: Moment,
) -> api::EndpointDetail {
    let (of, state) = (&endpoint.endpoint, &endpoint.state);
    let now = moment.now;
    let has_breaker = service.traffic.breaker.is_some();
    let breaker_state = match has_breaker {
        true => state.breaker_state(now),
        false => BreakerState::Closed,
    };
    let share = slow_start(service, endpoint, now);
    let report = board.report(key);
    let failure = state.last_failure();
    let open_until = match breaker_state {
        BreakerState::Open { until } => Some(moment.unix_ms(until)),
        _ => None,
    };
    api::EndpointDetail {
        address: of.address.to_string(),
        workload: of.workload.as_ref().map(ToString::to_string),
        node: of.node.clone(),
        zone: of.zone.clone(),
        ready: of.weight > 0 && state.health() != Health::Unhealthy && open_until.is_none(),
        weight: of.weight,
        slow_start: share,
        effective_weight: f64::from(of.weight) * share,
        connections: state.in_flight(),
        requests: state.requests_in_flight(),
        latency_us: state.measured_latency().and_then(micros),
        expected_latency_us: state.load(now).and_then(micros),
        breaker: match has_breaker {
            true => breaker(breaker_state),
            false => "none".to_owned(),
        },
        open_until_unix_ms: open_until,
        consecutive_failures: state.consecutive_failures(),
        health: match service.traffic.health_check {
            Some(_) => state.health().as_str().to_owned(),
            None => "none".to_owned(),
        },
        last_check_unix_ms: report.as_ref().map(|r| moment.unix_ms(r.at.into_std())),
        check_error: report
            .and_then(|r| r.failed)
            .map(|failed| failed.to_string()),
        last_error: failure.as_ref().map(|f| f.error.to_string()),
        last_error_unix_ms: failure.map(|f| moment.unix_ms(f.at)),
    }
}

fn micros(seconds: f64) -> Option<u64> {
    let latency = Duration::try_from_secs_f64(seconds).ok()?;
    Some(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX))
}

/// Rounded, so that a reader is not shown more than there is.
fn slow_start(service: &Service, endpoint: &UpstreamEndpoint, now: Instant) -> f64 {
    let window = service.traffic.load_balancer.slow_start;
    match (window, endpoint.state.ramping_since()) {
        (Some(window), Some(since)) => {
            let elapsed = now.saturating_duration_since(since);
            (slow_start_share(elapsed, window, AGGRESSION) * 100.0).round() / 100.0
        }
        _ => 1.0,
    }
}
