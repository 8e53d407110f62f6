//! Routes and requests in few words.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::{
    model::{ResourceName, Timestamp},
    routing::{
        Backend, BoundRoute, Expression, HeaderMatch, Match, PathMatch, QueryMatch, RequestView,
        RouteId, RouteKind, RouteTable, Rule, RuleSettings, TextMatch,
    },
};

/// A request that owns what a view borrows.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

impl Request {
    pub(super) fn get(target: &str) -> Self {
        Self {
            method: Method::GET,
            uri: target.parse().unwrap(),
            headers: HeaderMap::new(),
        }
    }

    pub(super) fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Another value for one that is there already stands behind it.
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers
            .append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub(super) fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            uri: &self.uri,
            headers: &self.headers,
        }
    }
}

/// `=/exact`, `/prefix` or `~expression`.
pub(super) fn on(path: &str) -> Match {
    Match {
        path: match path.split_at(1) {
            ("=", exact) => PathMatch::Exact(exact.into()),
            ("~", expression) => PathMatch::Regex(Expression::new(expression).unwrap()),
            _ => PathMatch::prefix(path),
        },
        method: None,
        headers: Vec::new(),
        queries: Vec::new(),
    }
}

/// `service/method`, `*` for any, `~` before an expression.
pub(super) fn rpc(path: &str) -> Match {
    let (service, method) = path.split_once('/').unwrap();
    let part = |part: &str| (part != "*").then(|| text(part));
    Match {
        path: PathMatch::Grpc {
            service: part(service),
            method: part(method),
        },
        ..on("/")
    }
}

/// `value` or `~expression`.
pub(super) fn text(text: &str) -> TextMatch {
    match text.strip_prefix('~') {
        Some(expression) => TextMatch::Regex(Expression::new(expression).unwrap()),
        None => TextMatch::Exact(text.into()),
    }
}

impl Match {
    pub(super) fn and_method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    pub(super) fn and_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(HeaderMatch {
            name: name.parse().unwrap(),
            value: text(value),
        });
        self
    }

    pub(super) fn and_query(mut self, name: &str, value: &str) -> Self {
        self.queries.push(QueryMatch {
            name: name.into(),
            value: text(value),
        });
        self
    }
}

pub(super) fn route(
    kind: RouteKind,
    name: &str,
    created: Option<i64>,
    rules: Vec<Vec<Match>>,
) -> BoundRoute {
    let (namespace, own) = name.split_once('/').unwrap();
    let id = RouteId {
        kind,
        name: ResourceName::new(namespace, own),
    };
    let rules = rules.into_iter().enumerate();
    BoundRoute {
        name: id.name.clone(),
        created: created.map(Timestamp::from_unix),
        rules: rules
            .map(|(index, matches)| {
                let rule = Rule::new(&id, index, RuleSettings::default(), None);
                (rule, Arc::from(matches))
            })
            .collect(),
    }
}

/// A table of one route, whose rules have one match each.
pub(super) fn table(matches: Vec<Match>) -> RouteTable {
    let rules = matches.into_iter().map(|one| vec![one]).collect();
    RouteTable::new(
        RouteKind::Http,
        &[route(RouteKind::Http, "a/r", None, rules)],
    )
}

pub(super) fn rpc_table(matches: Vec<Match>) -> RouteTable {
    let rules = matches.into_iter().map(|one| vec![one]).collect();
    RouteTable::new(
        RouteKind::Grpc,
        &[route(RouteKind::Grpc, "a/r", None, rules)],
    )
}

/// The position of the rule that is taken.
pub(super) fn taken(table: &RouteTable, request: &Request) -> Option<usize> {
    table.find(request.view()).map(|found| found.rule.index)
}

pub(super) fn backend(name: &str, weight: u32) -> Backend {
    Backend {
        service: Ok((ResourceName::new("a", name), 80)),
        weight,
        filters: crate::routing::Filters::default(),
    }
}

pub(super) fn rule_of(weights: &[u32]) -> Arc<Rule> {
    let id = RouteId {
        kind: RouteKind::Http,
        name: ResourceName::new("a", "r"),
    };
    let settings = RuleSettings {
        backends: weights
            .iter()
            .enumerate()
            .map(|(nth, weight)| backend(&format!("b{nth}"), *weight))
            .collect(),
        ..RuleSettings::default()
    };
    Rule::new(&id, 0, settings, None)
}
