//! The policies of one scope, compiled.

use std::sync::Arc;

use super::{
    Facts,
    clauses::{Builder, Clauses, What},
    ports::Ports,
};
use crate::{
    api::{Action, AuthorizationPolicy, Object},
    model::ResourceName,
    policy::Trust,
};

pub(super) type Policy = Arc<Object<AuthorizationPolicy>>;

/// Policies that always apply together.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// DENY before ALLOW, those in dry run last.
    policies: Box<[Policy]>,
    trust: Arc<Trust>,
    /// Of the policies in effect.
    clauses: Clauses,
    dry_run: Option<Box<Clauses>>,
    any_allow: bool,
    protects: bool,
    /// Those with clauses about requests, also of policies in dry run.
    http: Option<Ports>,
}

/// The first policy that matches: a DENY policy, if one does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decision<'l> {
    pub(super) action: Action,
    pub(super) policy: &'l ResourceName,
}

impl Layer {
    pub(super) fn new(mut policies: Vec<Policy>, trust: &Arc<Trust>) -> Self {
        policies.sort_by(|a, b| {
            let order = |p: &Policy| (p.spec.dry_run, p.spec.action == Action::Allow);
            (order(a), &a.name).cmp(&(order(b), &b.name))
        });
        let compile = |dry_run: bool| {
            let mut builder = Builder::new(trust);
            for (owner, policy) in policies.iter().enumerate() {
                if policy.spec.dry_run == dry_run {
                    for rule in &policy.spec.rules {
                        let action = policy.spec.action;
                        builder.add(owner as u32, action, &policy.name.namespace, rule);
                    }
                }
            }
            builder.finish()
        };
        let about_requests = policies
            .iter()
            .flat_map(|policy| &policy.spec.rules)
            .filter_map(Ports::of_requests)
            .reduce(Ports::or);
        let in_effect = || policies.iter().filter(|policy| !policy.spec.dry_run);
        let any_dry_run = policies.iter().any(|policy| policy.spec.dry_run);
        let any_allow = in_effect().any(|policy| policy.spec.action == Action::Allow);
        Self {
            clauses: compile(false),
            dry_run: any_dry_run.then(|| Box::new(compile(true))),
            any_allow,
            // A DENY policy without rules denies nobody.
            protects: any_allow || in_effect().any(|policy| !policy.spec.rules.is_empty()),
            http: about_requests,
            policies: policies.into(),
            trust: Arc::clone(trust),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    pub(super) fn policies(&self) -> &[Policy] {
        &self.policies
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(super) fn any_allow(&self) -> bool {
        self.any_allow
    }

    pub(super) fn any_dry_run(&self) -> bool {
        self.dry_run.is_some()
    }

    pub(super) fn protects(&self) -> bool {
        self.protects
    }

    pub(super) fn needs_http(&self, port: u16) -> bool {
        self.http.as_ref().is_some_and(|ports| ports.contains(port))
    }

    pub(super) fn looks_at_paths(&self) -> bool {
        self.clauses.looks_at_paths()
    }

    pub(super) fn decide(&self, facts: &Facts<'_>, what: What<'_>) -> Option<Decision<'_>> {
        if self.clauses.is_empty() {
            return None;
        }
        let first = self.clauses.first(facts, what, &self.trust)?;
        let policy = self.policies.get(first as usize)?;
        Some(Decision {
            action: policy.spec.action,
            policy: &policy.name,
        })
    }

    /// Tells of every policy in dry run whether it matches.
    pub(super) fn dry_run(
        &self,
        facts: &Facts<'_>,
        mut tell: impl FnMut(&ResourceName, Action, bool),
    ) {
        let Some(clauses) = &self.dry_run else {
            return;
        };
        let first = self.policies.partition_point(|policy| !policy.spec.dry_run);
        // Owners ascend, so what lies between two of them does not match.
        let mut next = first;
        let mut up_to = |end: usize, matched: bool| {
            for at in next..end {
                let policy = &self.policies[at];
                tell(&policy.name, policy.spec.action, matched && at + 1 == end);
            }
            next = next.max(end);
        };
        clauses.each(facts, What::of(facts), &self.trust, |owner| {
            up_to(owner as usize + 1, true);
        });
        up_to(self.policies.len(), false);
    }
}
