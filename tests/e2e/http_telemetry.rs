//! What is said of requests: counted once by each side, logged once with the true bytes, shown live, and routes as they are in
//! effect.

use std::{process::Command, sync::Arc, time::Duration};

use mesh_tests::{
    Mesh, Pod, agent,
    command::Process,
    config, eventually,
    http::{Ask, Connection, HttpServer, Speaks, pattern},
    runner::Shared,
    tests,
};
use serde_json::Value;

use crate::http_common::{ask, field, id, log_line, requests_grow, route, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    counted_once_by_each_side,
    grpc_is_counted_by_its_status,
    answers_of_the_mesh_are_counted,
    logged_once_with_true_bytes,
    foreign_text_stays_on_its_line,
    traces_go_on,
    tap_shows_requests_live,
    routes_are_listed_in_order,
    explain_follows_a_request_through_its_route,
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    servers: Vec<HttpServer>,
    mesh: Mesh,
}

const WEB: u8 = 1;
const ROUTED: u8 = 2;
const EXPLAINED: u8 = 4;

const SPLIT: &str = "{name: slow, matches: [{path: {value: /slow}}], timeouts: {request: 7s, backendRequest: 3s}, \
    retry: {attempts: 4, codes: [500, 503]}, backendRefs: [{name: stable, port: 80, weight: 3}, {name: canary, port: 80, weight: 1}]}, \
    {name: away, matches: [{path: {value: /away}}], filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /}}}]}";

const STABLE: &str = "  timeouts: {request: 20s, idle: 90s}\n  limits: {maxRequests: 11, maxConnectionsPerEndpoint: 5}\n  \
    circuitBreaker: {failureThreshold: 6, maxEjectionPercent: 40}\n  rateLimits: [{name: all, requests: 70, per: 2s}]";

/// `client` on one node, `web` on another.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mesh = Mesh::plan(2)
            .pod(0, "client")
            .pod(1, "web")
            .file("web.yaml", &service("shop", "web", WEB, "web", &[(80, 8080, "http")]))
            .file("routed.yaml", &service("shop", "routed", ROUTED, "web", &[(80, 8080, "")]))
            .file(
                "route.yaml",
                &route(
                    "HTTPRoute",
                    "shop",
                    "by-path",
                    "routed",
                    "{name: all, backendRefs: [{name: web, port: 80}]}, \
                     {name: exact, matches: [{path: {type: Exact, value: /exact}}], backendRefs: [{name: web, port: 80}]}, \
                     {name: long, matches: [{path: {value: /long}}], backendRefs: [{name: web, port: 80}]}",
                ),
            )
            .file("explained.yaml", &service("shop", "explained", EXPLAINED, "web", &[(80, 8090, "http")]))
            .file("stable.yaml", &service("shop", "stable", EXPLAINED + 1, "web", &[(80, 8091, "http")]))
            .file("canary.yaml", &service("shop", "canary", EXPLAINED + 2, "nobody", &[(80, 8092, "http")]))
            .file("stable-traffic.yaml", &config::traffic_policy("shop", "stable", STABLE))
            .file(
                "explained-route.yaml",
                &route("HTTPRoute", "shop", "split", "explained", SPLIT),
            )
            .file(
                "rejected.yaml",
                &route(
                    "HTTPRoute",
                    "shop",
                    "no-parent",
                    "not-there",
                    "{backendRefs: [{name: web, port: 80}]}",
                ),
            )
            .start();
        let web = mesh.pod("web");
        let servers = vec![HttpServer::start(web, web.v4(8080), "web")];
        Bench { servers, mesh }
    })
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    /// What both agents counted meanwhile, the client's first.
    fn grows(&self, labels: &[(&str, &str)], expected: [f64; 2], work: impl FnOnce()) {
        requests_grow(&self.mesh, ["client", "web"], labels, expected, work);
    }
}

