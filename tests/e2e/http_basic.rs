//! HTTP passes as it would without a mesh: versions, bodies, trailers, upgrades, and what is not HTTP; near and far, on ports
//! that are declared, undeclared and routed.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_tests::{
    Mesh, Nginx, Pod, command, eventually, eventually_some,
    http::{Ask, Connection, HttpServer, Speaks, client::grpc_message, hash, pattern},
    prereq, run,
    runner::Shared,
    tests,
    traffic::{self, End, Server},
};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::{
    common::must_be_reset,
    http_common::{ask, get, route, service, vip},
};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    every_version_and_method,
    connections_are_kept,
    bodies_in_pieces_both_ways,
    twenty_mebibytes_both_ways(deadline = 120),
    trailers_both_ways,
    grpc_unary_and_streams,
    server_sent_events_arrive_one_by_one,
    websocket_messages,
    expectations_are_passed_on,
    a_client_that_goes_away_cancels,
    a_reset_by_the_client_cancels,
    curl_both_versions,
    nginx_behind_it,
    server_speaks_first_without_delay,
    a_slow_client_changes_nothing_for_the_next,
    not_http_on_a_declared_port,
    other_protocols_on_an_undeclared_port,
    smuggling_is_refused,
}

pub(crate) fn teardown() {
    BENCH.clear();
}

/// Servers first, then the mesh.
struct Bench {
    servers: Vec<HttpServer>,
    mesh: Mesh,
}

/// Ports of each service: declared, undeclared, with a route.
const DECLARED: u16 = 80;
const UNDECLARED: u16 = 81;
const ROUTED: u16 = 82;
const PORTS: [u16; 3] = [DECLARED, UNDECLARED, ROUTED];
/// Undeclared, with whatever server a test puts there.
const FREE: u16 = 90;
/// Declared, likewise.
const FREE_DECLARED: u16 = 91;
const NGINX: u16 = 92;

/// `client` and `near` share a node, `far` is on another.
fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut plan = Mesh::plan(2).pods(0, &["client", "near"]).pod(1, "far");
        for (n, app) in [(1, "near"), (2, "far")] {
            let ports = [
                (DECLARED, 8080, "http"),
                (UNDECLARED, 8080, ""),
                (ROUTED, 8080, ""),
                (FREE, 8090, ""),
                (FREE_DECLARED, 8091, "http"),
                (NGINX, 80, ""),
            ];
            plan = plan
                .file(
                    &format!("service-{app}.yaml"),
                    &service("shop", app, n, app, &ports),
                )
                .file(
                    &format!("route-{app}.yaml"),
                    &route(
                        "HTTPRoute",
                        "shop",
                        app,
                        &format!("{app}:{ROUTED}"),
                        &format!("{{backendRefs: [{{name: {app}, port: {ROUTED}}}]}}"),
                    ),
                );
        }
        let mesh = plan.start();
        let servers = ["near", "far"]
            .map(|name| HttpServer::start(mesh.pod(name), mesh.pod(name).v4(8080), name));
        Bench {
            servers: servers.into(),
            mesh,
        }
    })
}

impl Bench {
    fn client(&self) -> &Arc<Pod> {
        self.mesh.pod("client")
    }

