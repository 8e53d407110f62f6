//! Configuration: what is refused and how it is said, what stays, how fast a change takes effect, how much fits.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_tests::{
    Agent, Bed, Config, NetNs, Node,
    agent::binary,
    bed::{NAMESPACE, needs_mesh},
    command,
    config::Workload,
    eventually, eventually_some,
    runner::Shared,
    tests,
    traffic::{self, Server},
};

use crate::common::must_echo;

static BED: Shared<Bed> = Shared::new();

tests! {
    validate_names_file_line_and_field(deadline = 120),
    validate_accepts_what_is_good,
    refused_as_a_whole_and_the_last_good_one_stays(deadline = 120),
    warns_of_what_is_odd,
    hot_reload,
    start_with_a_bad_configuration,
    ten_thousand_services(alone, deadline = 180),
}

pub(crate) fn teardown() {
    BED.clear();
}

/// A file that must be refused: what it is, its text, the line that must be named (0: any), words of the message.
struct Bad {
    what: &'static str,
    text: String,
    line: usize,
    words: &'static [&'static str],
}

fn bad(
    what: &'static str,
    text: impl Into<String>,
    line: usize,
    words: &'static [&'static str],
) -> Bad {
    Bad {
        what,
        text: text.into(),
        line,
        words,
    }
}

const WORKLOAD: &str = "apiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: odd\n  namespace: shop\nspec:\n";
const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata:\n  name: odd\n  namespace: shop\nspec:\n";
const AUTHORIZATION: &str = "apiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: a\n  namespace: shop\nspec:\n  rules:\n";
const MESH_POLICY: &str = "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: odd\n  namespace: mesh-system\nspec:\n";
const NAMESPACE_POLICY: &str = "apiVersion: mesh.covet.dev/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: odd\n  namespace: shop\nspec:\n";
const TRAFFIC_POLICY: &str = "apiVersion: mesh.covet.dev/v1alpha1\nkind: TrafficPolicy\nmetadata:\n  name: odd\n  namespace: shop\nspec:\n  targetRefs:\n  - kind: Service\n    name: web\n";

