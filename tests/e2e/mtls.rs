//! Connections between workloads are carried in mutual TLS, across nodes and inside one: nothing of them is plain on a
//! wire, and everything else about them is as without it. The modes, their scopes, and that nothing opens what is strict.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, config, eventually, eventually_some, hbone, never,
    runner::Shared,
    sniff::{Seen, Sniffer},
    tests,
    traffic::{self, End, Server, pattern},
};

use crate::common::{echoes, must_be_reset, must_echo, ping};

static MESH: Shared<Mesh> = Shared::new();

tests! {
    nothing_is_plain_on_a_wire(alone),
    a_thousand_streams_over_few_tunnels(alone, deadline = 120),
    server_speaks_first,
    half_close_by_the_client,
    half_close_by_the_server,
    reset_by_the_client,
    reset_by_the_server,
    application_refuses,
    slow_reader_beside_a_fast_one(alone, deadline = 120),
    application_sees_the_client,
    service_through_tunnels,
    pods_do_not_dial_tunnels,
    metrics_and_lists_name_both_ends,
    scopes_of_the_modes(deadline = 180),
    own_addresses_pass_under_strict,
    open_does_not_open_strict(deadline = 120),
    no_plain_window_at_restart(alone, deadline = 240),
    gigabyte_each_way(alone, deadline = 300),
}

pub(crate) fn teardown() {
    MESH.clear();
}

const MARKER: &[u8] = b"for-the-eyes-of-the-other-end-only";

/// `client` and `near` share a node, `web` is on another; `open` beside it takes no tunnels. `ext` is outside the mesh.
fn mesh() -> Arc<Mesh> {
    MESH.get(|| {
        Mesh::plan(2)
            .pods(0, &["client", "near"])
            .pods(1, &["web", "open"])
            .outsider(0, "ext")
            .service("web", &[(80, 8080)])
            .file(
                "policy-open.yaml",
                &config::scoped_mesh_policy(
                    "shop",
                    "open",
                    "  selector:\n    matchLabels:\n      app: open\n  mtls:\n    mode: disable",
                ),
            )
            .start()
    })
}

/// Client and server: across two nodes, and inside one.
fn routes(mesh: &Mesh) -> [(&Arc<Pod>, &Arc<Pod>); 2] {
    let client = mesh.pod("client");
    [(client, mesh.pod("web")), (client, mesh.pod("near"))]
}

/// What is on the wires of both nodes while `work` runs.
fn overhear(mesh: &Mesh, work: impl FnOnce()) -> [Seen; 2] {
    let sniffers = [0, 1].map(|node| Sniffer::start(mesh.node(node), MARKER));
    work();
    sniffers.map(Sniffer::finish)
}

fn send_marked(client: &Pod, to: SocketAddr) {
    let message = MARKER.repeat(4000);
    let stream = traffic::connect(client, to).unwrap();
    assert_eq!(traffic::round_trip(&stream, &message).unwrap(), message);
}

fn nothing_is_plain_on_a_wire() {
    let mesh = mesh();
    let (client, open, ext) = (mesh.pod("client"), mesh.pod("open"), mesh.pod("ext"));
    for v6 in [false, true] {
        for (client, web) in routes(&mesh) {
            let server = Server::echo(web, web.addr(v6, 0));
            let seen = overhear(&mesh, || send_marked(client, server.addr));
            for seen in &seen {
                assert_eq!(seen.marked, 0, "{} to {}: {seen:?}", client.name, web.name);
            }
            let least = 2 * 4000 * MARKER.len() as u64;
            assert!(seen[0].tunnel_bytes > least, "{seen:?}");
            if web.name == "web" {
                assert!(seen[1].tunnel_bytes > least, "{seen:?}");
            }
        }
        // The same ears hear it where there is no tunnel: to a workload that disables them, to and from outside.
        let server = Server::echo(open, open.addr(v6, 0));
        for (from, to) in [(client, server.addr), (ext, server.addr)] {
            let seen = overhear(&mesh, || send_marked(from, to));
            for seen in seen {
                assert!(seen.marked > 2, "{} to {to}: {seen:?}", from.name);
                // Idle tunnels of other tests ping each other.
                assert!(
                    seen.tunnel_bytes < 20_000,
                    "{} to {to}: {seen:?}",
                    from.name
                );
            }
        }
    }
}

