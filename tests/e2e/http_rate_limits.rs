//! Rate limits of a TrafficPolicy: what they are counted by, what a client hears, and that a limit is one limit, from however many
//! nodes requests come.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, config, eventually, eventually_some,
    http::{self, Answer, Ask, Connection, HttpServer, Load, Speaks},
    runner::Shared,
    tests,
};

use crate::http_common::{ask, field, get, id, log_line, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    a_bucket_for_each_key,
    only_what_a_limit_is_about,
    a_refusal_says_when_to_come_again,
    grpc_hears_resource_exhausted,
    shadow_counts_and_refuses_nothing,
    the_specific_key_goes_first,
    outside_the_mesh_the_source_counts,
    one_limit_for_all_nodes(deadline = 120),
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    servers: BTreeMap<&'static str, HttpServer>,
    mesh: Mesh,
}

/// Services, each with a port of its own on `web`; the position gives address and port. Of an hour, none comes back meanwhile.
const SERVICES: &[(&str, &str)] = &[
    ("all", "{name: all, requests: 2, per: 1h}"),
    (
        "identity",
        "{name: identity, requests: 2, per: 1h, key: {clientIdentity: true}}",
    ),
    (
        "source",
        "{name: source, requests: 2, per: 1h, key: {sourceAddress: true}}",
    ),
    (
        "header",
        "{name: header, requests: 2, per: 1h, key: {headers: [x-user]}}",
    ),
    (
        "path",
        "{name: path, requests: 2, per: 1h, key: {path: true}}",
    ),
    (
        "part",
        "{name: part, requests: 1, per: 1h, methods: [POST], pathPrefix: /api}",
    ),
    ("told", "{name: told, requests: 5, per: 2s, burst: 2}"),
    ("calls", "{name: calls, requests: 1, per: 1h}"),
    (
        "shadow",
        "{name: quiet, requests: 1, per: 1h, shadow: true}",
    ),
    (
        "nested",
        "{name: common, requests: 4, per: 1h}, {name: own, requests: 2, per: 1h, key: {clientIdentity: true}}",
    ),
];
const OUTSIDE: u8 = 20;

fn number(name: &str) -> u8 {
    let at = SERVICES.iter().position(|(service, _)| *service == name);
    at.unwrap_or_else(|| panic!("no service {name}")) as u8 + 1
}

fn limits(list: &str) -> String {
    format!("  rateLimits: [{list}]")
}

/// A Service in front of one address that no workload has.
fn outside(to: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: outside, namespace: shop}}\nspec:\n  clusterIPs: [172.31.200.{OUTSIDE}]\n  \
         ports: [{{name: http, port: 80}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: outside-1, namespace: shop, labels: {{kubernetes.io/service-name: outside}}}}\naddressType: IPv4\n\
         endpoints: [{{addresses: [\"{}\"]}}]\nports: [{{name: http, port: {}}}]\n",
        to.ip(),
        to.port()
    )
}

/// `client1` and `client2` have one identity; `ext` has none.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut plan = Mesh::plan(2)
            .pods(0, &["client1", "client2", "patient"])
            .pod_of(0, "reader", "office", "reader")
            .pod_of(0, "third", "office", "third")
            .outsider(0, "ext")
            .pod(1, "web");
        for (name, list) in SERVICES {
            let n = number(name);
            let ports = [(80, 8000 + u16::from(n), "http")];
            plan = plan
                .file(
                    &format!("service-{name}.yaml"),
                    &service("shop", name, n, "web", &ports),
                )
                .file(
                    &format!("traffic-{name}.yaml"),
                    &config::traffic_policy("shop", name, &limits(list)),
                );
        }
        let mesh = plan.start();
        let web = mesh.pod("web");
        let servers = SERVICES.iter().map(|(name, _)| {
            let port = 8000 + u16::from(number(name));
            (*name, HttpServer::start(web, web.v4(port), name))
        });
        Bench {
            servers: servers.collect(),
            mesh,
        }
    })
}