    /// Where `near` and `far` are dialled.
    fn both(&self, port: u16) -> [(&'static str, SocketAddr); 2] {
        [("near", vip(1, port)), ("far", vip(2, port))]
    }

    /// Every place and port.
    fn all(&self) -> Vec<(&'static str, SocketAddr)> {
        PORTS.iter().flat_map(|port| self.both(*port)).collect()
    }

    fn server(&self, name: &str) -> &HttpServer {
        &self.servers[usize::from(name == "far")]
    }
}

const VERSIONS: [Speaks; 2] = [Speaks::Http1, Speaks::Http2];

fn every_version_and_method() {
    let bench = bench();
    for (place, to) in bench.all() {
        for speaks in VERSIONS {
            let version = match speaks {
                Speaks::Http1 => "HTTP/1.1",
                Speaks::Http2 => "HTTP/2.0",
            };
            for method in [
                "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PURGE",
            ] {
                let request = Ask::new(method, "/a/b?c=d%20e&c=f").header("x-mine", "1");
                let answer = ask(bench.client(), to, speaks, &request);
                let what = format!("{method} by {speaks:?} to {place} {to}");
                assert_eq!(answer.status, 200, "{what}: {answer:?}");
                assert_eq!(answer.header("server"), Some("echo/1"), "{what}");
                assert!(
                    answer.header("proxy-status").is_none(),
                    "{what}: {answer:?}"
                );
                if method == "HEAD" {
                    assert!(answer.body.is_empty(), "{what}");
                    let length = answer.header("content-length").unwrap_or("0");
                    assert_ne!(length, "0", "{what}");
                    continue;
                }
                let said = answer.json();
                assert_eq!(said["pod"], place, "{what}");
                assert_eq!(said["method"], method, "{what}");
                assert_eq!(said["path"], "/a/b?c=d%20e&c=f", "{what}");
                assert_eq!(said["version"], version, "{what}: as the client spoke it");
                assert_eq!(answer.sent("x-mine").as_deref(), Some("1"), "{what}");
                assert!(answer.sent("x-request-id").is_some(), "{what}: {said}");
                if speaks == Speaks::Http1 {
                    assert_eq!(answer.sent("host"), Some(to.to_string()), "{what}");
                }
                // The application sees its client and nobody else.
                let peer: SocketAddr = said["peer"].as_str().unwrap().parse().unwrap();
                assert_eq!(peer.ip(), bench.client().v4, "{what}");
            }
        }
    }
}

fn connections_are_kept() {
    let bench = bench();
    for (place, to) in bench.all() {
        let server = bench.server(place);
        for speaks in VERSIONS {
            let mut kept = Connection::open(bench.client(), to, speaks).unwrap();
            kept.send(&Ask::get("/first")).unwrap();
            let before = server.connections();
            for n in 0..20 {
                let answer = kept.send(&Ask::get(&format!("/{n}"))).unwrap();
                assert_eq!(answer.json()["path"], format!("/{n}"));
            }
            let made = server.connections() - before;
            // Other tests use the same server meanwhile.
            assert!(made < 20, "{place} {to} {speaks:?}: {made} for 20 requests");
        }
        // What a server closes in order is no failure, and its word reaches nobody but the proxy.
        let mut kept = Connection::open(bench.client(), to, Speaks::Http1).unwrap();
        for _ in 0..5 {
            let answer = kept.send(&Ask::get("/close")).unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
}

fn bodies_in_pieces_both_ways() {
    let bench = bench();
    let pieces: Vec<Bytes> = (1..40).map(|n| Bytes::from(pattern(n * 311))).collect();
    let whole = pieces.concat();
    for (place, to) in bench.all() {
        for speaks in VERSIONS {
            let request = Ask::new("POST", "/up").chunks(pieces.clone());
            let said = ask(bench.client(), to, speaks, &request).json();
            assert_eq!(said["length"], whole.len(), "{place} {to} {speaks:?}");
            assert_eq!(said["hash"], hash(&whole), "{place} {to} {speaks:?}");
            let answer = ask(bench.client(), to, speaks, &Ask::get("/chunks/300000"));
            assert_eq!(hash(&answer.body), hash(&pattern(300_000)));
            assert!(answer.header("content-length").is_none());
            // A length that was declared stays declared.
            let answer = ask(bench.client(), to, speaks, &Ask::get("/bytes/1234"));
            assert_eq!(answer.header("content-length"), Some("1234"));
            let answer = ask(bench.client(), to, speaks, &Ask::post("/up", whole.clone()));
            assert_eq!(answer.json()["hash"], hash(&whole));
            if speaks == Speaks::Http1 {
                assert_eq!(answer.sent("content-length"), Some(whole.len().to_string()));
            }
        }
    }
}

fn twenty_mebibytes_both_ways() {
    let bench = bench();
    let body = Bytes::from(pattern(20 << 20));
    let sum = hash(&body);
    for (place, to) in bench.both(DECLARED) {
        for speaks in VERSIONS {
            let answer = ask(bench.client(), to, speaks, &Ask::post("/up", body.clone()));
            let said = answer.json();
            assert_eq!(
                (&said["length"], &said["hash"]),
                (&body.len().into(), &sum.clone().into()),
                "{place}"
            );
            let answer = ask(
                bench.client(),
                to,
                speaks,
                &Ask::get(&format!("/bytes/{}", body.len())),
            );
            assert_eq!(answer.broken, None);
            assert_eq!(hash(&answer.body), sum, "{place} {speaks:?}");
        }
    }
}

fn trailers_both_ways() {
    let bench = bench();
    for (place, to) in bench.all() {
        for speaks in VERSIONS {
            let request = Ask::get("/trailers").header("te", "trailers");
            let answer = ask(bench.client(), to, speaks, &request);
            assert_eq!(answer.text(), "before the trailers");
            let sum = answer.trailers.as_ref().and_then(|t| t.get("x-sum"));
            assert_eq!(
                sum.map(|v| v.as_bytes()),
                Some(&b"42"[..]),
                "{place} {to} {speaks:?}: {answer:?}"
            );
            let request = Ask::post("/up", "body")
                .header("trailer", "x-check")
                .trailer("x-check", "7");
            let said = ask(bench.client(), to, speaks, &request).json();
            assert_eq!(said["length"], 4);
            assert_eq!(
                said["trailers"]["x-check"][0], "7",
                "{place} {to} {speaks:?}: {said}"
            );
        }
    }
}

fn grpc_unary_and_streams() {
    let bench = bench();
    let messages: Vec<Vec<u8>> = (0..30).map(|n| pattern(n * 100)).collect();
    let all: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    for (place, to) in bench.all() {
        for sent in [&all[1..2], &all[..]] {
            let answer = ask(
                bench.client(),
                to,
                Speaks::Http2,
                &Ask::grpc("/shop.v1.Stock/Echo", sent),
            );
            let expected: Vec<u8> = sent.iter().flat_map(|m| grpc_message(m)).collect();
            assert_eq!(
                (answer.status, answer.grpc_status()),
                (200, Some(0)),
                "{place} {to}"
            );
            assert_eq!(hash(&answer.body), hash(&expected), "{place} {to}");
        }
        let refused = Ask::grpc("/shop.v1.Stock/Echo", &all[1..2]).header("x-status", "9");
        let answer = ask(bench.client(), to, Speaks::Http2, &refused);
        assert_eq!(
            (answer.status, answer.grpc_status()),
            (200, Some(9)),
            "{place} {to}"
        );
    }
}

fn server_sent_events_arrive_one_by_one() {
    let bench = bench();
    for (place, to) in bench.all() {
        for speaks in VERSIONS {
            let mut connection = Connection::open(bench.client(), to, speaks).unwrap();
            let began = Instant::now();
            // As many as would take ten seconds: the first must not wait for the last.
            let mut opened = connection.start(&Ask::get("/events/500")).unwrap();
            let first = connection.next(&mut opened).unwrap().unwrap();
            assert_eq!(&first[..], b"data: 0\n\n", "{place} {to} {speaks:?}");
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{place} {to} {speaks:?}"
            );
        }
    }
}

fn websocket_messages() {
    let bench = bench();
    for (place, to) in bench.all() {
        let stream = traffic::connect(bench.client(), to).unwrap();
        let (mut socket, response) =
            tungstenite::client::client(format!("ws://{to}/chat"), stream).unwrap();
        assert_eq!(response.status().as_u16(), 101, "{place} {to}");
        for size in [0, 1, 200, 70_000, 1_000_000] {
            let message = Message::binary(pattern(size));
            socket.send(message.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), message, "{place} {to} {size}");
        }
        socket.send(Message::text("bye")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("bye"));
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    }
}

/// A raw exchange: what was sent, and all that came back before the end.
fn raw(from: &Pod, to: SocketAddr, bytes: &[u8]) -> (String, End) {
    let mut stream = traffic::connect(from, to).unwrap();
    stream.write_all(bytes).unwrap();
    let (got, end) = traffic::read_to_end(&stream);
    (String::from_utf8_lossy(&got).into_owned(), end)
}

/// Reads until the text ends so.
fn read_until(mut stream: &TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    let mut byte = [0];
    while !got.ends_with(end.as_bytes()) {
        match stream.read(&mut byte) {
            Ok(1) => got.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&got)),
        }
    }
    String::from_utf8(got).unwrap()
}

