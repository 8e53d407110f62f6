//! The matches of all routes of one service port, in their order of precedence.

use std::sync::Arc;

use http::{HeaderMap, Method, Uri};

use super::{Backend, RouteKind, Rule};

/// What matches look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
}

#[derive(Debug, Default)]
pub struct RouteTable {
    kind: Option<RouteKind>,
}

/// The rule that a request takes.
#[derive(Clone, Copy, Debug)]
pub struct Found<'t> {
    pub rule: &'t Arc<Rule>,
    /// The path prefix that matched, for rewrites.
    pub prefix: Option<&'t str>,
}

impl RouteTable {
    /// The kind of its routes; one table has routes of one kind only.
    pub fn kind(&self) -> Option<RouteKind> {
        self.kind
    }

    /// The first match in the order of precedence. `None`: 404.
    pub fn find(&self, _request: RequestView<'_>) -> Option<Found<'_>> {
        None
    }
}

/// The state of a rule's split.
#[derive(Debug, Default)]
pub(super) struct Split {}

impl Split {
    pub(super) fn pick(
        &self,
        _backends: &[Backend],
        _redistribute: bool,
        _available: impl Fn(&Backend) -> bool,
    ) -> Option<usize> {
        None
    }
}
