//! The authorizers of a snapshot: of every workload of this node, made anew where its policies or labels changed.

use std::{collections::HashMap, sync::Arc};

use super::snapshot::Snapshot;
use crate::{
    api::{self, Diff, Object},
    policy::{Authorizers, Trust},
};

#[derive(Debug, Default)]
pub(super) struct Authorization {
    cache: Authorizers,
}

impl Authorization {
    /// Brings the authorizers up to date, after the workloads. Returns whether anything differs.
    pub(super) fn update(
        &mut self,
        previous: &Snapshot,
        next: &mut Snapshot,
        policies: &Diff<'_, Object<api::AuthorizationPolicy>>,
        trust: &Trust,
    ) -> bool {
        let same_trust = next.authorization.trust() == trust;
        if policies.is_empty() && same_trust && Arc::ptr_eq(&previous.workloads, &next.workloads) {
            return false;
        }
        let touched = match policies.is_empty() && same_trust {
            true => None,
            false => Some(Arc::make_mut(&mut next.authorization).update(policies, trust)),
        };
        if !same_trust {
            self.cache.clear();
        }
        let mut authorizers = HashMap::with_capacity(next.authorizers.len());
        for (name, workload) in next.workloads.iter().filter(|(_, w)| next.is_local(w)) {
            let known = next.authorizers.get(name).filter(|_| {
                let old = previous.workloads.get(name);
                old.is_some_and(|old| old.labels == workload.labels)
                    && touched
                        .as_ref()
                        .is_none_or(|t| !t.includes(&name.namespace))
            });
            let authorizer = match known {
                Some(known) => Arc::clone(known),
                None => next.authorization.authorizer(
                    &name.namespace,
                    &workload.labels,
                    &mut self.cache,
                ),
            };
            authorizers.insert(name.clone(), authorizer);
        }
        next.authorizers = Arc::new(authorizers);
        self.cache.sweep();
        touched.is_some()
    }
}