fn expectations_are_passed_on() {
    let bench = bench();
    for (place, to) in bench.all() {
        let mut stream = traffic::connect(bench.client(), to).unwrap();
        write!(
            stream,
            "POST /up HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        // Nothing of the body is sent before this.
        let interim = read_until(&stream, "\r\n\r\n");
        assert!(
            interim.starts_with("HTTP/1.1 100 "),
            "{place} {to}: {interim}"
        );
        stream.write_all(b"hello").unwrap();
        let (rest, end) = traffic::read_to_end(&stream);
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.starts_with("HTTP/1.1 200 "), "{place} {to}: {rest}");
        assert!(rest.contains(&hash(b"hello")), "{place} {to}: {rest}");
        assert_eq!(end, End::Fin);
    }
}

/// It closes its connection, or only ends its stream of HTTP/2: the server is told, and nobody asks it again.
fn a_client_that_goes_away_cancels() {
    let bench = bench();
    for (place, to) in bench.both(DECLARED) {
        let server = bench.server(place);
        for speaks in VERSIONS {
            let before = server.cancelled();
            let path = format!("/hang/{speaks:?}");
            let request = Ask::get(&path).within(Duration::from_secs(1));
            let mut connection = Connection::open(bench.client(), to, speaks).unwrap();
            assert!(connection.start(&request).is_err(), "it hangs");
            assert_eq!(server.seen(&path).len(), 1, "it was not sent twice");
            drop(connection);
            eventually(
                &format!("{place} is told, {speaks:?}"),
                Duration::from_secs(5),
                || server.cancelled() > before,
            );
        }
    }
}

