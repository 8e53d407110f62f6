//! What telemetry asks of the other parts: names from the catalog, records and gauges from capture.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use mesh_common::ConnRecord;

use super::identity;
use crate::{
    capture::Capture,
    catalog::{Catalog, Snapshot},
    discovery::SourceState,
    health::Board,
    identity::Identities,
    model::{ResourceName, Service, Workload},
    proxy::Proxy,
    telemetry::{
        AgentGauges, AgentSource, ConfigGauges, ConnStore, Directory, EndpointGauge, HealthGauges,
        MapGauge, ServiceGauge,
    },
};

/// Names for addresses.
#[derive(Debug)]
pub(super) struct Names(pub(super) Arc<Catalog>);

impl Directory for Names {
    fn workload(&self, name: &ResourceName) -> Option<Arc<Workload>> {
        self.0.load().workload(name).cloned()
    }

    fn workload_by_netns(&self, cookie: u64) -> Option<ResourceName> {
        self.0.workload_by_netns(cookie)
    }

    fn workload_by_address(&self, ip: IpAddr) -> Option<ResourceName> {
        Some(self.0.load().workload_by_address(ip)?.name.clone())
    }

    fn service_by_address(&self, ip: IpAddr) -> Option<ResourceName> {
        Some(self.0.load().service_by_vip(ip)?.name.clone())
    }

    fn service_in_front(&self, address: SocketAddr) -> Option<ResourceName> {
        self.0.load().inbound(address)?.reported(None).cloned()
    }

    fn policies(&self) -> Option<HashSet<ResourceName>> {
        let snapshot = self.0.load();
        let names = snapshot.authorization_policies();
        Some(names.map(|p| p.policy.name.clone()).collect())
    }

    fn services(&self) -> Option<HashSet<ResourceName>> {
        let snapshot = self.0.load();
        Some(snapshot.services().map(|s| s.name.clone()).collect())
    }
}

/// The kernel's records.
#[derive(Debug)]
pub(super) struct Records(pub(super) Arc<Capture>);

impl ConnStore for Records {
    fn read_conns(&self) -> Vec<(u64, ConnRecord)> {
        self.0.read_conns()
    }

    fn read_conn(&self, app_cookie: u64) -> Option<ConnRecord> {
        self.0.read_conn(app_cookie)
    }

    fn update_conn(&self, app_cookie: u64, record: &ConnRecord) {
        self.0.update_conn(app_cookie, record);
    }
}

/// Workloads of this node by state of their enrolment.
pub(super) fn workloads_by_state(capture: &Capture) -> Vec<(&'static str, u64)> {
    let mut states: BTreeMap<&'static str, u64> = ["enrolled", "enrolling", "failed", "releasing"]
        .map(|s| (s, 0))
        .into();
    for pod in capture.pods() {
        *states.entry(pod.state.as_str()).or_default() += 1;
    }
    states.into_iter().collect()
}

/// What a scrape shows of capture and configuration.
pub(super) struct Gauges {
    pub(super) catalog: Arc<Catalog>,
    pub(super) capture: Arc<Capture>,
    pub(super) sources: Vec<SourceState>,
    pub(super) identities: Arc<Identities>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) health: Arc<Board>,
}

impl Gauges {
    fn health(&self) -> HealthGauges {
        let counts = self.health.counts();
        HealthGauges {
            checks: vec![
                ("good", counts.good),
                ("bad", counts.bad),
                ("unknown", counts.unknown),
            ],
            unhealthy: self.health.unhealthy().into_iter().collect(),
        }
    }
}

impl AgentSource for Gauges {
    fn gauges(&self) -> AgentGauges {
        let maps = self.capture.map_stats();
        AgentGauges {
            maps: maps
                .into_iter()
                .map(|map| MapGauge {
                    name: map.name.to_owned(),
                    entries: map.entries,
                    max_entries: map.max_entries,
                })
                .collect(),
            bpf_events: self
                .capture
                .counters()
                .into_iter()
                .map(|(_, name, value)| (name, value))
                .collect(),
            workloads: workloads_by_state(&self.capture),
            config: self
                .sources
                .iter()
                .map(|source| {
                    let status = source.get();
                    ConfigGauges {
                        source: status.name.clone(),
                        last_applied: status.last_applied,
                        last_reload_ok: status.error.is_none(),
                        resources: status.resources as u64,
                    }
                })
                .collect(),
            identity: identity::gauges(&self.identities),
            tunnels: self.proxy.tunnels(),
            services: services(&self.catalog.load()),
            health: self.health(),
            pool: self.proxy.pool(),
        }
    }
}

/// Every service, as its requests are under way from this node.
fn services(snapshot: &Snapshot) -> Vec<ServiceGauge> {
    let now = Instant::now();
    snapshot
        .services()
        .filter_map(|service| {
            let state = snapshot.service_state(&service.name)?;
            Some(ServiceGauge {
                name: service.name.clone(),
                in_flight: state.requests.in_use().into(),
                pending: state.waiting().into(),
                budget: Some(state.budget.balance(&service.traffic.retry_budget, now) as f64),
                limits: state.limiters.counts(),
                endpoints: breakers(snapshot, service, now),
            })
        })
        .collect()
}

/// Endpoints with a breaker, each once whatever the ports and families that lead to it.
fn breakers(snapshot: &Snapshot, service: &Service, now: Instant) -> Vec<EndpointGauge> {
    if service.traffic.breaker.is_none() {
        return Vec::new();
    }
    let dialled = service.vips.iter().flat_map(|vip| {
        let ports = service.ports.iter();
        ports.map(move |port| (*vip, port.port))
    });
    let endpoints: BTreeMap<_, _> = dialled
        .filter_map(|(vip, port)| snapshot.upstream(vip, port))
        .flat_map(|upstream| &upstream.endpoints)
        .map(|e| (e.endpoint.address, e.state.breaker_state(now)))
        .collect();
    endpoints
        .into_iter()
        .map(|(address, state)| EndpointGauge {
            address: address.to_string(),
            breaker: state,
        })
        .collect()
}