/// Tunnels that end in a pod, by its own word.
fn tunnels_to(pod: &Pod) -> usize {
    let filter = "sport = :15008";
    let out = mesh_tests::command::stdout(
        pod,
        "ss",
        &["-Htn", "state", "established", filter],
        Duration::from_secs(10),
    );
    out.lines().filter(|line| !line.trim().is_empty()).count()
}

fn a_thousand_streams_over_few_tunnels() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        let server = Server::echo(web, web.v4(0));
        let mut most = 0;
        let sniffer = Sniffer::start(mesh.node(0), MARKER);
        for round in 0..2 {
            let streams: Vec<TcpStream> = (0..1000)
                .map(|n| {
                    traffic::connect(client, server.addr)
                        .unwrap_or_else(|e| panic!("round {round}, connection {n}: {e}"))
                })
                .collect();
            for _ in 0..2 {
                for (n, stream) in streams.iter().enumerate() {
                    ping(stream).unwrap_or_else(|e| panic!("round {round}, connection {n}: {e}"));
                }
            }
            let now = tunnels_to(web);
            assert!(
                (1..=24).contains(&now),
                "{now} tunnels for 1,000 connections"
            );
            most = most.max(now);
        }
        // Tunnels whose streams ended took new ones: the second thousand began hardly any.
        let begun = sniffer
            .seen()
            .tunnels
            .iter()
            .filter(|(_, to)| *to == web.v4(hbone::PORT))
            .count();
        assert!(begun <= most + 4, "{begun} tunnels begun, {most} at once");
        assert_eq!(server.count(), 2000);
    }
}

fn server_speaks_first() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        for v6 in [false, true] {
            let server = Server::greeter(web, web.addr(v6, 0), "220 ready\r\n");
            let mut stream = traffic::connect(client, server.addr).unwrap();
            let mut banner = [0_u8; 11];
            stream.read_exact(&mut banner).unwrap();
            assert_eq!(&banner, b"220 ready\r\n");
            echoes(&stream);
        }
    }
}

fn half_close_by_the_client() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        // Answers only after the client's FIN, and then much.
        let server = Server::start(web, web.v4(0), |stream, _| {
            let got = pattern::receive(&stream, 1).unwrap();
            pattern::send(&stream, got, 3_000_000).unwrap();
        });
        let stream = traffic::connect(client, server.addr).unwrap();
        pattern::send(&stream, 1, 1_000_000).unwrap();
        assert_eq!(pattern::receive(&stream, 1_000_000).unwrap(), 3_000_000);
    }
}

fn half_close_by_the_server() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        let got = Arc::new(AtomicU64::new(0));
        let server = {
            let got = Arc::clone(&got);
            Server::start(web, web.v4(0), move |stream, _| {
                stream.shutdown(Shutdown::Write).unwrap();
                got.store(pattern::receive(&stream, 2).unwrap(), Ordering::SeqCst);
            })
        };
        let stream = traffic::connect(client, server.addr).unwrap();
        assert_eq!(traffic::read_to_end(&stream), (Vec::new(), End::Fin));
        pattern::send(&stream, 2, 1_000_000).unwrap();
        eventually("all of it", Duration::from_secs(10), || {
            got.load(Ordering::SeqCst) == 1_000_000
        });
    }
}

fn reset_by_the_client() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        let (tell, told) = std::sync::mpsc::channel();
        let server = Server::start(web, web.v4(0), move |mut stream, _| {
            let mut buffer = [0_u8; 5];
            stream.read_exact(&mut buffer).unwrap();
            stream.write_all(&buffer).unwrap();
            let _ = tell.send(traffic::read_to_end(&stream));
        });
        let beside = Server::echo(web, web.v4(0));
        let kept = traffic::connect(client, beside.addr).unwrap();
        ping(&kept).unwrap();
        let stream = traffic::connect(client, server.addr).unwrap();
        ping(&stream).unwrap();
        traffic::reset(stream);
        let (got, end) = told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!((got.as_slice(), end), (&b""[..], End::Reset));
        // The tunnel and its other streams are untouched.
        echoes(&kept);
    }
}