/// Likewise with a reset, which no half-close is like.
fn a_reset_by_the_client_cancels() {
    let bench = bench();
    for (place, to) in bench.both(DECLARED) {
        let server = bench.server(place);
        let before = server.cancelled();
        let mut stream = traffic::connect(bench.client(), to).unwrap();
        let path = "/hang/reset";
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        eventually("it is asked", Duration::from_secs(5), || {
            !server.seen(path).is_empty()
        });
        traffic::reset(stream);
        eventually(&format!("{place} is told"), Duration::from_secs(5), || {
            server.cancelled() > before
        });
    }
}

fn curl(pod: &Pod, args: &[&str]) -> String {
    prereq::programs(&["curl"]);
    let mut all = vec!["-sS", "--fail", "--max-time", "20"];
    all.extend(args);
    command::stdout(pod, "curl", &all, Duration::from_secs(25))
}

fn curl_both_versions() {
    let bench = bench();
    let folder = run::folder().join(run::unique());
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("body");
    std::fs::write(&file, pattern(2 << 20)).unwrap();
    let upload = format!("@{}", file.display());
    for (place, to) in bench.all() {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let url = format!("http://{to}/curl");
            let said: serde_json::Value =
                serde_json::from_str(&curl(bench.client(), &[version, &url])).unwrap();
            assert_eq!(said["pod"], place, "{version} {to}");
            // More than a mebibyte: curl expects 100-continue on HTTP/1.1.
            let said: serde_json::Value = serde_json::from_str(&curl(
                bench.client(),
                &[version, "--data-binary", &upload, &url],
            ))
            .unwrap();
            assert_eq!(said["length"], 2 << 20, "{version} {to}");
            assert_eq!(said["hash"], hash(&pattern(2 << 20)), "{version} {to}");
            let said: serde_json::Value = serde_json::from_str(&curl(
                bench.client(),
                &[
                    version,
                    "-H",
                    "transfer-encoding: chunked",
                    "--data-binary",
                    &upload,
                    &url,
                ],
            ))
            .unwrap();
            assert_eq!(said["length"], 2 << 20, "{version} {to}");
            // Several on one connection. For HTTP/2 curl before 8.0.1 cannot, whatever the server is.
            if version == "--http1.1" {
                let format = "%{num_connects} ";
                let out = curl(
                    bench.client(),
                    &[
                        "-o",
                        "/dev/null",
                        "-w",
                        format,
                        &url,
                        "-o",
                        "/dev/null",
                        &url,
                    ],
                );
                assert_eq!(out, "1 0 ", "{to}: kept alive");
            }
        }
    }
}

