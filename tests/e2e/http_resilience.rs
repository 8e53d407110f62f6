//! What clients see of endpoints that fail, come and go: as little as the policy promises, and the reason is one and the same in
//! the answer, the log and the metric.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, config, eventually, eventually_some,
    http::{Answer, Ask, Connection, HttpServer, Load, Mode, Speaks},
    runner::Shared,
    tests,
};
use serde_json::Value;

use crate::http_common::{BOTH, ask, change_of_config, field, get, id, log_line, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    retries_hide_a_failing_endpoint,
    a_refusing_endpoint_is_passed_by,
    a_post_is_not_sent_twice,
    budget_is_used_up,
    breaker_of_the_only_endpoint(deadline = 120),
    ejected_endpoints_are_left_alone(deadline = 120),
    reasons_are_the_same_everywhere(deadline = 120),
    fast_429_is_passed_on,
    dropped_idle_connections_are_not_noticed,
    posts_do_not_meet_connections_that_are_closed(deadline = 120),
    a_server_that_is_gone_is_passed_by(deadline = 120),
    limit_of_requests,
    config_changes_under_load(deadline = 180),
    endpoints_come_and_go_under_load(deadline = 180),
    an_agent_goes_without_a_failed_request(alone, deadline = 120),
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    mesh: Mesh,
}

/// Services, each with a port of its own on the pods of its app, so that tests do not meet. The position gives address and
/// port.
const SERVICES: &[(&str, &str, &str)] = &[
    (
        "hidden",
        "web",
        "  retries: {attempts: 2, budget: {percent: 100}}",
    ),
    ("refused", "web", ""),
    ("posted", "web", POSTED),
    ("posted-reset", "web", POSTED),
    (
        "budget",
        "solo",
        "  retries: {attempts: 5, backoff: {base: 1ms, max: 2ms}, budget: {percent: 10, window: 10s, minPerSecond: 0}}",
    ),
    (
        "breaker",
        "solo",
        "  circuitBreaker: {failureThreshold: 3, recoveryTimeout: 2s, maxRecoveryTimeout: 2s, maxEjectionPercent: 100}",
    ),
    (
        "eject",
        "web",
        "  circuitBreaker: {failureThreshold: 3, recoveryTimeout: 3s, maxRecoveryTimeout: 3s}",
    ),
    ("absent", "solo", ""),
    ("slow", "solo", "  timeouts: {attempt: 400ms}"),
    ("late", "solo", "  timeouts: {request: 400ms}"),
    ("resets", "solo", ""),
    ("cuts", "solo", ""),
    ("nobody", "nobody", ""),
    ("limits", "solo", "  limits: {maxRequests: 1}"),
    (
        "spent",
        "solo",
        "  retries: {attempts: 1, codes: [503], backoff: {base: 1ms, max: 2ms}}",
    ),
    (
        "busy",
        "solo",
        "  circuitBreaker: {failureThreshold: 3, recoveryTimeout: 60s, maxEjectionPercent: 100}",
    ),
    ("drops", "solo", ""),
    ("edited", "web", ""),
    ("moving", "come", ""),
    ("lasting", "web", ""),
    ("posts", "web", ""),
    ("gone", "web", ""),
    ("gone-alone", "solo", ""),
];

const POSTED: &str = "  retries: {attempts: 3, codes: [500, 503], on: [connect-failure, reset, refused-stream], budget: {percent: 100}}";

fn number(name: &str) -> u8 {
    let at = SERVICES.iter().position(|(service, ..)| *service == name);
    at.unwrap_or_else(|| panic!("no service {name}")) as u8 + 1
}

fn address(name: &str) -> SocketAddr {
    vip(number(name), 80)
}

fn target(name: &str) -> u16 {
    9000 + u16::from(number(name))
}