fn counted_once_by_each_side() {
    let bench = bench();
    assert!(bench.servers[0].addr.port() == 8080);
    let id = bench.mesh.identity("client");
    let web = bench.mesh.identity("web");
    let both = [
        ("source_workload", "client"),
        ("source_workload_namespace", "shop"),
        ("destination_workload", "web"),
        ("destination_workload_namespace", "shop"),
        ("request_protocol", "http"),
        ("response_code", "201"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", id.as_str()),
        ("destination_principal", web.as_str()),
    ];
    // Both sides name what was dialled, though another service, the first by name, stands in front of the port too.
    let service = [
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("destination_service_namespace", "shop"),
    ];
    for (reporter, expected) in [("source", [7.0, 0.0]), ("destination", [0.0, 7.0])] {
        let mut labels = both.to_vec();
        labels.push(("reporter", reporter));
        labels.extend(service);
        bench.grows(&labels, expected, || {
            for speaks in [Speaks::Http1, Speaks::Http2] {
                let mut kept = Connection::open(bench.client(), vip(WEB, 80), speaks).unwrap();
                for _ in 0..if speaks == Speaks::Http1 { 3 } else { 4 } {
                    assert_eq!(kept.send(&Ask::get("/status/201")).unwrap().status, 201);
                }
            }
        });
    }
}

fn grpc_is_counted_by_its_status() {
    let bench = bench();
    let labels = [
        ("reporter", "source"),
        ("request_protocol", "grpc"),
        ("response_code", "200"),
        ("grpc_response_status", "7"),
    ];
    bench.grows(&labels, [2.0, 0.0], || {
        for _ in 0..2 {
            let request = Ask::grpc("/a.B/C", &[b"x"]).header("x-status", "7");
            let answer = ask(bench.client(), vip(WEB, 80), Speaks::Http2, &request);
            assert_eq!(answer.grpc_status(), Some(7), "{answer:?}");
        }
    });
}

fn answers_of_the_mesh_are_counted() {
    let bench = bench();
    let server = HttpServer::start(bench.mesh.pod("web"), bench.mesh.pod("web").v4(8081), "web");
    bench.mesh.config.put(
        "gone.yaml",
        &service("shop", "gone", 3, "nobody", &[(80, 8081, "http")]),
    );
    eventually("the service is known", Duration::from_secs(10), || {
        Connection::open(bench.client(), vip(3, 80), Speaks::Http1)
            .and_then(|mut kept| kept.send(&Ask::get("/")))
            .is_ok_and(|answer| answer.status == 503)
    });
    let labels = [
        ("reporter", "source"),
        ("destination_service_name", "gone"),
        ("response_code", "503"),
        ("response_flags", "UH"),
    ];
    bench.grows(&labels, [1.0, 0.0], || {
        let answer = ask(bench.client(), vip(3, 80), Speaks::Http1, &Ask::get("/"));
        assert_eq!(answer.reason().as_deref(), Some("no_endpoints"));
    });
    assert_eq!(server.requests(), 0);
}

fn logged_once_with_true_bytes() {
    let bench = bench();
    for speaks in [Speaks::Http1, Speaks::Http2] {
        for (n, (up, down)) in [(0, 0), (1, 1), (70_000, 3_000_000)]
            .into_iter()
            .enumerate()
        {
            let id = id(&format!("bytes-{speaks:?}-{n}"));
            let request = Ask::post(&format!("/bytes/{down}?secret=word"), pattern(up))
                .header("x-request-id", &id)
                .header("user-agent", "tests/1");
            let answer = ask(bench.client(), vip(WEB, 80), speaks, &request);
            assert_eq!(answer.body.len(), down);
            for (pod, direction) in [("client", "outbound"), ("web", "inbound")] {
                let line = log_line(bench.mesh.agent_of(pod), direction, &id);
                for (name, value) in [
                    ("request_bytes", up.to_string()),
                    ("response_bytes", down.to_string()),
                    ("response_code", "200".into()),
                    ("method", "POST".into()),
                    ("url_path", format!("/bytes/{down}")),
                    ("source_workload", "shop/client".into()),
                    ("upstream_workload", "shop/web".into()),
                    ("reason", "completed".into()),
                    ("security", "mutual_tls".into()),
                    ("user_agent", "tests/1".into()),
                ] {
                    assert_eq!(field(&line, name), value, "{name}: {line}");
                }
                assert!(!line.contains("secret"), "{line}");
            }
        }
    }
}

fn foreign_text_stays_on_its_line() {
    let bench = bench();
    let id = id("foreign");
    let request = Ask::get("/%0a%0d\"quoted\"")
        .header("x-request-id", &id)
        .header("user-agent", "a\" reason=\"completed\u{e4}\tb");
    let answer = ask(bench.client(), vip(WEB, 80), Speaks::Http1, &request);
    assert_eq!(answer.status, 200, "{answer:?}");
    let line = log_line(bench.mesh.agent_of("client"), "outbound", &id);
    assert!(line.contains("a\\\" reason=\\\"completed"), "{line}");
}

fn traces_go_on() {
    let bench = bench();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let sent = format!("00-{trace}-00f067aa0ba902b7-01");
    let id = id("trace");
    let request = Ask::get("/trace")
        .header("traceparent", &sent)
        .header("tracestate", "a=b")
        .header("x-request-id", &id);
    let answer = ask(bench.client(), vip(WEB, 80), Speaks::Http1, &request);
    let got = answer.sent("traceparent").unwrap();
    assert!(
        got.starts_with(&format!("00-{trace}-")) && got.ends_with("-01"),
        "{got}"
    );
    assert_eq!(answer.sent("tracestate").as_deref(), Some("a=b"));
    assert_eq!(
        answer.sent("x-request-id").as_deref(),
        Some(id.as_str()),
        "kept"
    );
    let line = log_line(bench.mesh.agent_of("client"), "outbound", &id);
    assert_eq!(field(&line, "trace_id"), trace);
    // And without one there is a new one.
    let answer = ask(
        bench.client(),
        vip(WEB, 80),
        Speaks::Http1,
        &Ask::get("/trace"),
    );
    assert!(answer.sent("traceparent").is_some());
    assert!(!answer.sent("x-request-id").unwrap().is_empty());
}

fn tap_shows_requests_live() {
    let bench = bench();
    let agent = bench.mesh.agent_of("client");
    let mut command = Command::new(agent::binary());
    command
        .args([
            "tap",
            "--node",
            agent.node(),
            "--path",
            "/tapped",
            "--status",
            "4xx",
        ])
        .args(["--limit", "2", "-o", "json"]);
    let mut tap = Process::start(bench.mesh.node(0), "tap", &mut command);
    let mut kept = Connection::open(bench.client(), vip(ROUTED, 80), Speaks::Http1).unwrap();
    // It takes a moment until it listens; what does not match is not shown.
    eventually("tap shows one", Duration::from_secs(10), || {
        assert_eq!(kept.send(&Ask::get("/tapped/good")).unwrap().status, 200);
        assert_eq!(kept.send(&Ask::get("/status/404")).unwrap().status, 404);
        post_tapped(&mut kept);
        tap.log().contains("/tapped/missing") || !tap.is_running()
    });
    if tap.is_running() {
        post_tapped(&mut kept);
    }
    assert!(tap.wait(Duration::from_secs(10)).success(), "{}", tap.log());
    let lines: Vec<Value> = tap
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let text = tap.log();
    assert!(!text.contains("word") && !text.contains("hidden"), "{text}");
    assert!(!text.contains("/tapped/good"), "{text}");
    let found = lines
        .iter()
        .find(|line| line.to_string().contains("/tapped/missing"));
    let found = found.unwrap_or_else(|| panic!("{text}")).to_string();
    for part in ["client", "web", "405", "POST", "outbound"] {
        assert!(found.contains(part), "{part}: {found}");
    }
}

/// A request that matches the tap: its path, and a status that begins with 4.
fn post_tapped(kept: &mut Connection) {
    let request = Ask::post("/tapped/missing?secret=word", "x")
        .header("authorization", "hidden")
        .header("x-answer", "405");
    let answer = kept.send(&request).unwrap();
    assert_eq!(answer.status, 405, "{answer:?}");
}

fn routes_are_listed_in_order() {
    let bench = bench();
    let agent = bench.mesh.agent_of("client");
    let out = agent.cli(&["routes", "shop/routed"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("no {what} in {text}"))
    };
    assert!(at("/exact") < at("/long"), "in order of precedence: {text}");
    assert!(text.contains("by-path"), "{text}");
    // All of them, with what was rejected and why.
    let all = agent.json(&["routes"]).to_string();
    assert!(all.contains("NoMatchingParent"), "{all}");
    assert!(all.contains("no-parent"), "{all}");
}

/// The rule that the request takes, its backends, and what holds for it on the way: the route's word before the service's.
fn explain_follows_a_request_through_its_route() {
    let bench = bench();
    let agent = bench.mesh.agent_of("client");
    let explained = |path: &str| {
        agent.json(&[
            "explain",
            "shop/client",
            "shop/explained:80",
            "--path",
            path,
        ])
    };
    let said = explained("/slow/x");
    assert_eq!(
        (&said["captured"], &said["protocol"], &said["service"]),
        (&true.into(), &"http".into(), &"shop/explained".into()),
        "{said}"
    );
    let route = &said["route"];
    assert_eq!(
        (&route["rule"], &route["rule_name"], &route["matches"]),
        (
            &"HTTPRoute/shop/split#0".into(),
            &"slow".into(),
            &"/slow/*".into()
        ),
        "{said}"
    );
    let backends: Vec<_> = route["backends"].as_array().unwrap().iter().collect();
    let backend = |b: &Value| {
        let name = b["name"].as_str().unwrap().to_owned();
        (name, b["weight"].as_u64(), b["endpoints"].as_u64())
    };
    assert_eq!(
        backends.into_iter().map(backend).collect::<Vec<_>>(),
        [
            ("shop/stable:80".to_owned(), Some(3), Some(1)),
            ("shop/canary:80".to_owned(), Some(1), Some(0)),
        ],
        "{said}"
    );
    let traffic: Vec<_> = said["traffic"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect();
    for line in [
        "timeouts: request 7s, attempt 3s, idle 1m30s",
        "limits: 11 requests, 5 connections per endpoint",
        "circuit breaker: opens after 6 failures in a row, at most 40 % of the endpoints",
        "rate limit all: 70 in 2s, at the destination",
    ] {
        assert!(traffic.contains(&line), "no {line:?} in {traffic:?}");
    }
    let retries = traffic.iter().find(|line| line.starts_with("retries: "));
    let retries = retries.unwrap_or_else(|| panic!("{traffic:?}"));
    assert!(
        retries.starts_with("retries: up to 4 of idempotent methods, on ")
            && retries.ends_with("500, 503"),
        "{retries}"
    );
    let candidates = said["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 1, "{said}");
    assert_eq!(
        (
            &candidates[0]["address"],
            &candidates[0]["workload"],
            &candidates[0]["transport"]["kind"]
        ),
        (
            &bench.mesh.pod("web").v4(8091).to_string().into(),
            &"shop/web".into(),
            &"hbone".into()
        ),
        "{said}"
    );
    assert_eq!(said["verdict"]["allowed"], true, "{said}");
    // A rule that answers by itself, and a request that no rule takes.
    let said = explained("/away");
    assert_eq!(said["route"]["rule_name"], "away", "{said}");
    assert_eq!(said["route"]["filters"][0], "redirect 301 /", "{said}");
    assert!(said["candidates"].as_array().unwrap().is_empty(), "{said}");
    assert_eq!(said["verdict"]["allowed"], true, "{said}");
    let said = explained("/elsewhere");
    assert_eq!(said["verdict"]["reason"], "route_not_found", "{said}");
    assert!(said["route"].is_null(), "{said}");
    // For people, the same.
    let out = agent.cli(&[
        "explain",
        "shop/client",
        "shop/explained:80",
        "--path",
        "/slow/x",
    ]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in ["slow", "shop/stable:80", "request 7s", "up to 4"] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}
