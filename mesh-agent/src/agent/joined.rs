//! What telemetry asks of the other parts: names from the catalog, records and gauges from capture.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use mesh_common::ConnRecord;

use super::identity;
use crate::{
    capture::Capture,
    catalog::Catalog,
    discovery::SourceState,
    identity::Identities,
    model::{ResourceName, Workload},
    proxy::Proxy,
    telemetry::{AgentGauges, AgentSource, ConfigGauges, ConnStore, Directory, MapGauge},
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

    fn policies(&self) -> Option<HashSet<ResourceName>> {
        let snapshot = self.0.load();
        let names = snapshot.authorization_policies();
        Some(names.map(|p| p.policy.name.clone()).collect())
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
    pub(super) capture: Arc<Capture>,
    pub(super) sources: Vec<SourceState>,
    pub(super) identities: Arc<Identities>,
    pub(super) proxy: Arc<Proxy>,
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
            services: Vec::new(),
        }
    }
}