/// Clients and most servers on one node, one more server on another.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut plan = Mesh::plan(2)
            .pods(0, &["client", "web1", "come1", "come2"])
            .pods(1, &["web2", "solo", "come3"]);
        for (name, app, policy) in SERVICES {
            let ports = [(80, target(name), "http")];
            plan = plan.file(
                &format!("service-{name}.yaml"),
                &service("shop", name, number(name), app, &ports),
            );
            if !policy.is_empty() {
                plan = plan.file(
                    &format!("traffic-{name}.yaml"),
                    &config::traffic_policy("shop", name, policy),
                );
            }
        }
        Bench { mesh: plan.start() }
    })
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    /// A server of this pod for that service.
    fn server(&self, pod: &str, service: &str) -> HttpServer {
        let pod = self.mesh.pod(pod);
        HttpServer::start(pod, pod.v4(target(service)), &pod.name)
    }

    fn get(&self, service: &str, path: &str) -> Answer {
        get(self.client(), address(service), path)
    }

    fn metric(&self, name: &str, service: &str, label: (&str, &str)) -> f64 {
        let labels = [("destination_service_name", service), label];
        self.mesh.agent_of("client").metrics().sum(name, &labels)
    }

    /// Endpoints of a service as `mesh-agent endpoints` lists them.
    fn endpoints(&self, service: &str) -> Vec<Value> {
        let ports = self
            .mesh
            .agent_of("client")
            .json(&["endpoints", &format!("shop/{service}")]);
        ports[0]["endpoints"]
            .as_array()
            .unwrap_or_else(|| panic!("no endpoints: {ports}"))
            .clone()
    }

    fn breaker(&self, service: &str, pod: &str) -> String {
        let at = self.mesh.pod(pod).v4(target(service)).to_string();
        let endpoints = self.endpoints(service);
        let found = endpoints.iter().find(|e| e["address"] == at);
        let found = found.unwrap_or_else(|| panic!("no {at} in {endpoints:?}"));
        found["breaker"].as_str().unwrap_or_default().to_owned()
    }
}

fn retries_hide_a_failing_endpoint() {
    let bench = bench();
    let (bad, good) = (
        bench.server("web1", "hidden"),
        bench.server("web2", "hidden"),
    );
    for mode in [Mode::Status(503), Mode::Status(502), Mode::Reset] {
        bad.set(mode);
        for speaks in BOTH {
            let before = bad.requests();
            let mut kept = Connection::open(bench.client(), address("hidden"), speaks).unwrap();
            for n in 0..20 {
                let answer = kept.send(&Ask::get(&format!("/{n}"))).unwrap();
                assert_eq!(
                    (answer.status, answer.pod().as_str()),
                    (200, "web2"),
                    "{mode:?}: {answer:?}"
                );
            }
            assert!(
                bad.requests() > before,
                "{mode:?} {speaks:?}: the other was never asked"
            );
        }
    }
    assert!(good.requests() >= 120);
    // What is shown of it is what its failures took, and not what they cost it.
    let at = bench.mesh.pod("web1").v4(target("hidden")).to_string();
    let endpoints = bench.endpoints("hidden");
    let shown = endpoints.iter().find(|e| e["address"] == at).unwrap();
    let micros = |field: &str| shown[field].as_u64().unwrap_or_else(|| panic!("{shown}"));
    let (took, expected) = (micros("latency_us"), micros("expected_latency_us"));
    assert!(
        (1..20_000_000).contains(&took) && expected > 30_000_000,
        "{shown}"
    );
    let made = bench.metric(
        "mesh_request_retries_total",
        "hidden",
        ("outcome", "succeeded"),
    );
    assert!(made >= 30.0, "{made} retries that helped");
}

/// Without any policy: a connect that failed sent nothing.
fn a_refusing_endpoint_is_passed_by() {
    let bench = bench();
    let _good = bench.server("web2", "refused");
    for speaks in BOTH {
        let mut kept = Connection::open(bench.client(), address("refused"), speaks).unwrap();
        for n in 0..10 {
            let request = match n % 2 {
                0 => Ask::get("/"),
                _ => Ask::post("/", "a body"),
            };
            let answer = kept.send(&request).unwrap();
            assert_eq!(
                (answer.status, answer.pod().as_str()),
                (200, "web2"),
                "{speaks:?}: {answer:?}"
            );
        }
    }
}

