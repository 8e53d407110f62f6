//! Whether an edit is surely good, judged by what it touches.
//!
//! Checking all resources together takes longer the more there are, and an edit should take effect at once. So after a
//! full check the names and addresses are kept, and an edit that is small and collides with none of them is accepted
//! on that; the full check follows later and brings the warnings up to date. Whatever is not clear here is left to the
//! full check: this may doubt a good edit, but never accepts a bad one.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Config,
    diff::Diff,
    kinds::{Service, TargetPort, Workload},
    metadata::Object,
};
use crate::model::ResourceName;

/// An edit of more resources gets the full check.
const SMALL: usize = 1000;

/// A configuration that passed the full check.
#[derive(Debug)]
pub(crate) struct Known {
    config: Config,
    services: HashSet<ResourceName>,
    slices: HashSet<ResourceName>,
    workloads: HashSet<ResourceName>,
    authorization: HashSet<ResourceName>,
    /// Of workloads and services.
    addresses: HashSet<IpAddr>,
    vips: HashSet<IpAddr>,
    /// Of slices; some may have gone since.
    endpoints: HashSet<IpAddr>,
    /// A service refers to ports of workloads by name.
    named_ports: bool,
    /// A policy selects workloads.
    selecting_policies: bool,
}

impl Known {
    pub(crate) fn new(config: &Config) -> Self {
        let vips: HashSet<IpAddr> = config.services.iter().flat_map(|s| s.vips()).collect();
        let mut addresses = vips.clone();
        addresses.extend(config.workloads.iter().flat_map(|w| own_addresses(w)));
        let mut known = Self {
            services: config.services.iter().map(|s| s.name.clone()).collect(),
            slices: config
                .endpoint_slices
                .iter()
                .map(|s| s.name.clone())
                .collect(),
            workloads: config.workloads.iter().map(|w| w.name.clone()).collect(),
            authorization: config
                .authorization_policies
                .iter()
                .map(|p| p.name.clone())
                .collect(),
            addresses,
            vips,
            endpoints: HashSet::new(),
            named_ports: config.services.iter().any(|s| names_ports(s)),
            selecting_policies: config
                .mesh_policies
                .iter()
                .any(|p| p.spec.selector.is_some()),
            config: config.clone(),
        };
        for slice in &config.endpoint_slices {
            let addresses = slice.endpoints.iter().flat_map(|e| &e.addresses);
            known.endpoints.extend(addresses.map(|address| address.0));
        }
        known
    }

    /// Takes an edit over if it is surely good. After a `false` this is of no more use.
    pub(crate) fn accepts(&mut self, next: &Config) -> bool {
        let old = std::mem::replace(&mut self.config, next.clone());
        let services = Diff::between(&old.services, &next.services);
        let slices = Diff::between(&old.endpoint_slices, &next.endpoint_slices);
        let workloads = Diff::between(&old.workloads, &next.workloads);
        let authorization =
            Diff::between(&old.authorization_policies, &next.authorization_policies);
        let touched = services.all().count()
            + slices.all().count()
            + workloads.all().count()
            + authorization.all().count();
        let clear = touched <= SMALL
            && Diff::between(&old.namespaces, &next.namespaces).is_empty()
            && Diff::between(&old.mesh_policies, &next.mesh_policies).is_empty()
            && Diff::between(&old.traffic_policies, &next.traffic_policies).is_empty()
            && Diff::between(&old.http_routes, &next.http_routes).is_empty()
            && Diff::between(&old.grpc_routes, &next.grpc_routes).is_empty();
        // What goes makes room before what comes is looked at.
        if !clear {
            return false;
        }
        let old_services = by_name(&services.removed);
        let old_workloads = by_name(&workloads.removed);
        for service in &services.removed {
            self.services.remove(&service.name);
            for vip in service.vips() {
                self.addresses.remove(&vip);
                self.vips.remove(&vip);
            }
        }
        for workload in &workloads.removed {
            self.workloads.remove(&workload.name);
            for address in own_addresses(workload) {
                self.addresses.remove(&address);
            }
        }
        for slice in &slices.removed {
            self.slices.remove(&slice.name);
        }
        for policy in &authorization.removed {
            self.authorization.remove(&policy.name);
        }
        let replaced: HashSet<&ResourceName> = workloads.added.iter().map(|w| &w.name).collect();
        let port_may_be_lost = self.named_ports
            && workloads
                .removed
                .iter()
                .any(|w| !replaced.contains(&w.name));
        !port_may_be_lost
            // Nothing but its name can collide.
            && authorization
                .added
                .iter()
                .all(|policy| self.authorization.insert(policy.name.clone()))
            && services
                .added
                .iter()
                .all(|s| self.service(s, old_services.get(&s.name).copied()))
            && workloads
                .added
                .iter()
                .all(|w| self.workload(w, old_workloads.get(&w.name).copied()))
            && slices.added.iter().all(|slice| {
                let mut addresses = slice.endpoints.iter().flat_map(|e| &e.addresses);
                self.slices.insert(slice.name.clone())
                    && addresses.all(|address| {
                        self.endpoints.insert(address.0);
                        !self.vips.contains(&address.0)
                    })
            })
    }

    fn service(&mut self, service: &Object<Service>, old: Option<&Object<Service>>) -> bool {
        let same_targets = old.is_some_and(|old| {
            let targets = |s: &Object<Service>| {
                s.spec
                    .ports
                    .iter()
                    .map(|p| p.target_port.clone())
                    .collect::<Vec<_>>()
            };
            old.spec.selector == service.spec.selector && targets(old) == targets(service)
        });
        self.services.insert(service.name.clone())
            && (same_targets || !names_ports(service))
            && service.vips().all(|vip| {
                self.vips.insert(vip);
                self.addresses.insert(vip) && !self.endpoints.contains(&vip)
            })
    }

    fn workload(&mut self, workload: &Object<Workload>, old: Option<&Object<Workload>>) -> bool {
        let spec = &workload.spec;
        let same_netns =
            old.is_some_and(|old| old.spec.netns == spec.netns && old.spec.node == spec.node);
        let same_look = old.is_some_and(|old| {
            old.metadata.labels == workload.metadata.labels && old.spec.ports == spec.ports
        });
        self.workloads.insert(workload.name.clone())
            && (same_netns || spec.netns.is_none())
            && (same_look || !(self.named_ports || self.selecting_policies))
            && own_addresses(workload).all(|address| self.addresses.insert(address))
    }
}

fn own_addresses(workload: &Object<Workload>) -> impl Iterator<Item = IpAddr> + '_ {
    workload.spec.addresses.iter().map(|address| address.0)
}

fn names_ports(service: &Object<Service>) -> bool {
    let mut targets = service.spec.ports.iter().map(|port| &port.target_port);
    targets.any(|target| matches!(target, Some(TargetPort::Name(_))))
}

fn by_name<'a, T>(objects: &[&'a Arc<Object<T>>]) -> HashMap<&'a ResourceName, &'a Object<T>> {
    objects
        .iter()
        .map(|object| (&object.name, &***object))
        .collect()
}
