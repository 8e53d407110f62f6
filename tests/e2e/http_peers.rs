//! HTTP between programs that are not ours: Istio's echo, gRPC's interoperability tests, wrk, h2load and nginx.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    process::Command,
    sync::Arc,
    time::Duration,
};

use mesh_tests::{
    Mesh, Nginx, Pod,
    command::{self, Process},
    config, eventually,
    http::{Generator, HttpServer},
    prereq, run,
    runner::Shared,
    tests,
};
use serde_json::Value;

use crate::http_common::{change_of_config, requests_grow, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    istio_echo,
    grpc_interoperability(deadline = 120),
    endpoints_fail_come_and_go(alone, deadline = 180),
    config_changes(alone, deadline = 180),
    nginx_closes_connections(alone, deadline = 120),
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    mesh: Mesh,
}

/// Services of pods: app, protocol of port 80, policy. The position gives address and target ports.
const SERVICES: &[(&str, &str, &str, &str)] = &[
    ("echo", "echo", "http", ""),
    ("echo-grpc", "echo", "grpc", ""),
    ("interop", "interop", "grpc", ""),
    ("moving", "come", "http", RETRIES),
    ("edited", "web", "http", ""),
    ("near", "near", "http", ""),
    ("far", "far", "http", ""),
];

/// What a GET is promised: a server that is killed with a request on it, or is gone, is not seen while another lives. A
/// third of all requests meets it until its breaker opens, so the budget is all of them.
const RETRIES: &str = "  retries: {attempts: 2, budget: {percent: 100}}\n  \
                       circuitBreaker: {failureThreshold: 3, recoveryTimeout: 1s, maxRecoveryTimeout: 1s}";

/// Pods of the service `moving`.
const COME: [&str; 3] = ["come1", "come2", "come3"];

fn number(name: &str) -> u8 {
    let at = SERVICES.iter().position(|(service, ..)| *service == name);
    at.unwrap_or_else(|| panic!("no service {name}")) as u8 + 1
}

/// Services whose only endpoint is outside the mesh have the addresses of their twins, plus this.
const OUTSIDE: u8 = 100;

/// The port of a service whose servers speak HTTP/2.
const HTTP2: u16 = 82;

fn target(name: &str) -> u16 {
    9000 + 2 * u16::from(number(name))
}

/// Clients on one node; servers there, on another, and outside the mesh.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut plan = Mesh::plan(2)
            .pods(0, &["client", "near", "web1", "come1"])
            .pods(1, &["echo", "interop", "far", "web2", "come2", "come3"])
            .outsider(1, "outside");
        for (name, app, protocol, policy) in SERVICES {
            let target = target(name);
            let ports = [(80, target, *protocol), (HTTP2, target + 1, *protocol)];
            let text = service("shop", name, number(name), app, &ports);
            plan = plan.file(&format!("service-{name}.yaml"), &text);
            if !policy.is_empty() {
                let text = config::traffic_policy("shop", name, policy);
                plan = plan.file(&format!("traffic-{name}.yaml"), &text);
            }
        }
        let mut mesh = plan.prepare();
        for name in ["echo", "echo-grpc", "interop"] {
            let protocol = SERVICES[usize::from(number(name)) - 1].2;
            let text = outside(name, protocol, mesh.pod("outside"));
            mesh.config.put(&format!("outside-{name}.yaml"), &text);
        }
        mesh.start_agents();
        Bench { mesh }
    })
}

