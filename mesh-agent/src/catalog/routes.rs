//! The routes of a snapshot: rules with their backends resolved, tables by service port and client namespace, statuses.
//!
//! A route in the namespace of its service (producer) is for all clients; one in another namespace (consumer) is for
//! the clients of that namespace, and where there is one the producer's routes are not for them. On one service port
//! the GRPCRoutes of a group beat its HTTPRoutes.
//!
//! A change touches the routes that changed, those that refer to a service that came, went or has other ports, and the
//! tables of their parents. Rules that stay the same keep their `Arc`, and with it their split.

mod bind;
mod compile;
mod status;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{route_policies::RoutePolicies, snapshot::Snapshot};
use crate::{
    api::{self, Diff, Object},
    model::{ResourceName, Service},
    routing::{RouteId, RouteKind, RouteTable, Rule},
};

use bind::Binding;
use compile::Compiled;
pub use status::{Condition, ParentStatus, Reason, RouteScope, RouteStatus};

/// The tables of one service.
#[derive(Debug, Default)]
pub struct ServiceRoutes {
    /// By port.
    ports: BTreeMap<u16, PortRoutes>,
}

#[derive(Debug, Default)]
struct PortRoutes {
    producer: Option<Arc<RouteTable>>,
    /// By the clients' namespace.
    consumers: BTreeMap<Arc<str>, Arc<RouteTable>>,
}

impl ServiceRoutes {
    pub(super) fn find(&self, client_namespace: &str, port: u16) -> Option<&Arc<RouteTable>> {
        let port = self.ports.get(&port)?;
        let consumer = port.consumers.get(client_namespace);
        consumer.or(port.producer.as_ref())
    }

    /// Every table: its port, and the client namespace that it is for (`None`: all that have none of their own).
    pub fn iter(&self) -> impl Iterator<Item = (u16, Option<&Arc<str>>, &Arc<RouteTable>)> {
        self.ports.iter().flat_map(|(number, port)| {
            let producer = port.producer.iter().map(|table| (*number, None, table));
            let consumers = port.consumers.iter();
            producer.chain(consumers.map(|(ns, table)| (*number, Some(ns), table)))
        })
    }
}

/// Routes as their sources wrote them, and who depends on what.
#[derive(Debug, Default)]
pub(super) struct Routes {
    by_id: BTreeMap<RouteId, State>,
    /// Routes by the services that they name as a parent, whether these exist or not.
    by_parent: HashMap<ResourceName, BTreeSet<RouteId>>,
    /// Routes by the services that they send or copy requests to.
    by_backend: HashMap<ResourceName, BTreeSet<RouteId>>,
    /// What became of the parents of routes.
    bindings: HashMap<ResourceName, Vec<Binding>>,
}

#[derive(Debug)]
struct State {
    compiled: Compiled,
    rules: Vec<Arc<Rule>>,
}

/// What TrafficPolicies set for routes, and for which this changed.
pub(super) struct Attached<'p> {
    pub(super) policies: &'p RoutePolicies,
    pub(super) changed: HashSet<RouteId>,
}

/// What a change has to do with.
#[derive(Default)]
struct Touched {
    routes: BTreeSet<RouteId>,
    services: HashSet<ResourceName>,
    /// Rules of routes that went or are replaced.
    old_rules: HashMap<RouteId, Vec<Arc<Rule>>>,
}

impl Routes {
    /// Brings the tables and statuses up to date, after the services. `services`: those that may differ. Returns whether
    /// anything differs.
    pub(super) fn update(
        &mut self,
        previous: &Snapshot,
        next: &mut Snapshot,
        http: &Diff<'_, Object<api::HttpRoute>>,
        grpc: &Diff<'_, Object<api::GrpcRoute>>,
        policies: Attached<'_>,
        services: &HashSet<ResourceName>,
    ) -> bool {
        let mut touched = Touched::default();
        for route in &http.removed {
            self.remove(&id(RouteKind::Http, route), &mut touched);
        }
        for route in &grpc.removed {
            self.remove(&id(RouteKind::Grpc, route), &mut touched);
        }
        for route in &http.added {
            self.add(Compiled::http(route), &mut touched);
        }
        for route in &grpc.added {
            self.add(Compiled::grpc(route), &mut touched);
        }
        let known = policies.changed.into_iter();
        touched
            .routes
            .extend(known.filter(|id| self.by_id.contains_key(id)));
        for name in services {
            if same_front(previous.services.get(name), next.services.get(name)) {
                continue;
            }
            if self.by_parent.contains_key(name) {
                touched.services.insert(name.clone());
            }
            touched
                .routes
                .extend(self.by_backend.get(name).into_iter().flatten().cloned());
        }
        if touched.routes.is_empty() && touched.services.is_empty() {
            return false;
        }
        self.resolve(next, policies.policies, &mut touched);
        self.rebuild(next, touched);
        true
    }