/// On new connections, and on one that was idle before: the server has read it and may have carried it out.
fn a_post_is_not_sent_twice() {
    let bench = bench();
    for (name, mode, expected) in [
        ("posted", Mode::Status(503), 503),
        ("posted-reset", Mode::Reset, 502),
    ] {
        let servers = [bench.server("web1", name), bench.server("web2", name)];
        for server in &servers {
            server.set(mode);
        }
        let sent = |path: &str| -> usize { servers.iter().map(|s| s.seen(path).len()).sum() };
        for speaks in BOTH {
            let path = format!("/post/{speaks:?}");
            let answer = ask(
                bench.client(),
                address(name),
                speaks,
                &Ask::post(&path, "once"),
            );
            assert_eq!(answer.status, expected, "{mode:?} {speaks:?}: {answer:?}");
            assert_eq!(
                sent(&path),
                1,
                "{mode:?} {speaks:?}: it may have been carried out"
            );
            // A PUT may be carried out twice.
            let path = format!("/put/{speaks:?}");
            let request = Ask::new("PUT", &path).body("often");
            let answer = ask(bench.client(), address(name), speaks, &request);
            assert_eq!(answer.status, expected, "{mode:?} {speaks:?}: {answer:?}");
            assert_eq!(sent(&path), 4, "{mode:?} {speaks:?}");
            if mode != Mode::Reset {
                continue;
            }
            let mut kept = Connection::open(bench.client(), address(name), speaks).unwrap();
            for n in 0..4 {
                for server in &servers {
                    server.set(Mode::Normal);
                }
                for _ in &servers {
                    assert_eq!(kept.send(&Ask::post("/first", "x")).unwrap().status, 200);
                }
                for server in &servers {
                    server.set(mode);
                }
                let path = format!("/idle/{n}/{speaks:?}");
                let answer = kept.send(&Ask::post(&path, "once")).unwrap();
                assert_eq!(answer.status, expected, "{mode:?} {speaks:?}: {answer:?}");
                assert_eq!(sent(&path), 1, "{mode:?} {speaks:?} on one that was idle");
            }
        }
    }
}

fn budget_is_used_up() {
    let bench = bench();
    let server = bench.server("solo", "budget");
    server.set(Mode::Status(503));
    let mut reasons = BTreeSet::new();
    for n in 0..100 {
        let answer = bench.get("budget", &format!("/{n}"));
        assert_eq!(answer.status, 503, "{answer:?}");
        reasons.insert(answer.reason().unwrap_or_default());
    }
    assert!(reasons.contains("retry_budget"), "{reasons:?}");
    let sent = server.requests();
    assert!(
        (100..=115).contains(&sent),
        "{sent} for 100 requests with a budget of 10 %"
    );
    let refused = bench.metric(
        "mesh_request_retries_total",
        "budget",
        ("outcome", "budget_refused"),
    );
    assert!(refused >= 50.0, "{refused}");
}