/// The twin of a service, with an endpoint that no workload stands behind.
fn outside(name: &str, protocol: &str, pod: &Pod) -> String {
    let (n, target, address) = (number(name) + OUTSIDE, target(name), pod.v4);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: outside-{name}, namespace: shop}}\nspec:\n  clusterIPs: [172.31.200.{n}]\n  \
         ports: [{{name: main, port: 80, appProtocol: {protocol}}}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: outside-{name}-1\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: outside-{name}}}\naddressType: IPv4\n\
         endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]\n\
         ports: [{{name: main, port: {target}, appProtocol: {protocol}}}]\n"
    )
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    /// A server of Istio's program in this pod.
    fn istio_server(&self, pod: &str, args: &[String]) -> Process {
        let mut command = Command::new(prereq::istio_peer());
        let mut server = Process::start(self.mesh.pod(pod), &args[0], command.args(args));
        eventually("Istio's server is ready", Duration::from_secs(20), || {
            assert!(server.is_running(), "it ended: {}", server.log());
            server.log().lines().any(|line| line.starts_with("ready"))
        });
        server
    }

    /// One nginx of this pod for that service, which logs connections.
    fn nginx(&self, pod: &str, service: &str, http: &str) -> Nginx {
        let log = "log_format short '$connection $connection_requests';\n  access_log HOME/access short;\n  ";
        Nginx::alone(self.mesh.pod(pod), target(service), &format!("{log}{http}"))
    }

    /// Waits until so many more requests to a service were answered.
    fn served(&self, service: &str, more: f64) {
        let labels = [
            ("destination_service_name", service),
            ("reporter", "source"),
        ];
        let agent = self.mesh.agent_of("client");
        let count = || agent.metrics().sum("istio_requests_total", &labels);
        let until = count() + more;
        eventually("the load goes on", Duration::from_secs(60), || {
            count() >= until
        });
    }

    fn endpoints(&self, service: &str) -> usize {
        let service = format!("shop/{service}");
        let ports = self.mesh.agent_of("client").json(&["endpoints", &service]);
        ports[0]["endpoints"].as_array().map_or(0, Vec::len)
    }
}

/// A service with its one pod, or its twin outside: there requests pass the client's agent alone, and no tunnel.
struct Place {
    service: String,
    to: SocketAddr,
    pod: &'static str,
    tunnelled: bool,
}

fn places(name: &str, pod: &'static str) -> [Place; 2] {
    let place = |prefix: &str, n: u8, pod, tunnelled| Place {
        service: format!("{prefix}{name}"),
        to: vip(n, 80),
        pod,
        tunnelled,
    };
    let n = number(name);
    [
        place("outside-", n + OUTSIDE, "outside", false),
        place("", n, pod, true),
    ]
}

impl Place {
    /// The client's agent counts so many requests with these labels, and with a tunnel the server's agent does.
    fn counts(&self, mesh: &Mesh, labels: &[(&str, &str)], calls: usize, work: impl FnOnce()) {
        let mut labels = labels.to_vec();
        labels.extend([
            ("destination_service_name", self.service.as_str()),
            (
                "connection_security_policy",
                if self.tunnelled { "mutual_tls" } else { "none" },
            ),
        ]);
        let calls = calls as f64;
        let there = if self.tunnelled { calls } else { 0.0 };
        requests_grow(mesh, ["client", "echo"], &labels, [calls, there], work);
    }
}

/// Standard output of Istio's program in the client's pod, which must succeed.
fn istio_client(pod: &Pod, args: &[&str]) -> String {
    let program = prereq::istio_peer();
    command::stdout(
        pod,
        program.to_str().unwrap(),
        args,
        Duration::from_secs(60),
    )
}

/// Service, scheme and path, one more option; code, protocol and method as the echo tells them; the status that is counted.
type Call = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    [&'static str; 3],
    &'static str,
);

const CALLS: [Call; 6] = [
    (
        "echo",
        "http",
        "/one?n=1",
        "--method=DELETE",
        ["200", "HTTP/1.1", "DELETE"],
        "200",
    ),
    (
        "echo",
        "http",
        "/two",
        "--http2",
        ["200", "HTTP/2.0", "GET"],
        "200",
    ),
    (
        "echo",
        "http",
        "/?codes=404",
        "--http2",
        ["404", "HTTP/2.0", "GET"],
        "404",
    ),
    (
        "echo",
        "http",
        "/?codes=500",
        "--method=POST",
        ["500", "HTTP/1.1", "POST"],
        "500",
    ),
    (
        "echo",
        "ws",
        "/upgraded",
        "--message=over-websocket",
        ["200", "HTTP/1.1", "GET"],
        "101",
    ),
    (
        "echo-grpc",
        "grpc",
        "",
        "--message=over-grpc",
        ["200", "GRPC", ""],
        "200",
    ),
];

