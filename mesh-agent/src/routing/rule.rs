//! One rule of a route, as a request meets it.

use std::{fmt, sync::Arc, time::Duration};

use super::{Filters, split::Split};
use crate::model::{ResourceName, RetryPolicy, Timeouts};

/// In the order of precedence: on one service port a GRPCRoute beats HTTPRoutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum RouteKind {
    #[serde(rename = "GRPCRoute")]
    Grpc,
    #[serde(rename = "HTTPRoute")]
    Http,
}

impl RouteKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
        }
    }
}

/// Shown as `HTTPRoute shop/canary`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct RouteId {
    pub kind: RouteKind,
    pub name: ResourceName,
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// A rule, shared by all of its matches. It lives on unchanged from one snapshot to the next while its route and what is
/// attached to it are the same: its split goes on where it was.
#[derive(Debug)]
pub struct Rule {
    pub route: RouteId,
    /// Position in its route, from 0.
    pub index: usize,
    /// `rules[].name`.
    pub name: Option<Arc<str>>,
    /// `HTTPRoute/shop/canary#0`, for logs, metrics and spans.
    pub label: Arc<str>,
    pub filters: Filters,
    pub backends: Vec<Backend>,
    pub timeouts: RouteTimeouts,
    pub retry: Option<RetryPolicy>,
    /// From the TrafficPolicy that is attached to the route.
    pub policy: Option<Arc<RoutePolicy>>,
    pub(super) split: Split,
}

/// All of a rule but its place and what it matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleSettings {
    pub name: Option<Arc<str>>,
    pub filters: Filters,
    /// At most `MAX_BACKENDS`.
    pub backends: Vec<Backend>,
    pub timeouts: RouteTimeouts,
    pub retry: Option<RetryPolicy>,
    pub policy: Option<Arc<RoutePolicy>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Service and port; or why its share gets 500.
    pub service: Result<(ResourceName, u16), BackendError>,
    pub weight: u32,
    pub filters: Filters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum BackendError {
    /// ResolvedRefs=False, InvalidKind.
    InvalidKind,
    /// ResolvedRefs=False, BackendNotFound: no such service, or it has no such port.
    NotFound,
}

/// `rules[].timeouts`; `Some(ZERO)` disables what a TrafficPolicy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    pub request: Option<Duration>,
    pub backend_request: Option<Duration>,
}

/// What a TrafficPolicy that is attached to a route sets; the rest is the service's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutePolicy {
    pub retry: Option<RetryPolicy>,
    /// `Some(ZERO)` disables.
    pub timeouts: Timeouts,
    pub redistribute_unavailable: Option<bool>,
}

impl Rule {
    /// `previous`: the rule that was in its place. It stays if nothing is new, and otherwise its split goes on.
    pub fn new(
        route: &RouteId,
        index: usize,
        settings: RuleSettings,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        if let Some(previous) = previous
            && previous.is(route, index, &settings)
        {
            return Arc::clone(previous);
        }
        let RouteId { kind, name } = route;
        Arc::new(Self {
            route: route.clone(),
            index,
            label: format!("{}/{name}#{index}", kind.as_str()).into(),
            name: settings.name,
            filters: settings.filters,
            backends: settings.backends,
            timeouts: settings.timeouts,
            retry: settings.retry,
            policy: settings.policy,
            split: previous.map_or_else(Split::default, |previous| previous.split.clone()),
        })
    }

    fn is(&self, route: &RouteId, index: usize, settings: &RuleSettings) -> bool {
        self.route == *route
            && self.index == index
            && self.name == settings.name
            && self.filters == settings.filters
            && self.backends == settings.backends
            && self.timeouts == settings.timeouts
            && self.retry == settings.retry
            && self.policy == settings.policy
    }

    /// The backend of the next request, by position in `backends`: smooth weighted round robin over the declared
    /// weights. `redistribute`: those for which `available` is false take no part, unless that leaves nobody.
    /// `None`: no backend has weight.
    pub fn pick(&self, redistribute: bool, available: impl Fn(&Backend) -> bool) -> Option<usize> {
        self.split.pick(&self.backends, redistribute, available)
    }
}
