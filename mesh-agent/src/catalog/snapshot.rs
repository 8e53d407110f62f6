//! The node's view of the world at one moment. Immutable; lookups take no lock.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    CatalogOptions, InboundPort, RouteStatus, ServiceRoutes,
    upstream::{Dialled, Upstream},
};
use crate::{
    model::{ResourceName, Service, TrustDomain, Workload},
    policy::{AuthorizationPolicies, Authorizer, Authorizers, PolicyScope},
    resilience::ServiceState,
    routing::{RouteId, RouteTable},
};

/// What serves one port of a service without a virtual address, for one IP family of its endpoints.
#[derive(Clone, Debug)]
pub(super) struct Headless {
    pub(super) port: u16,
    pub(super) ipv6: bool,
    pub(super) upstream: Arc<Upstream>,
}

/// One version of the world. Cheap to clone: the maps are shared with the next version unless they change.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows with each applied change.
    pub version: u64,
    pub(super) node: Arc<str>,
    pub(super) workloads: Arc<BTreeMap<ResourceName, Arc<Workload>>>,
    pub(super) by_address: Arc<HashMap<IpAddr, Arc<Workload>>>,
    pub(super) services: Arc<BTreeMap<ResourceName, Arc<Service>>>,
    pub(super) states: Arc<HashMap<ResourceName, Arc<ServiceState>>>,
    pub(super) by_vip: Arc<HashMap<IpAddr, Arc<Service>>>,
    pub(super) upstreams: Arc<HashMap<Dialled, Arc<Upstream>>>,
    /// Of the ports of this node's workloads that services lead to.
    pub(super) inbound: Arc<HashMap<SocketAddr, Arc<InboundPort>>>,
    /// What serves the ports of services without a virtual address, which only routes lead to.
    pub(super) headless: Arc<HashMap<ResourceName, Vec<Headless>>>,
    pub(super) routes: Arc<HashMap<ResourceName, Arc<ServiceRoutes>>>,
    pub(super) route_statuses: Arc<BTreeMap<RouteId, Arc<RouteStatus>>>,
    pub(super) authorization: Arc<AuthorizationPolicies>,
    /// Of the workloads of this node.
    pub(super) authorizers: Arc<HashMap<ResourceName, Arc<Authorizer>>>,
}

impl Snapshot {
    pub(super) fn empty(options: &CatalogOptions) -> Self {
        Self {
            version: 0,
            node: Arc::clone(&options.node),
            workloads: Arc::default(),
            by_address: Arc::default(),
            services: Arc::default(),
            states: Arc::default(),
            by_vip: Arc::default(),
            upstreams: Arc::default(),
            inbound: Arc::default(),
            headless: Arc::default(),
            routes: Arc::default(),
            route_statuses: Arc::default(),
            authorization: Arc::new(AuthorizationPolicies::new(&options.root_namespace)),
            authorizers: Arc::default(),
        }
    }

