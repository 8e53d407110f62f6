//! Checks over all resources of what TrafficPolicies are for.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        error::Problem,
        kinds::{TargetKind, TrafficPolicy},
        path::Path,
    },
    Findings, Of, Placed,
};
use crate::model::ResourceName;

/// What is there to attach a policy to.
pub(super) struct Targets<'a> {
    pub(super) services: &'a HashSet<&'a ResourceName>,
    pub(super) http_routes: &'a HashSet<&'a ResourceName>,
    pub(super) grpc_routes: &'a HashSet<&'a ResourceName>,
}

/// One policy at most for a target.
pub(super) fn targets(
    policies: &Of<'_, TrafficPolicy>,
    known: &Targets<'_>,
    findings: &mut Findings,
) {
    let mut taken: HashMap<(TargetKind, ResourceName), Placed<'_>> = HashMap::new();
    for (policy, placed) in policies.iter() {
        for (nth, target) in policy.spec.target_refs.iter().enumerate() {
            let path = Path::of("spec.targetRefs").index(nth).key("name");
            let kind = target.kind.as_str();
            let name = ResourceName::new(policy.name.namespace.clone(), target.name.as_str());
            let of_kind = match target.kind {
                TargetKind::Service => known.services,
                TargetKind::HttpRoute => known.http_routes,
                TargetKind::GrpcRoute => known.grpc_routes,
            };
            if !of_kind.contains(&name) {
                let message = format!("there is no {kind} {name}: the policy does nothing for it");
                findings.of(placed, &Problem::warning(path.clone(), message));
            }
            if let Some(other) = taken.insert((target.kind, name.clone()), *placed)
                && !other.is(placed)
            {
                let message = format!(
                    "{kind} {name} already has {}",
                    other.describe("spec.targetRefs")
                );
                let problem = Problem::new(path, message);
                findings.of(
                    placed,
                    &problem.wanted(format!("one TrafficPolicy for each {kind}")),
                );
            }
        }
    }
}
