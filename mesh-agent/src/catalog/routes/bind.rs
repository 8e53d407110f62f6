//! Which routes of a service's are in effect on which of its ports, and for whom.

use std::{collections::BTreeMap, sync::Arc};

use super::{PortRoutes, ServiceRoutes, State};
use crate::{
    model::{ResourceName, Service},
    routing::{BoundRoute, RouteId, RouteTable},
};

/// What became of one parent of a route.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Binding {
    pub(super) route: RouteId,
    /// Position in `parentRefs`.
    pub(super) parent: usize,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    NoService,
    NoVirtualAddress,
    NoSuchPort,
    /// In effect on `ports`; on those of `lost` a route of another kind is.
    Ports {
        ports: Vec<u16>,
        lost: Vec<(u16, RouteId)>,
    },
}

/// Routes of one group on one port, with the positions of their bindings.
type Group<'s> = Vec<(&'s State, usize)>;

/// Tables of a service from the routes that name it as a parent.
pub(super) fn bind<'s>(
    name: &ResourceName,
    service: Option<&Service>,
    states: impl Iterator<Item = &'s State>,
) -> (Vec<Binding>, ServiceRoutes) {
    let mut bindings = Vec::new();
    // By port and client namespace; `None` is the producer's, which is for all.
    let mut groups: BTreeMap<(u16, Option<&Arc<str>>), Group<'s>> = BTreeMap::new();
    for state in states {
        let id = &state.compiled.id;
        let own = &id.name.namespace;
        let consumer = (*own != name.namespace).then_some(own);
        for (parent, reference) in state.compiled.parents_to(name) {
            let ports = service.into_iter().flat_map(|service| &service.ports);
            let ports: Vec<u16> = ports
                .filter(|port| {
                    reference.port.is_none_or(|wanted| wanted == port.port)
                        && (reference.section_name.is_none() || reference.section_name == port.name)
                })
                .map(|port| port.port)
                .collect();
            let outcome = match service {
                None => Outcome::NoService,
                Some(service) if service.vips.is_empty() => Outcome::NoVirtualAddress,
                Some(_) if ports.is_empty() => Outcome::NoSuchPort,
                Some(_) => {
                    if state.compiled.error.is_none() {
                        for port in &ports {
                            let group = groups.entry((*port, consumer)).or_default();
                            group.push((state, bindings.len()));
                        }
                    }
                    Outcome::Ports {
                        ports: Vec::new(),
                        lost: Vec::new(),
                    }
                }
            };
            bindings.push(Binding {
                route: id.clone(),
                parent,
                outcome,
            });
        }
    }
    let mut made = ServiceRoutes::default();
    for ((port, consumer), group) in groups {
        let Some(winner) = group.iter().map(|(state, _)| &state.compiled.id).min() else {
            continue;
        };
        let mut bound: BTreeMap<&RouteId, BoundRoute> = BTreeMap::new();
        for (state, binding) in &group {
            let id = &state.compiled.id;
            let won = id.kind == winner.kind;
            if won {
                // Two parents may mean the same port.
                bound.entry(id).or_insert_with(|| state.bound());
            }
            let binding = bindings.get_mut(*binding);
            if let Some(Outcome::Ports { ports, lost }) = binding.map(|b| &mut b.outcome) {
                match won {
                    true => ports.push(port),
                    false => lost.push((port, winner.clone())),
                }
            }
        }
        let table = Arc::new(RouteTable::new(winner.kind, bound.values()));
        let routes: &mut PortRoutes = made.ports.entry(port).or_default();
        match consumer {
            Some(namespace) => {
                routes.consumers.insert(Arc::clone(namespace), table);
            }
            None => routes.producer = Some(table),
        }
    }
    (bindings, made)
}

impl State {
    fn bound(&self) -> BoundRoute {
        let rules = self.rules.iter().zip(&self.compiled.matches);
        BoundRoute {
            name: self.compiled.id.name.clone(),
            created: self.compiled.created,
            rules: rules
                .map(|(rule, matches)| (Arc::clone(rule), Arc::clone(matches)))
                .collect(),
        }
    }
}