fn istio_echo() {
    const COUNT: usize = 10;
    prereq::istio_peer();
    let bench = bench();
    let servers = ["outside", "echo"].map(|pod| {
        let args = format!(
            "echo-server --version {pod} --http {} --grpc {}",
            target("echo"),
            target("echo-grpc")
        );
        let args: Vec<_> = args.split(' ').map(str::to_owned).collect();
        bench.istio_server(pod, &args)
    });
    for (name, scheme, path, more, seen, code) in CALLS {
        let grpc = scheme == "grpc";
        let labels = [
            ("request_protocol", if grpc { "grpc" } else { "http" }),
            ("response_code", code),
            ("grpc_response_status", if grpc { "0" } else { "" }),
        ];
        for (place, server) in places(name, "echo").iter().zip(&servers) {
            let url = format!("{scheme}://{}{path}", place.to);
            let asked = || server.log().matches("request\n").count();
            let before = asked();
            place.counts(&bench.mesh, &labels, COUNT, || {
                let count = format!("--count={COUNT}");
                let args = ["echo-client", "--url", &url, &count, more];
                let said = istio_client(bench.client(), &args);
                let answers = said.lines().filter_map(|line| line.strip_prefix("answer "));
                let answers: Vec<Value> = answers
                    .map(|json| serde_json::from_str(json).unwrap())
                    .collect();
                assert_eq!(answers.len(), COUNT, "{url}: {said}");
                let mut ids = BTreeSet::new();
                for answer in &answers {
                    let text = |key: &str| answer[key].as_str().unwrap_or_default();
                    let got = ["code", "protocol", "method"].map(text);
                    assert_eq!(got, seen, "{url}: {answer}");
                    let got = ["url", "version", "client"].map(text);
                    let client = bench.client().v4.to_string();
                    assert_eq!(got, [path, place.pod, &client], "{url}: {answer}");
                    let message = more.strip_prefix("--message=").unwrap_or_default();
                    assert!(
                        answer["body"].to_string().contains(message),
                        "{url}: {answer}"
                    );
                    ids.insert(
                        answer["headers"]["X-Request-Id"][0]
                            .as_str()
                            .unwrap_or_default(),
                    );
                }
                assert!(ids.len() == COUNT && !ids.contains(""), "{url}: {ids:?}");
            });
            assert_eq!(asked() - before, COUNT, "{url}: none is lost or repeated");
        }
    }
}

/// Of the interoperability tests of gRPC, those that need no certificates of a cloud: all four kinds of calls, cancelled
/// and late ones, statuses, messages and metadata.
const CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "custom_metadata",
];

fn grpc_interoperability() {
    prereq::istio_peer();
    let bench = bench();
    for place in places("interop", "interop") {
        let listen = bench.mesh.pod(place.pod).v4(target("interop"));
        let args = ["grpc-server".into(), "--listen".into(), listen.to_string()];
        let _server = bench.istio_server(place.pod, &args);
        let run = || {
            let to = place.to.to_string();
            let mut args = vec!["grpc-client", "--target", &to];
            args.extend(CASES);
            let said = istio_client(bench.client(), &args);
            let passed: Vec<_> = said.lines().collect();
            assert_eq!(passed, CASES.map(|case| format!("passed {case}")));
        };
        // Three calls end with the status that they ask for, two ask for what is not there.
        let count = |status, calls, work: &dyn Fn()| {
            let labels = [("grpc_response_status", status), ("response_code", "200")];
            place.counts(&bench.mesh, &labels, calls, work);
        };
        count("2", 3, &|| count("12", 2, &run));
    }
}