/// Every kind of mistake. `taken` is an address and `netns` the namespace of an existing workload of `node`.
fn mistakes(taken: IpAddr, netns: &str, node: &str) -> Vec<Bad> {
    let workload = |spec: &str| format!("{WORKLOAD}{spec}");
    let service = |spec: &str| format!("{SERVICE}{spec}");
    vec![
        bad(
            "not YAML",
            "apiVersion: v1\nkind: [Service\nmetadata: {}\n",
            0,
            &[],
        ),
        bad(
            "a tab for indentation",
            "apiVersion: v1\nkind: Service\nmetadata:\n\tname: x\n",
            4,
            &[],
        ),
        bad("a list for a document", "- a\n- b\n", 1, &[]),
        bad(
            "a key twice",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  name: b\n",
            5,
            &["name"],
        ),
        bad(
            "no kind",
            "apiVersion: v1\nmetadata:\n  name: a\n",
            0,
            &["kind"],
        ),
        bad(
            "an unknown kind",
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: Worload\nmetadata:\n  name: a\n",
            2,
            &["Worload"],
        ),
        bad(
            "a wrong version",
            "apiVersion: mesh.covet.dev/v9\nkind: Workload\nmetadata:\n  name: a\n",
            0,
            &["mesh.covet.dev/v9"],
        ),
        bad(
            "an unknown field",
            workload("  addresses: [\"10.9.9.9\"]\n  adresses: [\"10.9.9.8\"]\n"),
            8,
            &["spec.adresses"],
        ),
        bad(
            "an unknown field in metadata",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  lables: {}\n",
            5,
            &["metadata.lables"],
        ),
        bad(
            "a missing field",
            workload("  node: n1\n"),
            0,
            &["addresses"],
        ),
        bad(
            "no name",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  labels: {}\n",
            0,
            &["metadata.name"],
        ),
        bad(
            "a name that is none",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: Not_A_Name\n",
            4,
            &["metadata.name"],
        ),
        bad(
            "a wrong type",
            workload("  addresses: \"10.9.9.9\"\n"),
            7,
            &["spec.addresses"],
        ),
        bad(
            "an address that is none",
            workload("  addresses: [\"10.9.9.900\"]\n"),
            7,
            &["spec.addresses[0]", "10.9.9.900"],
        ),
        bad(
            "a loopback address",
            workload("  addresses: [\"127.0.0.1\"]\n"),
            7,
            &["spec.addresses[0]"],
        ),
        bad(
            "a port out of range",
            service("  clusterIPs: [\"172.31.200.1\"]\n  ports:\n  - port: 70000\n"),
            9,
            &["spec.ports[0].port", "70000"],
        ),
        bad(
            "two ports without names",
            service("  clusterIPs: [\"172.31.200.1\"]\n  ports:\n  - port: 80\n  - port: 81\n"),
            0,
            &["spec.ports"],
        ),
        bad(
            "UDP",
            service(
                "  clusterIPs: [\"172.31.200.1\"]\n  ports:\n  - port: 80\n    protocol: UDP\n",
            ),
            10,
            &["protocol", "UDP"],
        ),
        bad(
            "a range that is none",
            format!("{MESH_POLICY}  exclude:\n    cidrs: [\"10.0.0.0/33\"]\n"),
            8,
            &["spec.exclude.cidrs[0]"],
        ),
        bad(
            "a duration that is none",
            format!("{MESH_POLICY}  drainTimeout: soon\n"),
            7,
            &["spec.drainTimeout"],
        ),
        bad(
            "a word that is not one of the words",
            format!("{MESH_POLICY}  failPolicy: ajar\n"),
            7,
            &["spec.failPolicy", "ajar"],
        ),
        bad(
            "an mTLS mode that is none",
            format!("{MESH_POLICY}  mtls:\n    mode: mutual\n"),
            8,
            &["spec.mtls.mode", "strict, permissive, disable", "mutual"],
        ),
        bad(
            "a trust domain of one namespace",
            format!("{NAMESPACE_POLICY}  trustDomain: shop.example\n"),
            7,
            &["spec.trustDomain", "one trust domain for the mesh"],
        ),
        bad(
            "sameNode, which is not there yet",
            format!("{MESH_POLICY}  sameNode: direct\n"),
            7,
            &["spec.sameNode", "not yet"],
        ),
        bad(
            "a kind of a later version",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata:\n  name: a\n  namespace: shop\nspec: {}\n",
            2,
            &["TCPRoute", "not yet"],
        ),
        bad(
            "authorization by what a client can write itself",
            format!(
                "{AUTHORIZATION}  - from:\n    - source:\n        remoteIpBlocks: [10.0.0.0/8]\n"
            ),
            10,
            &[
                "spec.rules[0].from[0].source.remoteIpBlocks",
                "not supported",
            ],
        ),
        bad(
            "a principal that is no principal",
            format!(
                "{AUTHORIZATION}  - from:\n    - source:\n        principals: [\"spiffe://cluster.local/ns/shop/sa/web\"]\n"
            ),
            10,
            &[
                "spec.rules[0].from[0].source.principals[0]",
                "without spiffe://",
            ],
        ),
        bad(
            "a strategy that nobody knows",
            format!("{TRAFFIC_POLICY}  loadBalancer:\n    strategy: fastest\n"),
            11,
            &["spec.loadBalancer.strategy", "peak_ewma", "\"fastest\""],
        ),
        bad(
            "a limit of nothing",
            format!("{TRAFFIC_POLICY}  limits:\n    maxConnections: 0\n"),
            11,
            &["spec.limits.maxConnections"],
        ),
        bad(
            "a name twice",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n",
            0,
            &["shop"],
        ),
        bad(
            "an address of another workload",
            workload(&format!("  node: n1\n  addresses: [\"{taken}\"]\n")),
            0,
            &["is already the address"],
        ),
        bad(
            "a workload's address for a service",
            service(&format!(
                "  clusterIPs: [\"{taken}\"]\n  ports:\n  - port: 80\n"
            )),
            0,
            &["is already the address"],
        ),
        bad(
            "a namespace of another workload",
            workload(&format!(
                "  node: {node}\n  addresses: [\"10.9.9.9\"]\n  netns: {netns}\n"
            )),
            0,
            &["spec.netns"],
        ),
        bad(
            "a relative path",
            workload("  addresses: [\"10.9.9.9\"]\n  netns: run/netns/x\n"),
            8,
            &["spec.netns"],
        ),
    ]
}

