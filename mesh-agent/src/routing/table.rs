//! The matches of all routes of one service port, in their order of precedence.
//!
//! All matches stand in one list in that order. Around it are indexes of positions: exact paths by hash, prefixes by
//! hash of each length that occurs (so a lookup costs as many probes as there are lengths, not as there are prefixes),
//! regular expressions by the first segment where that is plain, gRPC by service and method. What an index yields is
//! tried in the order of precedence, and the first that matches is the answer.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use super::{
    RouteKind, Rule,
    bucket::{Bucket, Lists},
    matching::{Match, PathMatch, Rank, RequestView, TextMatch, grpc_parts},
};
use crate::model::{ResourceName, Timestamp};

/// A route as it goes into a table.
#[derive(Clone, Debug)]
pub struct BoundRoute {
    pub name: ResourceName,
    /// The older route goes first; one that has no age goes last.
    pub created: Option<Timestamp>,
    /// In the order of the route.
    pub rules: Vec<(Arc<Rule>, Arc<[Match]>)>,
}

#[derive(Debug, Default)]
pub struct RouteTable {
    kind: Option<RouteKind>,
    /// In the order of precedence.
    entries: Vec<Entry>,
    exact: HashMap<Box<str>, Bucket>,
    prefixes: HashMap<Box<str>, Bucket>,
    /// Those that occur, longest first.
    prefix_lengths: Vec<usize>,
    /// By the first segment, and those that may match any.
    expressions_by_segment: HashMap<Box<str>, Bucket>,
    expressions: Bucket,
    /// Of any method, or one by expression.
    services: HashMap<Box<str>, Bucket>,
    /// Of any service.
    methods: HashMap<Box<str>, Bucket>,
    /// Of gRPC, found by neither.
    others: Bucket,
}

#[derive(Debug)]
struct Entry {
    rule: Arc<Rule>,
    matches: Arc<[Match]>,
    /// In `matches`.
    nth: u32,
}

impl Entry {
    fn rule_match(&self) -> &Match {
        &self.matches[self.nth as usize]
    }
}

/// The rule that a request takes.
#[derive(Clone, Copy, Debug)]
pub struct Found<'t> {
    pub rule: &'t Arc<Rule>,
    /// The path prefix that matched, for rewrites; without a slash at its end, so empty for `/`.
    pub prefix: Option<&'t str>,
    /// What of the rule matched.
    pub matched: &'t Match,
}

/// One match of a table, for those who show it.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'t> {
    pub rule: &'t Arc<Rule>,
    pub matched: &'t Match,
}

