//! The services of a snapshot: endpoints from selectors and slices, traffic policies, upstreams.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use super::{
    build::keep_equal,
    distribution,
    inbound::Inbound,
    snapshot::{Headless, Snapshot},
    upstream::Upstream,
    workloads::Workloads,
};
use crate::{
    api::{self, Diff, Object, SERVICE_NAME_LABEL, TargetPort, contains_all},
    model::{AppProtocol, Endpoint, ResourceName, Service, ServicePort, TrafficPolicy},
    resilience::ServiceState,
};

type Source = Arc<Object<api::Service>>;
type Slice = Arc<Object<api::EndpointSlice>>;
type Label = (Arc<str>, String, String);

/// Services as their sources wrote them, and who depends on what.
#[derive(Debug)]
pub(super) struct Services {
    node: Arc<str>,
    by_name: HashMap<ResourceName, State>,
    /// By the first label of their selector.
    by_label: HashMap<Label, HashSet<ResourceName>>,
    slices: HashMap<ResourceName, BTreeMap<ResourceName, Slice>>,
    /// Services whose slices mention an address, whose owner they name.
    by_address: HashMap<IpAddr, HashSet<ResourceName>>,
    traffic: HashMap<ResourceName, Arc<TrafficPolicy>>,
    default_traffic: Arc<TrafficPolicy>,
    inbound: Inbound,
}

#[derive(Debug)]
struct State {
    source: Source,
    /// What happens to the service at run time; lives as long as its name.
    state: Arc<ServiceState>,
}

impl Services {
    pub(super) fn new(node: &Arc<str>) -> Self {
        Self {
            node: Arc::clone(node),
            by_name: HashMap::new(),
            by_label: HashMap::new(),
            slices: HashMap::new(),
            by_address: HashMap::new(),
            traffic: HashMap::new(),
            default_traffic: Arc::default(),
            inbound: Inbound::default(),
        }
    }

    /// Brings the indexes up to date and notes which services have to be rebuilt.
    pub(super) fn index(
        &mut self,
        services: &Diff<'_, Object<api::Service>>,
        slices: &Diff<'_, Object<api::EndpointSlice>>,
        traffic: &Diff<'_, Object<api::TrafficPolicy>>,
        dirty: &mut HashSet<ResourceName>,
    ) {
        let mut states = HashMap::new();
        for service in &services.removed {
            if let Some(label) = first_label(service)
                && let Some(names) = self.by_label.get_mut(&label)
            {
                names.remove(&service.name);
                if names.is_empty() {
                    self.by_label.remove(&label);
                }
            }
            if let Some(state) = self.by_name.remove(&service.name) {
                states.insert(service.name.clone(), state.state);
            }
            dirty.insert(service.name.clone());
        }
        for service in &services.added {
            if let Some(label) = first_label(service) {
                self.by_label
                    .entry(label)
                    .or_default()
                    .insert(service.name.clone());
            }
            let state = states.remove(&service.name).unwrap_or_default();
            let source = Arc::clone(service);
            self.by_name
                .insert(service.name.clone(), State { source, state });
            dirty.insert(service.name.clone());
        }
        for slice in &slices.removed {
            self.remove_slice(slice, dirty);
        }
        for slice in &slices.added {
            self.add_slice(slice, dirty);
        }
        for policy in &traffic.removed {
            for service in targets(policy) {
                self.traffic.remove(&service);
                dirty.insert(service);
            }
        }
        for policy in &traffic.added {
            let effective = Arc::new(policy.spec.effective());
            for service in targets(policy) {
                self.traffic.insert(service.clone(), Arc::clone(&effective));
                dirty.insert(service);
            }
        }
    }

