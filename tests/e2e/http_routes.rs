//! HTTPRoutes and GRPCRoutes read from files: what Gateway API's mesh profiles say of them, seen by clients. Every test has
//! Services of its own in one mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_tests::{
    Mesh, Pod, eventually,
    http::{Answer, Ask, Connection, HttpServer, Speaks},
    runner::Shared,
    tests,
};

use crate::http_common::{ask, get, route, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    split_of_weights,
    matching_and_precedence,
    unmatched_gets_404,
    redirects,
    rewrites,
    headers_of_requests_and_responses,
    mirrored_requests,
    cross_origin_requests,
    timeouts_of_requests_and_attempts,
    retries_of_codes,
    producers_and_consumers,
    routes_of_one_port,
    backends_that_cannot_answer,
    redistributed_shares,
    the_dialled_address_decides,
    grpc_methods_and_headers,
}

pub(crate) fn teardown() {
    BENCH.clear();
}

/// Servers first, then the mesh.
struct Bench {
    _servers: Vec<HttpServer>,
    mesh: Mesh,
}

/// Every Service of these tests; the position is its address. Those that no pod serves are only dialled.
const SERVICES: &[(&str, &str, &str)] = &[
    ("shop", "v1", "v1"),
    ("shop", "v2", "v2"),
    ("depot", "v3", "v3"),
    ("shop", "copies", "copies"),
    ("shop", "empty", "nobody"),
    ("shop", "split", "front"),
    ("shop", "split-cross", "front"),
    ("shop", "match", "front"),
    ("shop", "redirect", "front"),
    ("shop", "rewrite", "front"),
    ("shop", "headers", "front"),
    ("shop", "mirror", "front"),
    ("shop", "cors", "front"),
    ("shop", "timeouts", "front"),
    ("shop", "retry", "front"),
    ("shop", "owned", "front"),
    ("shop", "ports", "front"),
    ("shop", "broken", "front"),
    ("shop", "grpc", "front"),
    ("shop", "share", "front"),
];

fn address(name: &str, port: u16) -> SocketAddr {
    let at = SERVICES
        .iter()
        .position(|(_, service, _)| *service == name)
        .unwrap_or_else(|| panic!("no service {name}"));
    vip(at as u8 + 1, port)
}

const TO_V1: &str = "{name: v1, port: 80}";
const TO_V2: &str = "{name: v2, port: 80}";
const TO_V3: &str = "{name: v3, namespace: depot, port: 80}";

fn to(backend: &str) -> String {
    format!("backendRefs: [{backend}]")
}

/// One rule for one match.
fn when(matching: &str, backend: &str) -> String {
    format!("{{matches: [{matching}], {}}}", to(backend))
}

