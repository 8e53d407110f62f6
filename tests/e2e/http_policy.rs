//! Who may ask what, by AuthorizationPolicy with fields about requests: through a tunnel, decided by the agent of the destination.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually, eventually_some,
    http::{Ask, Connection, HttpServer, Speaks},
    runner::Shared,
    tests,
    traffic::{self, End, Server},
};

use crate::{
    common::ping,
    http_common::{BOTH, ask, field, get, id, is_denied, log_line, service, vip},
};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    decided_by_each_field(deadline = 180),
    deny_before_allow,
    a_refusal_is_the_same_everywhere,
    connections_that_are_not_http(deadline = 120),
    dry_run_only_tells,
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    servers: Vec<HttpServer>,
    mesh: Mesh,
}

/// A destination for each test, so that policies do not meet. The position gives the address of its service.
const DESTINATIONS: &[&str] = &["fields", "denies", "refuses", "bytes", "trial"];
const PORT: u16 = 8080;

/// Two clients of the mesh with identities of their own and one outside; all destinations on another node.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut plan = Mesh::plan(2)
            .pod(0, "client")
            .pod_of(0, "reader", "office", "reader")
            .outsider(0, "ext")
            .pods(1, DESTINATIONS);
        for (n, name) in (1..).zip(DESTINATIONS) {
            let ports: &[_] = match *name {
                // A DENY on undeclared ports, which the first bytes of a connection decide on.
                "bytes" => &[(80, PORT, ""), (81, 8081, "")],
                _ => &[(80, PORT, "http")],
            };
            plan = plan.file(
                &format!("service-{name}.yaml"),
                &service("shop", name, n, name, ports),
            );
        }
        let mesh = plan.start();
        let servers = DESTINATIONS.iter().map(|name| {
            let pod = mesh.pod(name);
            HttpServer::start(pod, pod.v4(PORT), name)
        });
        Bench {
            servers: servers.collect(),
            mesh,
        }
    })
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    fn server(&self, name: &str) -> &HttpServer {
        let at = DESTINATIONS.iter().position(|other| *other == name);
        &self.servers[at.expect("a destination")]
    }

    fn vip(&self, name: &str) -> SocketAddr {
        let at = DESTINATIONS.iter().position(|other| *other == name);
        vip(at.expect("a destination") as u8 + 1, 80)
    }

    /// A policy for the destination of its name.
    fn policy(&self, app: &str, name: &str, action: &str, rules: &str) {
        let spec =
            format!("  selector: {{matchLabels: {{app: {app}}}}}\n  {action}\n  rules: [{rules}]");
        self.mesh.config.authorization("shop", name, &spec);
    }

    /// One of the three asks on a connection of its own: allowed, or denied as the way that it came is told of it.
    fn allows(&self, who: &str, to: &str, speaks: Speaks, ask: &Ask) -> Result<bool, String> {
        let address = match who {
            "ext" => self.mesh.pod(to).v4(PORT),
            _ => self.vip(to),
        };
        let refused = |kind| {
            matches!(
                kind,
                ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
            )
        };
        match Connection::open(self.mesh.pod(who), address, speaks) {
            Err(e) if who == "ext" && refused(e.kind()) => Ok(false),
            Err(e) => Err(e.to_string()),
            Ok(mut connection) => match connection.send(ask) {
                Ok(answer) if answer.status == 200 => Ok(true),
                Ok(answer) if is_denied(&answer) => Ok(false),
                // Where nothing could be allowed, the connection is refused.
                Err(e) if who == "ext" && !e.to_string().contains("within the time") => Ok(false),
                other => Err(format!("{other:?}")),
            },
        }
    }
}

/// Who asks what in [`decided_by_each_field`].
fn asked() -> Vec<(&'static str, Ask)> {
    vec![
        ("client", Ask::get("/items")),
        ("client", Ask::post("/items", "x")),
        ("client", Ask::get("/items/1?a=/b")),
        ("client", Ask::get("/data.json")),
        (
            "client",
            Ask::get("/items").header("host", "Shop.example.:8080"),
        ),
        ("client", Ask::get("/items").header("x-user", "alice")),
        ("reader", Ask::get("/items")),
        ("reader", Ask::post("/items", "x")),
        ("ext", Ask::get("/items")),
    ]
}

