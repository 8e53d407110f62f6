//! How a service's connections are spread, limited and broken off.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_tests::{
    Agent, Bed, Pod,
    bed::{NAMESPACE, Plan, needs_mesh},
    eventually, eventually_some, tests,
    traffic::{self, End, Server},
};

use crate::common::{must_be_reset, must_echo, ping};

tests! {
    weighted_round_robin,
    random_and_least_connections,
    client_ip_affinity,
    named_target_port_and_slice,
    no_endpoints,
    connection_limit_of_a_service,
    connection_limit_of_an_endpoint,
    breaker_opens_and_closes,
    breaker_of_the_last_endpoint,
    connect_deadline_of_a_policy,
    fair_share_of_the_agent(deadline = 120),
}

pub(crate) fn teardown() {}

fn plan() -> Plan {
    needs_mesh();
    Bed::plan()
        .pods(&["client", "web1", "web2", "web3"])
        .service("web", &[(80, 8080)])
}

fn servers(bed: &Bed) -> Vec<Server> {
    ["web1", "web2", "web3"]
        .iter()
        .map(|name| Server::named(bed.pod(name), bed.pod(name).v4(8080), name))
        .collect()
}

fn ask(client: &Pod, to: SocketAddr) -> String {
    let stream = traffic::connect(client, to).unwrap();
    String::from_utf8(traffic::round_trip(&stream, b"?").unwrap()).unwrap()
}

fn spread(bed: &Bed, connections: u32) -> BTreeMap<String, u32> {
    let (client, to) = (bed.pod("client"), bed.service("web", false, 80));
    let mut answers = BTreeMap::new();
    for _ in 0..connections {
        *answers.entry(ask(client, to)).or_default() += 1;
    }
    answers
}

fn weighted_round_robin() {
    let mut bed = plan()
        .traffic_policy("web", "  loadBalancer:\n    strategy: weighted_round_robin")
        .prepare();
    for (pod, weight) in [("web1", 3), ("web2", 1), ("web3", 0)] {
        let mut workload = bed.workload(pod);
        workload.weight = Some(weight);
        bed.config.workload(&workload);
    }
    bed.start_agent();
    let _servers = servers(&bed);
    let seen = spread(&bed, 40);
    assert_eq!(
        seen,
        BTreeMap::from([("web1".into(), 30), ("web2".into(), 10)])
    );
}

fn random_and_least_connections() {
    for strategy in ["random", "least_connections"] {
        let bed = plan()
            .traffic_policy("web", &format!("  loadBalancer:\n    strategy: {strategy}"))
            .start();
        let _servers = servers(&bed);
        let seen = spread(&bed, 60);
        assert_eq!(seen.len(), 3, "{strategy}: {seen:?}");
        if strategy == "least_connections" {
            // Open ones count: with two of three endpoints busy the third takes all.
            let to = bed.service("web", false, 80);
            let held: Vec<_> = (0..9)
                .map(|_| {
                    let stream = traffic::connect(bed.pod("client"), to).unwrap();
                    stream.set_nodelay(true).unwrap();
                    stream
                })
                .collect();
            let services = bed.agent().json(&["services"]);
            let endpoints = endpoints(&services);
            eventually_some("an even share in flight", Duration::from_secs(5), || {
                let services = bed.agent().json(&["services"]);
                let now: Vec<_> = self::endpoints(&services)
                    .iter()
                    .map(|e| e["in_flight"].as_u64().unwrap())
                    .collect();
                if now == [3, 3, 3] {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            });
            assert_eq!(endpoints.len(), 3);
            drop(held);
        }
    }
}

/// Endpoints of the first port of the first service.
fn endpoints(services: &serde_json::Value) -> Vec<serde_json::Value> {
    services[0]["ports"][0]["endpoints"]
        .as_array()
        .unwrap_or_else(|| panic!("no endpoints in {services}"))
        .clone()
}

fn client_ip_affinity() {
    let bed = plan().prepare();
    let mut bed = bed;
    let mut service = bed.service_document("web");
    service.client_ip_affinity = true;
    bed.config.service(&service);
    bed.start_agent();
    let _servers = servers(&bed);
    assert_eq!(spread(&bed, 12).len(), 1);
}

/// A targetPort by name, different on each workload; and a Service whose endpoints a slice gives.
fn named_target_port_and_slice() {
    needs_mesh();
    let mut bed = Bed::plan()
        .pods(&["client", "web1", "web2"])
        .outsider("ext")
        .service("web", &[(80, 8080)])
        .prepare();
    let mut service = bed.service_document("web");
    service.ports = vec![(80, "http".into())];
    bed.config.service(&service);
    for (pod, port) in [("web1", 8001), ("web2", 8002)] {
        let mut workload = bed.workload(pod);
        workload.ports = vec![("http".into(), port)];
        bed.config.workload(&workload);
    }
    let ext = bed.pod("ext").v4;
    bed.config.put(
        "outside.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: outside\n  namespace: {NAMESPACE}\nspec:\n  clusterIPs: [\"172.31.9.9\"]\n  ports:\n  - name: main\n    port: 99\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: outside-1\n  namespace: {NAMESPACE}\n  labels:\n    kubernetes.io/service-name: outside\naddressType: IPv4\nendpoints:\n- addresses: [\"{ext}\"]\n  conditions:\n    ready: true\nports:\n- name: main\n  port: 9999\n"
        ),
    );
    bed.start_agent();
    let _servers = [
        Server::named(bed.pod("web1"), bed.pod("web1").v4(8001), "web1"),
        Server::named(bed.pod("web2"), bed.pod("web2").v4(8002), "web2"),
        Server::named(bed.pod("ext"), bed.pod("ext").v4(9999), "ext"),
    ];
    assert_eq!(spread(&bed, 4).len(), 2);
    assert_eq!(
        ask(bed.pod("client"), "172.31.9.9:99".parse().unwrap()),
        "ext"
    );
}