fn documents() -> Vec<(String, String)> {
    let http = |name: &str, parent: &str, rules: &str| {
        (
            format!("route-{name}.yaml"),
            route("HTTPRoute", "shop", name, parent, rules),
        )
    };
    let mut all = vec![
        http(
            "split",
            "split",
            "{backendRefs: [{name: v1, port: 80, weight: 70}, {name: v2, port: 80, weight: 30}]}",
        ),
        http(
            "split-cross",
            "split-cross",
            "{backendRefs: [{name: v1, port: 80, weight: 7}, {name: v3, namespace: depot, port: 80, weight: 3}, {name: v2, port: 80, weight: 0}]}",
        ),
        // Two routes of one parent, and an order in the file that is not that of precedence.
        http(
            "match-a",
            "match",
            &[
                when("{path: {value: /}}", TO_V1),
                when("{path: {value: /v2}}", TO_V2),
                when("{path: {type: Exact, value: /v2/exact}}", TO_V1),
                when("{path: {type: RegularExpression, value: '/re/[0-9]+'}}", TO_V2),
                when("{path: {value: /re/77}}", TO_V1),
                when("{path: {value: /m}, method: POST}", TO_V2),
                when("{path: {value: /h}, headers: [{name: X-Color, value: blue}]}", TO_V2),
                when("{path: {value: /h}, headers: [{name: x-color, value: blue}, {name: x-size, type: RegularExpression, value: '[sm]'}]}", TO_V3),
                when("{path: {value: /q}, queryParams: [{name: animal, value: whale}]}", TO_V2),
                when("{path: {value: /q}, queryParams: [{name: animal, value: whale}, {name: sea, value: north sea}]}", TO_V3),
                when("{path: {value: /or}, headers: [{name: a, value: '1'}]}, {path: {value: /or}, headers: [{name: b, value: '1'}]}", TO_V2),
            ]
            .join(", "),
        ),
        http("match-b", "match", &when("{path: {value: /v2/longer}}", TO_V3)),
        http(
            "redirect",
            "redirect",
            "{matches: [{path: {value: /host}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: shop.example}}]}, \
             {matches: [{path: {value: /full}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /all}, statusCode: 301}}]}, \
             {matches: [{path: {value: /prefix}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 303}}]}, \
             {matches: [{path: {value: /port}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: shop.example, port: 8083, statusCode: 307}}]}, \
             {matches: [{path: {value: /scheme}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: shop.example, statusCode: 308}}]}, \
             {matches: [{path: {value: /both}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: shop.example, port: 8443}}]}",
        ),
        http(
            "rewrite",
            "rewrite",
            &format!(
                "{{matches: [{{path: {{value: /full}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /one}}}}}}], {0}}}, \
                 {{matches: [{{path: {{value: /prefix/one}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /two}}}}}}], {0}}}, \
                 {{matches: [{{path: {{value: /strip}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /}}}}}}], {0}}}, \
                 {{matches: [{{path: {{value: /host}}}}], filters: [{{type: URLRewrite, urlRewrite: {{hostname: one.example}}}}], {0}}}",
                to(TO_V1)
            ),
        ),
        http(
            "headers",
            "headers",
            "{filters: [\
               {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: ours}], add: [{name: x-add, value: more}], remove: [x-gone]}}, \
               {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: server, value: none}], add: [{name: content-type, value: extra}], remove: [x-removable]}}], \
              backendRefs: [\
               {name: v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: one}]}}]}, \
               {name: v2, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-backend, value: two}]}}]}]}",
        ),
        http(
            "mirror",
            "mirror",
            &format!(
                "{{matches: [{{path: {{value: /all}}}}], filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: copies, port: 80}}}}}}], {0}}}, \
                 {{matches: [{{path: {{value: /half}}}}], filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: copies, port: 80}}, percent: 50}}}}], {0}}}, \
                 {{matches: [{{path: {{value: /dead}}}}], filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: empty, port: 80}}}}}}], {0}}}",
                to(TO_V1)
            ),
        ),
        http(
            "cors",
            "cors",
            &format!(
                "{{filters: [{{type: CORS, cors: {{allowOrigins: ['https://*.shop.example', 'http://exact.example:8080'], allowMethods: [GET, PUT], allowHeaders: [x-a, x-b], exposeHeaders: [x-c], allowCredentials: true, maxAge: 77}}}}], {}}}",
                to(TO_V1)
            ),
        ),
        http(
            "timeouts",
            "timeouts",
            &format!(
                "{{matches: [{{path: {{value: /}}}}], timeouts: {{request: 500ms}}, {0}}}, \
                 {{matches: [{{headers: [{{name: x-attempt, value: 'yes'}}]}}], timeouts: {{request: 5s, backendRequest: 500ms}}, {0}}}, \
                 {{matches: [{{headers: [{{name: x-none, value: 'yes'}}]}}], timeouts: {{request: 0s}}, {0}}}",
                to(TO_V1)
            ),
        ),
        http(
            "retry",
            "retry",
            &format!(
                "{{matches: [{{path: {{value: /fail}}}}], retry: {{attempts: 3, codes: [500, 502, 503, 504], backoff: 10ms}}, {0}}}, \
                 {{matches: [{{headers: [{{name: x-few, value: 'yes'}}]}}], retry: {{attempts: 1, codes: [503]}}, {0}}}, \
                 {{matches: [{{headers: [{{name: x-wait, value: 'yes'}}]}}], retry: {{attempts: 2, codes: [503], backoff: 400ms}}, {0}}}",
                to(TO_V1)
            ),
        ),
        http("owned", "owned", &format!("{{{}}}", to(TO_V1))),
        (
            "route-consumer.yaml".into(),
            route("HTTPRoute", "depot", "consumer", "shop/owned", &when("{path: {value: /mine}}", TO_V3)),
        ),
        http("ports-a", "ports:80", &format!("{{{}}}", to(TO_V1))),
        http("ports-b", "ports:81", &format!("{{{}}}", to(TO_V2))),
        http(
            "broken",
            "broken",
            &[
                "{matches: [{path: {value: /missing}}], backendRefs: [{name: not-there, port: 80, weight: 50}, {name: v1, port: 80, weight: 50}]}",
                "{matches: [{path: {value: /kind}}], backendRefs: [{kind: Bucket, group: example.com, name: v1, port: 80}]}",
                "{matches: [{path: {value: /port}}], backendRefs: [{name: v1, port: 4711}]}",
                "{matches: [{path: {value: /none}}]}",
                "{matches: [{path: {value: /empty}}], backendRefs: [{name: empty, port: 80, weight: 1}, {name: v1, port: 80, weight: 3}]}",
                "{matches: [{path: {value: /zero}}], backendRefs: [{name: not-there, port: 80, weight: 0}, {name: v1, port: 80}]}",
            ]
            .join(", "),
        ),
        http(
            "share",
            "share",
            "{backendRefs: [{name: empty, port: 80, weight: 1}, {name: v1, port: 80, weight: 1}]}",
        ),
        (
            "policy-share.yaml".into(),
            mesh_tests::config::traffic_policy("shop", "share", "  redistributeUnavailable: true"),
        ),
        (
            "route-grpc.yaml".into(),
            route(
                "GRPCRoute",
                "shop",
                "grpc",
                "grpc",
                &[
                    when("{method: {service: shop.v1.Stock, method: Reserve}}", TO_V1),
                    when("{method: {service: shop.v1.Stock}}", TO_V2),
                    when("{method: {service: shop.v1.Stock, method: Reserve}, headers: [{name: x-canary, value: 'true'}]}", TO_V3),
                    when("{method: {type: RegularExpression, service: 'shop\\.v[2-9]\\..*'}}", TO_V2),
                ]
                .join(", "),
            ),
        ),
        // Beaten by the GRPCRoute on the same port.
        http("grpc-loser", "grpc", &format!("{{{}}}", to(TO_V3))),
    ];
    for (at, (namespace, name, app)) in SERVICES.iter().enumerate() {
        let ports: &[(u16, u16, &str)] = match *name {
            "ports" | "v1" => &[(80, 8080, ""), (81, 8080, "")],
            _ => &[(80, 8080, "")],
        };
        all.push((
            format!("service-{name}.yaml"),
            service(namespace, name, at as u8 + 1, app, ports),
        ));
    }
    all
}

fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let plan = Mesh::plan(1)
            .pods(0, &["client", "front", "copies"])
            .pod_of(0, "v1", "shop", "v1")
            .pod_of(0, "v2", "shop", "v2")
            .pod_of(0, "v3", "depot", "v3")
            .pod_of(0, "guest", "depot", "guest");
        let plan = documents()
            .into_iter()
            .fold(plan, |plan, (name, text)| plan.file(&name, &text));
        let mut mesh = plan.prepare();
        // The usual label is the name without its digits, the same for all three.
        for name in ["v1", "v2", "v3"] {
            let mut workload = mesh.workload(name);
            workload.labels = vec![("app".into(), name.into())];
            mesh.config.workload(&workload);
        }
        mesh.start_agents();
        let servers = ["front", "copies", "v1", "v2", "v3"]
            .map(|name| HttpServer::start(mesh.pod(name), mesh.pod(name).v4(8080), name));
        Bench {
            _servers: servers.into(),
            mesh,
        }
    })
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    fn server(&self, name: &str) -> &HttpServer {
        let addr = self.mesh.pod(name).v4(8080);
        self._servers
            .iter()
            .find(|server| server.addr == addr)
            .unwrap_or_else(|| panic!("no server {name}"))
    }

    /// What `path` of a service gets.
    fn get(&self, name: &str, path: &str) -> Answer {
        get(self.client(), address(name, 80), path)
    }

    fn ask(&self, name: &str, request: &Ask) -> Answer {
        ask(self.client(), address(name, 80), Speaks::Http1, request)
    }

    /// How often each pod, or else each status, answered so many requests.
    fn shares(&self, name: &str, path: &str, requests: u32) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::new();
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let mut kept = Connection::open(self.client(), address(name, 80), speaks).unwrap();
            for _ in 0..requests / 2 {
                let answer = kept.send(&Ask::get(path)).unwrap();
                let who = match answer.status {
                    200 => answer.pod(),
                    status => status.to_string(),
                };
                *shares.entry(who).or_default() += 1;
            }
        }
        shares
    }
}