/// Waits until each of `asked` is allowed (`y`) or not (`.`) over either version.
fn becomes(bench: &Bench, to: &str, rules: &str, expected: &str) {
    for speaks in BOTH {
        eventually_some(rules, Duration::from_secs(10), || {
            let mut got = String::new();
            for (who, ask) in asked() {
                got.push(match bench.allows(who, to, speaks, &ask)? {
                    true => 'y',
                    false => '.',
                });
            }
            if got == expected {
                Ok(())
            } else {
                Err(format!("{speaks:?}: {got}, expected {expected}"))
            }
        });
    }
}

fn decided_by_each_field() {
    let bench = bench();
    becomes(&bench, "fields", "no policy", "yyyyyyyyy");
    let to = |what: &str| format!("{{to: [{{operation: {{{what}}}}}]}}");
    let when = |what: &str| format!("{{when: [{{key: \"request.headers[x-user]\", {what}}}]}}");
    let both = |source: &str, what: &str| {
        format!("{{from: [{{source: {{{source}}}}}], to: [{{operation: {{{what}}}}}]}}")
    };
    for (rules, expected) in [
        (to("methods: [GET]"), "y.yyyyy.y"),
        (to("methods: [\"P*\"]"), ".y.....y."),
        (to("notMethods: [POST]"), "y.yyyyy.y"),
        (to("paths: [/items]"), "yy..yyyyy"),
        (to("paths: [\"/items/*\"]"), "..y......"),
        (to("paths: [\"*.json\"]"), "...y....."),
        (to("paths: [\"*\"]"), "yyyyyyyyy"),
        (to("notPaths: [/items, \"/items/*\"]"), "...y....."),
        (to("hosts: [shop.example]"), "....y...."),
        (to("hosts: [\"*.EXAMPLE\"]"), "....y...."),
        (to("hosts: [\"shop.example:8080\"]"), "....y...."),
        (to("hosts: [\"shop.example:80\"]"), "........."),
        (to("notHosts: [shop.example]"), "yyyy.yyyy"),
        (when("values: [alice]"), ".....y..."),
        (when("values: [\"*\"]"), ".....y..."),
        (when("notValues: [\"al*\"]"), "yyyyy.yyy"),
        (to("ports: [8080], methods: [POST]"), ".y.....y."),
        (to("ports: [9090], methods: [POST]"), "........."),
        (both("namespaces: [office]", "methods: [GET]"), "......y.."),
        (
            both(
                "principals: [\"cluster.local/ns/shop/sa/client\"]",
                "paths: [/items]",
            ),
            "yy..yy...",
        ),
        (both("principals: [\"*\"]", "methods: [POST]"), ".y.....y."),
        (
            both("notPrincipals: [\"*\"]", "methods: [GET]"),
            "........y",
        ),
        (
            format!("{}, {}", to("methods: [POST]"), to("paths: [/data.json]")),
            ".y.y...y.",
        ),
        (
            "{to: [{operation: {methods: [POST]}}, {operation: {paths: [/data.json]}}]}".into(),
            ".y.y...y.",
        ),
    ] {
        bench.policy("fields", "fields", "action: ALLOW", &rules);
        becomes(&bench, "fields", &rules, expected);
    }
}

fn deny_before_allow() {
    let bench = bench();
    bench.policy(
        "denies",
        "allow-items",
        "action: ALLOW",
        "{to: [{operation: {paths: [/items]}}]}",
    );
    becomes(&bench, "denies", "an ALLOW", "yy..yyyyy");
    bench.policy(
        "denies",
        "deny-writes",
        "action: DENY",
        "{to: [{operation: {ports: [8080], notMethods: [GET]}}]}",
    );
    becomes(&bench, "denies", "a DENY beside it", "y...yyy.y");
    bench.policy(
        "denies",
        "deny-alice",
        "action: DENY",
        "{when: [{key: \"request.headers[x-user]\", values: [alice]}]}",
    );
    becomes(&bench, "denies", "two of them", "y...y.y.y");
    bench.mesh.config.no_authorization("shop", "allow-items");
    becomes(&bench, "denies", "DENY alone", "y.yyy.y.y");
}