/// A good directory: one namespace, one workload, one service.
fn good(config: &Config, ns: &NetNs) -> IpAddr {
    let address: IpAddr = Ipv4Addr::new(10, 9, 0, 1).into();
    config.namespace(NAMESPACE, true);
    config.workload(&Workload {
        namespace: NAMESPACE.into(),
        name: "web1".into(),
        labels: vec![("app".into(), "web".into())],
        node: "n1".into(),
        addresses: vec![address],
        netns: Some(ns.path()),
        service_account: None,
        protocol: None,
        weight: None,
        ports: Vec::new(),
    });
    config.put(
        "service.yaml",
        &format!(
            "{}  clusterIPs: [\"172.31.0.1\"]\n  selector:\n    app: web\n  ports:\n  - port: 80\n",
            SERVICE.replace("odd", "web")
        ),
    );
    address
}

/// Exit code and everything said by `config validate`.
fn validate(ns: &NetNs, config: &Config) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(["config", "validate"]).arg(config.path());
    let out = command::output(ns, &mut command, Duration::from_secs(20));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    (out.status.code(), said)
}

/// What an answer lacks of what it must say.
fn lacks(bad: &Bad, said: &str) -> Option<String> {
    let place = match bad.line {
        0 => "bad.yaml:".to_owned(),
        n => format!("bad.yaml:{n}:"),
    };
    std::iter::once(place.as_str())
        .chain(bad.words.iter().copied())
        .find(|word| !said.contains(word))
        .map(|word| format!("{}: does not say {word:?} but\n{said}", bad.what))
}

