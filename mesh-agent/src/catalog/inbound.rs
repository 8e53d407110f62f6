//! The ports of this node's workloads as destinations of HTTP: which services stand in front of them, and what those
//! say of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{build::keep_equal, snapshot::Snapshot};
use crate::{
    model::{AppProtocol, ResourceName, Service},
    resilience::ServiceState,
};

/// What the services in front of a workload's port say of it.
#[derive(Debug)]
pub struct InboundPort {
    /// Those that have the address among their endpoints, in the order of names.
    pub services: Vec<ResourceName>,
    /// What they declare; one that declares nothing says nothing. `Undeclared` where none does, or two differ.
    pub protocol: AppProtocol,
    /// Two of them differ about whether it is HTTP: it is found out for each connection.
    pub conflict: bool,
    /// State of those that have rate limits. A request does not say which of them it was dialled by, so it is charged
    /// to all.
    pub limited: Vec<Arc<ServiceState>>,
}

impl InboundPort {
    /// One of which nothing is known but this.
    pub fn declared(protocol: AppProtocol) -> Self {
        Self {
            services: Vec::new(),
            protocol,
            conflict: false,
            limited: Vec::new(),
        }
    }
}

impl InboundPort {
    /// The service that traffic to the port is counted for: the one that the client's side names by its host
    /// (`NAME.NAMESPACE.svc...`), should it stand in front; else the first in the order of names. What a client says is
    /// thus never more than a choice among those.
    pub fn reported(&self, said: Option<&str>) -> Option<&ResourceName> {
        said.and_then(|host| self.services.iter().find(|name| is_host_of(host, name)))
            .or(self.services.first())
    }
}

fn is_host_of(host: &str, name: &ResourceName) -> bool {
    let rest = host.strip_prefix(&*name.name);
    let rest = rest.and_then(|rest| rest.strip_prefix('.')?.strip_prefix(&*name.namespace));
    rest.is_some_and(|rest| rest.starts_with(".svc."))
}

impl PartialEq for InboundPort {
    fn eq(&self, other: &Self) -> bool {
        let states = |port: &Self| port.limited.iter().map(Arc::as_ptr).collect::<Vec<_>>();
        self.services == other.services
            && self.protocol == other.protocol
            && self.conflict == other.conflict
            && states(self) == states(other)
    }
}

/// One port of a service that leads to an address.
type Front = (ResourceName, u16);

/// Who stands in front of whom.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    fronts: HashMap<SocketAddr, BTreeMap<Front, AppProtocol>>,
}

impl Inbound {
    /// After the services of the snapshot: `stale` are gone or were replaced by `fresh`.
    pub(super) fn update(
        &mut self,
        next: &mut Snapshot,
        stale: &[Arc<Service>],
        fresh: &[Arc<Service>],
    ) {
        let mut touched = HashSet::new();
        for (front, address, _) in stale.iter().flat_map(|service| fronts(service)) {
            if let Some(fronts) = self.fronts.get_mut(&address) {
                fronts.remove(&front);
                touched.insert(address);
            }
        }
        for (front, address, protocol) in fresh.iter().flat_map(|service| fronts(service)) {
            let owner = next.by_address.get(&address.ip());
            if owner.is_some_and(|owner| next.is_local(owner)) {
                let fronts = self.fronts.entry(address).or_default();
                fronts.insert(front, protocol.clone());
                touched.insert(address);
            }
        }
        if touched.is_empty() {
            return;
        }
        let inbound = Arc::make_mut(&mut next.inbound);
        for address in touched {
            match self.fronts.get(&address) {
                Some(fronts) if !fronts.is_empty() => {
                    let known = inbound.get(&address);
                    let port = keep_equal(known, port(fronts, &next.services, &next.states));
                    if port.conflict && known.is_none_or(|known| !known.conflict) {
                        tracing::warn!(%address, services = ?port.services, "services declare different protocols for one port of a workload; what it speaks is found out for each connection");
                    }
                    inbound.insert(address, port);
                }
                _ => {
                    self.fronts.remove(&address);
                    inbound.remove(&address);
                }
            }
        }
    }
}

fn fronts(service: &Service) -> impl Iterator<Item = (Front, SocketAddr, &AppProtocol)> {
    service.ports.iter().flat_map(move |port| {
        port.endpoints.iter().map(move |endpoint| {
            let front = (service.name.clone(), port.port);
            (front, endpoint.address, &port.app_protocol)
        })
    })
}

fn port(
    fronts: &BTreeMap<Front, AppProtocol>,
    services: &BTreeMap<ResourceName, Arc<Service>>,
    states: &HashMap<ResourceName, Arc<ServiceState>>,
) -> InboundPort {
    let mut names: Vec<ResourceName> = fronts.keys().map(|(name, _)| name.clone()).collect();
    names.dedup();
    let limited = names.iter().filter(|name| {
        let service = services.get(*name);
        service.is_some_and(|service| !service.traffic.rate_limits.is_empty())
    });
    let limited = limited.filter_map(|name| states.get(name).cloned());
    let mut declared = fronts
        .values()
        .filter(|protocol| **protocol != AppProtocol::Undeclared);
    let (mut protocol, mut conflict) = (AppProtocol::Undeclared, false);
    if let Some(first) = declared.next() {
        protocol = first.clone();
        for other in declared.filter(|other| *other != first) {
            // Whether it is HTTP is what matters here; the version is the client's.
            match is_http(first) && is_http(other) {
                true => protocol = AppProtocol::Http,
                false => conflict |= is_http(first) || is_http(other),
            }
        }
    }
    if conflict {
        protocol = AppProtocol::Undeclared;
    }
    InboundPort {
        limited: limited.collect(),
        services: names,
        protocol,
        conflict,
    }
}

