//! WebSockets over HTTP/2 (RFC 8441): with and without a tunnel, to servers of either version, and to one that does not take them.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_tests::{
    Mesh, Pod, eventually_some,
    http::{Ask, Connection, HttpServer, Mode, Speaks, Stream, pattern},
    runner::Shared,
    tests,
    traffic::{self, PATIENCE},
};
use tokio_tungstenite::tungstenite::{
    self, Message, WebSocket,
    protocol::{CloseFrame, Role, frame::coding::CloseCode},
};

use crate::http_common::{field, id, log_line, vip};

static BENCH: Shared<Bench> = Shared::new();

tests! {
    messages_over_http2,
    either_side_may_end_first,
    from_http1_to_http2,
    refused_where_the_server_does_not_announce_it,
    other_requests_share_the_connection,
}

pub(crate) fn teardown() {
    BENCH.clear();
}

struct Bench {
    servers: Vec<(&'static str, HttpServer)>,
    mesh: Mesh,
}

/// Where a server is: behind another agent, behind the client's own, behind none.
const PLACES: [&str; 3] = ["far", "near", "out"];
/// What its port is declared as: what the client speaks, or HTTP/2.
const AS_IT_COMES: u16 = 80;
const HTTP2: u16 = 81;
/// Each for one test's own servers.
const UNANNOUNCED: [u16; 2] = [82, 83];
const GONE: u16 = 84;
const SHARED: u16 = 85;

fn at(place: &str, port: u16) -> SocketAddr {
    let n = PLACES.iter().position(|other| *other == place);
    vip(n.expect("a place") as u8 + 1, port)
}

/// Without a selector, so that the endpoint may be of the mesh or not.
fn document(place: &str, pod: &Pod) -> String {
    let n = at(place, 0).ip();
    let ports = [
        (AS_IT_COMES, 8080, "http"),
        (HTTP2, 8080, "http2"),
        (UNANNOUNCED[0], 8090, "http"),
        (UNANNOUNCED[1], 8090, "http2"),
        (GONE, 8091, "http"),
        (SHARED, 8092, "http2"),
    ];
    let list = |what: &dyn Fn(&(u16, u16, &str)) -> String| {
        ports.iter().map(what).collect::<Vec<_>>().join(", ")
    };
    let declared = list(&|(port, _, protocol)| {
        format!("{{name: p{port}, port: {port}, appProtocol: {protocol}}}")
    });
    let served = list(&|(port, target, _)| format!("{{name: p{port}, port: {target}}}"));
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {place}, namespace: shop}}\nspec: {{clusterIPs: [{n}], ports: [{declared}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {place}-1, namespace: shop, labels: \
         {{kubernetes.io/service-name: {place}}}}}\naddressType: IPv4\nendpoints: [{{addresses: [\"{}\"]}}]\nports: [{served}]\n",
        pod.v4
    )
}

fn bench() -> Arc<Bench> {
    BENCH.get(|| {
        let mut mesh = Mesh::plan(2)
            .pods(0, &["client", "near"])
            .pod(1, "far")
            .outsider(1, "out")
            .prepare();
        for place in PLACES {
            mesh.config
                .put(&format!("{place}.yaml"), &document(place, mesh.pod(place)));
        }
        mesh.start_agents();
        let servers = PLACES.map(|place| {
            let pod = mesh.pod(place);
            (place, HttpServer::start(pod, pod.v4(8080), place))
        });
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

    fn server(&self, place: &str) -> &HttpServer {
        let found = self.servers.iter().find(|(name, _)| *name == place);
        &found.expect("a place").1
    }

    fn open(&self, to: SocketAddr, id: &str) -> Stream {
        Stream::websocket(self.client(), to, "/chat?room=1", id)
            .unwrap_or_else(|e| panic!("{to}: {e}"))
    }
}

/// The mesh changes nothing of what WebSockets say; so the peer is the client's own.
fn socket(stream: Stream) -> WebSocket<Stream> {
    assert_eq!(stream.status(), 200, "{stream:?}");
    for name in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!stream.response.headers().contains_key(name), "{stream:?}");
    }
    WebSocket::from_raw_socket(stream, Role::Client, None)
}

fn messages_over_http2() {
    let bench = bench();
    for place in PLACES {
        for port in [AS_IT_COMES, HTTP2] {
            let id = id("chat");
            let mut socket = socket(bench.open(at(place, port), &id));
            let (mut up, mut down) = (0, 0);
            for size in [0, 1, 200, 70_000, 1_000_000] {
                let message = Message::binary(pattern(size));
                socket.send(message.clone()).unwrap();
                assert_eq!(socket.read().unwrap(), message, "{place} {port} {size}");
                up += size;
                down += size;
            }
            socket.close(None).unwrap();
            while socket.read().is_ok() {}
            socket.get_mut().finish().unwrap();
            let seen = bench.server(place).seen("/chat");
            let seen = seen
                .iter()
                .find(|s| s.headers["x-request-id"] == id.as_str())
                .unwrap();
            assert_eq!(
                (seen.method.as_str(), seen.path.as_str()),
                ("CONNECT", "/chat?room=1")
            );
            let line = log_line(bench.mesh.agent_of("client"), "outbound", &id);
            for (name, value) in [
                ("response_code", "200"),
                ("reason", "completed"),
                ("method", "CONNECT"),
            ] {
                assert_eq!(field(&line, name), value, "{place} {port}: {line}");
            }
            let bytes = |name: &str| field(&line, name).parse::<usize>().unwrap();
            assert!(
                bytes("request_bytes") > up && bytes("response_bytes") > down,
                "{line}"
            );
        }
    }
}

fn either_side_may_end_first() {
    let bench = bench();
    for place in PLACES {
        // The client says that it has said all; the answers still come, and then the server's end.
        let mut stream = bench.open(at(place, AS_IT_COMES), &id("half"));
        let mut frame = Vec::new();
        let mut writer =
            WebSocket::from_raw_socket(std::io::Cursor::new(&mut frame), Role::Client, None);
        writer.send(Message::text("last words")).unwrap();
        drop(writer);
        stream.write_all(&frame).unwrap();
        stream.finish().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got.ends_with(b"last words"), "{place}: {got:?}");
        // The closing handshake of WebSockets, with its code and reason.
        let mut socket = socket(bench.open(at(place, AS_IT_COMES), &id("close")));
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: "done".into(),
        };
        socket.close(Some(frame.clone())).unwrap();
        match socket.read() {
            Ok(Message::Close(Some(back))) => assert_eq!(back, frame, "{place}"),
            other => panic!("{place}: {other:?}"),
        }
        // The server goes away without a word.
        let pod = bench.mesh.pod(place);
        let server = HttpServer::start(pod, pod.v4(8091), place);
        let mut stream = bench.open(at(place, GONE), &id("gone"));
        assert_eq!(stream.status(), 200, "{place}: {stream:?}");
        drop(server);
        let end = stream.read(&mut [0; 16]);
        assert!(!matches!(end, Ok(1..)), "{place}: {end:?}");
        let timed_out = end
            .as_ref()
            .is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut);
        assert!(!timed_out, "{place}: it hangs for {PATIENCE:?}");
    }
}