/// Within a point of the share.
fn within_a_point(shares: &BTreeMap<String, u32>, expected: &[(&str, u32)]) {
    let all: u32 = shares.values().sum();
    for (who, percent) in expected {
        let got = f64::from(shares.get(*who).copied().unwrap_or(0)) * 100.0 / f64::from(all);
        assert!(
            (got - f64::from(*percent)).abs() <= 1.0,
            "{who}: {got} %: {shares:?}"
        );
    }
    assert_eq!(shares.len(), expected.len(), "{shares:?}");
}

fn split_of_weights() {
    let bench = bench();
    within_a_point(&bench.shares("split", "/", 500), &[("v1", 70), ("v2", 30)]);
    within_a_point(
        &bench.shares("split-cross", "/", 500),
        &[("v1", 70), ("v3", 30)],
    );
}

fn matching_and_precedence() {
    let bench = bench();
    // Request, and who must answer.
    let table: Vec<(Ask, &str)> = vec![
        (Ask::get("/"), "v1"),
        (Ask::get("/v2"), "v2"),
        (Ask::get("/v2/"), "v2"),
        (Ask::get("/v2/a"), "v2"),
        (Ask::get("/v2?x=/v2/exact"), "v2"),
        (Ask::get("/v2example"), "v1"),
        (Ask::get("/V2"), "v1"),
        (Ask::get("/v2/exact"), "v1"),
        (Ask::get("/v2/exact?q=1"), "v1"),
        (Ask::get("/v2/exact/"), "v2"),
        (Ask::get("/v2/longer/x"), "v3"),
        (Ask::get("/v2/longest"), "v2"),
        (Ask::get("/re/123"), "v2"),
        (Ask::get("/re/77"), "v2"),
        (Ask::get("/re/123x"), "v1"),
        (Ask::get("/m"), "v1"),
        (Ask::new("POST", "/m"), "v2"),
        (Ask::get("/h"), "v1"),
        (Ask::get("/h").header("x-color", "blue"), "v2"),
        (Ask::get("/h").header("X-COLOR", "blue"), "v2"),
        (Ask::get("/h").header("x-color", "BLUE"), "v1"),
        (
            Ask::get("/h")
                .header("x-color", "red")
                .header("x-color", "blue"),
            "v1",
        ),
        (
            Ask::get("/h")
                .header("x-color", "blue")
                .header("x-size", "m"),
            "v3",
        ),
        (
            Ask::get("/h")
                .header("x-color", "blue")
                .header("x-size", "mm"),
            "v2",
        ),
        (Ask::get("/q?animal=whale"), "v2"),
        (Ask::get("/q?animal=dolphin"), "v1"),
        (Ask::get("/q?animal=dolphin&animal=whale"), "v1"),
        (Ask::get("/q?Animal=whale"), "v1"),
        (Ask::get("/q?sea=north%20sea&animal=whale"), "v3"),
        (Ask::get("/or").header("a", "1"), "v2"),
        (Ask::get("/or").header("b", "1"), "v2"),
        (Ask::get("/or").header("b", "2"), "v1"),
    ];
    for speaks in [Speaks::Http1, Speaks::Http2] {
        let mut kept = Connection::open(bench.client(), address("match", 80), speaks).unwrap();
        for (request, expected) in &table {
            let answer = kept.send(request).unwrap();
            assert_eq!(
                answer.pod(),
                *expected,
                "{speaks:?} {request:?}: {answer:?}"
            );
        }
    }
}

fn unmatched_gets_404() {
    let bench = bench();
    let answer = bench.get("redirect", "/nothing");
    assert_eq!(
        (answer.status, answer.reason().as_deref()),
        (404, Some("route_not_found")),
        "{answer:?}"
    );
    for speaks in [Speaks::Http1, Speaks::Http2] {
        let answer = ask(
            bench.client(),
            address("redirect", 80),
            speaks,
            &Ask::new("HEAD", "/nothing"),
        );
        assert_eq!(
            (answer.status, answer.body.len()),
            (404, 0),
            "{speaks:?}: {answer:?}"
        );
        assert_eq!(answer.broken, None, "{speaks:?}");
    }
    // A service port without a route is balanced as always.
    let answer = get(bench.client(), address("v1", 80), "/nothing");
    assert_eq!((answer.status, answer.pod().as_str()), (200, "v1"));
}

