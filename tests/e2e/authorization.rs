//! Who may connect to whom, by AuthorizationPolicy: what is decided, that an edit reaches the connections that live, and
//! that what the agent says about it is what it does.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, config, eventually, eventually_some, never, tests,
    traffic::{self, End, Server},
};
use serde_json::Value;

use crate::common::{must_echo, ping};

tests! {
    decided_by_each_field(deadline = 240),
    deny_before_allow(deadline = 120),
    dry_run_decides_nothing,
    edit_under_load(deadline = 120),
    selectors_and_labels_reach_live_connections(deadline = 120),
    identity_is_not_an_address,
    connections_from_before_enrolment(deadline = 120),
    what_is_not_supported_is_refused_by_name,
}

pub(crate) fn teardown() {}

const PORTS: [u16; 2] = [8080, 8081];

/// Two clients of the mesh with identities of their own and one outside; `web` on another node.
fn plan() -> mesh_tests::mesh::Plan {
    Mesh::plan(2)
        .pod(0, "client")
        .pod_of(0, "reader", "office", "reader")
        .outsider(0, "ext")
        .pods(1, &["web", "db"])
}

fn serve(mesh: &Mesh) -> Vec<Server> {
    let pods = ["web", "db"].map(|name| mesh.pod(name));
    pods.iter()
        .flat_map(|pod| PORTS.map(|port| Server::echo(pod, pod.v4(port))))
        .collect()
}

/// A connection is served, or reset before a byte.
fn allowed(from: &Pod, to: SocketAddr) -> Result<bool, String> {
    match traffic::connect(from, to) {
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e.to_string()),
        Ok(stream) => match ping(&stream) {
            Ok(()) => Ok(true),
            Err(e) if End::of(&e) == End::Reset => Ok(false),
            Err(e) => Err(format!("neither served nor reset: {e}")),
        },
    }
}

/// What each of the three clients may do at each of the two ports of `web`.
type Matrix = [[bool; 2]; 3];

const CLIENTS: [&str; 3] = ["client", "reader", "ext"];
const ALL: Matrix = [[true; 2]; 3];
const NONE: Matrix = [[false; 2]; 3];

fn matrix(mesh: &Mesh) -> Result<Matrix, String> {
    let mut out = NONE;
    for (client, row) in CLIENTS.iter().zip(&mut out) {
        for (port, cell) in PORTS.iter().zip(row) {
            *cell = allowed(mesh.pod(client), mesh.pod("web").v4(*port))?;
        }
    }
    Ok(out)
}

/// Waits until the decisions are these; then they stay so, and `explain` says the same.
fn becomes(mesh: &Mesh, what: &str, expected: Matrix) {
    eventually_some(what, Duration::from_secs(10), || match matrix(mesh) {
        Ok(got) if got == expected => Ok(()),
        Ok(got) => Err(format!("{got:?}, expected {expected:?}")),
        Err(e) => Err(e),
    });
    assert_eq!(matrix(mesh), Ok(expected), "{what}");
    for (client, row) in CLIENTS.iter().zip(expected) {
        for (port, expected) in PORTS.iter().zip(row) {
            let said = explain(mesh, client, &mesh.pod("web").v4(*port).to_string());
            assert_eq!(
                said["verdict"]["allowed"], expected,
                "{what}: explain {client} web:{port}: {said}"
            );
            if !expected {
                assert_eq!(said["verdict"]["reason"], "policy_denied", "{what}: {said}");
            }
        }
    }
}

/// Asked at the agent of the destination, which decides.
fn explain(mesh: &Mesh, client: &str, to: &str) -> Value {
    let source = if client == "ext" {
        mesh.pod("ext").v4.to_string()
    } else {
        mesh.name_of(client)
    };
    mesh.agent_of("web").json(&["explain", &source, to])
}

fn rules(action: &str, rules: &str) -> String {
    format!("  action: {action}\n  rules:\n{rules}")
}

