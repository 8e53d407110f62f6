//! Decisions of AuthorizationPolicy, by policy. A decision on a known policy allocates nothing.

use std::{
    collections::HashMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{families::Families, labels::OVERFLOW};
use crate::model::ResourceName;

/// Policies with series of their own; those above it share one.
const MAX_POLICIES: usize = 2_000;
/// Name of no policy; no resource can be named so.
const NO_POLICY: &str = "-";

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Allow,
    Deny,
    /// A policy in dry run would have allowed what is denied, or counts as the one that allows.
    DryRunAllow,
    /// A policy in dry run would have denied.
    DryRunDeny,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::DryRunAllow, Self::DryRunDeny];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::DryRunAllow => "dry_run_allow",
            Self::DryRunDeny => "dry_run_deny",
        }
    }
}

type Counts = [AtomicU64; Outcome::ALL.len()];

#[derive(Debug, Default)]
pub(crate) struct Decisions {
    none: Counts,
    overflow: Counts,
    by_policy: RwLock<HashMap<ResourceName, Counts>>,
}

impl Decisions {
    pub(crate) fn add(&self, policy: Option<&ResourceName>, outcome: Outcome) {
        let one = |counts: &Counts| {
            counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
        };
        let Some(policy) = policy else {
            return one(&self.none);
        };
        let known = self
            .by_policy
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = known.get(policy) {
            return one(counts);
        }
        if known.len() >= MAX_POLICIES {
            return one(&self.overflow);
        }
        drop(known);
        let mut known = self
            .by_policy
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        one(known.entry(policy.clone()).or_default());
    }

    /// Forgets policies that are no more.
    pub(crate) fn retain(&self, exists: impl Fn(&ResourceName) -> bool) {
        self.by_policy
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|policy, _| exists(policy));
    }

    pub(super) fn encode(&self, out: &mut Families<'_>) -> std::fmt::Result {
        let known = self
            .by_policy
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let named = known
            .iter()
            .map(|(policy, counts)| (&*policy.name, &*policy.namespace, counts));
        let rest = [
            (NO_POLICY, NO_POLICY, &self.none),
            (OVERFLOW, OVERFLOW, &self.overflow),
        ];
        out.labelled_counters(
            "mesh_authorization_decisions",
            "Decisions on connections, by the AuthorizationPolicy that decided",
            named.chain(rest).flat_map(|(policy, namespace, counts)| {
                Outcome::ALL.into_iter().filter_map(move |outcome| {
                    let n = counts[outcome as usize].load(Ordering::Relaxed);
                    let labels = [
                        ("policy", policy),
                        ("namespace", namespace),
                        ("outcome", outcome.as_str()),
                    ];
                    (n > 0).then_some((labels, n))
                })
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(decisions: &Decisions, policy: &ResourceName, outcome: Outcome) -> Option<u64> {
        let known = decisions.by_policy.read().unwrap();
        Some(known.get(policy)?[outcome as usize].load(Ordering::Relaxed))
    }

    #[test]
    fn policies_above_the_cap_share_a_series_and_make_room_when_gone() {
        let decisions = Decisions::default();
        let policy = |n: usize| ResourceName::new("shop", format!("p{n}"));
        for n in 0..MAX_POLICIES + 3 {
            decisions.add(Some(&policy(n)), Outcome::Deny);
        }
        let overflow = || decisions.overflow[Outcome::Deny as usize].load(Ordering::Relaxed);
        assert_eq!(overflow(), 3);
        assert_eq!(count(&decisions, &policy(0), Outcome::Deny), Some(1));
        decisions.retain(|p| *p != policy(0));
        decisions.add(Some(&policy(MAX_POLICIES)), Outcome::DryRunDeny);
        assert_eq!(overflow(), 3);
        assert_eq!(count(&decisions, &policy(0), Outcome::Deny), None);
        assert_eq!(
            count(&decisions, &policy(MAX_POLICIES), Outcome::DryRunDeny),
            Some(1)
        );
    }
}
