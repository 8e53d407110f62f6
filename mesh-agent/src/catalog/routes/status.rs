//! What a route's status says: the conditions of Gateway API, worked out by every agent for what it shows.

use super::{
    bind::{Binding, Outcome},
    compile::Compiled,
};
use crate::{
    api::ParentReference,
    model::{ResourceName, Timestamp},
    routing::{BackendError, RouteId, Rule},
};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RouteStatus {
    pub route: RouteId,
    pub created: Option<Timestamp>,
    /// In the order of `parentRefs`.
    pub parents: Vec<ParentStatus>,
    /// Whether everything that it refers to is there.
    pub resolved_refs: Condition,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ParentStatus {
    pub parent: ParentReference,
    /// With its namespace filled in.
    pub name: ResourceName,
    pub scope: RouteScope,
    /// Where it is in effect.
    pub ports: Vec<u16>,
    pub accepted: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum RouteScope {
    /// For all clients.
    Producer,
    /// For clients of the route's namespace.
    Consumer,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Condition {
    pub status: bool,
    pub reason: Reason,
    /// Empty when all is well.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Reason {
    Accepted,
    /// The parent is no Service, or is not there, or has no such port.
    NoMatchingParent,
    /// A route of a kind that goes before is on the same port.
    Conflicted,
    /// It says something that cannot be done.
    UnsupportedValue,
    ResolvedRefs,
    /// It refers to something that is no Service.
    InvalidKind,
    BackendNotFound,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::NoMatchingParent => "NoMatchingParent",
            Self::Conflicted => "Conflicted",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::InvalidKind => "InvalidKind",
            Self::BackendNotFound => "BackendNotFound",
        }
    }
}

impl Condition {
    fn good(reason: Reason, message: String) -> Self {
        Self {
            status: true,
            reason,
            message,
        }
    }

    fn bad(reason: Reason, message: String) -> Self {
        Self {
            status: false,
            reason,
            message,
        }
    }
}

/// `of`: what became of the parents of the route at a service.
pub(super) fn of<'b, I: Iterator<Item = &'b Binding>>(
    compiled: &Compiled,
    rules: &[Arc<Rule>],
    of: impl Fn(&ResourceName) -> I,
) -> RouteStatus {
    let parents = compiled.parents.iter().enumerate();
    let parents = parents.map(|(index, (name, reference))| {
        let outcome = match reference.is_service() {
            true => of(name).find(|b| b.parent == index).map(|b| &b.outcome),
            false => None,
        };
        let (ports, accepted) = accepted(compiled, name, reference, outcome);
        ParentStatus {
            parent: reference.clone(),
            name: name.clone(),
            scope: match name.namespace == compiled.id.name.namespace {
                true => RouteScope::Producer,
                false => RouteScope::Consumer,
            },
            ports,
            accepted,
        }
    });
    RouteStatus {
        route: compiled.id.clone(),
        created: compiled.created,
        parents: parents.collect(),
        resolved_refs: resolved(compiled, rules),
    }
}

fn accepted(
    compiled: &Compiled,
    name: &ResourceName,
    reference: &ParentReference,
    outcome: Option<&Outcome>,
) -> (Vec<u16>, Condition) {
    let no_parent = |message| Condition::bad(Reason::NoMatchingParent, message);
    if !reference.is_service() {
        let kind = reference.kind();
        let message = format!(
            "in a mesh routes are bound to Services of the core group, not to {kind} {name}"
        );
        return (Vec::new(), no_parent(message));
    }
    if let Some(error) = &compiled.error {
        let condition = Condition::bad(Reason::UnsupportedValue, error.clone());
        return (Vec::new(), condition);
    }
    let condition = match outcome {
        None | Some(Outcome::NoService) => no_parent(format!("there is no Service {name}")),
        Some(Outcome::NoVirtualAddress) => no_parent(format!(
            "Service {name} has no virtual address, and traffic to the addresses of its pods is not routed"
        )),
        Some(Outcome::NoSuchPort) => {
            let wanted = match (reference.port, &reference.section_name) {
                (Some(port), Some(section)) => format!("port {port} with the name {section}"),
                (Some(port), None) => format!("port {port}"),
                (None, Some(section)) => format!("port with the name {section}"),
                (None, None) => "port".to_owned(),
            };
            no_parent(format!("Service {name} has no {wanted}"))
        }
        Some(Outcome::Ports { ports, lost }) => {
            let lost: Vec<String> = lost
                .iter()
                .map(|(port, winner)| format!("port {port} has {winner}"))
                .collect();
            let message = lost.join(", ");
            let condition = match ports.is_empty() {
                true => Condition::bad(Reason::Conflicted, message),
                false => Condition::good(Reason::Accepted, message),
            };
            return (ports.clone(), condition);
        }
    };
    (Vec::new(), condition)
}

fn resolved(compiled: &Compiled, rules: &[Arc<Rule>]) -> Condition {
    let mut problems = Vec::new();
    for (index, (rule, source)) in rules.iter().zip(&compiled.sources).enumerate() {
        for (nth, backend) in rule.backends.iter().enumerate() {
            if let (Err(error), Some(reference)) = (&backend.service, source.backend_refs.get(nth))
            {
                let reference = reference.reference();
                let what = compiled.describe(&reference, *error);
                problems.push((*error, format!("rules[{index}].backendRefs[{nth}]: {what}")));
            }
        }
        for (reference, error) in compiled.lost_mirrors(rule, source) {
            let what = compiled.describe(&reference, error);
            problems.push((error, format!("rules[{index}]: RequestMirror: {what}")));
        }
    }
    let message: Vec<String> = problems.iter().map(|(_, text)| text.clone()).collect();
    let message = message.join("; ");
    let invalid = problems
        .iter()
        .any(|(error, _)| *error == BackendError::InvalidKind);
    match problems.is_empty() {
        true => Condition::good(Reason::ResolvedRefs, message),
        false if invalid => Condition::bad(Reason::InvalidKind, message),
        false => Condition::bad(Reason::BackendNotFound, message),
    }
}