impl Bench {
    fn answer(&self, from: &str, name: &str, request: &Ask) -> Answer {
        let pod = self.mesh.pod(from);
        let server = &self.servers[name];
        let to = match from {
            "ext" => server.addr,
            _ => vip(number(name), 80),
        };
        let before = server.requests();
        let answer = ask(pod, to, Speaks::Http1, request);
        let asked = server.requests() - before;
        match answer.status {
            200 => assert_eq!(asked, 1, "{answer:?}"),
            429 => {
                assert_eq!(
                    answer.reason().as_deref(),
                    Some("rate_limited"),
                    "{answer:?}"
                );
                assert_eq!(asked, 0, "the application was asked: {answer:?}");
            }
            _ => panic!("{answer:?}"),
        }
        answer
    }

    /// As many as fit, and one more that does not.
    fn fits(&self, from: &str, name: &str, request: &Ask, n: usize) {
        for nth in 0..=n {
            let answer = self.answer(from, name, request);
            let expected = if nth < n { 200 } else { 429 };
            assert_eq!(answer.status, expected, "{name}, {from}, {nth}: {answer:?}");
        }
    }

    fn decisions(&self, agent_of: &str, labels: &[(&str, &str)]) -> f64 {
        let metrics = self.mesh.agent_of(agent_of).metrics();
        metrics.sum("mesh_rate_limit_decisions_total", labels)
    }
}

fn a_bucket_for_each_key() {
    let bench = bench();
    let plain = Ask::get("/x");
    // One for all, whoever they are.
    assert_eq!(bench.answer("client1", "all", &plain).status, 200);
    bench.fits("reader", "all", &plain, 1);
    bench.fits("ext", "all", &plain, 0);
    // By identity, which is not a pod's; without one by address.
    bench.fits("client1", "identity", &plain, 2);
    bench.fits("client2", "identity", &plain, 0);
    bench.fits("reader", "identity", &plain, 2);
    bench.fits("ext", "identity", &plain, 2);
    bench.fits("client1", "source", &plain, 2);
    bench.fits("client2", "source", &plain, 2);
    bench.fits("ext", "source", &plain, 2);
    let user = |name: &str| Ask::get("/x").header("x-user", name);
    bench.fits("client1", "header", &user("ada"), 2);
    bench.fits("reader", "header", &user("ada"), 0);
    bench.fits("client1", "header", &user("bob"), 2);
    bench.fits("client1", "header", &user("bob").header("x-user", "cy"), 0);
    bench.fits("client1", "header", &plain, 2);
    bench.fits("client1", "path", &Ask::get("/a?n=1"), 2);
    for same in ["/a", "/a?n=2", "//a", "/./a", "/%61", "/b/../a"] {
        bench.fits("reader", "path", &Ask::get(same), 0);
    }
    bench.fits("client1", "path", &Ask::get("/b"), 2);
}

fn only_what_a_limit_is_about() {
    let bench = bench();
    bench.fits("client1", "part", &Ask::post("/api/x", "body"), 1);
    bench.fits("client1", "part", &Ask::post("/api", "body"), 0);
    for request in [
        Ask::get("/api/x"),
        Ask::post("/apis", "body"),
        Ask::post("/", "body"),
    ] {
        assert_eq!(bench.answer("client1", "part", &request).status, 200);
    }
}

