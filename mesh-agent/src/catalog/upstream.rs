//! One port of one service, ready to balance over.

use std::{net::IpAddr, sync::Arc, time::Instant};

use crate::{
    balance::{self, Balancer, Place, Usability},
    model::{Endpoint, Service, ServicePort},
    resilience::{Ejections, EndpointState, Health, ServiceState},
};

/// Endpoints of one port of one service for one IP family of its virtual addresses. It is made anew when one of them
/// changes; what happens at run time lives in the `Arc`s, which go on from one to the next.
#[derive(Debug)]
pub struct Upstream {
    pub service: Arc<Service>,
    pub port: Arc<ServicePort>,
    /// Those of the family of the virtual address; all, if there are none of it.
    pub endpoints: Vec<UpstreamEndpoint>,
    pub balancer: Balancer,
    /// Of the whole service, all ports together.
    pub state: Arc<ServiceState>,
    /// Counts the endpoints whose breaker is open.
    pub ejections: Arc<Ejections>,
}

#[derive(Clone, Debug)]
pub struct UpstreamEndpoint {
    pub endpoint: Endpoint,
    pub state: Arc<EndpointState>,
}

impl balance::Target for UpstreamEndpoint {
    fn weight(&self) -> u32 {
        self.endpoint.weight
    }

    fn in_flight(&self) -> u32 {
        self.state.work()
    }

    fn key(&self) -> u64 {
        balance::endpoint_key(self.endpoint.address)
    }

    fn ramping_since(&self) -> Option<Instant> {
        self.state.ramping_since()
    }

    fn latency_load(&self, now: Instant) -> Option<f64> {
        self.state.load(now)
    }

    fn place(&self) -> Place<'_> {
        Place {
            node: self.endpoint.node.as_deref(),
            zone: self.endpoint.zone.as_deref(),
        }
    }

    fn usable(&self, now: Instant) -> Usability {
        if self.state.health() == Health::Unhealthy {
            Usability::Unhealthy
        } else if self.state.admits(now) {
            Usability::Ready
        } else {
            Usability::Ejected
        }
    }
}

impl Upstream {
    /// Makes the upstream that follows `previous`, if there was one for the same service, port and family.
    pub(super) fn next(
        service: &Arc<Service>,
        port: &Arc<ServicePort>,
        ipv6: bool,
        previous: Option<&Self>,
        service_state: &Arc<ServiceState>,
        seed: u64,
        now: Instant,
    ) -> Self {
        let of_family = |endpoint: &&Endpoint| endpoint.address.is_ipv6() == ipv6;
        let any_of_family = port.endpoints.iter().any(|endpoint| of_family(&endpoint));
        let old = previous.map_or(&[][..], |previous| &previous.endpoints);
        let endpoints: Vec<UpstreamEndpoint> = port
            .endpoints
            .iter()
            .filter(|endpoint| !any_of_family || of_family(endpoint))
            .map(|endpoint| {
                // Both lists are in the order of addresses.
                let known = old.binary_search_by(|old| old.endpoint.address.cmp(&endpoint.address));
                let state = match known {
                    Ok(found) => Arc::clone(&old[found].state),
                    // What joins others starts slowly; where nobody was before, all are alike.
                    Err(_) => {
                        let ramping_since = (!old.is_empty()).then_some(now);
                        EndpointState::with(ramping_since, Some(service_state.places()))
                    }
                };
                UpstreamEndpoint {
                    endpoint: endpoint.clone(),
                    state,
                }
            })
            .collect();
        let with_weight = endpoints.iter().filter(|e| e.endpoint.weight > 0).count() as u32;
        let ejections = match previous {
            Some(previous) => {
                previous.ejections.set_endpoints(with_weight);
                Arc::clone(&previous.ejections)
            }
            None => Ejections::new(with_weight),
        };
        let balancer = Balancer::new(&service.traffic.load_balancer, &endpoints, seed);
        Self {
            balancer: match previous {
                Some(previous) => balancer.follow(&previous.balancer),
                None => balancer,
            },
            service: Arc::clone(service),
            port: Arc::clone(port),
            endpoints,
            state: Arc::clone(service_state),
            ejections,
        }
    }

    /// When the first of the endpoints with weight admits an attempt again, for `Retry-After`. `None`: one does now, or
    /// there is none.
    pub fn open_until(&self, now: Instant) -> Option<Instant> {
        let with_weight = self.endpoints.iter().filter(|e| e.endpoint.weight > 0);
        let mut first: Option<Instant> = None;
        for endpoint in with_weight {
            let until = endpoint.state.open_until(now)?;
            first = Some(first.map_or(until, |first| first.min(until)));
        }
        first
    }
}

/// Where a service is dialled.
pub(super) type Dialled = (IpAddr, u16);

#[cfg(test)]
mod tests;
