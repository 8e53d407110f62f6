//! From one snapshot to the next, touching only what changed.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{
    CatalogOptions,
    authorization::Authorization,
    route_policies::RoutePolicies,
    routes::{Attached, Routes},
    services::Services,
    snapshot::Snapshot,
    workloads::Workloads,
};
use crate::api::{Config, Diff};

/// Remembers what the last snapshot was made of, with the indexes that say who depends on whom.
#[derive(Debug)]
pub(super) struct Builder {
    options: CatalogOptions,
    config: Config,
    workloads: Workloads,
    services: Services,
    authorization: Authorization,
    route_policies: RoutePolicies,
    routes: Routes,
}

impl Builder {
    pub(super) fn new(options: CatalogOptions) -> Self {
        Self {
            config: Config::default(),
            workloads: Workloads::default(),
            authorization: Authorization::default(),
            route_policies: RoutePolicies::default(),
            routes: Routes::default(),
            services: Services::new(&options.node),
            options,
        }
    }

    /// The snapshot after `previous`, or `None` if nothing in it would differ. `now` is when new endpoints joined.
    pub(super) fn build(
        &mut self,
        previous: &Snapshot,
        config: &Config,
        now: Instant,
    ) -> Option<Snapshot> {
        let old = std::mem::replace(&mut self.config, config.clone());
        let namespaces = Diff::between(&old.namespaces, &config.namespaces);
        let policies = Diff::between(&old.mesh_policies, &config.mesh_policies);
        let workloads = Diff::between(&old.workloads, &config.workloads);
        let services = Diff::between(&old.services, &config.services);
        let slices = Diff::between(&old.endpoint_slices, &config.endpoint_slices);
        let traffic = Diff::between(&old.traffic_policies, &config.traffic_policies);
        let authorization =
            Diff::between(&old.authorization_policies, &config.authorization_policies);

        let mut next = previous.clone();
        next.version += 1;
        let mut changed = self.workloads.update(
            &mut next,
            &self.options,
            config,
            &workloads,
            !namespaces.is_empty() || !policies.is_empty(),
        );
        changed |=
            self.authorization
                .update(previous, &mut next, &authorization, &self.workloads.trust());
        let mut dirty = HashSet::new();
        self.services
            .index(&services, &slices, &traffic, &mut dirty);
        for workload in workloads.all() {
            self.services.touched_by(workload, &mut dirty);
        }
        changed |= self
            .services
            .rebuild(&mut next, &self.workloads, &dirty, now);
        let http = Diff::between(&old.http_routes, &config.http_routes);
        let grpc = Diff::between(&old.grpc_routes, &config.grpc_routes);
        let mut dirty_routes = HashSet::new();
        self.route_policies.index(&traffic, &mut dirty_routes);
        let policies = Attached {
            policies: &self.route_policies,
            changed: dirty_routes,
        };
        changed |= self
            .routes
            .update(previous, &mut next, &http, &grpc, policies, &dirty);
        changed.then_some(next)
    }
}

/// Whether two `Arc`s are the same thing or equal: then the old one stays.
pub(super) fn keep_equal<T: PartialEq>(old: Option<&Arc<T>>, new: T) -> Arc<T> {
    match old {
        Some(old) if **old == new => Arc::clone(old),
        _ => Arc::new(new),
    }
}