fn validate_names_file_line_and_field() {
    needs_mesh();
    let ns = NetNs::new();
    let mut wrong = Vec::new();
    for bad in mistakes(
        Ipv4Addr::new(10, 9, 0, 1).into(),
        &ns.path().display().to_string(),
        "n1",
    ) {
        let config = Config::new();
        good(&config, &ns);
        config.put("bad.yaml", &bad.text);
        let (code, said) = validate(&ns, &config);
        if code == Some(0) {
            wrong.push(format!("{}: accepted", bad.what));
        } else if said.contains("panicked") {
            wrong.push(format!("{}: {said}", bad.what));
        } else {
            wrong.extend(lacks(&bad, &said));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn validate_accepts_what_is_good() {
    needs_mesh();
    let ns = NetNs::new();
    let config = Config::new();
    good(&config, &ns);
    let (code, said) = validate(&ns, &config);
    assert_eq!(code, Some(0), "{said}");
    let missing = Config::new();
    std::fs::remove_dir(missing.path()).unwrap();
    let (code, said) = validate(&ns, &missing);
    assert_ne!(code, Some(0), "a directory that is not there: {said}");
}

fn bed() -> Arc<Bed> {
    BED.get(|| {
        needs_mesh();
        Bed::plan()
            .pods(&["client", "web1", "web2"])
            .service("web", &[(80, 8080)])
            .start()
    })
}

/// Errors of the first source, as `status` shows them.
fn errors(agent: &Agent) -> String {
    let status = agent.json(&["status"]);
    status["sources"][0]["errors"]
        .as_array()
        .unwrap_or_else(|| panic!("no sources in {status}"))
        .iter()
        .map(|e| e.as_str().unwrap_or_default().to_owned() + "\n")
        .collect()
}

fn reload_ok(agent: &Agent) -> f64 {
    agent.metrics().sum("mesh_config_last_reload_success", &[])
}

fn refused_as_a_whole_and_the_last_good_one_stays() {
    needs_mesh();
    let bed = bed();
    let agent = bed.agent();
    let (client, web) = (bed.pod("client"), bed.pod("web1"));
    let _servers = [
        Server::echo(web, web.v4(8080)),
        Server::echo(bed.pod("web2"), bed.pod("web2").v4(8080)),
    ];
    let to = bed.service("web", false, 80);
    let mut all = mistakes(
        web.v4.into(),
        &web.path().display().to_string(),
        bed.node.name(),
    );
    all.push(bad(
        "the host's namespace",
        format!(
            "{WORKLOAD}  node: {}\n  addresses: [\"10.9.9.9\"]\n  netns: {}\n",
            bed.node.name(),
            bed.node.path().display()
        ),
        9,
        &["spec.netns"],
    ));
    let mut wrong = Vec::new();
    for bad in all {
        // A good change in the same transaction must not come through either.
        bed.config.put(
            "more.yaml",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: more\n  namespace: shop\nspec:\n  clusterIPs: [\"172.31.77.7\"]\n  selector: {app: web}\n  ports:\n  - port: 80\n    targetPort: 8080\n",
        );
        bed.config.put("bad.yaml", &bad.text);
        let said = eventually_some(bad.what, Duration::from_secs(10), || {
            let said = errors(agent);
            if said.contains("bad.yaml") && reload_ok(agent) == 0.0 {
                Ok(said)
            } else {
                Err(format!("errors: {said}"))
            }
        });
        wrong.extend(lacks(&bad, &said));
        must_echo(client, to);
        bed.config.remove("bad.yaml");
        bed.config.remove("more.yaml");
        eventually_some("good again", Duration::from_secs(10), || {
            let said = errors(agent);
            if said.is_empty() && reload_ok(agent) == 1.0 {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn warns_of_what_is_odd() {
    needs_mesh();
    let bed = Bed::plan()
        .pods(&["client"])
        .service("nobody", &[(80, 8080)])
        .start();
    let status = bed.agent().json(&["status"]);
    let warnings = status["sources"][0]["warnings"].to_string();
    assert!(
        warnings.contains("service-shop-nobody.yaml"),
        "a selector that matches nothing: {status}"
    );
    assert_eq!(
        status["sources"][0]["errors"].as_array().map(Vec::len),
        Some(0)
    );
}

/// Who of the named servers answers at `to`, in a few tries.
fn who(bed: &Bed, to: SocketAddr) -> Vec<String> {
    let mut names: Vec<String> = (0..6)
        .filter_map(|_| {
            let stream = traffic::connect(bed.pod("client"), to).ok()?;
            let answer = traffic::round_trip(&stream, b"?").ok()?;
            String::from_utf8(answer).ok()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

fn hot_reload() {
    needs_mesh();
    // So that an address that is no service's any more is refused at once instead of dialled in vain.
    let bed = Bed::plan()
        .pods(&["client", "web1", "web2"])
        .service("web", &[(80, 8080)])
        .mesh_policy("  outbound: registered-only")
        .start();
    let _servers: Vec<_> = ["web1", "web2"]
        .iter()
        .map(|name| Server::named(bed.pod(name), bed.pod(name).v4(8080), name))
        .collect();
    let to = bed.service("web", false, 80);
    assert_eq!(who(&bed, to), ["web1", "web2"]);
    let expect = |what: &str, to: SocketAddr, names: &[&str]| {
        eventually_some(what, Duration::from_secs(5), || {
            let found = who(&bed, to);
            if found == names {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
    };
    // Weight 0 takes no traffic.
    let mut workload = bed.workload("web1");
    workload.weight = Some(0);
    bed.config.workload(&workload);
    expect("web1 drained", to, &["web2"]);
    workload.weight = None;
    workload.labels = vec![("app".into(), "other".into())];
    bed.config.workload(&workload);
    expect("web1 out of the selector", to, &["web2"]);
    // Another address for the service: the new one answers, the old one does not.
    let mut service = bed.service_document("web");
    service.vips = vec![Ipv4Addr::new(172, 31, 50, 1).into()];
    bed.config.service(&service);
    let new = SocketAddr::from((Ipv4Addr::new(172, 31, 50, 1), 80));
    expect("the new address", new, &["web2"]);
    expect("the old address", to, &[]);
    // Away altogether.
    bed.config.remove("service-shop-web.yaml");
    expect("no service", new, &[]);
    assert_eq!(errors(bed.agent()), "");
}

/// A first start has no last good configuration to stay with: the agent refuses, says what is wrong, and has touched
/// nothing; the next start with a good one works.
fn start_with_a_bad_configuration() {
    needs_mesh();
    let node = Node::new();
    let config = Config::new();
    config.namespace(NAMESPACE, true);
    config.put("bad.yaml", "apiVersion: v1\nkind: Nonsense\n");
    let agent = Agent::prepare(&node, &config, &[]);
    agent.run();
    eventually("it refuses to start", Duration::from_secs(20), || {
        !agent.is_running()
    });
    let log = agent.log();
    assert!(log.contains("bad.yaml:2:7: kind: expected one of"), "{log}");
    let pins = std::path::Path::new("/sys/fs/bpf/mesh").join(agent.node());
    assert!(!pins.exists(), "something was pinned");
    config.remove("bad.yaml");
    agent.run();
    agent.wait_ready();
}

fn ten_thousand_services() {
    needs_mesh();
    const SERVICES: u32 = 10_000;
    let mut bed = Bed::plan().pods(&["client", "web1", "web2"]).prepare();
    let (one, two) = (bed.pod("web1").v4, bed.pod("web2").v4);
    let servers: Vec<_> = ["web1", "web2"]
        .iter()
        .map(|name| Server::named(bed.pod(name), bed.pod(name).v4(8080), name))
        .collect();
    let vip = |n: u32| Ipv4Addr::from(0x6440_0000 + n);
    // The last endpoint list is the one that leads somewhere.
    let part = |from: u32, special: Ipv4Addr| {
        let mut text = String::new();
        for n in from..from + 500 {
            let _ = writeln!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: s{n}\n  namespace: big\nspec:\n  clusterIPs: [\"{}\"]\n  ports:\n  - name: main\n    port: 80",
                vip(n)
            );
            let _ = writeln!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s{n}-1\n  namespace: big\n  labels:\n    kubernetes.io/service-name: s{n}\naddressType: IPv4\nports:\n- name: main\n  port: 8080\nendpoints:"
            );
            if n == SERVICES - 1 {
                let _ = writeln!(text, "- addresses: [\"{special}\"]");
            } else {
                for e in 0..5 {
                    let _ = writeln!(
                        text,
                        "- addresses: [\"{}\"]",
                        Ipv4Addr::from(0x0a80_0000 + n * 5 + e)
                    );
                }
            }
        }
        text
    };
    bed.config.namespace("big", false);
    for from in (0..SERVICES).step_by(500) {
        bed.config
            .put(&format!("big-{from}.yaml"), &part(from, one));
    }
    let began = Instant::now();
    bed.start_agent();
    let start = began.elapsed();
    let to = SocketAddr::from((vip(SERVICES - 1), 80));
    assert_eq!(who(&bed, to), ["web1"]);
    let began = Instant::now();
    bed.config.put(
        &format!("big-{}.yaml", SERVICES - 500),
        &part(SERVICES - 500, two),
    );
    eventually("the edit takes effect", Duration::from_secs(30), || {
        who(&bed, to) == ["web2"]
    });
    let edit = began.elapsed();
    let services = bed.agent().json(&["services"]);
    assert_eq!(services.as_array().map(Vec::len), Some(SERVICES as usize));
    println!("    start in {start:.1?}, edit to effect in {edit:.1?} (debug build)");
    drop(servers);
}
