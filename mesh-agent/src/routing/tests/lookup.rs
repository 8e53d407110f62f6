//! Which rule a request takes: the sentences of the design, and a naive matcher that sorts all that match.

use std::cmp::Reverse;

use http::Method;
use proptest::prelude::*;

use super::support::{Request, on, route, rpc, rpc_table, table, taken};
use crate::routing::{BoundRoute, Match, PathMatch, RequestView, RouteKind, RouteTable, TextMatch};

#[test]
fn a_prefix_is_one_by_segment() {
    let table = table(vec![on("/v2"), on("/v3/")]);
    for (path, rule) in [
        ("/v2", Some(0)),
        ("/v2/", Some(0)),
        ("/v2/example", Some(0)),
        ("/v2?q=1", Some(0)),
        ("/v2example", None),
        ("/foo/v2/example", None),
        ("/V2", None),
        ("/v3", Some(1)),
        ("/v3/", Some(1)),
        ("/v3/a", Some(1)),
        ("/v33", None),
        ("/", None),
        ("*", None),
    ] {
        assert_eq!(taken(&table, &Request::get(path)), rule, "{path}");
    }
}

#[test]
fn the_root_is_a_prefix_of_everything() {
    let table = table(vec![on("/")]);
    for path in ["/", "/a", "*", "//", "http://h", "http://h/a"] {
        assert_eq!(taken(&table, &Request::get(path)), Some(0), "{path}");
    }
    let connect = Request::get("h:80").method(Method::CONNECT);
    assert_eq!(taken(&table, &connect), Some(0));
}

#[test]
fn exact_goes_before_expressions_and_those_before_the_longest_prefix() {
    let table = table(vec![
        on("/"),
        on("/a"),
        on("/a/b"),
        on("~/a/b/[0-9]+"),
        on("~/a/.*/[0-9]+"),
        on("=/a/b/1"),
        on("=/a/b/"),
    ]);
    for (path, rule) in [
        ("/a/b/1", 5),
        ("/a/b/2", 4),
        ("/a/c/2", 4),
        ("/a/b/x", 2),
        ("/a/b", 2),
        ("/a/b/", 6),
        ("/a/bc", 1),
        ("/b", 0),
    ] {
        assert_eq!(taken(&table, &Request::get(path)), Some(rule), "{path}");
    }
}

#[test]
fn expressions_match_the_whole_path() {
    let table = table(vec![on("~/a+"), on("~^/b/(x|y)$"), on("~(?i)/c/d")]);
    for (path, rule) in [
        ("/aaa", Some(0)),
        ("/aab", None),
        ("/x/a", None),
        ("/b/y", Some(1)),
        ("/b/yy", None),
        ("/C/D", Some(2)),
    ] {
        assert_eq!(taken(&table, &Request::get(path)), rule, "{path}");
    }
}

#[test]
fn fields_are_anded_and_more_of_them_go_first() {
    let table = table(vec![
        on("/"),
        on("/").and_query("animal", "whale"),
        on("/").and_header("version", "one"),
        on("/")
            .and_header("version", "one")
            .and_query("animal", "whale"),
        on("/")
            .and_header("version", "one")
            .and_header("color", "~r.d"),
        on("/").and_method(Method::POST),
        on("/longer").and_query("animal", "whale"),
    ]);
    let get = || Request::get("/?animal=whale");
    let cases = [
        (Request::get("/"), 0),
        (get(), 1),
        (Request::get("/").header("Version", "one"), 2),
        (get().header("VERSION", "one"), 3),
        (get().header("version", "one").header("color", "red"), 4),
        (get().header("version", "one").header("color", "reed"), 3),
        (
            get()
                .header("version", "one")
                .header("color", "red")
                .method(Method::POST),
            5,
        ),
        (Request::get("/longer?animal=whale").method(Method::POST), 6),
        (Request::get("/longer").header("version", "two"), 0),
    ];
    for (request, rule) in cases {
        assert_eq!(taken(&table, &request), Some(rule), "{request:?}");
    }
}