/// Starts generators on ports of a service, does something, and wants no failed request from them.
fn under_load(bench: &Bench, service: &str, generators: &[(Generator, u16)], work: impl FnOnce()) {
    let start = |(generator, port): &(Generator, u16)| {
        let url = format!("http://{}/", vip(number(service), *port));
        generator.start(bench.client(), &url)
    };
    let running: Vec<_> = generators.iter().map(start).collect();
    work();
    for ((generator, _), running) in generators.iter().zip(running) {
        let report = running.finish();
        assert!(
            report.complaints.is_empty(),
            "{service}: {generator:?}: {report:?}"
        );
        assert!(report.answers > 0, "{service}: {generator:?}: {report:?}");
    }
}

fn endpoints_fail_come_and_go() {
    let bench = bench();
    let start = |pod| bench.nginx(pod, "moving", "");
    let mut servers = BTreeMap::from(COME.map(|pod| (pod, start(pod))));
    let [wrk, h2load] = Generator::both();
    under_load(&bench, "moving", &[(wrk, 80), (h2load, HTTP2)], || {
        bench.served("moving", 60.0);
        for pod in COME {
            servers.get_mut(pod).unwrap().kill();
            bench.served("moving", 100.0);
            servers.insert(pod, start(pod));
            eventually("it is asked again", Duration::from_secs(20), || {
                !servers[pod].file("access").is_empty()
            });
            let workload = bench.mesh.workload(pod);
            let mut gone = workload.clone();
            gone.labels = vec![("app".into(), "gone".into())];
            for (workload, count) in [(gone, 2), (workload, 3)] {
                bench.mesh.config.workload(&workload);
                eventually("the agent knows", Duration::from_secs(10), || {
                    bench.endpoints("moving") == count
                });
                bench.served("moving", 60.0);
            }
        }
    });
    // Each was met when it was gone.
    let labels = [("destination_service_name", "moving"), ("to", "Open")];
    let metrics = bench.mesh.agent_of("client").metrics();
    let opened = metrics.sum("mesh_breaker_transitions_total", &labels);
    assert!(opened >= 3.0, "breakers opened {opened} times");
}

fn config_changes() {
    let bench = bench();
    // Of both versions on one port, where the routes send.
    let servers = ["web1", "web2"].map(|pod| {
        let at = bench.mesh.pod(pod);
        HttpServer::start(at, at.v4(target("edited")), pod)
    });
    let generators = Generator::both().map(|generator| (generator, 80));
    under_load(&bench, "edited", &generators, || {
        bench.served("edited", 50.0);
        for n in 0..50 {
            change_of_config(&bench.mesh.config, "edited", n);
            bench.served("edited", 6.0);
        }
    });
    for server in servers {
        assert!(server.requests() > 100, "{}", server.requests());
    }
}

/// A server that keeps connections for a few requests, or for a few milliseconds so that requests run into its closing all
/// the time. No GET is lost; and no POST, which must not be sent twice, once a server was seen to have so little patience.
fn nginx_closes_connections() {
    let bench = bench();
    for name in ["near", "far"] {
        // With how many milliseconds at most between the requests of a client.
        for (directive, delay) in [
            ("keepalive_requests 10;", 0),
            ("keepalive_timeout 5ms;", 12),
        ] {
            let server = bench.nginx(name, name, directive);
            for method in ["GET", "POST"] {
                let script = run::folder().join(format!("{}.lua", run::unique()));
                let text = format!(
                    "wrk.method = '{method}'\nwrk.body = 'once'\nfunction delay() return math.random(0, {delay}) end\n"
                );
                std::fs::write(&script, text).unwrap();
                let wrk = Generator::Wrk {
                    connections: 4,
                    script: Some(script),
                };
                under_load(&bench, name, &[(wrk, 80)], || bench.served(name, 100.0));
            }
            // How many requests each connection carried.
            let mut connections = BTreeMap::new();
            for line in server.file("access").lines() {
                let (connection, n) = line.split_once(' ').unwrap();
                connections.insert(connection.to_owned(), n.parse::<u64>().unwrap());
            }
            let most = connections.values().max().copied().unwrap_or_default();
            let right = if delay == 0 { most == 10 } else { most > 1 };
            assert!(
                right,
                "{name} {directive} at most {most} requests on a connection"
            );
            let count = connections.len();
            assert!(count > 20, "{name} {directive} {count} connections");
        }
    }
}