fn reset_by_the_server() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        let server = Server::start(web, web.v4(0), |mut stream, _| {
            let mut buffer = [0_u8; 5];
            stream.read_exact(&mut buffer).unwrap();
            traffic::reset(stream);
        });
        let beside = Server::echo(web, web.v4(0));
        let kept = traffic::connect(client, beside.addr).unwrap();
        ping(&kept).unwrap();
        for after_fin in [false, true] {
            let mut stream = traffic::connect(client, server.addr).unwrap();
            stream.write_all(b"ping\n").unwrap();
            if after_fin {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            assert_eq!(traffic::read_to_end(&stream), (Vec::new(), End::Reset));
        }
        echoes(&kept);
    }
}

/// Over v4 and v6, within the time of a round trip and not of a timeout.
fn application_refuses() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        must_be_reset(client, web.v4(1), Duration::from_secs(3));
        must_be_reset(client, web.v6(1), Duration::from_secs(3));
    }
    let agent = mesh.agent_of("client");
    eventually("the reason", Duration::from_secs(5), || {
        let closed = [("reporter", "source"), ("reason", "unreachable_by_peer")];
        agent
            .metrics()
            .sum("mesh_connections_closed_total", &closed)
            >= 4.0
    });
}

/// A stream whose client does not read stands still; one beside it, in the same tunnel, does not.
fn slow_reader_beside_a_fast_one() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        let flood = Server::start(web, web.v4(0), |mut stream, _| {
            while stream.write_all(&[7; 65536]).is_ok() {}
        });
        let bulk = Server::start(web, web.v4(0), |stream, _| {
            let _ = pattern::send(&stream, 3, 256 << 20);
        });
        let before: Vec<u64> = [0, 1].map(|n| mesh.agent(n).memory()).to_vec();
        let stalled: Vec<TcpStream> = (0..8)
            .map(|_| traffic::connect(client, flood.addr).unwrap())
            .collect();
        let began = Instant::now();
        let stream = traffic::connect(client, bulk.addr).unwrap();
        assert_eq!(pattern::receive(&stream, 3).unwrap(), 256 << 20);
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(60),
            "256 MiB took {took:?} beside stalled streams"
        );
        assert_eq!(flood.count(), 8);
        for (n, before) in before.iter().enumerate() {
            let grown = mesh.agent(n).memory().saturating_sub(*before);
            assert!(grown < 96 << 20, "agent {n} grew by {} MiB", grown >> 20);
        }
        drop(stalled);
    }
}

fn application_sees_the_client() {
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        for v6 in [false, true] {
            let server = Server::echo(web, web.addr(v6, 0));
            let stream = traffic::connect(client, server.addr).unwrap();
            ping(&stream).unwrap();
            let seen = server.last_seen();
            assert_eq!(seen.peer.ip(), client.addr(v6, 0).ip());
            assert_eq!(seen.getpeername, seen.peer);
            assert_eq!(seen.local, server.addr);
            // And the client whom it dialled.
            assert_eq!(stream.peer_addr().unwrap(), server.addr);
        }
        // Without an address of its own the server sees v4 clients mapped.
        let server = Server::echo(web, (std::net::Ipv6Addr::UNSPECIFIED, 0).into());
        must_echo(client, web.v4(server.port()));
        assert_eq!(server.last_seen().peer.ip(), client.v4.to_ipv6_mapped());
    }
}

fn service_through_tunnels() {
    let mesh = mesh();
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let servers = [false, true].map(|v6| Server::echo(web, web.addr(v6, 8080)));
    for v6 in [false, true] {
        let seen = overhear(&mesh, || send_marked(client, mesh.service("web", v6, 80)));
        assert!(seen.iter().all(|seen| seen.marked == 0), "{seen:?}");
        let accepted = servers[usize::from(v6)].last_seen();
        assert_eq!(accepted.peer.ip(), client.addr(v6, 0).ip());
    }
}