fn nginx_behind_it() {
    let bench = bench();
    let _servers = ["near", "far"].map(|name| Nginx::start(bench.mesh.pod(name)));
    for (place, to) in bench.both(NGINX) {
        let url = format!("http://{to}/");
        let expected = format!("{place} {}\n", bench.client().v4);
        assert_eq!(curl(bench.client(), &["--http1.1", &url]), expected);
        let out = curl(bench.client(), &["--http1.1", &url, &url, &url]);
        assert_eq!(out, expected.repeat(3), "{place}");
        let answer = get(bench.client(), to, "/");
        assert!(
            answer.header("server").unwrap().starts_with("nginx"),
            "{answer:?}"
        );
        // A browser's way of two requests at once on one connection.
        let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let (got, end) = raw(bench.client(), to, request.as_bytes());
        assert_eq!(got.matches(expected.trim()).count(), 2, "{got}");
        assert_eq!(end, End::Fin);
    }
}

/// Servers that a test puts on one of the free ports of `near` and `far`, one test at a time.
fn on_port(bench: &Bench, port: u16, start: impl Fn(&Pod, SocketAddr) -> Server) -> [Server; 2] {
    ["near", "far"].map(|name| {
        let pod = bench.mesh.pod(name);
        start(pod, pod.v4(port))
    })
}

/// The free ports are one test's at a time.
static FREE_PORTS: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn one_at_a_time() -> std::sync::MutexGuard<'static, ()> {
    FREE_PORTS.lock().unwrap_or_else(|e| e.into_inner())
}

fn server_speaks_first_without_delay() {
    let bench = bench();
    let _one = one_at_a_time();
    let _servers = on_port(&bench, 8090, |pod, at| {
        Server::greeter(pod, at, "220 ready\r\n")
    });
    for (place, to) in bench.both(FREE) {
        // The first one makes the tunnel.
        for (n, most) in [2000, 500, 500].into_iter().enumerate() {
            let began = Instant::now();
            let stream = traffic::connect(bench.client(), to).unwrap();
            assert_eq!(read_until(&stream, "\r\n"), "220 ready\r\n");
            let took = began.elapsed();
            assert!(
                took < Duration::from_millis(most),
                "{place}, connection {n}: {took:?}"
            );
            assert_eq!(
                traffic::round_trip(&stream, b"EHLO me\r\n").unwrap(),
                b"EHLO me\r\n"
            );
        }
    }
}