fn is_http(protocol: &AppProtocol) -> bool {
    matches!(
        protocol,
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::parse_bytes, catalog::Catalog};

    const WORKLOADS: &str = "---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {node: n1, addresses: [10.1.0.1]}
---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: far, namespace: shop, labels: {app: web}}
spec: {node: n2, addresses: [10.1.0.2]}
";

    fn service(name: &str, number: u8, port: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIPs: [10.96.0.{number}], selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080, {port}}}]}}\n"
        )
    }

    const LIMIT: &str = "---
apiVersion: mesh.covet.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: limit, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: a}]
  rateLimits: [{name: all, requests: 1, per: 1s}]
";

    struct World {
        catalog: Arc<Catalog>,
        source: crate::catalog::SourceId,
    }

    impl World {
        fn new() -> Self {
            let catalog = Catalog::new("n1");
            let source = catalog.register();
            Self { catalog, source }
        }

        fn of(&self, documents: &[&str]) -> Option<Arc<InboundPort>> {
            let text = documents.concat();
            let (config, _) = parse_bytes("f.yaml", text.as_bytes()).unwrap();
            self.catalog.apply(self.source, config);
            let snapshot = self.catalog.snapshot();
            assert!(
                snapshot.inbound(address("10.1.0.2:8080")).is_none(),
                "of another node"
            );
            snapshot.inbound(address("10.1.0.1:8080")).cloned()
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_is_what_the_services_in_front_of_it_declare() {
        let world = World::new();
        let undeclared = service("b", 2, "name: main");
        for (first, second, expected, conflict) in [
            ("name: http-x", None, AppProtocol::Http, false),
            ("appProtocol: grpc", None, AppProtocol::Grpc, false),
            ("name: main", None, AppProtocol::Undeclared, false),
            (
                "name: http-x",
                Some(undeclared.clone()),
                AppProtocol::Http,
                false,
            ),
            (
                "name: http-x",
                Some(service("b", 2, "name: grpc-x")),
                AppProtocol::Http,
                false,
            ),
            (
                "name: http-x",
                Some(service("b", 2, "name: tcp-x")),
                AppProtocol::Undeclared,
                true,
            ),
            (
                "name: tcp-x",
                Some(service("b", 2, "name: tls-x")),
                AppProtocol::Tcp,
                false,
            ),
        ] {
            let services = [service("a", 1, first), second.unwrap_or_default()].concat();
            let port = world.of(&[WORKLOADS, &services]).unwrap();
            assert_eq!(
                (&port.protocol, port.conflict),
                (&expected, conflict),
                "{services}"
            );
        }
        assert!(world.of(&[WORKLOADS]).is_none(), "no service is left");
        assert!(world.of(&[&service("a", 1, "name: http-x")]).is_none());
    }

    #[test]
    fn rate_limits_are_those_of_the_services_in_front_and_live_on() {
        let world = World::new();
        let services = [service("a", 1, "name: x"), service("b", 2, "name: x")].concat();
        let port = world.of(&[WORKLOADS, &services]).unwrap();
        assert_eq!(port.services.len(), 2);
        assert!(port.limited.is_empty());
        let limited = world.of(&[WORKLOADS, &services, LIMIT]).unwrap();
        assert_eq!(limited.limited.len(), 1);
        assert!(!limited.limited[0].limiters.is_empty());
        let other = service("a", 1, "name: http-x");
        let again = world.of(&[WORKLOADS, &other, LIMIT]).unwrap();
        assert!(Arc::ptr_eq(&limited.limited[0], &again.limited[0]));
    }

    #[test]
    fn traffic_is_counted_for_the_service_that_was_dialled_if_it_stands_in_front() {
        let world = World::new();
        let services = [service("a", 1, "name: x"), service("a-b", 2, "name: x")].concat();
        let port = world.of(&[WORKLOADS, &services]).unwrap();
        for (said, expected) in [
            (None, "a"),
            (Some("a.shop.svc.cluster.local"), "a"),
            (Some("a-b.shop.svc.cluster.local"), "a-b"),
            (Some("a-b.shop.svc.other.domain"), "a-b"),
            (Some("a-b.shop"), "a"),
            (Some("a-b.shopping.svc.cluster.local"), "a"),
            (Some("stranger.shop.svc.cluster.local"), "a"),
            (Some(""), "a"),
        ] {
            let found = port.reported(said).map(|name| &*name.name);
            assert_eq!(found, Some(expected), "{said:?}");
        }
        assert_eq!(InboundPort::declared(AppProtocol::Tcp).reported(None), None);
    }

    #[test]
    fn a_change_elsewhere_leaves_a_port_as_it_is() {
        let world = World::new();
        let services = service("a", 1, "name: http-x");
        let port = world.of(&[WORKLOADS, &services]).unwrap();
        let more = "---
apiVersion: mesh.covet.dev/v1alpha1
kind: Workload
metadata: {name: more, namespace: shop, labels: {app: web}}
spec: {node: n1, addresses: [10.1.0.3]}
";
        let same = world.of(&[WORKLOADS, more, &services]).unwrap();
        assert!(Arc::ptr_eq(&port, &same));
        let snapshot = world.catalog.snapshot();
        assert!(snapshot.inbound(address("10.1.0.3:8080")).is_some());
        let moved = WORKLOADS.replace("node: n1", "node: n3");
        assert!(world.of(&[&moved, more, &services]).is_none());
    }
}