fn decided_by_each_field() {
    let mesh = plan().start();
    let _servers = serve(&mesh);
    becomes(&mesh, "no policy", ALL);
    let (y, n) = (true, false);
    let client_only = [[y, y], [n, n], [n, n]];
    let members = [[y, y], [y, y], [n, n]];
    let ext = mesh.pod("ext").v4;
    let client = mesh.pod("client").v4;
    let from = |what: &str| format!("  - from:\n    - source:\n        {what}\n");
    let cases: Vec<(String, Matrix)> = vec![
        (from("principals: [\"cluster.local/ns/shop/sa/client\"]"), client_only),
        (from("principals: [\"cluster.local/ns/shop/*\"]"), client_only),
        (from("principals: [\"*/sa/client\"]"), client_only),
        (from("principals: [\"*\"]"), members),
        (from("notPrincipals: [\"*/sa/client\"]"), [[n, n], [y, y], [y, y]]),
        (from("namespaces: [office]"), [[n, n], [y, y], [n, n]]),
        (from("namespaces: [shop, office]"), members),
        (from("notNamespaces: [office]"), [[y, y], [n, n], [y, y]]),
        (from("serviceAccounts: [\"office/reader\"]"), [[n, n], [y, y], [n, n]]),
        (from("serviceAccounts: [client]"), client_only),
        (from(&format!("ipBlocks: [\"{ext}\"]")), [[n, n], [n, n], [y, y]]),
        (from(&format!("notIpBlocks: [\"{client}/32\"]")), [[n, n], [y, y], [y, y]]),
        ("  - to:\n    - operation:\n        ports: [\"8081\"]\n".into(), [[n, y]; 3]),
        ("  - to:\n    - operation:\n        notPorts: [\"8081\"]\n".into(), [[y, n]; 3]),
        (
            format!(
                "{}    to:\n    - operation:\n        ports: [\"8080\"]\n",
                from("namespaces: [office]")
            ),
            [[n, n], [y, n], [n, n]],
        ),
        (
            format!(
                "{}{}",
                from("namespaces: [office]"),
                from(&format!("ipBlocks: [\"{ext}/32\"]"))
            ),
            [[n, n], [y, y], [y, y]],
        ),
        (
            "  - when:\n    - key: source.namespace\n      values: [shop]\n    - key: destination.port\n      notValues: [\"8081\"]\n"
                .into(),
            [[y, n], [n, n], [n, n]],
        ),
        ("  - {}\n".into(), ALL),
    ];
    for (text, expected) in cases {
        mesh.config
            .authorization("shop", "web", &rules("ALLOW", &text));
        becomes(&mesh, &text, expected);
    }
    mesh.config.authorization("shop", "web", "  action: ALLOW");
    becomes(&mesh, "an ALLOW without rules", NONE);
    mesh.config.authorization("shop", "web", "  action: DENY");
    becomes(&mesh, "a DENY without rules", ALL);
    mesh.config.no_authorization("shop", "web");
    becomes(&mesh, "none again", ALL);
}

fn deny_before_allow() {
    let mesh = plan()
        .authorization(
            "allow-shop",
            &rules(
                "ALLOW",
                "  - from:\n    - source:\n        namespaces: [shop, office]\n",
            ),
        )
        .start();
    let _servers = serve(&mesh);
    let (y, n) = (true, false);
    becomes(&mesh, "allow", [[y, y], [y, y], [n, n]]);
    mesh.config.authorization(
        "mesh-system",
        "deny-8081",
        &rules(
            "DENY",
            "  - to:\n    - operation:\n        ports: [\"8081\"]\n",
        ),
    );
    becomes(
        &mesh,
        "a DENY of the root namespace",
        [[y, n], [y, n], [n, n]],
    );
    // A policy of another namespace is of no concern here, one with another selector neither.
    mesh.config
        .authorization("office", "deny-all", &rules("DENY", "  - {}\n"));
    mesh.config.authorization(
        "shop",
        "deny-db",
        &format!(
            "  selector:\n    matchLabels:\n      app: db\n{}",
            rules("DENY", "  - {}\n")
        ),
    );
    eventually("the policy of db", Duration::from_secs(10), || {
        allowed(mesh.pod("client"), mesh.pod("db").v4(8080)) == Ok(false)
    });
    becomes(&mesh, "unchanged", [[y, n], [y, n], [n, n]]);
    let policies = mesh.agent_of("web").json(&["policies"]);
    let list = policies.as_array().unwrap();
    let of = |name: &str| {
        list.iter()
            .find(|p| p["name"] == name)
            .unwrap_or_else(|| panic!("{name} is missing: {policies}"))
    };
    assert_eq!(
        of("shop/deny-db")["workloads"],
        serde_json::json!(["shop/db"])
    );
    assert_eq!(of("shop/deny-db")["action"], "DENY");
    assert_eq!(of("mesh-system/deny-8081")["scope"], "mesh");
    assert_eq!(of("shop/allow-shop")["scope"], "namespace");
    // The one that decides is counted and named.
    let agent = mesh.agent_of("web");
    let denied = [
        ("policy", "deny-8081"),
        ("namespace", "mesh-system"),
        ("outcome", "deny"),
    ];
    eventually("counted", Duration::from_secs(5), || {
        agent
            .metrics()
            .sum("mesh_authorization_decisions_total", &denied)
            >= 2.0
    });
    let said = explain(&mesh, "client", &mesh.pod("web").v4(8081).to_string());
    assert_eq!(said["verdict"]["policy"], "mesh-system/deny-8081", "{said}");
    // What the source's side hears is a refusal by the other agent.
    let closed = [("reporter", "source"), ("reason", "denied_by_peer")];
    let source = mesh.agent_of("client");
    eventually("the source's reason", Duration::from_secs(5), || {
        source
            .metrics()
            .sum("mesh_connections_closed_total", &closed)
            >= 1.0
    });
}