fn no_endpoints() {
    needs_mesh();
    let bed = Bed::plan()
        .pods(&["client"])
        .service("nothing", &[(80, 8080)])
        .start();
    must_be_reset(
        bed.pod("client"),
        bed.service("nothing", false, 80),
        Duration::from_secs(2),
    );
    ended_with(bed.agent(), "no_endpoints");
}

/// The agent names this reason, in the metric and in the list of closed connections.
fn ended_with(agent: &Agent, reason: &str) {
    eventually_some(
        &format!("a closed connection with reason {reason}"),
        Duration::from_secs(5),
        || {
            let scrape = agent.metrics();
            let counted = scrape.sum("mesh_connections_closed_total", &[("reason", reason)]);
            let closed = agent.json(&["connections", "--closed"]);
            let listed = closed
                .as_array()
                .is_some_and(|all| all.iter().any(|c| c["reason"] == reason));
            if counted >= 1.0 && listed {
                Ok(())
            } else {
                Err(format!("metric {counted}, listed {listed}: {closed}"))
            }
        },
    );
}

fn connection_limit_of_a_service() {
    let bed = plan()
        .traffic_policy("web", "  limits:\n    maxConnections: 3")
        .start();
    let _servers: Vec<_> = ["web1", "web2", "web3"]
        .iter()
        .map(|name| Server::echo(bed.pod(name), bed.pod(name).v4(8080)))
        .collect();
    let (client, to) = (bed.pod("client"), bed.service("web", false, 80));
    let mut held: Vec<_> = (0..3)
        .map(|_| {
            let stream = traffic::connect(client, to).unwrap();
            ping(&stream).unwrap();
            stream
        })
        .collect();
    for _ in 0..3 {
        must_be_reset(client, to, Duration::from_secs(2));
    }
    ended_with(bed.agent(), "connection_limit");
    for stream in &held {
        ping(stream).unwrap();
    }
    // One gone, one place free.
    held.pop();
    eventually("a place is free", Duration::from_secs(5), || {
        traffic::connect(client, to).is_ok_and(|s| ping(&s).is_ok())
    });
}

fn connection_limit_of_an_endpoint() {
    let bed = plan()
        .traffic_policy("web", "  limits:\n    maxConnectionsPerEndpoint: 1")
        .start();
    let _servers: Vec<_> = ["web1", "web2", "web3"]
        .iter()
        .map(|name| Server::echo(bed.pod(name), bed.pod(name).v4(8080)))
        .collect();
    let (client, to) = (bed.pod("client"), bed.service("web", false, 80));
    let held: Vec<_> = (0..3)
        .map(|_| {
            let stream = traffic::connect(client, to).unwrap();
            ping(&stream).unwrap();
            stream
        })
        .collect();
    must_be_reset(client, to, Duration::from_secs(2));
    drop(held);
}