fn a_slow_client_changes_nothing_for_the_next() {
    let bench = bench();
    for (place, to) in bench.both(UNDECLARED) {
        // It says nothing, or only the begin of a request, longer than any deadline of detection.
        let silent = traffic::connect(bench.client(), to).unwrap();
        let mut slow = traffic::connect(bench.client(), to).unwrap();
        slow.write_all(b"GE").unwrap();
        let began = Instant::now();
        let mut asked = 0;
        while began.elapsed() < Duration::from_secs(4) || asked < 20 {
            let answer = get(bench.client(), to, "/next");
            assert_eq!(answer.status, 200);
            assert!(
                answer.sent("x-request-id").is_some(),
                "{place}: read as HTTP: {answer:?}"
            );
            asked += 1;
        }
        // And the slow ones are served in the end.
        for (mut stream, rest) in [(slow, "T"), (silent, "GET")] {
            write!(
                stream,
                "{rest} /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            let (got, _) = traffic::read_to_end(&stream);
            let got = String::from_utf8_lossy(&got);
            assert!(got.starts_with("HTTP/1.1 200 "), "{place}: {got:?}");
        }
    }
}

fn not_http_on_a_declared_port() {
    let bench = bench();
    let agent = bench.mesh.agent_of("client");
    for port in [DECLARED, ROUTED] {
        for (place, to) in bench.both(port) {
            let requests = bench.server(place).connections();
            for bytes in [
                &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello"[..],
                b"SSH-2.0-OpenSSH_9.2\r\n",
                b"EHLO me\r\n\r\n",
            ] {
                let (got, end) = raw(bench.client(), to, bytes);
                assert!(
                    got.is_empty() || got.starts_with("HTTP/1.1 400 "),
                    "{place} {to}: {got:?}"
                );
                assert_ne!(end, End::Hang, "{place} {to}");
            }
            let _ = requests;
        }
    }
    eventually_some(
        "the reason is in the metric",
        Duration::from_secs(5),
        || {
            let counted = agent
                .metrics()
                .sum("mesh_connections_closed_total", &[("reason", "not_http")]);
            if counted >= 12.0 {
                Ok(())
            } else {
                Err(counted.to_string())
            }
        },
    );
}

fn other_protocols_on_an_undeclared_port() {
    let bench = bench();
    let _one = one_at_a_time();
    let _servers = on_port(&bench, 8090, |pod, at| Server::echo(pod, at));
    for (place, to) in bench.both(FREE) {
        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"GET",
            b"P",
            b"",
            b"GETTING THERE\r\n\r\n",
        ] {
            let stream = traffic::connect(bench.client(), to).unwrap();
            let got = traffic::round_trip(&stream, bytes).unwrap();
            assert_eq!(got, bytes, "{place}");
        }
        let stream = traffic::connect(bench.client(), to).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            traffic::read_to_end(&stream),
            (Vec::new(), End::Fin),
            "{place}"
        );
    }
    drop(_servers);
    for (_, to) in bench.both(FREE) {
        must_be_reset(bench.client(), to, Duration::from_secs(5));
    }
}

/// What one server reads as one request and another as two, or what names no host: answered, and never sent on.
fn smuggling_is_refused() {
    let bench = bench();
    let bad = [
        "POST /smuggle HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /smuggle HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        "POST /smuggle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST /smuggle HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "GET /smuggle HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "GET /smuggle HTTP/1.1\r\n\r\n",
        "GET /smuggle HTTP/1.1\r\nHost: x y\r\n\r\n",
        "GET /smuggle HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n",
        "GET /smuggle HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n",
    ];
    for (place, to) in bench.all() {
        for request in bad {
            let (got, end) = raw(bench.client(), to, request.as_bytes());
            assert!(
                got.starts_with("HTTP/1.1 400 "),
                "{place} {to} {request:?}: {got:?}"
            );
            assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{request:?}: {got:?}");
            assert_ne!(end, End::Hang, "{place} {to} {request:?}");
        }
        let seen = bench.server(place).seen("/smuggle");
        assert!(seen.is_empty(), "{place}: {seen:?}");
        // Chunks that are none break the request off after its head was good; nothing of it may look like a second one.
        let request = "POST /chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nGET /smuggle HTTP/1.1\r\n\r\n";
        let (got, end) = raw(bench.client(), to, request.as_bytes());
        assert!(!got.starts_with("HTTP/1.1 200 "), "{place} {to}: {got:?}");
        assert_ne!(end, End::Hang, "{place} {to}");
        assert!(bench.server(place).seen("/smuggle").is_empty(), "{place}");
    }
}
