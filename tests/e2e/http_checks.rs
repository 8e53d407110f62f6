//! Active health checks: an endpoint that turns sick is left alone and comes back, as `mesh-agent endpoints` and the requests show;
//! who asks, by which way; and that a good check does not overrule what requests have shown.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use mesh_tests::{
    Mesh, Pod, config, eventually, eventually_some,
    http::{Ask, Connection, HttpServer, Mode, Speaks},
    runner::Shared,
    tests,
};
use serde_json::Value;

use crate::http_common::{get, service, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    http_failing_and_back,
    grpc_not_serving_and_back,
    tcp_closed_and_back,
    a_good_check_does_not_close_a_breaker,
    through_a_tunnel_in_the_name_of_a_workload,
    what_a_policy_refuses_says_nothing,
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    mesh: Mesh,
}

const OFTEN: &str = "interval: 200ms, healthyThreshold: 2, unhealthyThreshold: 2";
/// Service, its app (none: the two outside of the mesh), protocol, and what its policy says.
const SERVICES: &[(&str, &str, &str, &str)] = &[
    (
        "http",
        "",
        "http",
        "http: {path: \"/healthz?full\", host: shop.example, expected: [200]}",
    ),
    ("grpc", "", "grpc", "grpc: {}"),
    ("tcp", "", "http", "tcp: {}"),
    ("breaker", "", "http", "http: {path: /healthz}"),
    ("inside", "web", "http", "http: {path: /healthz}"),
    ("closed", "web", "http", "http: {path: /healthz}"),
];

fn number(name: &str) -> u8 {
    let at = SERVICES.iter().position(|(service, ..)| *service == name);
    at.unwrap_or_else(|| panic!("no service {name}")) as u8 + 1
}

fn port(name: &str) -> u16 {
    8000 + u16::from(number(name))
}