fn breaker_state(bed: &Bed, address: SocketAddr) -> String {
    let services = bed.agent().json(&["services"]);
    endpoints(&services)
        .iter()
        .find(|e| e["address"] == address.to_string())
        .unwrap_or_else(|| panic!("no endpoint {address} in {services}"))["breaker"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn breaker_opens_and_closes() {
    let bed = plan()
        .traffic_policy(
            "web",
            "  circuitBreaker:\n    failureThreshold: 2\n    recoveryTimeout: 2s",
        )
        .start();
    let (one, two, three) = (bed.pod("web1"), bed.pod("web2"), bed.pod("web3"));
    let _two = Server::named(two, two.v4(8080), "web2");
    let _three = Server::named(three, three.v4(8080), "web3");
    // web1 refuses; nobody notices, and after two tries nobody asks it again.
    spread(&bed, 12);
    assert_eq!(breaker_state(&bed, one.v4(8080)), "open");
    assert_eq!(breaker_state(&bed, two.v4(8080)), "closed");
    let healed = Server::named(one, one.v4(8080), "web1");
    eventually("web1 is back", Duration::from_secs(15), || {
        spread(&bed, 3);
        breaker_state(&bed, one.v4(8080)) == "closed"
    });
    assert!(healed.count() > 0);
}

/// All endpoints out of use: every call fails at once, with its reason.
fn breaker_of_the_last_endpoint() {
    needs_mesh();
    let bed = Bed::plan()
        .pods(&["client", "web1"])
        .service("web", &[(80, 8080)])
        .traffic_policy(
            "web",
            "  circuitBreaker:\n    failureThreshold: 1\n    recoveryTimeout: 60s\n    maxEjectionPercent: 100",
        )
        .start();
    let (client, to) = (bed.pod("client"), bed.service("web", false, 80));
    for _ in 0..3 {
        must_be_reset(client, to, Duration::from_secs(2));
    }
    ended_with(bed.agent(), "breaker_open");
    ended_with(bed.agent(), "upstream_refused");
}

fn connect_deadline_of_a_policy() {
    needs_mesh();
    let bed = Bed::plan()
        .pods(&["client", "web1"])
        .service("web", &[(80, 8080)])
        .traffic_policy("web", "  timeouts:\n    connect: 2s")
        .start();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    web.ip(&["route", "add", "blackhole", &format!("{}/32", client.v4)]);
    let began = Instant::now();
    let stream = traffic::connect(client, bed.service("web", false, 80)).unwrap();
    assert_eq!(traffic::read_to_end(&stream), (Vec::new(), End::Reset));
    let took = began.elapsed();
    assert!(
        (Duration::from_millis(1500)..Duration::from_millis(3500)).contains(&took),
        "{took:?}"
    );
    ended_with(bed.agent(), "tunnel_unreachable");
}

/// One pod opens all it can; the agent keeps its descriptors, the other pod its share, and nobody spins.
fn fair_share_of_the_agent() {
    needs_mesh();
    let mut bed = Bed::plan()
        .pods(&["greedy", "modest"])
        .outsider("ext")
        .prepare();
    let agent = Agent::prepare(&bed.node, &bed.config, &[]).with_max_files(1024);
    bed.start_this(agent);
    let (greedy, modest, ext) = (bed.pod("greedy"), bed.pod("modest"), bed.pod("ext"));
    let server = Server::echo(ext, ext.v4(0));
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..1500 {
        match traffic::connect(greedy, server.addr) {
            Ok(stream) if ping(&stream).is_ok() => held.push(stream),
            _ => refused += 1,
        }
        if refused > 50 {
            break;
        }
    }
    assert!(refused > 50, "{} connections and no end", held.len());
    assert!(held.len() > 50, "only {} connections", held.len());
    ended_with(bed.agent(), "agent_limit");
    for _ in 0..20 {
        must_echo(modest, server.addr);
    }
    let before = cpu(bed.agent().pid());
    let began = Instant::now();
    // A second in which nothing happens: the agent must not burn it.
    mesh_tests::never("", Duration::from_secs(1), || false);
    let burnt = cpu(bed.agent().pid()) - before;
    assert!(
        burnt < began.elapsed() / 2,
        "the agent used {burnt:?} of processor while idle"
    );
    drop(held);
    eventually("greedy may dial again", Duration::from_secs(10), || {
        traffic::connect(greedy, server.addr).is_ok_and(|s| ping(&s).is_ok())
    });
}

/// Processor time of a process.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks: u64 = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|t| t.parse::<u64>().unwrap())
        .sum();
    // USER_HZ is 100 everywhere.
    Duration::from_millis(ticks * 10)
}