fn breaker_of_the_only_endpoint() {
    let bench = bench();
    let server = bench.server("solo", "breaker");
    server.set(Mode::Status(500));
    assert_eq!(bench.breaker("breaker", "solo"), "closed");
    for _ in 0..3 {
        assert_eq!(bench.get("breaker", "/").status, 500);
    }
    // Open: at once, and nothing reaches the server.
    let asked = server.requests();
    let began = Instant::now();
    let answer = bench.get("breaker", "/");
    assert_eq!(
        (answer.status, answer.reason().as_deref()),
        (503, Some("breaker_open")),
        "{answer:?}"
    );
    assert!(
        answer.took < Duration::from_millis(500),
        "{:?}",
        answer.took
    );
    let wait: u64 = answer
        .header("retry-after")
        .expect("Retry-After")
        .parse()
        .unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(bench.breaker("breaker", "solo"), "open");
    assert_eq!(server.requests(), asked);
    assert!(
        bench.metric(
            "mesh_breaker_state",
            "breaker",
            ("destination_service_namespace", "shop")
        ) >= 2.0
    );
    assert!(bench.metric("mesh_breaker_transitions_total", "breaker", ("to", "Open")) >= 1.0);
    // It recovers: the first that gets through is a probe, and its success closes.
    server.set(Mode::Normal);
    eventually("a probe gets through", Duration::from_secs(10), || {
        bench.get("breaker", "/").status == 200
    });
    assert!(
        began.elapsed() > Duration::from_millis(900),
        "it was open for {:?}",
        began.elapsed()
    );
    assert_eq!(bench.breaker("breaker", "solo"), "closed");
    for _ in 0..10 {
        assert_eq!(bench.get("breaker", "/").status, 200);
    }
    for (to, least) in [("HalfOpen", 1.0), ("Closed", 1.0)] {
        let counted = bench.metric("mesh_breaker_transitions_total", "breaker", ("to", to));
        assert!(counted >= least, "{to}: {counted}");
    }
    assert_eq!(
        bench.metric(
            "mesh_breaker_state",
            "breaker",
            ("destination_service_namespace", "shop")
        ),
        0.0
    );
    // Half open with a probe under way: everybody else is refused.
    server.set(Mode::Status(500));
    eventually("open again", Duration::from_secs(5), || {
        bench.get("breaker", "/").reason().as_deref() == Some("breaker_open")
    });
    server.set(Mode::Hang);
    let load = Load::start(
        bench.client(),
        address("breaker"),
        &[Speaks::Http1; 3],
        &Ask::get("/probe").within(Duration::from_secs(8)),
    );
    eventually("half open", Duration::from_secs(10), || {
        bench.breaker("breaker", "solo") == "half-open"
    });
    load.wait(20);
    assert_eq!(server.seen("/probe").len(), 1, "one probe at a time");
    server.set(Mode::Normal);
    drop(server);
    drop(load);
}

fn ejected_endpoints_are_left_alone() {
    let bench = bench();
    let (bad, _good) = (bench.server("web1", "eject"), bench.server("web2", "eject"));
    bad.set(Mode::Status(500));
    let mut seen = 0;
    for _ in 0..20 {
        seen += u32::from(bench.get("eject", "/").status == 500);
    }
    assert_eq!(seen, 3, "failures that clients saw until it was ejected");
    assert_eq!(bench.breaker("eject", "web1"), "open");
    assert_eq!(bench.breaker("eject", "web2"), "closed");
    bad.set(Mode::Normal);
    eventually("it is back", Duration::from_secs(15), || {
        let answer = bench.get("eject", "/");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.pod() == "web1"
    });
    eventually("closed", Duration::from_secs(5), || {
        bench.breaker("eject", "web1") == "closed"
    });
}