/// A Service in front of addresses that no workload has.
fn outside(name: &str, protocol: &str, pods: [&Pod; 2]) -> String {
    let (n, port) = (number(name), port(name));
    let [a, b] = pods.map(|pod| format!("{{addresses: [\"{}\"]}}", pod.v4));
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  clusterIPs: [172.31.200.{n}]\n  \
         ports: [{{name: main, port: 80, appProtocol: {protocol}}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
         endpoints: [{a}, {b}]\nports: [{{name: main, port: {port}}}]\n"
    )
}

/// `client` and two pods that no agent knows; `web` on another node, which takes nothing but tunnels.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mesh = Mesh::plan(2)
            .pod(0, "client")
            .outsider(0, "ext1")
            .outsider(1, "ext2")
            .pod(1, "web")
            .strict()
            .start();
        let pods = ["ext1", "ext2"].map(|name| &**mesh.pod(name));
        for (name, app, protocol, check) in SERVICES {
            let mut policy = format!("  healthCheck: {{{check}, {OFTEN}}}");
            if *name == "breaker" {
                policy += "\n  circuitBreaker: {failureThreshold: 3, recoveryTimeout: 10m, maxRecoveryTimeout: 10m}";
            }
            let text = match *app {
                "" => outside(name, protocol, pods),
                app => service("shop", name, number(name), app, &[(80, port(name), protocol)]),
            };
            let policy = config::traffic_policy("shop", name, &policy);
            mesh.config.put(&format!("{name}.yaml"), &format!("{text}---\n{policy}"));
        }
        Bench { mesh }
    })
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    fn server(&self, pod: &str, service: &str) -> HttpServer {
        let pod = self.mesh.pod(pod);
        HttpServer::start(pod, pod.v4(port(service)), &pod.name)
    }

    /// An endpoint as the client's agent lists it.
    fn endpoint(&self, service: &str, pod: &str) -> Result<Value, String> {
        let agent = self.mesh.agent_of("client");
        let out = agent.cli(&["endpoints", &format!("shop/{service}"), "-o", "json"]);
        let ports: Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
        let at = self.mesh.pod(pod).v4(port(service)).to_string();
        let all = ports[0]["endpoints"].as_array().ok_or("no endpoints")?;
        let found = all.iter().find(|endpoint| endpoint["address"] == at);
        found.cloned().ok_or_else(|| format!("no {at}: {ports}"))
    }

    fn becomes(&self, service: &str, pod: &str, health: &str) -> Value {
        let what = format!("{pod} of {service} {health}");
        eventually_some(&what, Duration::from_secs(15), || {
            let endpoint = self.endpoint(service, pod)?;
            if endpoint["health"] == health {
                Ok(endpoint)
            } else {
                Err(endpoint.to_string())
            }
        })
    }

    /// Who answers twenty requests, all of them well.
    fn answers(&self, service: &str) -> BTreeSet<String> {
        let to = vip(number(service), 80);
        let pods = (0..20).map(|_| match service {
            "grpc" => {
                let mut kept = Connection::open(self.client(), to, Speaks::Http2).unwrap();
                let answer = kept.send(&Ask::grpc("/shop.Cart/Get", &[b"x"])).unwrap();
                assert_eq!(answer.grpc_status(), Some(0), "{answer:?}");
                answer.header("x-pod").unwrap().to_owned()
            }
            _ => {
                let answer = get(self.client(), to, "/");
                assert_eq!(answer.status, 200, "{answer:?}");
                answer.pod()
            }
        });
        pods.collect()
    }

    /// `ext1` turns sick and well again, as `turn` makes it; `ext2` stays well.
    fn goes_and_comes(&self, service: &str, mut turn: impl FnMut(bool), error: &str) {
        let both = BTreeSet::from(["ext1".to_owned(), "ext2".to_owned()]);
        let other = BTreeSet::from(["ext2".to_owned()]);
        self.becomes(service, "ext1", "healthy");
        self.becomes(service, "ext2", "healthy");
        assert_eq!(self.answers(service), both);
        for _ in 0..2 {
            turn(false);
            let listed = self.becomes(service, "ext1", "unhealthy");
            assert_eq!(listed["ready"], false, "{listed}");
            assert_eq!(listed["breaker"], "none", "{listed}");
            let said = listed["check_error"].as_str().unwrap_or_default();
            assert!(said.contains(error), "{listed}");
            assert_eq!(self.endpoint(service, "ext2").unwrap()["ready"], true);
            assert_eq!(self.answers(service), other);
            turn(true);
            let listed = self.becomes(service, "ext1", "healthy");
            assert_eq!(listed["ready"], true, "{listed}");
            assert_eq!(listed["check_error"], Value::Null, "{listed}");
            assert_eq!(self.answers(service), both);
        }
        let metrics = self.mesh.agent_of("client").metrics();
        for to in ["healthy", "unhealthy"] {
            let labels = [("destination_service_name", service), ("to", to)];
            let counted = metrics.sum("mesh_health_check_transitions_total", &labels);
            assert!(counted >= 2.0, "{to}: {counted}");
        }
    }
}

fn http_failing_and_back() {
    let bench = bench();
    let (sick, _well) = (bench.server("ext1", "http"), bench.server("ext2", "http"));
    let turn = |well| {
        sick.set(if well {
            Mode::Normal
        } else {
            Mode::Status(500)
        });
    };
    bench.goes_and_comes("http", turn, "500");
    // Each of the two agents asks as one of its own workloads would, with the Host that the policy gives.
    let seen = sick.seen("/healthz?full");
    let expected = ["client", "web"].map(|pod| IpAddr::from(bench.mesh.pod(pod).v4));
    let peers: BTreeSet<_> = seen.iter().map(|seen| seen.peer.ip()).collect();
    assert_eq!(peers, BTreeSet::from(expected));
    for seen in &seen {
        assert_eq!(seen.headers["host"], "shop.example", "{seen:?}");
    }
}

fn grpc_not_serving_and_back() {
    let bench = bench();
    let (sick, _well) = (bench.server("ext1", "grpc"), bench.server("ext2", "grpc"));
    let turn = |well| sick.set(if well { Mode::Normal } else { Mode::NotServing });
    bench.goes_and_comes("grpc", turn, "NOT_SERVING");
}

fn tcp_closed_and_back() {
    let bench = bench();
    let (mut sick, _well) = (
        Some(bench.server("ext1", "tcp")),
        bench.server("ext2", "tcp"),
    );
    let turn = |well: bool| sick = well.then(|| bench.server("ext1", "tcp"));
    bench.goes_and_comes("tcp", turn, "refused");
}