/// A pod has no business on port 15008, its own or another's: the agent does not carry it there.
fn pods_do_not_dial_tunnels() {
    let mesh = mesh();
    let client = mesh.pod("client");
    let refused = || {
        mesh.agent_of("client").metrics().sum(
            "mesh_connections_refused_total",
            &[("reason", "agent_port")],
        )
    };
    let before = refused();
    for pod in ["web", "near", "client"] {
        for v6 in [false, true] {
            let to = mesh.pod(pod).addr(v6, hbone::PORT);
            must_be_reset(client, to, Duration::from_secs(3));
        }
    }
    eventually("counted", Duration::from_secs(5), || {
        refused() >= before + 4.0
    });
    // The agent's real listeners are closed to every other pod.
    for name in ["web", "near"] {
        let pod = mesh.pod(name);
        let list = ["-Htln"];
        let listening = mesh_tests::command::stdout(pod, "ss", &list, Duration::from_secs(5));
        let ports: BTreeSet<u16> = listening
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok())
            .filter(|local: &SocketAddr| local.ip().is_loopback())
            .map(|local| local.port())
            .collect();
        assert!(ports.len() >= 4, "{listening}");
        for port in ports {
            must_be_reset(mesh.pod("ext"), pod.v4(port), Duration::from_secs(3));
            must_be_reset(client, pod.v4(port), Duration::from_secs(3));
        }
    }
}

fn metrics_and_lists_name_both_ends() {
    let mesh = mesh();
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let server = Server::echo(web, web.v4(0));
    let stream = traffic::connect(client, server.addr).unwrap();
    ping(&stream).unwrap();
    let labels = [
        ("source_principal", mesh.identity("client")),
        ("destination_principal", mesh.identity("web")),
        ("connection_security_policy", "mutual_tls".to_owned()),
    ];
    let labels: Vec<_> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
    for (pod, reporter) in [("client", "source"), ("web", "destination")] {
        let agent = mesh.agent_of(pod);
        let mut labels = labels.clone();
        labels.push(("reporter", reporter));
        eventually_some(reporter, Duration::from_secs(5), || {
            let metrics = agent.metrics();
            if metrics.sum("istio_tcp_connections_opened_total", &labels) >= 1.0 {
                return Ok(());
            }
            let name = "istio_tcp_connections_opened_total";
            Err(format!(
                "{:?}",
                metrics.matching(name, &[]).collect::<Vec<_>>()
            ))
        });
        let rows = agent.json(&["connections"]);
        let rows = rows.as_array().unwrap();
        let row = rows.iter().find(|row| {
            row["source_principal"] == mesh.identity("client").as_str()
                && row["destination_principal"] == mesh.identity("web").as_str()
                && row["security"] == "mutual_tls"
        });
        assert!(row.is_some(), "{rows:?}");
    }
    drop(stream);
}