    /// Name of the node whose view this is.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Who has an address. O(1).
    pub fn workload_by_address(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&ip)
    }

    pub fn workload(&self, name: &ResourceName) -> Option<&Arc<Workload>> {
        self.workloads.get(name)
    }

    pub fn service(&self, name: &ResourceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// Run-time state of a service: the same for as long as there is a service of that name. O(1).
    pub fn service_state(&self, name: &ResourceName) -> Option<&Arc<ServiceState>> {
        self.states.get(name)
    }

    /// Which service has a virtual address. O(1).
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(&ip)
    }

    /// What serves a virtual address and port. O(1). `None` with `service_by_vip` being `Some` means that the service
    /// has no such port.
    pub fn upstream(&self, ip: IpAddr, port: u16) -> Option<&Arc<Upstream>> {
        self.upstreams.get(&(ip, port))
    }

    /// The routes for clients of a namespace to one port of a service. `None`: no route is bound, the default
    /// forwarding applies. O(1).
    pub fn routes(
        &self,
        client_namespace: &str,
        service: &ResourceName,
        port: u16,
    ) -> Option<&Arc<RouteTable>> {
        self.routes.get(service)?.find(client_namespace, port)
    }

    /// The services that routes are bound to, with their tables, in no order.
    pub fn routed_services(
        &self,
    ) -> impl ExactSizeIterator<Item = (&ResourceName, &Arc<ServiceRoutes>)> {
        self.routes.iter()
    }

    /// What became of every route, GRPCRoutes first, in the order of names.
    pub fn route_statuses(&self) -> impl ExactSizeIterator<Item = &Arc<RouteStatus>> {
        self.route_statuses.values()
    }

    /// A backend of a route: one port of a service, whether it has virtual addresses or not. `ipv6`: the family that the
    /// client dialled, as far as the service has endpoints of it. O(1).
    pub fn backend(&self, service: &ResourceName, port: u16, ipv6: bool) -> Option<&Arc<Upstream>> {
        let service = self.services.get(service)?;
        let vip = service
            .vips
            .iter()
            .find(|vip| vip.is_ipv6() == ipv6)
            .or_else(|| service.vips.first());
        if let Some(vip) = vip {
            return self.upstreams.get(&(*vip, port));
        }
        let of_port = self.headless.get(&service.name)?.iter();
        let mut of_port = of_port.filter(|known| known.port == port);
        let first = of_port.next()?;
        let same_family = |known: &&Headless| known.ipv6 == ipv6;
        let found = std::iter::once(first).chain(of_port).find(same_family);
        Some(&found.unwrap_or(first).upstream)
    }

    /// What the services in front of a port of a workload of this node say of it. `None`: there are none. O(1).
    pub fn inbound(&self, destination: SocketAddr) -> Option<&Arc<InboundPort>> {
        self.inbound.get(&destination)
    }

    /// In the order of names.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// In the order of names.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Every virtual address, in no order.
    pub fn vips(&self) -> impl ExactSizeIterator<Item = IpAddr> {
        self.by_vip.keys().copied()
    }

    /// Workloads of this node, and those that name no node.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads
            .values()
            .filter(|workload| self.is_local(workload))
    }

    /// Of every identity of the mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.authorization.trust().domain
    }

    /// Trust domains whose identities count as the mesh's own.
    pub fn trust_aliases(&self) -> &[TrustDomain] {
        &self.authorization.trust().aliases
    }

    /// Who may connect to a workload. O(1) for those of this node, which share it as long as their policies are the
    /// same: a different `Arc` in the next snapshot says that the answer may differ. For others it is made anew. That of
    /// a workload that is not known denies everything.
    pub fn authorizer(&self, name: &ResourceName) -> Arc<Authorizer> {
        if let Some(authorizer) = self.authorizers.get(name) {
            return Arc::clone(authorizer);
        }
        match self.workloads.get(name) {
            Some(workload) => self.authorization.authorizer(
                &name.namespace,
                &workload.labels,
                &mut Authorizers::default(),
            ),
            None => Arc::new(Authorizer::closed()),
        }
    }

    /// Every AuthorizationPolicy, in the order of names.
    pub fn authorization_policies(&self) -> impl Iterator<Item = PolicyScope<'_>> {
        self.authorization.iter()
    }

    /// The workloads of this node that a policy is for, in the order of names.
    pub fn workloads_of<'s>(
        &'s self,
        policy: PolicyScope<'s>,
    ) -> impl Iterator<Item = &'s Arc<Workload>> {
        self.local_workloads()
            .filter(move |workload| policy.applies(&workload.name.namespace, &workload.labels))
    }

    /// Whether a workload is of this node, or names no node.
    pub(super) fn is_local(&self, workload: &Workload) -> bool {
        workload
            .node
            .as_deref()
            .is_none_or(|node| node == &*self.node)
    }

    /// What serves each of a service's virtual addresses and ports; dialled addresses of one IP family share it. Of a
    /// service without virtual addresses, what serves its ports for routes.
    pub fn upstreams_of<'s>(
        &'s self,
        service: &'s Service,
    ) -> impl Iterator<Item = (Option<IpAddr>, u16, &'s Arc<Upstream>)> {
        let headless = self.headless.get(&service.name).into_iter().flatten();
        let headless = headless.map(|known| (None, known.port, &known.upstream));
        let dialled = service.vips.iter().flat_map(move |vip| {
            service.ports.iter().filter_map(move |port| {
                let upstream = self.upstreams.get(&(*vip, port.port))?;
                Some((Some(*vip), port.port, upstream))
            })
        });
        dialled.chain(headless)
    }

    /// What serves each port of a service, with the port: one upstream for each IP family, those of headless services as
    /// well. One may come twice, when the service has two addresses of a family.
    pub fn served<'s>(
        &'s self,
        service: &'s Service,
    ) -> impl Iterator<Item = (u16, &'s Arc<Upstream>)> {
        let dialled = self
            .upstreams_of(service)
            .map(|(_, port, upstream)| (port, upstream));
        let headless = self.headless.get(&service.name).into_iter().flatten();
        dialled.chain(headless.map(|known| (known.port, &known.upstream)))
    }
}
