//! The node's view of the world at one moment. Immutable; lookups take no lock.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::upstream::{Dialled, Upstream};
use crate::model::{ResourceName, Service, Workload};

/// One version of the world. Cheap to clone: the maps are shared with the next version unless they change.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows with each applied change.
    pub version: u64,
    pub(super) node: Arc<str>,
    pub(super) workloads: Arc<BTreeMap<ResourceName, Arc<Workload>>>,
    pub(super) by_address: Arc<HashMap<IpAddr, Arc<Workload>>>,
    pub(super) services: Arc<BTreeMap<ResourceName, Arc<Service>>>,
    pub(super) by_vip: Arc<HashMap<IpAddr, Arc<Service>>>,
    pub(super) upstreams: Arc<HashMap<Dialled, Arc<Upstream>>>,
}

impl Snapshot {
    pub(super) fn empty(node: Arc<str>) -> Self {
        Self {
            version: 0,
            node,
            workloads: Arc::default(),
            by_address: Arc::default(),
            services: Arc::default(),
            by_vip: Arc::default(),
            upstreams: Arc::default(),
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

    /// Which service has a virtual address. O(1).
    pub fn service_by_vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(&ip)
    }

    /// What serves a virtual address and port. O(1). `None` with `service_by_vip` being `Some` means that the service
    /// has no such port.
    pub fn upstream(&self, ip: IpAddr, port: u16) -> Option<&Arc<Upstream>> {
        self.upstreams.get(&(ip, port))
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
        self.workloads.values().filter(|workload| {
            workload
                .node
                .as_deref()
                .is_none_or(|node| node == &*self.node)
        })
    }

    /// What serves each of a service's virtual addresses and ports; dialled addresses of one IP family share it.
    pub fn upstreams_of<'s>(
        &'s self,
        service: &'s Service,
    ) -> impl Iterator<Item = (IpAddr, u16, &'s Arc<Upstream>)> {
        service.vips.iter().flat_map(move |vip| {
            service.ports.iter().filter_map(move |port| {
                let upstream = self.upstreams.get(&(*vip, port.port))?;
                Some((*vip, port.port, upstream))
            })
        })
    }
}