#[test]
fn the_first_of_several_headers_or_parameters_counts() {
    let table = table(vec![
        on("/").and_header("version", "one"),
        on("/").and_query("a", "b c&d"),
        on("/").and_query("e", "~[0-9]+ .*"),
        on("/").and_query("empty", "~"),
    ]);
    let cases = [
        (
            Request::get("/")
                .header("version", "one")
                .header("version", "two"),
            Some(0),
        ),
        (
            Request::get("/")
                .header("version", "two")
                .header("version", "one"),
            None,
        ),
        (Request::get("/?a=b+c%26d&a=x"), Some(1)),
        (Request::get("/?a=x&a=b+c%26d"), None),
        (Request::get("/?%61=b%20c%26d"), Some(1)),
        (Request::get("/?A=b+c%26d"), None),
        (Request::get("/?e=12%20%C3%A9"), Some(2)),
        (Request::get("/?e=12+"), Some(2)),
        (Request::get("/?e=12"), None),
        (Request::get("/?empty"), Some(3)),
        (Request::get("/?empty="), Some(3)),
    ];
    for (request, rule) in cases {
        assert_eq!(taken(&table, &request), rule, "{request:?}");
    }
}

#[test]
fn ties_go_to_the_oldest_then_by_name_then_by_order() {
    let one = || vec![vec![on("/a")], vec![on("/a")]];
    let http = RouteKind::Http;
    let first = |routes: &[BoundRoute]| {
        let table = RouteTable::new(http, routes);
        let request = Request::get("/a");
        let found = table.find(request.view()).unwrap();
        format!("{}#{}", found.rule.route.name, found.rule.index)
    };
    let young = route(http, "a/young", Some(200), one());
    let old = route(http, "b/old", Some(100), one());
    let ageless = route(http, "a/ageless", None, one());
    let other = route(http, "a-b/ageless", None, one());
    assert_eq!(
        first(&[young.clone(), old.clone(), ageless.clone()]),
        "b/old#0"
    );
    assert_eq!(first(&[ageless.clone(), young]), "a/young#0");
    // As one text: `a-b/...` stands before `a/...`.
    assert_eq!(first(&[ageless, other]), "a-b/ageless#0");
}

#[test]
fn a_grpc_request_takes_the_longest_service_then_method() {
    let table = rpc_table(vec![
        rpc("*/*"),
        rpc("shop.Cart/*"),
        rpc("shop.Cart/Add"),
        rpc("*/Add"),
        rpc("~shop\\..*/*"),
        rpc("shop.Cart/~A.*"),
        rpc("*/*").and_header("x", "y"),
        rpc("shop.Cart/Add").and_header("x", "y"),
    ]);
    for (path, rule) in [
        ("/shop.Cart/Add", 2),
        ("/shop.Cart/Adder", 5),
        ("/shop.Cart/Take", 1),
        ("/shop.Stock/Add", 4),
        ("/other.Stock/Add", 3),
        ("/other.Stock/Take", 0),
        ("/none", 0),
        ("/", 0),
    ] {
        assert_eq!(taken(&table, &Request::get(path)), Some(rule), "{path}");
    }
    let with_header = |path| Request::get(path).header("x", "y");
    assert_eq!(taken(&table, &with_header("/shop.Cart/Add")), Some(7));
    assert_eq!(taken(&table, &with_header("/a/b")), Some(6));
}

#[test]
fn a_big_table_answers_as_a_small_one() {
    let mut matches: Vec<Match> = (0..2000)
        .map(|n| on("/").and_header("x-tenant", &format!("t{n}")))
        .collect();
    matches.push(
        on("/")
            .and_header("x-other", "1")
            .and_header("x-tenant", "~t.*"),
    );
    matches.push(on("/"));
    let table = table(matches);
    let tenant = |n: usize| Request::get("/a/b").header("x-tenant", &format!("t{n}"));
    assert_eq!(taken(&table, &tenant(1234)), Some(1234));
    assert_eq!(
        taken(&table, &tenant(1234).header("x-other", "1")),
        Some(2000)
    );
    assert_eq!(taken(&table, &tenant(2000)), Some(2001));
    assert_eq!(taken(&table, &Request::get("/")), Some(2001));
}

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("ab".to_owned()),
        Just("%61".to_owned())
    ]
}