fn a_refusal_says_when_to_come_again() {
    let bench = bench();
    let (client, to) = (bench.mesh.pod("patient"), vip(number("told"), 80));
    let agent = bench.mesh.agent_of("web");
    let requests = |code: &str| {
        let labels = [
            ("reporter", "destination"),
            ("source_workload", "patient"),
            ("response_code", code),
            ("response_flags", "RL"),
        ];
        agent.metrics().sum("istio_requests_total", &labels)
    };
    let labels = [
        ("limit", "told"),
        ("destination_service_name", "told"),
        ("outcome", "refused"),
    ];
    let before = (requests("429"), bench.decisions("web", &labels));
    let mut refused = 0;
    for speaks in [Speaks::Http1, Speaks::Http2] {
        let mut kept = Connection::open(client, to, speaks).unwrap();
        // They come faster than one in 0.4 s.
        let answer = eventually_some("a refusal", Duration::from_secs(20), || {
            let answer = kept
                .send(&Ask::get("/").header("x-request-id", &id("told")))
                .unwrap();
            assert_eq!(
                answer.header("ratelimit-policy"),
                Some("\"told\";q=5;w=2"),
                "{answer:?}"
            );
            let left = answer.header("ratelimit").unwrap_or_default();
            match answer.status {
                200 => {
                    assert!(
                        left.starts_with("\"told\";r=0;") || left.starts_with("\"told\";r=1;"),
                        "{left}"
                    );
                    Err("200".into())
                }
                _ => {
                    assert!(left.starts_with("\"told\";r=0;t="), "{left}");
                    Ok(answer)
                }
            }
        });
        refused += 1;
        assert_eq!(
            (answer.status, answer.reason().as_deref()),
            (429, Some("rate_limited")),
            "{answer:?}"
        );
        let said = answer.header("proxy-status").unwrap();
        assert!(said.contains("error=http_request_denied"), "{said}");
        assert!(answer.text().contains("told"), "{}", answer.text());
        let wait = answer
            .header("retry-after")
            .expect("Retry-After")
            .parse()
            .unwrap();
        assert_eq!(wait, 1, "whole seconds, rounded up");
        // Who comes when he was told to is served, on the same connection.
        let again = Instant::now() + Duration::from_secs(wait);
        eventually("the time has come", Duration::from_secs(5), || {
            Instant::now() >= again
        });
        let id = id("again");
        let answer = kept
            .send(&Ask::get("/").header("x-request-id", &id))
            .unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let line = log_line(agent, "inbound", &id);
        assert_eq!(field(&line, "response_code"), "200", "{line}");
    }
    eventually_some("counted", Duration::from_secs(5), || {
        let grown = (
            requests("429") - before.0,
            bench.decisions("web", &labels) - before.1,
        );
        if grown == (f64::from(refused), f64::from(refused)) {
            Ok(())
        } else {
            Err(format!("{grown:?}"))
        }
    });
    let lines = agent.log_lines("request finished");
    let line = lines
        .iter()
        .find(|line| line.contains("rate_limited") && line.contains("told-"));
    let line = line.unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!(
        (field(line, "response_code"), field(line, "response_flags")),
        ("429".into(), "RL".into())
    );
}

fn grpc_hears_resource_exhausted() {
    let bench = bench();
    let (client, to) = (bench.mesh.pod("client1"), vip(number("calls"), 80));
    let mut kept = Connection::open(client, to, Speaks::Http2).unwrap();
    let call = Ask::grpc("/shop.Cart/Add", &[b"x"]);
    let answer = kept.send(&call).unwrap();
    assert_eq!(answer.grpc_status(), Some(0), "{answer:?}");
    let answer = kept.send(&call).unwrap();
    assert_eq!(
        (answer.status, answer.grpc_status()),
        (200, Some(8)),
        "{answer:?}"
    );
    assert!(
        answer.trailers.is_none() && answer.body.is_empty(),
        "headers that are trailers: {answer:?}"
    );
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(bench.servers["calls"].requests(), 1);
}

