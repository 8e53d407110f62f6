//! TrafficPolicies that are attached to routes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    api::{self, Diff, Object, TargetKind},
    model::ResourceName,
    routing::{RouteId, RouteKind, RoutePolicy},
};

/// What each route's policy sets.
#[derive(Debug, Default)]
pub(super) struct RoutePolicies {
    by_route: HashMap<RouteId, Arc<RoutePolicy>>,
}

impl RoutePolicies {
    /// Notes the routes whose policy came, went or changed.
    pub(super) fn index(
        &mut self,
        policies: &Diff<'_, Object<api::TrafficPolicy>>,
        dirty: &mut HashSet<RouteId>,
    ) {
        for policy in &policies.removed {
            for route in routes(policy) {
                self.by_route.remove(&route);
                dirty.insert(route);
            }
        }
        for policy in &policies.added {
            let made = Arc::new(RoutePolicy {
                retry: policy.spec.retry(),
                timeouts: policy.spec.route_timeouts(),
                redistribute_unavailable: policy.spec.redistribute_unavailable,
            });
            for route in routes(policy) {
                self.by_route.insert(route.clone(), Arc::clone(&made));
                dirty.insert(route);
            }
        }
    }

    pub(super) fn get(&self, route: &RouteId) -> Option<&Arc<RoutePolicy>> {
        self.by_route.get(route)
    }
}

fn routes(policy: &Object<api::TrafficPolicy>) -> impl Iterator<Item = RouteId> + '_ {
    policy.spec.target_refs.iter().filter_map(|target| {
        let kind = match target.kind {
            TargetKind::Service => return None,
            TargetKind::HttpRoute => RouteKind::Http,
            TargetKind::GrpcRoute => RouteKind::Grpc,
        };
        Some(RouteId {
            kind,
            name: ResourceName::new(Arc::clone(&policy.name.namespace), target.name.as_str()),
        })
    })
}