fn redirects() {
    let bench = bench();
    let dialled = address("redirect", 80);
    let host = dialled.ip();
    for (path, status, location) in [
        (
            "/host/a?b=c",
            302,
            "http://shop.example/host/a?b=c".to_owned(),
        ),
        ("/full/a?b=c", 301, format!("http://{host}/all?b=c")),
        ("/prefix/a/b", 303, format!("http://{host}/new/a/b")),
        ("/prefix", 303, format!("http://{host}/new")),
        ("/port/a", 307, "http://shop.example:8083/port/a".into()),
        ("/scheme/a", 308, "https://shop.example/scheme/a".into()),
        ("/both/a", 302, "https://shop.example:8443/both/a".into()),
    ] {
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let request = Ask::get(path).header("host", &host.to_string());
            let answer = ask(bench.client(), dialled, speaks, &request);
            assert_eq!(answer.status, status, "{path} {speaks:?}: {answer:?}");
            assert_eq!(
                answer.header("location"),
                Some(location.as_str()),
                "{path} {speaks:?}"
            );
        }
    }
}

fn rewrites() {
    let bench = bench();
    let host = address("rewrite", 80).to_string();
    for (path, seen, seen_host) in [
        ("/full/a?b=c", "/one?b=c", host.as_str()),
        ("/prefix/one/a", "/two/a", &host),
        ("/prefix/one", "/two", &host),
        ("/prefix/one?q=1", "/two?q=1", &host),
        ("/strip/a/b?c=d", "/a/b?c=d", &host),
        ("/strip", "/", &host),
        ("/host/a", "/host/a", "one.example"),
    ] {
        let answer = bench.get("rewrite", path);
        assert_eq!(answer.json()["path"], seen, "{path}");
        assert_eq!(answer.sent("host").as_deref(), Some(seen_host), "{path}");
        let answer = ask(
            bench.client(),
            address("rewrite", 80),
            Speaks::Http2,
            &Ask::get(path),
        );
        assert_eq!(answer.json()["path"], seen, "{path}");
        assert_eq!(
            answer.json()["authority"],
            seen_host,
            "{path}: {}",
            answer.text()
        );
    }
}

fn headers_of_requests_and_responses() {
    let bench = bench();
    let mut backends = BTreeSet::new();
    for _ in 0..4 {
        let request = Ask::get("/")
            .header("x-set", "theirs")
            .header("x-set", "too")
            .header("X-Add", "first")
            .header("x-gone", "1")
            .header("x-kept", "1");
        let answer = bench.ask("headers", &request);
        assert_eq!(
            answer.sent("x-set").as_deref(),
            Some("ours"),
            "{}",
            answer.text()
        );
        let added = answer.sent("x-add").unwrap().replace(", ", ",");
        assert_eq!(added, "first,more");
        assert_eq!(answer.sent("x-gone"), None);
        assert_eq!(answer.sent("x-kept").as_deref(), Some("1"));
        assert_eq!(answer.header("server"), Some("none"));
        assert!(answer.header("x-removable").is_none());
        let kind = answer.header("content-type").unwrap().replace(", ", ",");
        assert_eq!(kind, "application/json,extra");
        // What is done for one backend is not done for the other.
        let one = answer.pod() == "v1";
        assert_eq!(answer.sent("x-backend").as_deref(), one.then_some("one"));
        assert_eq!(answer.header("x-backend"), (!one).then_some("two"));
        backends.insert(answer.pod());
    }
    assert_eq!(backends.len(), 2, "{backends:?}");
}

fn mirrored_requests() {
    let bench = bench();
    let copies = bench.server("copies");
    let request = Ask::post("/all/a?b=c", "the body").header("x-mine", "1");
    assert_eq!(bench.ask("mirror", &request).pod(), "v1");
    eventually("the copy arrives", Duration::from_secs(5), || {
        copies.seen("/all/a?b=c").len() == 1
    });
    let copy = copies.seen("/all/a?b=c").remove(0);
    assert_eq!(copy.method, "POST");
    assert_eq!(copy.headers["x-mine"], "1");
    for _ in 0..100 {
        assert_eq!(bench.get("mirror", "/half").status, 200);
    }
    // Copies are on their way for a moment.
    eventually("half of them are copied", Duration::from_secs(5), || {
        copies.seen("/half").len() >= 30
    });
    let half = copies.seen("/half").len();
    assert!((30..=70).contains(&half), "{half} of 100");
    // One that nobody takes harms nothing.
    for _ in 0..5 {
        assert_eq!(bench.get("mirror", "/dead").pod(), "v1");
    }
}