fn a_good_check_does_not_close_a_breaker() {
    let bench = bench();
    let servers = ["ext1", "ext2"].map(|pod| (pod, bench.server(pod, "breaker")));
    for (pod, _) in &servers {
        bench.becomes("breaker", pod, "healthy");
    }
    // Only what is asked for fails; half of the endpoints at most are put out.
    let to = vip(number("breaker"), 80);
    let is_open = |pod: &str| Ok::<_, String>(bench.endpoint("breaker", pod)?["breaker"] == "open");
    let (out, server) = eventually_some("one is put out", Duration::from_secs(15), || {
        assert_eq!(get(bench.client(), to, "/status/500").status, 500);
        for (pod, server) in &servers {
            if is_open(pod)? {
                return Ok((*pod, server));
            }
        }
        Err("none".into())
    });
    // Far more good checks than an unhealthy one needs to be healthy.
    let checks = || server.seen("/healthz").len();
    let until = checks() + 8;
    eventually("checks go on", Duration::from_secs(15), || {
        checks() >= until
    });
    // Nor does one that makes it healthy again.
    server.set(Mode::Status(503));
    bench.becomes("breaker", out, "unhealthy");
    server.set(Mode::Normal);
    let listed = bench.becomes("breaker", out, "healthy");
    assert_eq!(
        (&listed["breaker"], &listed["ready"]),
        (&"open".into(), &false.into()),
        "{listed}"
    );
    let other = if out == "ext1" { "ext2" } else { "ext1" };
    assert_eq!(bench.answers("breaker"), BTreeSet::from([other.to_owned()]));
}

fn through_a_tunnel_in_the_name_of_a_workload() {
    let bench = bench();
    let server = bench.server("web", "inside");
    bench.becomes("inside", "web", "healthy");
    // `web` takes no plain text, and its agent says who came. It checks as well, in the name of its own.
    let [client, web] = ["client", "web"].map(|pod| format!("URI={}", bench.mesh.identity(pod)));
    let mut names = BTreeSet::new();
    eventually_some(
        "a check of the client's agent",
        Duration::from_secs(10),
        || {
            names.extend(server.seen("/healthz").iter().map(|seen| {
                let certificate = seen.headers.get("x-forwarded-client-cert");
                let said = certificate
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default();
                said.split(';').next_back().unwrap_or_default().to_owned()
            }));
            if names.contains(&client) {
                Ok(())
            } else {
                Err(format!("{names:?}"))
            }
        },
    );
    assert!(
        names.iter().all(|name| *name == client || *name == web),
        "{names:?}"
    );
    server.set(Mode::Status(503));
    bench.becomes("inside", "web", "unhealthy");
    server.set(Mode::Normal);
    bench.becomes("inside", "web", "healthy");
}

fn what_a_policy_refuses_says_nothing() {
    let bench = bench();
    let server = bench.server("web", "closed");
    bench.becomes("closed", "web", "healthy");
    bench.mesh.config.authorization(
        "shop",
        "closed",
        &format!(
            "  action: DENY\n  rules: [{{to: [{{operation: {{ports: [{}]}}}}]}}]",
            port("closed")
        ),
    );
    let listed = eventually_some("checks are refused", Duration::from_secs(10), || {
        let endpoint = bench.endpoint("closed", "web")?;
        match endpoint["check_error"].as_str() {
            Some(said) if said.starts_with("not checked") => Ok(endpoint),
            _ => Err(endpoint.to_string()),
        }
    });
    // Later still: neither good nor bad.
    let first = listed["last_check_unix_ms"].as_u64().unwrap();
    let later = eventually_some("more of them", Duration::from_secs(10), || {
        let endpoint = bench.endpoint("closed", "web")?;
        let at = endpoint["last_check_unix_ms"].as_u64().unwrap_or_default();
        if at > first + 1_000 {
            Ok(endpoint)
        } else {
            Err(endpoint.to_string())
        }
    });
    assert_eq!(later["health"], "healthy", "{later}");
    let asked = server.requests();
    bench.mesh.config.no_authorization("shop", "closed");
    eventually("allowed again", Duration::from_secs(10), || {
        server.requests() > asked
    });
}