fn path() -> impl Strategy<Value = String> {
    let slash = prop_oneof![Just(""), Just("/")];
    (prop::collection::vec(segment(), 0..4), slash).prop_map(|(segments, slash)| {
        let mut path: String = segments.iter().map(|s| format!("/{s}")).collect();
        path.push_str(slash);
        if path.is_empty() {
            "/".to_owned()
        } else {
            path
        }
    })
}

fn path_match() -> impl Strategy<Value = Match> {
    prop_oneof![
        path().prop_map(|path| on(&format!("={path}"))),
        path().prop_map(|path| on(&path)),
        prop_oneof![
            Just("~/a.*"),
            Just("~/a/b"),
            Just("~/a/[ab]+"),
            Just("~/a/b?"),
            Just("~.*/b"),
            Just("~/ab|/a"),
        ]
        .prop_map(on),
    ]
}

fn value() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("1"), Just("2"), Just("~[12]"), Just("~1.*")]
}

fn a_match() -> impl Strategy<Value = Match> {
    let names = || prop::sample::subsequence(vec!["x", "y", "z"], 0..=3);
    let values = || prop::collection::vec(value(), 3);
    let method = prop::option::weighted(0.3, prop_oneof![Just(Method::GET), Just(Method::POST)]);
    (path_match(), method, names(), values(), names(), values()).prop_map(
        |(mut one, method, headers, header_values, queries, query_values)| {
            one.method = method;
            for (name, value) in headers.iter().zip(header_values) {
                one = one.and_header(name, value);
            }
            for (name, value) in queries.iter().zip(query_values) {
                one = one.and_query(name, value);
            }
            one
        },
    )
}

fn routes(
    one: impl Strategy<Value = Match> + Clone + 'static,
    kind: RouteKind,
) -> impl Strategy<Value = Vec<BoundRoute>> {
    let rules = prop::collection::vec(prop::collection::vec(one, 1..4), 1..12);
    let created = prop::option::of(0..3_i64);
    prop::collection::vec((created, rules), 1..5).prop_map(move |routes| {
        let routes = routes.into_iter().enumerate();
        routes
            .map(|(nth, (created, rules))| {
                // Names that sort in another order than they are made.
                let name = format!("{}/r{nth}", ["b", "a", "a-a", "c"][nth]);
                route(kind, &name, created, rules)
            })
            .collect()
    })
}

fn request() -> impl Strategy<Value = Request> {
    let pairs = || {
        prop::collection::vec(
            (prop_oneof!["x", "y", "z"], prop_oneof!["1", "2", "12"]),
            0..4,
        )
    };
    let method = prop_oneof![Just(Method::GET), Just(Method::POST)];
    (path(), method, pairs(), pairs()).prop_map(|(path, method, headers, queries)| {
        let query: Vec<String> = queries.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut request = Request::get(&format!("{path}?{}", query.join("&"))).method(method);
        for (name, value) in headers {
            request = request.header(&name, &value);
        }
        request
    })
}

/// The words of the specification, one by one.
fn matches(one: &Match, request: RequestView<'_>) -> bool {
    let path = request.uri.path();
    let whole = |text: &TextMatch, given: &str| match text {
        TextMatch::Exact(exact) => **exact == *given,
        TextMatch::Regex(expression) => {
            let whole = format!("^(?:{expression})$");
            regex::Regex::new(&whole).unwrap().is_match(given)
        }
    };
    let path_matches = match &one.path {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => {
            let parts = |path: &str| -> Vec<String> {
                let trimmed = path.strip_suffix('/').unwrap_or(path);
                trimmed.split('/').map(str::to_owned).collect()
            };
            let (prefix, path) = (parts(prefix), parts(path));
            path.starts_with(&prefix)
        }
        PathMatch::Regex(expression) => whole(&TextMatch::Regex(expression.clone()), path),
        PathMatch::Grpc { service, method } => {
            let parts: Vec<&str> = path.split('/').collect();
            match parts[..] {
                ["", own_service, own_method] => {
                    service.as_ref().is_none_or(|s| whole(s, own_service))
                        && method.as_ref().is_none_or(|m| whole(m, own_method))
                }
                _ => false,
            }
        }
    };
    let query: Vec<(&str, &str)> = request
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    path_matches
        && one.method.as_ref().is_none_or(|m| m == request.method)
        && one.headers.iter().all(|header| {
            let value = request.headers.get(&header.name);
            value.is_some_and(|value| whole(&header.value, value.to_str().unwrap()))
        })
        && one.queries.iter().all(|parameter| {
            let value = query.iter().find(|(name, _)| **name == *parameter.name);
            value.is_some_and(|(_, value)| whole(&parameter.value, value))
        })
}