/// A client that speaks HTTP/1.1, to a port that is declared as HTTP/2.
fn from_http1_to_http2() {
    let bench = bench();
    for place in PLACES {
        let to = at(place, HTTP2);
        let stream = traffic::connect(bench.client(), to).unwrap();
        let (mut socket, response) =
            tungstenite::client::client(format!("ws://{to}/chat?from=1"), stream).unwrap();
        assert_eq!(response.status().as_u16(), 101, "{place}");
        for size in [1, 70_000] {
            let message = Message::binary(pattern(size));
            socket.send(message.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), message, "{place} {size}");
        }
        let seen = bench.server(place).seen("/chat?from=1");
        assert!(
            seen.iter().all(|s| s.method == "CONNECT"),
            "{place}: {seen:?}"
        );
    }
}

fn refused_where_the_server_does_not_announce_it() {
    let bench = bench();
    for place in PLACES {
        let pod = bench.mesh.pod(place);
        let server = HttpServer::start(pod, pod.v4(8090), place);
        server.set(Mode::NoConnect);
        for port in UNANNOUNCED {
            let to = at(place, port);
            let id = id("unannounced");
            let stream = bench.open(to, &id);
            assert_eq!(stream.status(), 502, "{place} {port}: {stream:?}");
            let said = stream.response.headers()["proxy-status"].to_str().unwrap();
            assert!(
                said.contains("error=http_protocol_error"),
                "{place}: {said}"
            );
            assert!(said.contains("upstream_protocol"), "{place}: {said}");
            let line = log_line(bench.mesh.agent_of("client"), "outbound", &id);
            assert_eq!(
                field(&line, "response_code"),
                "502",
                "{place} {port}: {line}"
            );
            // It serves what it does take.
            let mut kept = Connection::open(bench.client(), to, Speaks::Http2).unwrap();
            assert_eq!(
                kept.send(&Ask::get("/other")).unwrap().status,
                200,
                "{place} {port}"
            );
        }
        assert_eq!(
            server.seen("/chat").len(),
            0,
            "{place}: it was asked all the same"
        );
    }
    // Nobody is there at all: the usual answer.
    let stream = bench.open(at("far", UNANNOUNCED[1]), &id("nobody"));
    assert_eq!(stream.status(), 502, "{stream:?}");
}

/// A WebSocket is one stream of a connection on which requests go on, and the last thing that ends on it may be either.
fn other_requests_share_the_connection() {
    let bench = bench();
    for place in PLACES {
        let pod = bench.mesh.pod(place);
        let server = HttpServer::start(pod, pod.v4(8092), place);
        let to = at(place, SHARED);
        let mut kept = Connection::open(bench.client(), to, Speaks::Http2).unwrap();
        assert_eq!(kept.send(&Ask::get("/before")).unwrap().status, 200);
        let mut socket = socket(bench.open(to, &id("shares")));
        for n in 0..20 {
            let message = Message::text(format!("{n}"));
            socket.send(message.clone()).unwrap();
            assert_eq!(
                kept.send(&Ask::get("/beside")).unwrap().status,
                200,
                "{place}"
            );
            assert_eq!(socket.read().unwrap(), message, "{place}");
        }
        drop(socket);
        assert_eq!(kept.send(&Ask::get("/after")).unwrap().status, 200);
        eventually_some("requests share", Duration::from_secs(5), || {
            // The agent in front of the application keeps clients apart.
            match server.connections() {
                1 | 2 => Ok(()),
                n => Err(format!("{place}: {n} connections")),
            }
        });
    }
}
