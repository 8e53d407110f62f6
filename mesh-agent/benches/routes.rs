//! What it costs to find the rule of a request, by number and kind of rules.
//!
//! `cargo bench -p mesh-agent --bench routes [-- FILTER]` prints the table of docs/benchmarks.md: nanoseconds for one
//! lookup, the best of several rounds, for a request that the last rule matches and for one that none does; and the
//! time to build a table.

use std::{hint::black_box, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue, Method, Uri};
use mesh_agent::{
    model::ResourceName,
    routing::{
        Backend, BoundRoute, Expression, Filters, HeaderMatch, Match, PathMatch, RequestView,
        RouteId, RouteKind, RouteTable, Rule, RuleSettings, TextMatch,
    },
};

type Failure = Box<dyn std::error::Error>;

/// Lookups in a row, and how often.
const LOOKUPS: u32 = 2_000;
const ROUNDS: u32 = 50;
/// As many as Gateway API allows.
const RULES_OF_A_ROUTE: usize = 16;

/// What rule `at` of `count` matches, and the request that it takes.
struct Kind {
    name: &'static str,
    rule: fn(usize) -> Result<Match, Failure>,
    request: fn(usize) -> String,
    tenant: bool,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "exact paths",
        rule: |at| Ok(on(PathMatch::Exact(format!("/api/v1/things/{at}").into()))),
        request: |at| format!("/api/v1/things/{at}?a=b"),
        tenant: false,
    },
    Kind {
        name: "prefixes",
        rule: |at| Ok(on(PathMatch::prefix(&format!("/api/v1/things/{at}")))),
        request: |at| format!("/api/v1/things/{at}/parts/7?a=b"),
        tenant: false,
    },
    Kind {
        name: "one header each, one path",
        rule: |at| {
            let mut one = on(PathMatch::prefix("/"));
            one.headers.push(HeaderMatch {
                name: "x-tenant".parse()?,
                value: TextMatch::Exact(format!("t{at}").into()),
            });
            Ok(one)
        },
        request: |_| "/api/v1/things".to_owned(),
        tenant: true,
    },
    Kind {
        name: "expressions, a first segment each",
        rule: |at| {
            let expression = Expression::new(&format!("/s{at}/[a-z]+/[0-9]+"))?;
            Ok(on(PathMatch::Regex(expression)))
        },
        request: |at| format!("/s{at}/things/7"),
        tenant: false,
    },
    Kind {
        name: "expressions, alike",
        rule: |at| {
            let expression = Expression::new(&format!("/.*/x{at}"))?;
            Ok(on(PathMatch::Regex(expression)))
        },
        request: |at| format!("/things/x{at}"),
        tenant: false,
    },
];

fn on(path: PathMatch) -> Match {
    Match {
        path,
        method: None,
        headers: Vec::new(),
        queries: Vec::new(),
    }
}

fn routes(kind: &Kind, count: usize) -> Result<Vec<BoundRoute>, Failure> {
    let mut routes = Vec::new();
    for first in (0..count).step_by(RULES_OF_A_ROUTE) {
        let id = RouteId {
            kind: RouteKind::Http,
            name: ResourceName::new("shop", format!("r{first}")),
        };
        let mut rules = Vec::new();
        for at in first..(first + RULES_OF_A_ROUTE).min(count) {
            let settings = RuleSettings {
                backends: vec![Backend {
                    service: Ok((ResourceName::new("shop", "web"), 80)),
                    weight: 1,
                    filters: Filters::default(),
                }],
                ..RuleSettings::default()
            };
            let rule = Rule::new(&id, at - first, settings, None);
            rules.push((rule, Arc::from(vec![(kind.rule)(at)?])));
        }
        routes.push(BoundRoute {
            name: id.name,
            created: None,
            rules,
        });
    }
    Ok(routes)
}

/// A request as a browser sends it.
fn headers(tenant: Option<&str>) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "web.shop"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
        ("accept", "text/html,application/xhtml+xml"),
        ("accept-language", "en"),
        ("cookie", "session=abcdefghijklmnop"),
        ("x-request-id", "6b1f2a1e-0000-4000-8000-000000000000"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(tenant) = tenant {
        headers.insert("x-tenant", tenant.parse()?);
    }
    Ok(headers)
}

fn measure(table: &RouteTable, target: &str, headers: &HeaderMap) -> Result<(f64, bool), Failure> {
    let uri: Uri = target.parse()?;
    let (mut best, mut found) = (f64::MAX, false);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..LOOKUPS {
            let view = RequestView {
                method: black_box(&Method::GET),
                uri: black_box(&uri),
                headers: black_box(headers),
            };
            found = black_box(table.find(view)).is_some();
        }
        best = best.min(started.elapsed().as_nanos() as f64 / f64::from(LOOKUPS));
        // One slow kind must not take minutes.
        if best > 20_000.0 {
            break;
        }
    }
    Ok((best, found))
}

fn main() -> Result<(), Failure> {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    println!("| rules | kind | last matches, ns | none matches, ns | build, ms |");
    println!("| ---: | --- | ---: | ---: | ---: |");
    for kind in KINDS.iter().filter(|kind| kind.name.contains(&filter)) {
        for count in [10, 1_000, 10_000] {
            let routes = routes(kind, count)?;
            let started = Instant::now();
            let table = RouteTable::new(RouteKind::Http, &routes);
            let build = started.elapsed().as_secs_f64() * 1e3;
            let tenant = |at: usize| kind.tenant.then(|| format!("t{at}"));
            let ours = headers(tenant(count - 1).as_deref())?;
            let other = headers(tenant(count).as_deref())?;
            let (hit, found) = measure(&table, &(kind.request)(count - 1), &ours)?;
            let (miss, wrong) = measure(&table, &(kind.request)(count), &other)?;
            if !found || wrong {
                return Err(format!("{}: the wrong rule was found", kind.name).into());
            }
            println!(
                "| {count} | {} | {hit:.0} | {miss:.0} | {build:.1} |",
                kind.name
            );
        }
    }
    Ok(())
}