fn cross_origin_requests() {
    let bench = bench();
    let preflight = |origin: &str, method: &str| {
        bench.ask(
            "cors",
            &Ask::new("OPTIONS", "/a")
                .header("origin", origin)
                .header("access-control-request-method", method)
                .header("access-control-request-headers", "x-a"),
        )
    };
    let answer = preflight("https://www.shop.example", "PUT");
    assert!(matches!(answer.status, 200 | 204), "{answer:?}");
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://www.shop.example")
    );
    assert_eq!(
        answer.header("access-control-allow-credentials"),
        Some("true")
    );
    assert_eq!(answer.header("access-control-max-age"), Some("77"));
    let methods = answer
        .header("access-control-allow-methods")
        .unwrap_or_default();
    assert!(methods.contains("PUT"), "{answer:?}");
    let headers = answer
        .header("access-control-allow-headers")
        .unwrap_or_default();
    assert!(headers.to_ascii_lowercase().contains("x-a"), "{answer:?}");
    let answer = preflight("https://shop.evil", "PUT");
    assert_eq!(
        answer.header("access-control-allow-origin"),
        None,
        "{answer:?}"
    );
    for (origin, allowed) in [
        ("http://exact.example:8080", true),
        ("http://exact.example", false),
        ("https://www.shop.example", true),
        ("http://www.shop.example", false),
        ("https://shop.evil", false),
    ] {
        let answer = bench.ask("cors", &Ask::get("/a").header("origin", origin));
        assert_eq!(
            (answer.status, answer.pod().as_str()),
            (200, "v1"),
            "the page asks anyway"
        );
        assert_eq!(
            answer.header("access-control-allow-origin"),
            allowed.then_some(origin),
            "{answer:?}"
        );
        if allowed {
            assert_eq!(answer.header("access-control-expose-headers"), Some("x-c"));
        }
    }
    // OPTIONS that is no preflight goes to the application.
    assert_eq!(bench.ask("cors", &Ask::new("OPTIONS", "/a")).pod(), "v1");
}