fn dry_run_decides_nothing() {
    let spec = rules(
        "DENY",
        "  - from:\n    - source:\n        namespaces: [office]\n",
    );
    let mesh = plan()
        .authorization("try", &format!("  dryRun: true\n{spec}"))
        .start();
    let _servers = serve(&mesh);
    becomes(&mesh, "a dry run", ALL);
    let agent = mesh.agent_of("web");
    let would = [
        ("policy", "try"),
        ("namespace", "shop"),
        ("outcome", "dry_run_deny"),
    ];
    let count = || {
        agent
            .metrics()
            .sum("mesh_authorization_decisions_total", &would)
    };
    eventually("counted", Duration::from_secs(5), || count() >= 2.0);
    let before = count();
    assert_eq!(
        allowed(mesh.pod("client"), mesh.pod("web").v4(8080)),
        Ok(true)
    );
    assert_eq!(count(), before, "it does not match this client");
    let lines = agent.log_lines("shop/try");
    assert!(
        lines.iter().any(|line| line.contains("office")),
        "the log says whom it would have denied: {lines:?}"
    );
    let said = explain(&mesh, "reader", &mesh.pod("web").v4(8080).to_string());
    let looked = said["candidates"][0]["policies"].as_array().unwrap();
    assert!(
        looked
            .iter()
            .any(|p| p["policy"] == "shop/try" && p["dry_run"] == true && p["matched"] == true),
        "{said}"
    );
    let policies = agent.json(&["policies"]);
    assert_eq!(policies[0]["dry_run"], true, "{policies}");
    // In earnest it denies.
    mesh.config.authorization("shop", "try", &spec);
    let (y, n) = (true, false);
    becomes(&mesh, "in earnest", [[y, y], [n, n], [y, y]]);
}

