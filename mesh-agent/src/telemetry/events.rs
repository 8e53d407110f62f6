//! What the parts that carry requests report beside the requests themselves: counted, and in the log where an operator
//! would look for it.

use std::{net::SocketAddr, time::Instant};

use super::{Detected, HealthChange, Mirror, Retry, Telemetry};
use crate::{model::ResourceName, resilience::Transition};

impl Telemetry {
    /// A retry was made, or could not be. `service`: the one that serves the request.
    pub fn retry(&self, service: Option<&ResourceName>, outcome: Retry) {
        self.shared.counts.traffic.retry(service, outcome);
        if outcome == Retry::BudgetRefused {
            let service = service.map(tracing::field::display);
            tracing::debug!(service, "the retry budget is used up");
        }
    }

    /// What became of an endpoint's breaker, if anything did; the log says so too.
    pub fn breaker(
        &self,
        service: &ResourceName,
        endpoint: SocketAddr,
        transition: impl Into<Option<Transition>>,
    ) {
        let Some(transition) = transition.into() else {
            return;
        };
        self.shared.counts.traffic.breaker(service, &transition);
        match transition {
            Transition::Opened { until, kind, cause } => {
                let wait = until.saturating_duration_since(Instant::now());
                let (kind, cause) = (kind.as_str(), cause.as_str());
                tracing::warn!(%service, %endpoint, kind, cause, ?wait, "circuit breaker opened");
            }
            Transition::Refused { kind, cause } => {
                let (kind, cause) = (kind.as_str(), cause.as_str());
                tracing::warn!(
                    %service, %endpoint, kind, cause,
                    "the endpoint keeps failing, but as many are ejected as maxEjectionPercent allows"
                );
            }
            Transition::HalfOpen => {
                tracing::info!(%service, %endpoint, "circuit breaker half-open");
            }
            Transition::Closed => tracing::info!(%service, %endpoint, "circuit breaker closed"),
        }
    }

    /// So few endpoints of a service are usable that all are used, or no longer. May be said as often as it is found.
    pub fn panic(&self, service: &ResourceName, on: bool) {
        if !self.shared.counts.traffic.panic(service, on) {
            return;
        }
        if on {
            tracing::warn!(
                %service,
                "panic: too few endpoints are usable, all are used from now on. `mesh-agent endpoints {service}` shows why"
            );
        } else {
            tracing::info!(%service, "panic is over: enough endpoints are usable again");
        }
    }

    /// What became of the copy of a request.
    pub fn mirror(&self, outcome: Mirror) {
        self.shared.counts.traffic.mirror(outcome);
    }

    /// What the detection of a connection's protocol found.
    pub fn detected(&self, outcome: Detected) {
        self.shared.counts.traffic.detected(outcome);
    }

    /// An active health check changed its mind on an endpoint. `detail`: the last answer.
    pub fn health(
        &self,
        service: &ResourceName,
        endpoint: SocketAddr,
        to: HealthChange,
        detail: &str,
    ) {
        self.shared.counts.traffic.health(service, to);
        match to {
            HealthChange::Unhealthy => {
                tracing::warn!(%service, %endpoint, detail, "health check: the endpoint is unhealthy");
            }
            HealthChange::Healthy => {
                tracing::info!(%service, %endpoint, "health check: the endpoint is healthy");
            }
        }
    }
}