/// The answer, the log and the metrics of the agent that decides.
fn a_refusal_is_the_same_everywhere() {
    let bench = bench();
    let (to, server) = (bench.vip("refuses"), bench.server("refuses"));
    bench.policy(
        "refuses",
        "no-delete",
        "action: DENY",
        "{to: [{operation: {ports: [8080], methods: [DELETE]}}]}, \
         {to: [{operation: {ports: [8080], paths: [/shop.Cart/Remove]}}]}",
    );
    let delete = Ask::new("DELETE", "/item");
    eventually("in effect", Duration::from_secs(10), || {
        ask(bench.client(), to, Speaks::Http1, &delete).status == 403
    });
    let deleted = || {
        server
            .seen("/item")
            .iter()
            .filter(|s| s.method == "DELETE")
            .count()
    };
    let before = deleted();
    let agent = bench.mesh.agent_of("refuses");
    let requests = || {
        let labels = [
            ("reporter", "destination"),
            ("destination_workload", "refuses"),
            ("source_workload", "client"),
            ("response_code", "403"),
            ("response_flags", "DENY"),
            ("connection_security_policy", "mutual_tls"),
        ];
        agent.metrics().sum("istio_requests_total", &labels)
    };
    let decisions = || {
        let labels = [
            ("policy", "no-delete"),
            ("namespace", "shop"),
            ("outcome", "deny"),
        ];
        agent
            .metrics()
            .sum("mesh_authorization_decisions_total", &labels)
    };
    let counted = (requests(), decisions());
    for speaks in BOTH {
        let id = id("refused");
        let mut kept = Connection::open(bench.client(), to, speaks).unwrap();
        assert_eq!(kept.send(&Ask::get("/item")).unwrap().status, 200);
        let answer = kept
            .send(&delete.clone().header("x-request-id", &id))
            .unwrap();
        assert_eq!(answer.status, 403, "{answer:?}");
        assert_eq!(
            answer.reason().as_deref(),
            Some("policy_denied"),
            "{answer:?}"
        );
        let said = answer.header("proxy-status").unwrap();
        assert!(said.contains("error=http_request_denied"), "{said}");
        assert!(
            answer.text().contains("shop/no-delete"),
            "{}",
            answer.text()
        );
        // The connection lives on.
        assert_eq!(kept.send(&Ask::get("/item")).unwrap().status, 200);
        let line = log_line(agent, "inbound", &id);
        for (name, value) in [
            ("response_code", "403"),
            ("reason", "policy_denied"),
            ("response_flags", "DENY"),
            ("policy", "shop/no-delete"),
            ("method", "DELETE"),
            ("source_workload", "shop/client"),
            ("security", "mutual_tls"),
        ] {
            assert_eq!(field(&line, name), value, "{name}: {line}");
        }
        let line = log_line(bench.mesh.agent_of("client"), "outbound", &id);
        assert_eq!(field(&line, "response_code"), "403", "{line}");
    }
    assert_eq!(deleted(), before, "the application was asked");
    eventually_some("counted", Duration::from_secs(5), || {
        let grown = (requests() - counted.0, decisions() - counted.1);
        if grown == (2.0, 2.0) {
            Ok(())
        } else {
            Err(format!("{grown:?}"))
        }
    });
    // gRPC hears it in its own way: headers that are trailers as well.
    let answer = ask(
        bench.client(),
        to,
        Speaks::Http2,
        &Ask::grpc("/shop.Cart/Remove", &[b"x"]),
    );
    assert_eq!(
        (answer.status, answer.grpc_status()),
        (200, Some(7)),
        "{answer:?}"
    );
    assert!(
        answer.trailers.is_none() && answer.body.is_empty(),
        "{answer:?}"
    );
    let answer = ask(
        bench.client(),
        to,
        Speaks::Http2,
        &Ask::grpc("/shop.Cart/Add", &[b"x"]),
    );
    assert_eq!(answer.grpc_status(), Some(0), "{answer:?}");
}

