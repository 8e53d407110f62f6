//! Ports that several operations match together.

use std::collections::BTreeSet;

use crate::api::{ConditionKey, Operation, Rule};

/// As long as nothing but ports is looked at, any number of operations is one set of ports, or all but a set.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ports {
    In(BTreeSet<u16>),
    NotIn(BTreeSet<u16>),
}

impl Ports {
    /// What the operations of a rule match that are about nothing but ports. `None`: there are none of that kind.
    pub(super) fn of(rule: &Rule) -> Option<Self> {
        let operations = rule.to.iter().map(|to| &to.operation);
        operations
            .filter(|operation| !operation.needs_http())
            .map(Self::of_one)
            .reduce(Self::or)
    }

    /// Where a rule is about requests. `None`: nowhere.
    pub(super) fn of_requests(rule: &Rule) -> Option<Self> {
        let is_header = |key: &str| matches!(key.parse(), Ok(ConditionKey::Header(_)));
        let all = rule.when.iter().any(|when| is_header(&when.key));
        if all && rule.to.is_empty() {
            return Some(Self::NotIn(BTreeSet::new()));
        }
        let operations = rule.to.iter().map(|to| &to.operation);
        operations
            .filter(|operation| all || operation.needs_http())
            .map(Self::of_one)
            .reduce(Self::or)
    }

    pub(super) fn of_one(operation: &Operation) -> Self {
        let not: BTreeSet<u16> = operation.not_ports.iter().map(|port| port.0).collect();
        if operation.ports.is_empty() {
            return Self::NotIn(not);
        }
        let ports = operation.ports.iter().map(|port| port.0);
        Self::In(ports.filter(|port| !not.contains(port)).collect())
    }

    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::In(mut a), Self::In(b)) => {
                a.extend(b);
                Self::In(a)
            }
            (Self::In(a), Self::NotIn(b)) | (Self::NotIn(b), Self::In(a)) => Self::NotIn(&b - &a),
            (Self::NotIn(a), Self::NotIn(b)) => Self::NotIn(&a & &b),
        }
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        match self {
            Self::In(ports) => ports.contains(&port),
            Self::NotIn(ports) => !ports.contains(&port),
        }
    }
}