fn reasons_are_the_same_everywhere() {
    let bench = bench();
    let agent = bench.mesh.agent_of("client");
    let (slow, late) = (bench.server("solo", "slow"), bench.server("solo", "late"));
    let (resets, cuts) = (bench.server("solo", "resets"), bench.server("solo", "cuts"));
    let (spent, busy) = (bench.server("solo", "spent"), bench.server("solo", "busy"));
    slow.set(Mode::Hang);
    late.set(Mode::Hang);
    resets.set(Mode::Reset);
    cuts.set(Mode::ResetBody);
    spent.set(Mode::Status(503));
    busy.set(Mode::Status(500));
    for _ in 0..3 {
        assert_eq!(bench.get("busy", "/").status, 500);
    }
    // Service, status, and the reasons that are right.
    let table: &[(&str, u16, &[&str])] = &[
        ("absent", 502, &["upstream_refused", "unreachable_by_peer"]),
        ("slow", 504, &["attempt_timeout"]),
        ("late", 504, &["request_timeout"]),
        ("resets", 502, &["upstream_reset", "stream_reset"]),
        ("cuts", 200, &["upstream_reset", "stream_reset"]),
        ("nobody", 503, &["no_endpoints"]),
        ("spent", 503, &["retries_exhausted"]),
        ("busy", 503, &["breaker_open"]),
    ];
    for speaks in BOTH {
        for (name, status, reasons) in table {
            let id = id(name);
            let counted = |reason: &str| {
                let labels = [
                    ("reporter", "source"),
                    ("destination_service_name", *name),
                    ("reason", reason),
                ];
                agent.metrics().sum("mesh_requests_total", &labels)
            };
            let before: Vec<f64> = reasons.iter().map(|reason| counted(reason)).collect();
            let request = Ask::get("/").header("x-request-id", &id);
            let answer = ask(bench.client(), address(name), speaks, &request);
            assert_eq!(answer.status, *status, "{name} {speaks:?}: {answer:?}");
            let line = log_line(agent, "outbound", &id);
            let reason = field(&line, "reason");
            assert!(
                reasons.contains(&reason.as_str()),
                "{name} {speaks:?}: {line}"
            );
            match *name {
                // Its answer had begun; and the last answer of a server is passed on as it is.
                "cuts" => assert!(answer.broken.is_some(), "{answer:?}"),
                "spent" => assert_eq!(answer.pod(), "solo"),
                _ => assert_eq!(
                    answer.reason().as_deref(),
                    Some(reason.as_str()),
                    "{name}: {answer:?}"
                ),
            }
            let code = field(&line, "response_code");
            assert_eq!(code, status.to_string(), "{line}");
            let at = reasons.iter().position(|r| *r == reason).unwrap();
            eventually_some(
                &format!("{name}: the metric"),
                Duration::from_secs(5),
                || {
                    let now = counted(&reason);
                    if now >= before[at] + 1.0 {
                        Ok(())
                    } else {
                        Err(format!("{reason}: {now}"))
                    }
                },
            );
        }
    }
}

fn fast_429_is_passed_on() {
    let bench = bench();
    let server = bench.server("solo", "drops");
    server.set(Mode::Status(429));
    for _ in 0..20 {
        let id = id("429");
        let request = Ask::get("/").header("x-request-id", &id);
        let answer = ask(bench.client(), address("drops"), Speaks::Http1, &request);
        assert_eq!(answer.status, 429);
        assert!(
            answer.header("proxy-status").is_none(),
            "it is the application's own: {answer:?}"
        );
        let line = log_line(bench.mesh.agent_of("client"), "outbound", &id);
        assert_eq!(field(&line, "reason"), "completed", "{line}");
    }
    assert_eq!(server.requests(), 20, "none was repeated");
    // The port is free for the next, in the same test so that they do not meet.
    drop(server);
}

fn dropped_idle_connections_are_not_noticed() {
    let bench = bench();
    let pod = bench.mesh.pod("web1");
    let servers = [
        bench.server("web1", "lasting"),
        bench.server("web2", "lasting"),
    ];
    for millis in [0, 1, 5, 20] {
        for server in &servers {
            server.set(Mode::DropIdle(millis));
        }
        let load = Load::start(
            bench.client(),
            address("lasting"),
            &[Speaks::Http1, Speaks::Http1, Speaks::Http2],
            &Ask::get("/"),
        );
        load.wait(300);
        let outcome = load.finish();
        assert!(
            outcome.bad.is_empty(),
            "dropped after {millis} ms: {outcome:?}"
        );
    }
    assert!(servers.iter().all(|s| s.connections() > 10), "{}", pod.name);
}