/// Where a match is found.
enum Place<'m> {
    Exact(String),
    Prefix(&'m str),
    ExpressionOfSegment(&'m str),
    Expression,
    Service(&'m str),
    Method(&'m str),
    Other,
}

impl RouteTable {
    /// A table of routes of one kind.
    pub fn new<'r>(kind: RouteKind, routes: impl IntoIterator<Item = &'r BoundRoute>) -> Self {
        let mut sorted = Vec::new();
        for route in routes {
            for (order, (rule, matches)) in route.rules.iter().enumerate() {
                for (nth, one) in matches.iter().enumerate() {
                    let entry = Entry {
                        rule: Arc::clone(rule),
                        matches: Arc::clone(matches),
                        nth: nth as u32,
                    };
                    sorted.push((one.rank(), route, order, entry));
                }
            }
        }
        // Stable: the matches of one rule stay in their order.
        sorted.sort_by(|(a, a_route, a_order, _), (b, b_route, b_order, _)| {
            let key = (a, *a_route, *a_order);
            precedence(key, (b, *b_route, *b_order))
        });
        let entries = sorted.into_iter().map(|(.., entry)| entry).collect();
        Self::index(kind, entries)
    }

    fn index(kind: RouteKind, entries: Vec<Entry>) -> Self {
        let mut exact: HashMap<String, Vec<u32>> = HashMap::new();
        let mut prefixes: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut segments: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut services: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut methods: HashMap<&str, Vec<u32>> = HashMap::new();
        let (mut expressions, mut others) = (Vec::new(), Vec::new());
        for (position, entry) in entries.iter().enumerate() {
            let list = match place(&entry.rule_match().path) {
                Place::Exact(path) => exact.entry(path).or_default(),
                Place::Prefix(prefix) => prefixes.entry(prefix).or_default(),
                Place::ExpressionOfSegment(segment) => segments.entry(segment).or_default(),
                Place::Expression => &mut expressions,
                Place::Service(service) => services.entry(service).or_default(),
                Place::Method(method) => methods.entry(method).or_default(),
                Place::Other => &mut others,
            };
            list.push(position as u32);
        }
        let mut prefix_lengths: Vec<usize> = prefixes.keys().map(|prefix| prefix.len()).collect();
        prefix_lengths.sort_unstable_by(|a, b| b.cmp(a));
        prefix_lengths.dedup();
        let bucket = |positions| {
            Bucket::new(positions, |position: u32| {
                entries[position as usize].rule_match()
            })
        };
        fn buckets<K: Into<Box<str>>>(
            lists: HashMap<K, Vec<u32>>,
            bucket: impl Fn(Vec<u32>) -> Bucket,
        ) -> HashMap<Box<str>, Bucket> {
            let lists = lists.into_iter();
            lists
                .map(|(key, list)| (key.into(), bucket(list)))
                .collect()
        }
        let (exact, prefixes) = (buckets(exact, bucket), buckets(prefixes, bucket));
        let expressions_by_segment = buckets(segments, bucket);
        let (services, methods) = (buckets(services, bucket), buckets(methods, bucket));
        let (expressions, others) = (bucket(expressions), bucket(others));
        Self {
            kind: Some(kind),
            exact,
            prefixes,
            prefix_lengths,
            expressions_by_segment,
            expressions,
            services,
            methods,
            others,
            entries,
        }
    }

    /// The kind of its routes; one table has routes of one kind only.
    pub fn kind(&self) -> Option<RouteKind> {
        self.kind
    }

    /// Every match, in the order of precedence.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Listed<'_>> {
        self.entries.iter().map(|entry| Listed {
            rule: &entry.rule,
            matched: entry.rule_match(),
        })
    }

    /// The first match in the order of precedence. `None`: 404.
    pub fn find(&self, request: RequestView<'_>) -> Option<Found<'_>> {
        match self.kind {
            Some(RouteKind::Grpc) => self.find_grpc(request),
            _ => self.find_http(request),
        }
    }

    /// Exact paths go before expressions, and those before prefixes; so each is done before the next is looked at.
    fn find_http(&self, request: RequestView<'_>) -> Option<Found<'_>> {
        let path = request.uri.path();
        if let Some(bucket) = self.exact.get(path)
            && let Some(found) = self.first(request, |_| true, [bucket])
        {
            return Some(found);
        }
        let segment = first_segment(path).and_then(|s| self.expressions_by_segment.get(s));
        let buckets = [Some(&self.expressions), segment].into_iter().flatten();
        let by_expression = |found: &PathMatch| found.matches(path);
        if let Some(found) = self.first(request, by_expression, buckets) {
            return Some(found);
        }
        self.prefix_lengths.iter().find_map(|length| {
            let at_end = match path.as_bytes().get(*length) {
                _ if *length == 0 => true,
                Some(byte) => *byte == b'/',
                None => *length == path.len(),
            };
            let bucket = at_end.then(|| self.prefixes.get(path.get(..*length)?))??;
            self.first(request, |_| true, [bucket])
        })
    }

    fn find_grpc(&self, request: RequestView<'_>) -> Option<Found<'_>> {
        let path = request.uri.path();
        let parts = grpc_parts(path);
        let buckets = [
            self.exact.get(path),
            parts.and_then(|(service, _)| self.services.get(service)),
            parts.and_then(|(_, method)| self.methods.get(method)),
            Some(&self.others),
        ];
        self.first(
            request,
            |found| found.matches(path),
            buckets.into_iter().flatten(),
        )
    }

    /// The first in the order of precedence among what these buckets have.
    fn first<'t>(
        &'t self,
        request: RequestView<'_>,
        path_matches: impl Fn(&PathMatch) -> bool,
        buckets: impl IntoIterator<Item = &'t Bucket>,
    ) -> Option<Found<'t>> {
        let mut lists = Lists::default();
        for bucket in buckets {
            bucket.candidates(request.headers, &mut lists);
        }
        lists
            .filter_map(|position| self.entries.get(position as usize))
            .find_map(|entry| {
                let matched = entry.rule_match();
                let fits = path_matches(&matched.path) && matched.rest_matches(request);
                fits.then(|| Found {
                    rule: &entry.rule,
                    prefix: match &matched.path {
                        PathMatch::Prefix(prefix) => Some(&**prefix),
                        _ => None,
                    },
                    matched,
                })
            })
    }
}

fn place(path: &PathMatch) -> Place<'_> {
    match path {
        PathMatch::Exact(path) => Place::Exact(path.to_string()),
        PathMatch::Prefix(prefix) => Place::Prefix(prefix),
        PathMatch::Regex(expression) => match first_segment(expression.literal_prefix()) {
            Some(segment) => Place::ExpressionOfSegment(segment),
            None => Place::Expression,
        },
        PathMatch::Grpc { service, method } => match (service, method) {
            (Some(TextMatch::Exact(service)), Some(TextMatch::Exact(method))) => {
                Place::Exact(format!("/{service}/{method}"))
            }
            (Some(TextMatch::Exact(service)), _) => Place::Service(service),
            (_, Some(TextMatch::Exact(method))) => Place::Method(method),
            _ => Place::Other,
        },
    }
}

/// `a` of `/a/b`; nothing of `/a`, which may go on.
fn first_segment(path: &str) -> Option<&str> {
    let (segment, _) = path.strip_prefix('/')?.split_once('/')?;
    Some(segment)
}

type Key<'r> = (&'r Rank, &'r BoundRoute, usize);

fn precedence((a, a_route, a_order): Key<'_>, (b, b_route, b_order): Key<'_>) -> Ordering {
    let age = |route: &BoundRoute| (route.created.is_none(), route.created);
    a.cmp(b)
        .then_with(|| age(a_route).cmp(&age(b_route)))
        .then_with(|| by_full_name(&a_route.name, &b_route.name))
        .then_with(|| a_order.cmp(&b_order))
}

/// The order of `namespace/name` as one text.
fn by_full_name(a: &ResourceName, b: &ResourceName) -> Ordering {
    fn text(name: &ResourceName) -> impl Iterator<Item = u8> + '_ {
        name.namespace
            .bytes()
            .chain([b'/'])
            .chain(name.name.bytes())
    }
    text(a).cmp(text(b))
}
