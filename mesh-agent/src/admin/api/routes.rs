//! `GET /v1/routes`: what is bound to services, and what was rejected.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// By service, port and clients; of each in the order of precedence.
    pub bound: Vec<BoundMatch>,
    /// Every HTTPRoute and GRPCRoute.
    pub routes: Vec<Route>,
}

/// One match of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundMatch {
    /// `namespace/name`
    pub service: String,
    pub port: u16,
    /// The clients' namespace; `None`: all that have no routes of their own.
    pub clients: Option<String>,
    /// Place in the order of precedence, from 1.
    pub order: usize,
    /// `HTTPRoute/shop/canary#0`: kind, name and position of the rule.
    pub rule: String,
    /// `rules[].name`
    pub rule_name: Option<String>,
    /// `GET /v2/* x-canary=true ?animal=~wh.*`: `~` stands before a regular expression, `/*` for a prefix.
    pub matches: String,
    /// Where the rule sends requests; empty for a redirect.
    pub backends: Vec<RouteBackend>,
    /// What it does besides: `redirect 302`, `rewrite`, `mirror shop/next:80 5%`.
    pub filters: Vec<String>,
    /// `request 10s`, `attempt 2s`, `retries 2`; of the rule and the TrafficPolicy that is attached to the route.
    pub settings: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteBackend {
    /// `namespace/name:port`, or what was written there.
    pub name: String,
    pub weight: u32,
    /// `InvalidKind` or `BackendNotFound`: its share gets status 500.
    pub error: Option<String>,
    /// Endpoints that are ready; with none its share gets status 503.
    pub endpoints: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `HTTPRoute` or `GRPCRoute`
    pub kind: String,
    /// `namespace/name`
    pub name: String,
    /// RFC 3339
    pub created: Option<String>,
    pub parents: Vec<RouteParent>,
    pub resolved_refs: RouteCondition,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteParent {
    /// `Service shop/cart`, with `:80` or `:name` where it says so.
    pub parent: String,
    /// `producer` (for all clients) or `consumer` (for clients of the route's namespace).
    pub scope: String,
    /// Ports on which it is in effect.
    pub ports: Vec<u16>,
    pub accepted: RouteCondition,
}

/// A condition of Gateway API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCondition {
    pub status: bool,
    pub reason: String,
    /// Empty when all is well.
    pub message: String,
}

impl Route {
    /// Conditions that say that something is wrong, with what they are about.
    pub fn problems(&self) -> impl Iterator<Item = (&str, &str, &RouteCondition)> {
        let parents = self.parents.iter();
        let accepted = parents.map(|p| ("Accepted", p.parent.as_str(), &p.accepted));
        let resolved = ("ResolvedRefs", "-", &self.resolved_refs);
        accepted
            .chain([resolved])
            // One that is accepted says with a message that it is not so everywhere.
            .filter(|(_, _, condition)| !condition.status || !condition.message.is_empty())
    }
}