/// Servers close what rests; a POST that comes just then is neither lost nor carried out twice.
fn posts_do_not_meet_connections_that_are_closed() {
    let bench = bench();
    let servers = ["web1", "web2"].map(|pod| bench.server(pod, "posts"));
    let owner = mesh_tests::runner::current();
    // Milliseconds between the requests of a client: about the server's patience, or above what the agent trusts any
    // server with, when the server answers with a reset.
    for (mode, pauses) in [
        (
            Mode::KeepAlive(300),
            &[5, 290, 295, 298, 300, 302, 305, 310, 150, 400][..],
        ),
        (Mode::Forgets(1500), &[5, 1600, 1600, 5]),
    ] {
        for server in &servers {
            server.set(mode);
        }
        std::thread::scope(|scope| {
            for client in 0..6 {
                let servers = &servers;
                scope.spawn(move || {
                    mesh_tests::runner::adopt(owner);
                    let bench = self::bench();
                    let to = address("posts");
                    let mut kept = Connection::open(bench.client(), to, Speaks::Http1).unwrap();
                    for (n, pause) in pauses.iter().enumerate() {
                        let path = format!("/{mode:?}/{client}/{n}");
                        let answer = kept.send(&Ask::post(&path, "once")).unwrap();
                        assert_eq!(answer.status, 200, "{path}: {answer:?}");
                        let seen: usize = servers.iter().map(|s| s.seen(&path).len()).sum();
                        assert_eq!(seen, 1, "{path}");
                        // What the client does, not what the test waits for.
                        std::thread::sleep(Duration::from_millis(*pause + client));
                    }
                });
            }
        });
    }
    let all: u64 = servers.iter().map(HttpServer::connections).sum();
    assert!(all > 12, "{all} connections: none was closed");
}

/// Its agent finds out with the request in its hands: nothing was sent to the application, so another gets it.
fn a_server_that_is_gone_is_passed_by() {
    let bench = bench();
    let agent = bench.mesh.agent_of("client");
    let _stays = bench.server("web2", "gone");
    for speaks in BOTH {
        for round in 0..3 {
            let goes = bench.server("web1", "gone");
            let mut kept = Connection::open(bench.client(), address("gone"), speaks).unwrap();
            let asked = |kept: &mut Connection, n: usize| {
                let id = id("gone");
                let request = match n % 3 {
                    0 => Ask::post("/", "a body"),
                    _ => Ask::get("/"),
                };
                let answer = kept.send(&request.header("x-request-id", &id)).unwrap();
                assert_eq!(answer.status, 200, "{speaks:?} {round} {n}: {answer:?}");
                (answer.pod(), id)
            };
            for n in 0..6 {
                asked(&mut kept, n);
            }
            assert!(goes.requests() > 0, "{speaks:?}: it was not asked");
            drop(goes);
            let mut passed = 0;
            for n in 0..6 {
                let (pod, id) = asked(&mut kept, n);
                assert_eq!(pod, "web2");
                let line = log_line(agent, "outbound", &id);
                assert_eq!(field(&line, "reason"), "completed", "{line}");
                passed += u32::from(field(&line, "attempts") != "1");
            }
            assert!(passed > 0, "{speaks:?}: nobody met the one that is gone");
        }
    }
    // Nobody else is there: the client hears why, and so does the log.
    let alone = bench.server("solo", "gone-alone");
    for speaks in BOTH {
        let mut kept = Connection::open(bench.client(), address("gone-alone"), speaks).unwrap();
        assert_eq!(kept.send(&Ask::get("/")).unwrap().status, 200);
    }
    drop(alone);
    for speaks in BOTH {
        let id = id("alone");
        let request = Ask::get("/").header("x-request-id", &id);
        let answer = ask(bench.client(), address("gone-alone"), speaks, &request);
        assert_eq!(
            (answer.status, answer.reason().as_deref()),
            (502, Some("unreachable_by_peer")),
            "{speaks:?}: {answer:?}"
        );
        let line = log_line(agent, "outbound", &id);
        assert_eq!(field(&line, "reason"), "unreachable_by_peer", "{line}");
    }
}