    fn remove_slice(&mut self, slice: &Slice, dirty: &mut HashSet<ResourceName>) {
        let Some(service) = service_of(slice) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&slice.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        for address in slice_addresses(slice) {
            if let Some(services) = self.by_address.get_mut(&address) {
                services.remove(&service);
                if services.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        // Another slice of the service may have the same address.
        let rest: Vec<IpAddr> = self
            .slices
            .get(&service)
            .into_iter()
            .flat_map(BTreeMap::values)
            .flat_map(slice_addresses)
            .collect();
        for address in rest {
            self.by_address
                .entry(address)
                .or_default()
                .insert(service.clone());
        }
        dirty.insert(service);
    }

    fn add_slice(&mut self, slice: &Slice, dirty: &mut HashSet<ResourceName>) {
        let Some(service) = service_of(slice) else {
            return;
        };
        for address in slice_addresses(slice) {
            self.by_address
                .entry(address)
                .or_default()
                .insert(service.clone());
        }
        let slices = self.slices.entry(service.clone()).or_default();
        slices.insert(slice.name.clone(), Arc::clone(slice));
        dirty.insert(service);
    }

    /// Notes the services that a workload that came, went or changed has to do with.
    pub(super) fn touched_by(
        &self,
        workload: &Object<api::Workload>,
        dirty: &mut HashSet<ResourceName>,
    ) {
        for (key, value) in &workload.metadata.labels.0 {
            let label = (
                Arc::clone(&workload.name.namespace),
                key.clone(),
                value.clone(),
            );
            for name in self.by_label.get(&label).into_iter().flatten() {
                let selects = self.by_name.get(name).is_some_and(|state| {
                    contains_all(&workload.metadata.labels.0, &state.source.spec.selector.0)
                });
                if selects {
                    dirty.insert(name.clone());
                }
            }
        }
        for address in &workload.spec.addresses {
            dirty.extend(
                self.by_address
                    .get(&address.0)
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
    }

    /// Rebuilds what was noted. Returns whether anything differs.
    pub(super) fn rebuild(
        &mut self,
        next: &mut Snapshot,
        workloads: &Workloads,
        dirty: &HashSet<ResourceName>,
        now: Instant,
    ) -> bool {
        let mut fresh = Vec::new();
        let mut stale = Vec::new();
        for name in dirty {
            let old = next.services.get(name);
            match self.by_name.get(name) {
                Some(state) => {
                    let service = self.service(&state.source, workloads, next, old);
                    let service = keep_equal(old, service);
                    if old.is_none_or(|old| !Arc::ptr_eq(old, &service)) {
                        stale.extend(old.cloned());
                        state.state.update(&service.traffic);
                        fresh.push((service, Arc::clone(&state.state)));
                    }
                }
                None => stale.extend(old.cloned()),
            }
        }
        if fresh.is_empty() && stale.is_empty() {
            return false;
        }
        let version = next.version;
        let services = Arc::make_mut(&mut next.services);
        let states = Arc::make_mut(&mut next.states);
        let by_vip = Arc::make_mut(&mut next.by_vip);
        let upstreams = Arc::make_mut(&mut next.upstreams);
        let headless = Arc::make_mut(&mut next.headless);
        // Every old address goes before any new one comes: an address may move from one service to another.
        let mut carried = HashMap::new();
        for old in &stale {
            services.remove(&old.name);
            states.remove(&old.name);
            for known in headless.remove(&old.name).into_iter().flatten() {
                carried.insert((&old.name, known.port, known.ipv6), known.upstream);
            }
            for vip in &old.vips {
                by_vip.remove(vip);
                for port in &old.ports {
                    if let Some(upstream) = upstreams.remove(&(*vip, port.port)) {
                        carried.insert((&old.name, port.port, vip.is_ipv6()), upstream);
                    }
                }
            }
        }
        for (service, state) in &fresh {
            let mut made: HashMap<(u16, bool), Arc<Upstream>> = HashMap::new();
            let upstream_of = |port: &Arc<ServicePort>, ipv6| {
                let previous = carried.get(&(&service.name, port.port, ipv6));
                let previous = previous.map(|upstream| &**upstream);
                let seed = self.seed(&service.name, port.port, version);
                Arc::new(Upstream::next(
                    service, port, ipv6, previous, state, seed, now,
                ))
            };
            if service.vips.is_empty() {
                let mut of_ports = Vec::new();
                for port in &service.ports {
                    for ipv6 in families(port) {
                        of_ports.push(Headless {
                            port: port.port,
                            ipv6,
                            upstream: upstream_of(port, ipv6),
                        });
                    }
                }
                headless.insert(service.name.clone(), of_ports);
            }
            for vip in &service.vips {
                by_vip.insert(*vip, Arc::clone(service));
                for port in &service.ports {
                    let ipv6 = vip.is_ipv6();
                    let upstream = made
                        .entry((port.port, ipv6))
                        .or_insert_with(|| upstream_of(port, ipv6));
                    upstreams.insert((*vip, port.port), Arc::clone(upstream));
                }
            }
            states.insert(service.name.clone(), Arc::clone(state));
            services.insert(service.name.clone(), Arc::clone(service));
        }
        let fresh: Vec<_> = fresh.into_iter().map(|(service, _)| service).collect();
        self.inbound.update(next, &stale, &fresh);
        true
    }

    /// Differs between agents, services and versions, so that neither all agents nor all versions begin with the
    /// same endpoint.
    fn seed(&self, service: &ResourceName, port: u16, version: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.node, service, port, version).hash(&mut hasher);
        hasher.finish()
    }

    fn service(
        &self,
        source: &Source,
        workloads: &Workloads,
        next: &Snapshot,
        old: Option<&Arc<Service>>,
    ) -> Service {
        let name = &source.name;
        let selected: Vec<_> = workloads
            .selected(&name.namespace, &source.spec.selector)
            .collect();
        let slices = self.slices.get(name);
        let ports = source.spec.ports.iter().map(|port| {
            let mut endpoints = Vec::new();
            for workload in &selected {
                selected_endpoints(workload, port, &mut endpoints);
            }
            for slice in slices.into_iter().flat_map(BTreeMap::values) {
                slice_endpoints(slice, port, next, &mut endpoints);
            }
            // Stable, so that of two endpoints with one address the workload's stays.
            endpoints.sort_by_key(|endpoint: &Endpoint| endpoint.address);
            endpoints.dedup_by_key(|endpoint| endpoint.address);
            let known = old.and_then(|old| old.ports.iter().find(|known| known.port == port.port));
            let made = ServicePort {
                name: port.name.clone(),
                port: port.port,
                app_protocol: app_protocol(port),
                endpoints,
            };
            keep_equal(known, made)
        });
        Service {
            name: name.clone(),
            vips: source.vips().collect(),
            ports: ports.collect(),
            client_ip_affinity: source.spec.session_affinity == api::SessionAffinity::ClientIP,
            traffic: distribution::apply(
                self.traffic.get(name).unwrap_or(&self.default_traffic),
                source,
                slices
                    .into_iter()
                    .flat_map(BTreeMap::values)
                    .flat_map(|slice| &slice.endpoints),
            ),
        }
    }
}

/// The IP families of a port's endpoints; IPv4 when it has none, so that it is known to have no endpoints.
fn families(port: &ServicePort) -> Vec<bool> {
    let has = |ipv6| port.endpoints.iter().any(|e| e.address.is_ipv6() == ipv6);
    match (has(false), has(true)) {
        (true, true) => vec![false, true],
        (false, true) => vec![true],
        _ => vec![false],
    }
}

/// The label under which a service is found from a workload: all of its selector has to match, so any one will do.
fn first_label(service: &Source) -> Option<Label> {
    let (key, value) = service.spec.selector.0.first_key_value()?;
    Some((
        Arc::clone(&service.name.namespace),
        key.clone(),
        value.clone(),
    ))
}

fn service_of(slice: &Slice) -> Option<ResourceName> {
    let service = slice.metadata.labels.get(SERVICE_NAME_LABEL)?;
    Some(ResourceName::new(
        Arc::clone(&slice.name.namespace),
        service,
    ))
}

fn slice_addresses(slice: &Slice) -> impl Iterator<Item = IpAddr> + '_ {
    slice
        .endpoints
        .iter()
        .flat_map(|endpoint| &endpoint.addresses)
        .map(|address| address.0)
}

fn targets(policy: &Object<api::TrafficPolicy>) -> impl Iterator<Item = ResourceName> + '_ {
    policy
        .spec
        .target_refs
        .iter()
        .filter(|target| target.kind == api::TargetKind::Service)
        .map(|target| ResourceName::new(Arc::clone(&policy.name.namespace), target.name.as_str()))
}

/// The first address of each IP family serves the port, unless the workload does not have the named one.
fn selected_endpoints(
    workload: &Object<api::Workload>,
    port: &api::ServicePort,
    endpoints: &mut Vec<Endpoint>,
) {
    let spec = &workload.spec;
    let number = match &port.target_port {
        None => port.port,
        Some(TargetPort::Number(number)) => *number,
        Some(TargetPort::Name(name)) => match spec.ports.get(name) {
            Some(number) => *number,
            None => return,
        },
    };
    let first = |ipv6| {
        spec.addresses
            .iter()
            .find(move |address| address.0.is_ipv6() == ipv6)
    };
    for address in [first(false), first(true)].into_iter().flatten() {
        endpoints.push(Endpoint {
            address: SocketAddr::new(address.0, number),
            workload: Some(workload.name.clone()),
            weight: spec.weight,
            zone: spec.zone.clone(),
            node: spec.node.clone(),
        });
    }
}

/// Ready endpoints of the slice's port with the same name. Addresses of one endpoint are interchangeable, and as in
/// kube-proxy the first is used.
fn slice_endpoints(
    slice: &api::EndpointSlice,
    port: &api::ServicePort,
    snapshot: &Snapshot,
    endpoints: &mut Vec<Endpoint>,
) {
    let wanted = port.name.as_deref().unwrap_or_default();
    let served = slice
        .ports
        .iter()
        .find(|port| port.name.as_deref().unwrap_or_default() == wanted);
    let Some(served) = served else {
        return;
    };
    for endpoint in slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.is_ready())
    {
        let Some(address) = endpoint.addresses.first() else {
            continue;
        };
        let owner = snapshot.workload_by_address(address.0);
        endpoints.push(Endpoint {
            address: SocketAddr::new(address.0, served.port),
            workload: owner.map(|owner| owner.name.clone()),
            weight: owner.map_or(1, |owner| owner.weight),
            zone: endpoint
                .hinted_zone()
                .map(str::to_owned)
                .or_else(|| endpoint.zone.clone())
                .or_else(|| owner?.zone.clone()),
            node: endpoint
                .hinted_node()
                .map(str::to_owned)
                .or_else(|| endpoint.node_name.clone())
                .or_else(|| owner?.node.clone()),
        });
    }
}

/// `appProtocol`, or else the port's name up to the first dash.
fn app_protocol(port: &api::ServicePort) -> AppProtocol {
    if let Some(declared) = &port.app_protocol {
        return match declared.to_ascii_lowercase().as_str() {
            "tcp" => AppProtocol::Tcp,
            "http" | "kubernetes.io/ws" => AppProtocol::Http,
            "kubernetes.io/h2c" | "http2" => AppProtocol::Http2,
            "grpc" => AppProtocol::Grpc,
            "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
            _ => AppProtocol::Other(declared.clone()),
        };
    }
    let name = port.name.as_deref().unwrap_or_default();
    match name.split('-').next().unwrap_or_default() {
        "tcp" => AppProtocol::Tcp,
        "http" => AppProtocol::Http,
        "http2" | "h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tls" | "https" => AppProtocol::Tls,
        _ => AppProtocol::Undeclared,
    }
}