/// `bytes` serves HTTP on one port, something else on another; neither is declared.
fn connections_that_are_not_http() {
    let bench = bench();
    let pod = bench.mesh.pod("bytes");
    let _echo = Server::echo(pod, pod.v4(8081));
    // A connection of bytes from each client, and a GET.
    let becomes = |what: &str, expected: [bool; 3]| {
        eventually_some(what, Duration::from_secs(10), || {
            let mut got = [false; 3];
            for (at, who) in ["client", "reader"].into_iter().enumerate() {
                let to = vip(4, 81);
                let stream =
                    traffic::connect(bench.mesh.pod(who), to).map_err(|e| e.to_string())?;
                got[at] = match ping(&stream) {
                    Ok(()) => true,
                    Err(e) if e.kind() == ErrorKind::UnexpectedEof || End::of(&e) == End::Reset => {
                        false
                    }
                    Err(e) => return Err(format!("neither served nor ended: {e}")),
                };
            }
            got[2] = bench.allows("client", "bytes", Speaks::Http1, &Ask::get("/items"))?;
            if got == expected {
                Ok(())
            } else {
                Err(format!("{got:?}, expected {expected:?}"))
            }
        });
    };
    becomes("no policy", [true, true, true]);
    for (action, rules, expected) in [
        // By its other fields: the port.
        (
            "DENY",
            "{to: [{operation: {ports: [8081], paths: [/admin]}}]}",
            [false, false, true],
        ),
        (
            "DENY",
            "{to: [{operation: {ports: [8080], paths: [/admin]}}]}",
            [true, true, true],
        ),
        // The source.
        (
            "DENY",
            "{from: [{source: {namespaces: [office]}}], to: [{operation: {methods: [DELETE]}}]}",
            [true, false, true],
        ),
        // None: it is denied.
        (
            "DENY",
            "{to: [{operation: {methods: [DELETE]}}]}",
            [false, false, true],
        ),
        (
            "ALLOW",
            "{to: [{operation: {methods: [GET]}}]}",
            [false, false, true],
        ),
        (
            "ALLOW",
            "{to: [{operation: {notMethods: [DELETE]}}]}",
            [false, false, true],
        ),
        (
            "ALLOW",
            "{to: [{operation: {ports: [8080], methods: [GET]}}]}, {to: [{operation: {ports: [8081]}}]}",
            [true, true, true],
        ),
    ] {
        bench.policy("bytes", "bytes", &format!("action: {action}"), rules);
        becomes(&format!("{action} {rules}"), expected);
    }
}

fn dry_run_only_tells() {
    let bench = bench();
    let to = bench.vip("trial");
    let rules = "{to: [{operation: {ports: [8080], methods: [DELETE]}}]}";
    bench.policy("trial", "trial", "dryRun: true\n  action: DENY", rules);
    let agent = bench.mesh.agent_of("trial");
    let would = || {
        let labels = [
            ("policy", "trial"),
            ("namespace", "shop"),
            ("outcome", "dry_run_deny"),
        ];
        agent
            .metrics()
            .sum("mesh_authorization_decisions_total", &labels)
    };
    let delete = Ask::new("DELETE", "/tried");
    eventually("counted", Duration::from_secs(10), || {
        assert_eq!(ask(bench.client(), to, Speaks::Http1, &delete).status, 200);
        would() >= 1.0
    });
    let before = would();
    assert_eq!(get(bench.client(), to, "/tried").status, 200);
    assert_eq!(would(), before, "it does not match a GET");
    let lines = agent.log_lines("dry run of a policy");
    let told = |line: &String| {
        ["shop/trial", "DELETE", "/tried", "ns/shop/sa/client"]
            .iter()
            .all(|word| line.contains(word))
    };
    assert!(lines.iter().any(told), "{lines:?}");
    bench.policy("trial", "trial", "action: DENY", rules);
    eventually("in earnest", Duration::from_secs(10), || {
        ask(bench.client(), to, Speaks::Http1, &delete).status == 403
    });
}