/// Every match that matches, sorted as the design says; the rule of the first.
fn naive(routes: &[BoundRoute], request: RequestView<'_>) -> Option<String> {
    let mut all = Vec::new();
    for route in routes {
        for (order, (rule, of_rule)) in route.rules.iter().enumerate() {
            for one in of_rule.iter().filter(|one| matches(one, request)) {
                let text = |text: &Option<TextMatch>| match text {
                    Some(TextMatch::Exact(text)) => (2, text.len()),
                    Some(TextMatch::Regex(expression)) => (1, expression.as_str().len()),
                    None => (0, 0),
                };
                let path = match &one.path {
                    PathMatch::Exact(_) => (3, 0, (0, 0)),
                    PathMatch::Regex(expression) => (2, expression.as_str().len(), (0, 0)),
                    PathMatch::Prefix(prefix) => (1, prefix.len(), (0, 0)),
                    PathMatch::Grpc { service, method } => {
                        let (kind, length) = text(service);
                        (kind, length, text(method))
                    }
                };
                let key = (
                    Reverse(path),
                    Reverse(one.method.is_some()),
                    Reverse(one.headers.len()),
                    Reverse(one.queries.len()),
                    route.created.is_none(),
                    route.created,
                    route.name.to_string(),
                    order,
                );
                all.push((key, rule.label.to_string()));
            }
        }
    }
    all.sort();
    all.into_iter().next().map(|(_, label)| label)
}

fn rpc_match() -> impl Strategy<Value = Match> + Clone {
    let part = || prop_oneof![Just("*"), Just("a"), Just("ab"), Just("~a.?"), Just("~.*")];
    let headers = prop::sample::subsequence(vec!["x", "y"], 0..=2);
    (part(), part(), headers).prop_map(|(service, method, headers)| {
        let mut one = rpc(&format!("{service}/{method}"));
        for name in headers {
            one = one.and_header(name, "1");
        }
        one
    })
}

proptest! {
    #[test]
    fn lookup_is_the_first_of_all_matches_in_order(
        routes in routes(a_match().boxed(), RouteKind::Http),
        requests in prop::collection::vec(request(), 1..20),
    ) {
        let table = RouteTable::new(RouteKind::Http, &routes);
        for request in &requests {
            let found = table.find(request.view()).map(|found| found.rule.label.to_string());
            prop_assert_eq!(found, naive(&routes, request.view()), "{:?}", request);
        }
    }

    #[test]
    fn grpc_lookup_is_the_first_of_all_matches_in_order(
        routes in routes(rpc_match().boxed(), RouteKind::Grpc),
        requests in prop::collection::vec(("a|ab|b", "a|ab|b", any::<bool>()), 1..20),
    ) {
        let table = RouteTable::new(RouteKind::Grpc, &routes);
        for (service, method, with_header) in &requests {
            let mut request = Request::get(&format!("/{service}/{method}"));
            if *with_header {
                request = request.header("x", "1");
            }
            let found = table.find(request.view()).map(|found| found.rule.label.to_string());
            prop_assert_eq!(found, naive(&routes, request.view()), "{:?}", request);
        }
    }

    /// What is listed is in the order in which it is tried.
    #[test]
    fn the_list_is_in_the_order_of_lookup(
        routes in routes(a_match().boxed(), RouteKind::Http),
        request in request(),
    ) {
        let table = RouteTable::new(RouteKind::Http, &routes);
        let first = table.iter().find(|listed| matches(listed.matched, request.view()));
        let found = table.find(request.view());
        prop_assert_eq!(
            found.map(|found| &found.rule.label),
            first.map(|listed| &listed.rule.label)
        );
    }
}