/// Plain text into a pod from outside the mesh: let in, or refused with a reset.
fn plain(from: &Pod, to: SocketAddr) -> Result<bool, String> {
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

fn plain_becomes(from: &Pod, to: SocketAddr, let_in: bool, what: &str) {
    eventually_some(what, Duration::from_secs(10), || match plain(from, to) {
        Ok(got) if got == let_in => Ok(()),
        Ok(got) => Err(format!("plain text to {to} let in: {got}")),
        Err(e) => Err(e),
    });
    for _ in 0..5 {
        assert_eq!(plain(from, to), Ok(let_in), "{what}: {to}");
    }
}

fn mode(word: &str) -> String {
    format!("  mtls:\n    mode: {word}")
}

fn mode_of_web(word: &str, ports: &str) -> String {
    let mut spec = "  selector:\n    matchLabels:\n      app: web\n  mtls:\n".to_owned();
    if !word.is_empty() {
        spec += &format!("    mode: {word}\n");
    }
    if !ports.is_empty() {
        spec += &format!("    portModes:\n{ports}");
    }
    spec
}

/// Mesh, namespace, workload, port: each of them with strict, and each undone by the next narrower.
fn scopes_of_the_modes() {
    let mesh = Mesh::plan(1)
        .pods(0, &["client", "web", "other"])
        .pod_of(0, "far", "depot", "far")
        .outsider(0, "ext")
        .start();
    let ext = mesh.pod("ext");
    let servers: Vec<Server> = ["web", "other", "far"]
        .iter()
        .flat_map(|name| {
            let pod = mesh.pod(name);
            [8080, 8081].map(|port| Server::echo(pod, pod.v4(port)))
        })
        .collect();
    // Which of web:8080, web:8081, other:8080, far:8080 let plain text in.
    let expect = |what: &str, let_in: [bool; 4]| {
        let targets = [
            mesh.pod("web").v4(8080),
            mesh.pod("web").v4(8081),
            mesh.pod("other").v4(8080),
            mesh.pod("far").v4(8080),
        ];
        for (to, let_in) in targets.into_iter().zip(let_in) {
            plain_becomes(ext, to, let_in, what);
            // A client of the mesh is served whatever the mode.
            must_echo(mesh.pod("client"), to);
        }
    };
    let put = |namespace: &str, name: &str, spec: &str| {
        let text = config::scoped_mesh_policy(namespace, name, spec);
        mesh.config
            .put(&format!("scope-{namespace}-{name}.yaml"), &text);
    };
    let (no, yes) = (false, true);
    expect("permissive is the default", [yes, yes, yes, yes]);
    put("mesh-system", "mesh", &mode("strict"));
    expect("strict for the mesh", [no, no, no, no]);
    let refused = || {
        let metrics = mesh.agent(0).metrics();
        metrics.sum(
            "mesh_connections_refused_total",
            &[("reason", "plaintext_refused")],
        )
    };
    let before = refused();
    must_be_reset(ext, mesh.pod("web").v4(8080), Duration::from_secs(2));
    must_be_reset(ext, mesh.pod("web").v6(1), Duration::from_secs(2));
    eventually("the reason is counted", Duration::from_secs(5), || {
        refused() >= before + 1.0
    });
    put("shop", "namespace", &mode("permissive"));
    expect("permissive for a namespace", [yes, yes, yes, no]);
    put("shop", "workload", &mode_of_web("strict", ""));
    expect("strict for a workload", [no, no, yes, no]);
    put(
        "shop",
        "workload",
        &mode_of_web("strict", "      \"8081\": permissive\n"),
    );
    expect("permissive for a port", [no, yes, yes, no]);
    put(
        "shop",
        "workload",
        &mode_of_web("disable", "      \"8080\": strict\n"),
    );
    expect("strict for a port", [no, yes, yes, no]);
    put(
        "shop",
        "workload",
        &mode_of_web("", "      \"8080\": strict\n"),
    );
    expect("a port alone", [no, yes, yes, no]);
    put("mesh-system", "mesh", &mode("disable"));
    put("shop", "workload", &mode_of_web("strict", ""));
    put("shop", "namespace", &mode("disable"));
    expect("disable but for a workload", [no, no, yes, yes]);
    // A workload that disables tunnels gets none from inside the mesh; a strict one beside it does.
    let sniffer = Sniffer::start(mesh.node(0), MARKER);
    send_marked(mesh.pod("client"), mesh.pod("other").v4(8080));
    assert!(sniffer.finish().marked > 0);
    let sniffer = Sniffer::start(mesh.node(0), MARKER);
    send_marked(mesh.pod("client"), mesh.pod("web").v4(8080));
    assert_eq!(sniffer.finish().marked, 0);
    drop(servers);
}

/// What a pod says to itself is no plain text from outside.
fn own_addresses_pass_under_strict() {
    let mesh = Mesh::plan(1)
        .pods(0, &["web"])
        .outsider(0, "ext")
        .strict()
        .start();
    let web = mesh.pod("web");
    let any = Server::echo(web, (std::net::Ipv6Addr::UNSPECIFIED, 8080).into());
    plain_becomes(mesh.pod("ext"), web.v4(8080), false, "strict");
    for to in [
        SocketAddr::from(([127, 0, 0, 1], 8080)),
        (std::net::Ipv6Addr::LOCALHOST, 8080).into(),
        web.v4(8080),
        web.v6(8080),
    ] {
        must_echo(web, to);
    }
    assert_eq!(any.count(), 4);
    // The loopback address as a source does not make a stranger local.
    never("a stranger is let in", Duration::from_millis(300), || {
        plain(mesh.pod("ext"), web.v6(8080)) != Ok(false)
    });
}

/// `failPolicy: open` together with strict: while no agent runs nothing plain gets in, and nothing plain goes out to
/// what is strict.
fn open_does_not_open_strict() {
    let mesh = Mesh::plan(1)
        .pods(0, &["client", "web", "loose"])
        .outsider(0, "ext")
        .mesh_policy("  failPolicy: open")
        .file(
            "strict.yaml",
            &config::scoped_mesh_policy("shop", "web", &mode_of_web("strict", "")),
        )
        .start();
    let (client, web, ext) = (mesh.pod("client"), mesh.pod("web"), mesh.pod("ext"));
    let server = Server::echo(web, web.v4(8080));
    let loose = Server::echo(mesh.pod("loose"), mesh.pod("loose").v4(8080));
    plain_becomes(ext, web.v4(8080), false, "strict");
    must_echo(client, web.v4(8080));
    let before = server.count();
    mesh.agent(0).kill();
    // Open is open where nothing is strict ...
    eventually("open", Duration::from_secs(5), || {
        plain(ext, loose.addr) == Ok(true) && plain(client, loose.addr) == Ok(true)
    });
    // ... and closed where it is.
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert_eq!(plain(ext, web.v4(8080)), Ok(false));
        assert_eq!(plain(client, web.v4(8080)), Ok(false));
    }
    assert_eq!(server.count(), before, "plain text got in");
    mesh.agent(0).restart();
    eventually("served again", Duration::from_secs(20), || {
        plain(client, web.v4(8080)) == Ok(true)
    });
    assert_eq!(plain(ext, web.v4(8080)), Ok(false));
}