fn shadow_counts_and_refuses_nothing() {
    let bench = bench();
    let outcome = |outcome| bench.decisions("web", &[("limit", "quiet"), ("outcome", outcome)]);
    for _ in 0..5 {
        let answer = bench.answer("client1", "shadow", &Ask::get("/"));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    eventually_some("counted", Duration::from_secs(5), || {
        let got = (outcome("shadow"), outcome("refused"));
        if got == (4.0, 0.0) {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        }
    });
}

fn the_specific_key_goes_first() {
    let bench = bench();
    let request = Ask::get("/");
    let refuses = |from: &str, by: &str| {
        let answer = bench.answer(from, "nested", &request);
        let said = answer.header("ratelimit-policy").unwrap_or_default();
        assert!(
            answer.status == 429 && said.starts_with(&format!("\"{by}\"")),
            "{answer:?}"
        );
    };
    bench.fits("client1", "nested", &request, 2);
    // One who asks for too much takes nothing from what others share.
    for _ in 0..10 {
        refuses("client2", "own");
    }
    bench.fits("reader", "nested", &request, 2);
    refuses("third", "common");
    // Of both, the one that is his own is named.
    refuses("client1", "own");
}

/// No agent of the mesh is in front of it.
fn outside_the_mesh_the_source_counts() {
    let bench = bench();
    let ext = bench.mesh.pod("ext");
    let server = HttpServer::start(ext, ext.v4(8080), "outside");
    let policy = limits("{name: out, requests: 2, per: 1h, key: {clientIdentity: true}}");
    bench.mesh.config.put(
        "outside.yaml",
        &format!(
            "{}---\n{}",
            outside(server.addr),
            config::traffic_policy("shop", "outside", &policy)
        ),
    );
    let to = vip(OUTSIDE, 80);
    let refused = eventually_some("refused", Duration::from_secs(10), || {
        match http::ask(bench.mesh.pod("client1"), to, Speaks::Http1, &Ask::get("/")) {
            Ok(answer) if answer.status == 429 => Ok(answer),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(
        refused.reason().as_deref(),
        Some("rate_limited"),
        "{refused:?}"
    );
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(
        get(bench.mesh.pod("client2"), to, "/").status,
        429,
        "one identity"
    );
    assert_eq!(get(bench.mesh.pod("reader"), to, "/").status, 200);
    assert_eq!(server.requests(), 3);
    let labels = [("limit", "out"), ("outcome", "refused")];
    eventually("counted", Duration::from_secs(5), || {
        bench.decisions("client1", &labels) >= 2.0
    });
}

const RATE: f64 = 100.0;
const BURST: f64 = 50.0;

/// Three nodes of clients, each as fast as it can.
fn one_limit_for_all_nodes() {
    let sources = ["east", "north", "south"];
    let mut plan = Mesh::plan(4).pod(3, "web");
    for (node, name) in sources.iter().enumerate() {
        plan = plan.pod(node, name);
    }
    let mesh = plan
        .file(
            "service.yaml",
            &service("shop", "web", 1, "web", &[(80, 8080, "http")]),
        )
        .file(
            "traffic.yaml",
            &config::traffic_policy(
                "shop",
                "web",
                &limits(&format!("{{name: all, requests: {RATE}, burst: {BURST}}}")),
            ),
        )
        .start();
    let web = mesh.pod("web");
    let server = HttpServer::start(web, web.v4(8080), "web");
    let pods: Vec<&Arc<Pod>> = sources.iter().map(|name| mesh.pod(name)).collect();
    // Tunnels stand, so that all of the measured time is asked in.
    for pod in &pods {
        assert_eq!(get(pod, vip(1, 80), "/").status, 200);
    }
    let before = server.requests();
    let began = Instant::now();
    let clients = [Speaks::Http1, Speaks::Http1, Speaks::Http2];
    let loads = pods
        .iter()
        .map(|pod| Load::start(pod, vip(1, 80), &clients, &Ask::get("/")));
    let loads: Vec<_> = loads.collect();
    let until = began + Duration::from_secs(3);
    eventually("three seconds", Duration::from_secs(10), || {
        Instant::now() >= until
    });
    let outcomes: Vec<_> = loads.into_iter().map(Load::finish).collect();
    let took = began.elapsed().as_secs_f64();
    let good: u64 = outcomes.iter().map(|outcome| outcome.good).sum();
    let served = server.requests() - before;
    assert_eq!(good, served, "what was refused came to nobody");
    // The bucket knows no rounding; one for the edge of the measured time.
    let most = BURST + RATE * took + 1.0;
    assert!(
        good as f64 <= most,
        "{good} of at most {most:.1} in {took:.3} s: {outcomes:?}"
    );
    // It is a rate, and not the burst alone.
    assert!(
        good as f64 > 2.0 * BURST,
        "{good} in {took:.3} s: {outcomes:?}"
    );
    for (name, outcome) in sources.iter().zip(&outcomes) {
        let refused = outcome
            .bad
            .get("429 rate_limited")
            .copied()
            .unwrap_or_default();
        assert!(refused > 0 && outcome.bad.len() == 1, "{name}: {outcome:?}");
        assert!(outcome.good > 0, "{name}: {outcome:?}");
    }
}