    fn remove(&mut self, id: &RouteId, touched: &mut Touched) {
        let Some(state) = self.by_id.remove(id) else {
            return;
        };
        for parent in state.compiled.parent_services() {
            unlink(&mut self.by_parent, &parent, id);
            touched.services.insert(parent);
        }
        for backend in state.compiled.backend_services() {
            unlink(&mut self.by_backend, &backend, id);
        }
        touched.old_rules.insert(id.clone(), state.rules);
        touched.routes.insert(id.clone());
    }

    fn add(&mut self, compiled: Compiled, touched: &mut Touched) {
        let id = compiled.id.clone();
        for parent in compiled.parent_services() {
            let routes = self.by_parent.entry(parent.clone()).or_default();
            routes.insert(id.clone());
            touched.services.insert(parent);
        }
        for backend in compiled.backend_services() {
            let routes = self.by_backend.entry(backend).or_default();
            routes.insert(id.clone());
        }
        let rules = touched.old_rules.remove(&id).unwrap_or_default();
        touched.routes.insert(id.clone());
        self.by_id.insert(id, State { compiled, rules });
    }

    /// Makes the rules of the touched routes anew where something differs.
    fn resolve(&mut self, next: &Snapshot, policies: &RoutePolicies, touched: &mut Touched) {
        for id in &touched.routes {
            let Some(state) = self.by_id.get_mut(id) else {
                continue;
            };
            let rules = state
                .compiled
                .rules(&state.rules, policies.get(id), |name| {
                    next.services.get(name).map(|service| &**service)
                });
            let same = rules.len() == state.rules.len()
                && rules
                    .iter()
                    .zip(&state.rules)
                    .all(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                state.rules = rules;
                touched.services.extend(state.compiled.parent_services());
            }
        }
    }

    fn rebuild(&mut self, next: &mut Snapshot, touched: Touched) {
        let mut stale = touched.routes;
        let tables = Arc::make_mut(&mut next.routes);
        for name in touched.services {
            let before = self.bindings.remove(&name);
            stale.extend(before.into_iter().flatten().map(|binding| binding.route));
            let routes = self.by_parent.get(&name).into_iter().flatten();
            let states = routes.filter_map(|id| self.by_id.get(id));
            let service = next.services.get(&name).map(|service| &**service);
            let (bindings, made) = bind::bind(&name, service, states);
            stale.extend(bindings.iter().map(|binding| binding.route.clone()));
            match made.ports.is_empty() {
                true => tables.remove(&name),
                false => tables.insert(name.clone(), Arc::new(made)),
            };
            if !bindings.is_empty() {
                self.bindings.insert(name, bindings);
            }
        }
        let statuses = Arc::make_mut(&mut next.route_statuses);
        for id in stale {
            match self.by_id.get(&id) {
                Some(state) => {
                    let of = |service: &ResourceName| {
                        let bindings = self.bindings.get(service).map_or(&[][..], Vec::as_slice);
                        bindings.iter().filter(|binding| binding.route == id)
                    };
                    let status = status::of(&state.compiled, &state.rules, of);
                    statuses.insert(id, Arc::new(status));
                }
                None => {
                    statuses.remove(&id);
                }
            }
        }
    }
}

fn id<T>(kind: RouteKind, object: &Object<T>) -> RouteId {
    RouteId {
        kind,
        name: object.name.clone(),
    }
}

fn unlink(
    index: &mut HashMap<ResourceName, BTreeSet<RouteId>>,
    service: &ResourceName,
    id: &RouteId,
) {
    if let Some(routes) = index.get_mut(service) {
        routes.remove(id);
        if routes.is_empty() {
            index.remove(service);
        }
    }
}

/// Whether a service looks the same to a route: it is there, can be dialled, and has the same ports.
fn same_front(old: Option<&Arc<Service>>, new: Option<&Arc<Service>>) -> bool {
    match (old, new) {
        (None, None) => true,
        (Some(old), Some(new)) => {
            let ports = |service: &Service| -> Vec<_> {
                let ports = service.ports.iter();
                ports.map(|port| (port.port, port.name.clone())).collect()
            };
            Arc::ptr_eq(old, new)
                || (old.vips.is_empty() == new.vips.is_empty() && ports(old) == ports(new))
        }
        _ => false,
    }
}