fn timeouts_of_requests_and_attempts() {
    let bench = bench();
    let fits = Duration::from_millis(400)..Duration::from_secs(4);
    for speaks in [Speaks::Http1, Speaks::Http2] {
        for (header, reason) in [
            ("x-request", "request_timeout"),
            ("x-attempt", "attempt_timeout"),
        ] {
            let request = |path| Ask::get(path).header(header, "yes");
            let to = address("timeouts", 80);
            let answer = ask(bench.client(), to, speaks, &request("/hang"));
            assert_eq!(
                (answer.status, answer.reason().as_deref()),
                (504, Some(reason)),
                "{answer:?}"
            );
            assert!(fits.contains(&answer.took), "{reason}: {:?}", answer.took);
            let answer = ask(bench.client(), to, speaks, &request("/delay/20"));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    // 0s: none, longer than the other rule's.
    let answer = bench.ask("timeouts", &Ask::get("/delay/1200").header("x-none", "yes"));
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn retries_of_codes() {
    let bench = bench();
    for code in [500, 502, 503, 504] {
        // Three retries hide three failures, whichever code; four are one too many.
        let answer = bench.get("retry", &format!("/fail/3/{code}/a"));
        assert_eq!(answer.status, 200, "{code}: {answer:?}");
        let counted = answer.sent("x-envoy-attempt-count");
        assert_eq!(counted.as_deref(), Some("4"), "{code}");
        let path = format!("/fail/4/{code}/b");
        let answer = bench.get("retry", &path);
        assert_eq!(answer.status, code, "{answer:?}");
        assert_eq!(bench.server("v1").seen(&path).len(), 4);
    }
    let answer = bench.get("retry", "/fail/1/429/a");
    assert_eq!(answer.status, 429, "not one of the codes");
    let few = |path: &str| bench.ask("retry", &Ask::get(path).header("x-few", "yes"));
    // By path the first rule goes before; so this one has another.
    assert_eq!(few("/status/503").status, 503);
    assert_eq!(bench.server("v1").seen("/status/503").len(), 2);
    assert_eq!(few("/status/500").status, 500);
    assert_eq!(bench.server("v1").seen("/status/500").len(), 1);
    let waited = bench.ask(
        "retry",
        &Ask::get("/status/503?wait").header("x-wait", "yes"),
    );
    assert_eq!(bench.server("v1").seen("/status/503?wait").len(), 3);
    assert!(
        waited.took >= Duration::from_millis(780),
        "two waits of 400 ms: {:?}",
        waited.took
    );
}

fn producers_and_consumers() {
    let bench = bench();
    let (client, guest) = (bench.client(), bench.mesh.pod("guest"));
    let to = address("owned", 80);
    for path in ["/", "/mine"] {
        assert_eq!(
            get(client, to, path).pod(),
            "v1",
            "the producer's route is for everybody else"
        );
    }
    assert_eq!(get(guest, to, "/mine").pod(), "v3", "the consumer's own");
    let answer = get(guest, to, "/other");
    assert_eq!(answer.status, 404, "and no other for it: {answer:?}");
}

fn routes_of_one_port() {
    let bench = bench();
    for (port, pod) in [(80, "v1"), (81, "v2")] {
        assert_eq!(get(bench.client(), address("ports", port), "/").pod(), pod);
    }
}

fn backends_that_cannot_answer() {
    let bench = bench();
    within_a_point(
        &bench.shares("broken", "/missing", 200),
        &[("500", 50), ("v1", 50)],
    );
    within_a_point(
        &bench.shares("broken", "/empty", 200),
        &[("503", 25), ("v1", 75)],
    );
    within_a_point(&bench.shares("broken", "/zero", 20), &[("v1", 100)]);
    for path in ["/kind", "/port", "/none"] {
        let answer = bench.get("broken", path);
        assert_eq!(
            (answer.status, answer.reason().as_deref()),
            (500, Some("backend_not_found")),
            "{path}: {answer:?}"
        );
    }
    let answer = get(bench.client(), address("empty", 80), "/");
    assert_eq!(
        (answer.status, answer.reason().as_deref()),
        (503, Some("no_endpoints")),
        "{answer:?}"
    );
}

fn redistributed_shares() {
    let bench = bench();
    within_a_point(&bench.shares("share", "/", 40), &[("v1", 100)]);
}

fn the_dialled_address_decides() {
    let bench = bench();
    // Whatever Host says, and not for a pod's own address.
    let request = Ask::get("/v2").header("host", "v1.shop.svc.cluster.local");
    assert_eq!(bench.ask("match", &request).pod(), "v2");
    let answer = get(bench.client(), bench.mesh.pod("front").v4(8080), "/v2");
    assert_eq!(answer.pod(), "front");
}

fn grpc_methods_and_headers() {
    let bench = bench();
    let to = address("grpc", 80);
    let call = |request: Ask| ask(bench.client(), to, Speaks::Http2, &request);
    for (request, pod) in [
        (Ask::grpc("/shop.v1.Stock/Reserve", &[b"1"]), "v1"),
        (
            Ask::grpc("/shop.v1.Stock/Reserve", &[b"1"]).header("x-canary", "true"),
            "v3",
        ),
        (Ask::grpc("/shop.v1.Stock/Free", &[b"1"]), "v2"),
        (Ask::grpc("/shop.v2.Stock/Free", &[b"1"]), "v2"),
    ] {
        let answer = call(request.clone());
        assert_eq!(answer.grpc_status(), Some(0), "{request:?}: {answer:?}");
        assert_eq!(answer.header("x-pod"), Some(pod), "{request:?}");
    }
    // Neither its own rules nor the HTTPRoute of the same port: UNIMPLEMENTED.
    let answer = call(Ask::grpc("/shop.v1.Other/Free", &[b"1"]));
    assert_eq!(
        (answer.status, answer.grpc_status()),
        (200, Some(12)),
        "{answer:?}"
    );
    let message = answer.header("grpc-message").unwrap_or_default();
    assert!(message.contains("route_not_found"), "{answer:?}");
}
