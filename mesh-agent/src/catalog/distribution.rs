//! Preference for near endpoints that a Service or its EndpointSlices ask for, where no TrafficPolicy says anything of it.

use std::sync::Arc;

use crate::{
    api::{self, SliceEndpoint, TrafficDistribution},
    model::{Locality, Prefer, TrafficPolicy},
};

/// The policy with the preference of the service, or else of its endpoints' hints. As in Kubernetes, hints count only
/// when every endpoint has one.
pub(super) fn apply<'s>(
    policy: &Arc<TrafficPolicy>,
    service: &api::Service,
    endpoints: impl Iterator<Item = &'s SliceEndpoint> + Clone,
) -> Arc<TrafficPolicy> {
    if policy.load_balancer.locality != Locality::default() {
        return Arc::clone(policy);
    }
    let prefer = match service.spec.traffic_distribution {
        Some(TrafficDistribution::PreferClose | TrafficDistribution::PreferSameZone) => {
            Prefer::Zone
        }
        Some(TrafficDistribution::PreferSameNode) => Prefer::Node,
        None => hinted(endpoints),
    };
    if prefer == Prefer::None {
        return Arc::clone(policy);
    }
    let mut policy = TrafficPolicy::clone(policy);
    policy.load_balancer.locality = Locality {
        prefer,
        threshold: Locality::DEFAULT_THRESHOLD,
    };
    Arc::new(policy)
}

fn hinted<'s>(endpoints: impl Iterator<Item = &'s SliceEndpoint> + Clone) -> Prefer {
    let mut ready = endpoints.filter(|endpoint| endpoint.is_ready());
    let mut all = ready.clone();
    if ready.clone().next().is_none() {
        Prefer::None
    } else if ready.all(|endpoint| endpoint.hinted_node().is_some()) {
        Prefer::Node
    } else if all.all(|endpoint| endpoint.hinted_zone().is_some()) {
        Prefer::Zone
    } else {
        Prefer::None
    }
}