/// Connections that ping all the time, and when each of them ended.
struct Live {
    stop: Arc<AtomicBool>,
    pings: Arc<AtomicU64>,
    ended: Arc<Mutex<Vec<(Instant, End)>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Live {
    fn start(from: &Pod, to: SocketAddr, n: usize) -> Live {
        let mut live = Live {
            stop: Arc::default(),
            pings: Arc::default(),
            ended: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..n {
            let stream = traffic::connect(from, to).unwrap();
            ping(&stream).unwrap();
            let (stop, pings, ended) = (
                Arc::clone(&live.stop),
                Arc::clone(&live.pings),
                Arc::clone(&live.ended),
            );
            live.threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(e) = round(&stream) {
                        ended.lock().unwrap().push((Instant::now(), End::of(&e)));
                        return;
                    }
                    pings.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }));
        }
        live
    }

    fn ended(&self) -> Vec<(Instant, End)> {
        self.ended.lock().unwrap().clone()
    }

    fn pings(&self) -> u64 {
        self.pings.load(Ordering::Relaxed)
    }

    /// Waits until all have ended; how long after `from` the last of them did.
    fn all_end(&self, from: Instant, n: usize) -> Duration {
        eventually(
            "the forbidden connections end",
            Duration::from_secs(10),
            || self.ended().len() == n,
        );
        let ended = self.ended();
        assert!(
            ended.iter().all(|(_, end)| *end == End::Reset),
            "not by reset: {ended:?}"
        );
        ended.iter().map(|(at, _)| *at).max().unwrap() - from
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn round(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping\n")?;
    let mut answer = [0_u8; 5];
    stream.read_exact(&mut answer)?;
    if &answer != b"ping\n" {
        return Err(std::io::Error::other("another's bytes"));
    }
    Ok(())
}

const N: usize = 20;
/// Within this after the edit the forbidden ones are gone.
const SECOND: Duration = Duration::from_secs(1);

fn edit_under_load() {
    let mesh = plan().start();
    let _servers = serve(&mesh);
    let web = mesh.pod("web").v4(8080);
    let good = Live::start(mesh.pod("client"), web, N);
    let bad = Live::start(mesh.pod("reader"), web, N);
    let strangers = Live::start(mesh.pod("ext"), web, N);
    let deny = |source: &str| {
        rules(
            "DENY",
            &format!("  - from:\n    - source:\n        {source}\n"),
        )
    };
    let began = Instant::now();
    mesh.config
        .authorization("shop", "edit", &deny("namespaces: [office]"));
    let took = bad.all_end(began, N);
    assert!(took < SECOND, "forbidden connections lived on for {took:?}");
    // Plain ones too, by their address.
    let ext = mesh.pod("ext").v4;
    let began = Instant::now();
    mesh.config
        .authorization("shop", "edit", &deny(&format!("ipBlocks: [\"{ext}\"]")));
    let took = strangers.all_end(began, N);
    assert!(
        took < SECOND,
        "forbidden plain connections lived on for {took:?}"
    );
    // The allowed ones have noticed nothing.
    let before = good.pings();
    eventually("they go on", Duration::from_secs(5), || {
        good.pings() > before + 100
    });
    assert_eq!(good.ended().len(), 0, "{:?}", good.ended());
    let agent = mesh.agent_of("web");
    let closed = [("reporter", "destination"), ("reason", "policy_denied")];
    eventually("the reason", Duration::from_secs(5), || {
        agent
            .metrics()
            .sum("mesh_connections_closed_total", &closed)
            >= 2.0 * N as f64
    });
    // And who is forbidden no more is served again.
    eventually("served again", Duration::from_secs(5), || {
        allowed(mesh.pod("reader"), web) == Ok(true)
    });
}

fn selectors_and_labels_reach_live_connections() {
    let mesh = plan().start();
    let _servers = serve(&mesh);
    let (web, db) = (mesh.pod("web").v4(8080), mesh.pod("db").v4(8080));
    let select = |key: &str, value: &str| {
        format!(
            "  selector:\n    matchLabels:\n      {key}: {value}\n{}",
            rules(
                "DENY",
                "  - from:\n    - source:\n        namespaces: [office]\n"
            )
        )
    };
    mesh.config
        .authorization("shop", "sel", &select("app", "nobody"));
    let to_web = Live::start(mesh.pod("reader"), web, 5);
    let to_db = Live::start(mesh.pod("reader"), db, 5);
    let good = Live::start(mesh.pod("client"), web, 5);
    let policies = || mesh.agent_of("web").json(&["policies"]);
    eventually("the policy is known", Duration::from_secs(10), || {
        policies().as_array().is_some_and(|list| list.len() == 1)
    });
    never(
        "a policy that selects nobody closes",
        Duration::from_millis(500),
        || !to_web.ended().is_empty(),
    );
    // The selector changes.
    let began = Instant::now();
    mesh.config
        .authorization("shop", "sel", &select("app", "web"));
    let took = to_web.all_end(began, 5);
    assert!(took < SECOND, "{took:?}");
    assert!(to_db.ended().is_empty(), "{:?}", to_db.ended());
    // The labels change.
    mesh.config
        .authorization("shop", "sel", &select("guarded", "\"yes\""));
    eventually("web is free again", Duration::from_secs(10), || {
        allowed(mesh.pod("reader"), web) == Ok(true)
    });
    let mut labelled = mesh.workload("db");
    labelled.labels.push(("guarded".into(), "yes".into()));
    let began = Instant::now();
    mesh.config.workload(&labelled);
    let took = to_db.all_end(began, 5);
    assert!(took < SECOND, "{took:?}");
    assert!(good.ended().is_empty(), "{:?}", good.ended());
}

/// A stranger with the address of a workload that is allowed has no identity: an address opens only what is opened by
/// address.
fn identity_is_not_an_address() {
    let mesh = Mesh::plan(1)
        .pods(0, &["web", "client"])
        .outsider(0, "ext")
        .start();
    let (web, client, ext) = (mesh.pod("web"), mesh.pod("client"), mesh.pod("ext"));
    let server = Server::echo(web, web.v4(8080));
    must_echo(client, server.addr);
    // The client's machine goes dark, the stranger takes its address and all that is sent to it.
    mesh.node(0).set_wire(client, false);
    ext.ip(&["addr", "add", &format!("{}/24", client.v4), "dev", "eth0"]);
    for ns in [web, ext] {
        ns.ip(&["neigh", "flush", "all"]);
    }
    let dial = || {
        let from = SocketAddr::from((client.v4, 0));
        let dialled = traffic::connect_from(ext, from, server.addr);
        match dialled.and_then(|stream| ping(&stream)) {
            Ok(()) => Ok(true),
            Err(e) if End::of(&e) == End::Reset => Ok(false),
            Err(e) => Err(e.to_string()),
        }
    };
    let becomes = |served: bool, what: &str| {
        eventually_some(what, Duration::from_secs(15), || match dial() {
            Ok(got) if got == served => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    becomes(true, "no policy: served");
    assert_eq!(server.last_seen().peer.ip(), client.v4);
    let allow = |source: &str| {
        let rule = format!("  - from:\n    - source:\n        {source}\n");
        mesh.config
            .authorization("shop", "allow", &rules("ALLOW", &rule));
    };
    allow(&format!(
        "principals: [\"{}\"]",
        "cluster.local/ns/shop/sa/client"
    ));
    becomes(false, "by identity: refused");
    let before = server.count();
    for _ in 0..5 {
        assert_eq!(dial(), Ok(false));
    }
    assert_eq!(server.count(), before);
    allow(&format!("ipBlocks: [\"{}\"]", client.v4));
    becomes(true, "by address: served");
}

/// Connections older than the agent pass it by. What Strict or a DENY forbids of them is closed, the others live.
fn connections_from_before_enrolment() {
    for (what, file) in [
        ("strict", config::mesh_policy("  mtls:\n    mode: strict")),
        (
            "deny",
            config::authorization("shop", "all", &rules("DENY", "  - {}\n")),
        ),
    ] {
        let mut mesh = Mesh::plan(1).pods(0, &["web"]).outsider(0, "ext").prepare();
        let (web, ext) = (Arc::clone(mesh.pod("web")), Arc::clone(mesh.pod("ext")));
        let _server = Server::echo(&web, web.v4(8080));
        let outside = Server::echo(&ext, ext.v4(9090));
        let old = Live::start(&ext, web.v4(8080), 3);
        let own = Live::start(&web, outside.addr, 3);
        mesh.start_agents();
        assert_eq!(
            old.ended().len() + own.ended().len(),
            0,
            "enrolling breaks nothing"
        );
        let before = old.pings();
        eventually("they live", Duration::from_secs(5), || {
            old.pings() > before + 10
        });
        mesh.config.put("now.yaml", &file);
        // The kernel closes them from below: whatever the application reads then, they are gone.
        eventually_some(what, Duration::from_secs(10), || {
            let status = mesh.agent(0).json(&["status"]);
            match (old.ended().len(), status["unmeshed_forbidden"].as_u64()) {
                (3, _) => Ok(()),
                (ended, Some(listed)) if ended as u64 + listed >= 3 && listed > 0 => Ok(()),
                other => Err(format!("closed, listed: {other:?}")),
            }
        });
        // What the workload itself dialled is nobody's business here.
        let before = own.pings();
        eventually("outbound lives", Duration::from_secs(5), || {
            own.pings() > before + 10
        });
    }
}

fn what_is_not_supported_is_refused_by_name() {
    let mesh = Mesh::plan(1).pods(0, &["web"]).prepare();
    let spec = rules(
        "ALLOW",
        "  - from:\n    - source:\n        requestPrincipals: [\"*\"]\n",
    );
    mesh.config.authorization("shop", "tokens", &spec);
    let out = mesh_tests::command::output(
        mesh.node(0),
        std::process::Command::new(mesh_tests::agent::binary())
            .args(["config", "validate"])
            .arg(mesh.config.path()),
        Duration::from_secs(20),
    );
    let said =
        String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success(), "{said}");
    assert!(
        said.contains("requestPrincipals") && said.contains("not supported"),
        "{said}"
    );
}
