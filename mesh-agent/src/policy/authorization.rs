//! AuthorizationPolicy: who may connect to a workload, and with which requests. traffic.md, "Authorization".
//!
//! The policies of a workload are compiled in up to three layers (of the mesh, of its namespace, by selector), which
//! workloads share. `layer` says how a decision stays cheap however many policies there are.

use std::{net::IpAddr, sync::Arc};

use self::{
    clauses::What,
    layer::{Decision, Layer},
};
use crate::{
    api::{Action, AuthorizationPolicy, Object},
    model::{ResourceName, SpiffeId},
    policy::{HttpFacts, Trust},
};

mod bits;
mod clauses;
mod explain;
mod layer;
mod ports;
mod ranges;
mod scope;
mod strings;
#[cfg(test)]
mod tests;

pub use explain::Looked;
pub use scope::{AuthorizationPolicies, Authorizers, PolicyScope, Scope};

/// What a decision goes by. The source's identity comes from the tunnel only; without a tunnel there is none.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub source: Option<&'a SpiffeId>,
    /// Of the client itself, not of an agent.
    pub source_ip: IpAddr,
    pub destination_ip: IpAddr,
    pub destination_port: u16,
    /// `None`: a connection that does not speak HTTP.
    pub http: Option<HttpFacts<'a>>,
}

/// What is decided, and by which policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'p> {
    /// `None`: no ALLOW policy applies to the workload.
    Allow(Option<&'p ResourceName>),
    /// By a DENY policy; `None`: ALLOW policies apply and none matches.
    Deny(Option<&'p ResourceName>),
}

impl Verdict<'_> {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// What a policy in dry run would change if it were in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WouldBe {
    /// It would let through what is denied now for want of an ALLOW policy that matches.
    Allowed,
    /// A DENY policy matches; or an ALLOW policy does not match, and without it everything is allowed.
    Denied,
}

/// The policies of one workload, compiled. Made by [`AuthorizationPolicies`].
#[derive(Debug, Default)]
pub struct Authorizer {
    layers: Box<[Arc<Layer>]>,
    /// Denies everything: of a workload that nothing is known of.
    closed: bool,
}

impl Authorizer {
    fn new(layers: impl IntoIterator<Item = Arc<Layer>>) -> Self {
        Self {
            layers: layers
                .into_iter()
                .filter(|layer| !layer.is_empty())
                .collect(),
            closed: false,
        }
    }

    /// Of policies that all apply, whatever their scopes and selectors.
    pub fn of(
        policies: impl IntoIterator<Item = Arc<Object<AuthorizationPolicy>>>,
        trust: Trust,
    ) -> Self {
        let policies = policies.into_iter().collect();
        Self::new([Arc::new(Layer::new(policies, &Arc::new(trust)))])
    }

    /// One that denies everything.
    pub fn closed() -> Self {
        Self {
            layers: Box::default(),
            closed: true,
        }
    }

    /// Decides on a connection that does not speak HTTP, or on a request. Any DENY policy that matches denies; without
    /// ALLOW policies the rest is allowed; with them, what one of them matches. Does not allocate.
    pub fn decide(&self, facts: &Facts<'_>) -> Verdict<'_> {
        self.verdict(facts, What::of(facts))
    }

    /// Decides on a connection whose requests are still to come: denied is one on which no request could be allowed.
    /// `facts.http` is not looked at. Does not allocate.
    pub fn decide_connection(&self, facts: &Facts<'_>) -> Verdict<'_> {
        self.verdict(facts, What::Connection)
    }

    /// Whether something is about the requests to a port, be it in dry run: then HTTP has to be read there. It may be
    /// wrong in that direction only.
    pub fn needs_http(&self, port: u16) -> bool {
        self.layers.iter().any(|layer| layer.needs_http(port))
    }

    /// Whether a policy in effect looks at the paths of requests: then the application has to get them in the form that
    /// was decided on.
    pub fn looks_at_paths(&self) -> bool {
        self.layers.iter().any(|layer| layer.looks_at_paths())
    }

    fn verdict(&self, facts: &Facts<'_>, what: What<'_>) -> Verdict<'_> {
        if self.closed {
            return Verdict::Deny(None);
        }
        let (mut allowed_by, mut any_allow) = (None, false);
        for layer in &self.layers {
            match layer.decide(facts, what) {
                Some(Decision {
                    action: Action::Deny,
                    policy,
                }) => return Verdict::Deny(Some(policy)),
                Some(Decision { policy, .. }) => allowed_by = allowed_by.or(Some(policy)),
                None => {}
            }
            any_allow |= layer.any_allow();
        }
        match allowed_by {
            None if any_allow => Verdict::Deny(None),
            by => Verdict::Allow(by),
        }
    }

    /// Tells of every policy in dry run that would change the verdict if it alone were put into effect. Does not
    /// allocate.
    pub fn dry_run(&self, facts: &Facts<'_>, mut tell: impl FnMut(&ResourceName, WouldBe)) {
        if self.layers.iter().all(|layer| !layer.any_dry_run()) {
            return;
        }
        let now = self.decide(facts);
        for layer in &self.layers {
            layer.dry_run(facts, |policy, action, matches| {
                let would = match (action, matches, now) {
                    (Action::Deny, true, Verdict::Allow(_))
                    | (Action::Allow, false, Verdict::Allow(None)) => WouldBe::Denied,
                    (Action::Allow, true, Verdict::Deny(None)) => WouldBe::Allowed,
                    _ => return,
                };
                tell(policy, would);
            });
        }
    }

    /// Whether a policy in effect may close the workload to anybody: then it must not be open while no agent runs.
    pub fn protects(&self) -> bool {
        self.closed || self.layers.iter().any(|layer| layer.protects())
    }

    /// Whether no policy applies, not even in dry run.
    pub fn is_empty(&self) -> bool {
        !self.closed && self.layers.is_empty()
    }

    /// Every policy that applies: DENY before ALLOW, those in dry run last, in the order of names.
    pub fn policies(&self) -> Vec<&ResourceName> {
        self.sorted()
            .into_iter()
            .map(|(policy, _)| &policy.name)
            .collect()
    }

    /// Says of every policy that applies whether it matches and why, in the order of `policies`.
    pub fn explain(&self, facts: &Facts<'_>) -> Vec<Looked> {
        self.sorted()
            .into_iter()
            .map(|(policy, layer)| explain::look(policy, facts, layer.trust()))
            .collect()
    }

    fn sorted(&self) -> Vec<(&layer::Policy, &Layer)> {
        let mut all: Vec<(_, &Layer)> = self
            .layers
            .iter()
            .flat_map(|layer| layer.policies().iter().map(|policy| (policy, &**layer)))
            .collect();
        all.sort_by_key(|(policy, _)| {
            let spec = &policy.spec;
            (spec.dry_run, spec.action == Action::Allow, &policy.name)
        });
        all
    }
}