/// Probes in a tight loop from outside and from inside while agents are killed, ended and started: the strict server
/// never accepts the stranger, and the client's words are never plain on a wire.
fn no_plain_window_at_restart() {
    let mesh = Mesh::plan(2)
        .pod(0, "client")
        .pod(1, "web")
        .outsider(0, "ext")
        .strict()
        .start();
    let (client, web, ext) = (mesh.pod("client"), mesh.pod("web"), mesh.pod("ext"));
    let server = Server::echo(web, web.v4(8080));
    plain_becomes(ext, web.v4(8080), false, "strict");
    must_echo(client, web.v4(8080));
    let stop = AtomicBool::new(false);
    let (strangers, served, probes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let sniffers = [0, 1].map(|node| Sniffer::start(mesh.node(node), MARKER));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                probes.fetch_add(1, Ordering::Relaxed);
                let Ok(stream) = traffic::connect(ext, web.v4(8080)) else {
                    continue;
                };
                if traffic::round_trip(&stream, b"let me in").is_ok() {
                    strangers.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let Ok(stream) = traffic::connect(client, web.v4(8080)) else {
                    continue;
                };
                if traffic::round_trip(&stream, &MARKER.repeat(10)).is_ok() {
                    served.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let more = |what: &str| {
            let before = served.load(Ordering::Relaxed);
            eventually(what, Duration::from_secs(30), || {
                served.load(Ordering::Relaxed) > before + 3
            });
        };
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            more("served at first");
            for node in [1, 0, 1, 0] {
                mesh.agent(node).kill();
                // Nobody is there for a while.
                let before = probes.load(Ordering::Relaxed);
                eventually("probes while it is dead", Duration::from_secs(10), || {
                    probes.load(Ordering::Relaxed) > before + 50
                });
                mesh.agent(node).restart();
                more("served after a kill");
            }
            for node in [1, 0] {
                let agent = mesh.agent(node);
                agent.term();
                agent.wait_end(Duration::from_secs(45));
                agent.restart();
                more("served after an orderly restart");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = work {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(
        strangers.load(Ordering::Relaxed),
        0,
        "strangers were served"
    );
    let met = server.seen();
    assert!(
        met.iter().all(|seen| seen.peer.ip() == client.v4),
        "the application met others than the client"
    );
    for sniffer in sniffers {
        let seen = sniffer.finish();
        assert_eq!(seen.marked, 0, "{seen:?}");
    }
}

/// MESH_TESTS_BYTES each way, 1 GiB unless said otherwise; every byte is checked against its place.
fn gigabyte_each_way() {
    let bytes = std::env::var("MESH_TESTS_BYTES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(1_u64 << 30);
    let mesh = mesh();
    for (client, web) in routes(&mesh) {
        let began = Instant::now();
        let (tell, told) = std::sync::mpsc::channel();
        let server = Server::start(web, web.v4(0), move |stream, _| {
            let _ = tell.send(pattern::exchange(&stream, 2, bytes, 1));
        });
        let stream = traffic::connect(client, server.addr).unwrap();
        assert_eq!(pattern::exchange(&stream, 1, bytes, 2).unwrap(), bytes);
        let servers = told
            .recv_timeout(Duration::from_secs(60))
            .expect("the server's side ends");
        assert_eq!(servers.expect("the server's side"), bytes);
        println!(
            "    {} MiB each way from {} to {} in {:.1} s",
            bytes >> 20,
            client.name,
            web.name,
            began.elapsed().as_secs_f64()
        );
    }
}