fn limit_of_requests() {
    let bench = bench();
    let server = bench.server("solo", "limits");
    server.set(Mode::Delay(1500));
    let client = Arc::clone(bench.client());
    let held = std::thread::spawn(move || get(&client, address("limits"), "/held"));
    eventually("the first is under way", Duration::from_secs(5), || {
        server.requests() == 1
    });
    let answer = bench.get("limits", "/refused");
    assert_eq!(
        (answer.status, answer.reason().as_deref()),
        (503, Some("request_limit")),
        "{answer:?}"
    );
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(held.join().unwrap().status, 200);
    server.set(Mode::Normal);
    assert_eq!(bench.get("limits", "/next").status, 200);
    assert!(server.seen("/refused").is_empty());
}

fn config_changes_under_load() {
    let bench = bench();
    let _servers = [
        bench.server("web1", "edited"),
        bench.server("web2", "edited"),
    ];
    let load = Load::start(
        bench.client(),
        address("edited"),
        &[Speaks::Http1, Speaks::Http1, Speaks::Http2],
        &Ask::get("/edited"),
    );
    load.wait(20);
    for n in 0..50 {
        change_of_config(&bench.mesh.config, "edited", n);
        load.wait(6);
    }
    let outcome = load.finish();
    assert!(outcome.bad.is_empty(), "{outcome:?}");
    assert!(outcome.good > 300);
    assert_eq!(outcome.pods.len(), 2, "{outcome:?}");
}

fn endpoints_come_and_go_under_load() {
    let bench = bench();
    let servers = ["come1", "come2", "come3"].map(|pod| bench.server(pod, "moving"));
    let load = Load::start(
        bench.client(),
        address("moving"),
        &[Speaks::Http1, Speaks::Http1, Speaks::Http2],
        &Ask::get("/moving"),
    );
    load.wait(30);
    for n in 0..12 {
        let pod = ["come1", "come2", "come3"][n / 2 % 3];
        let mut workload = bench.mesh.workload(pod);
        // Out and in again, one after another.
        if n % 2 == 0 {
            workload.labels = vec![("app".into(), "gone".into())];
        }
        bench.mesh.config.workload(&workload);
        let count = if n % 2 == 0 { 2 } else { 3 };
        eventually("the agent knows", Duration::from_secs(10), || {
            bench.endpoints("moving").len() == count
        });
        load.wait(30);
    }
    let outcome = load.finish();
    assert!(outcome.bad.is_empty(), "{outcome:?}");
    assert_eq!(outcome.pods.len(), 3, "{outcome:?}");
    assert!(servers.iter().all(|server| server.requests() > 20));
}

/// The client's agent is asked to stop, and starts again: requests under way are finished, and connections are closed between
/// requests.
fn an_agent_goes_without_a_failed_request() {
    let mut mesh = Mesh::plan(1)
        .pods(0, &["client", "web1"])
        .file(
            "service.yaml",
            &service("shop", "web", 1, "web", &[(80, 8080, "http")]),
        )
        .start();
    let server = HttpServer::start(mesh.pod("web1"), mesh.pod("web1").v4(8080), "web1");
    server.set(Mode::Delay(1000));
    let to = vip(1, 80);
    let under_way: Vec<_> = BOTH
        .into_iter()
        .map(|speaks| {
            let client = Arc::clone(mesh.pod("client"));
            std::thread::spawn(move || ask(&client, to, speaks, &Ask::get("/under-way")))
        })
        .collect();
    eventually("both are under way", Duration::from_secs(5), || {
        server.requests() == 2
    });
    let agent = mesh.take_agent(0);
    agent.term();
    for answer in under_way {
        let answer = answer.join().unwrap();
        assert_eq!((answer.status, &answer.broken), (200, &None), "{answer:?}");
    }
    assert_eq!(agent.wait_end(Duration::from_secs(20)), Some(0));
    drop(agent);
    server.set(Mode::Normal);
    mesh.start_agents();
    assert_eq!(get(mesh.pod("client"), to, "/again").status, 200);
}
