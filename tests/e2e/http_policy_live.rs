//! A change of AuthorizationPolicy ends the requests that lose by it, whatever they are, and no others.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use mesh_tests::{
    Mesh, Pod, eventually, eventually_some,
    http::{self, Answer, Ask, Connection, HttpServer, Speaks, Stream, client::grpc_message},
    runner, tests,
    traffic::{self, End},
};
use tokio_tungstenite::tungstenite::{self, ClientRequestBuilder, Message, WebSocket};

use crate::http_common::{field, id, log_line, service, vip};

tests! {
    a_change_ends_what_is_under_way(deadline = 120),
}

pub(crate) fn teardown() {}

/// What one client has under way, each with a request ID of its own.
struct UnderWay {
    events: (Connection, http::client::Opened, String),
    chat: (WebSocket<TcpStream>, String),
    grpc: (Stream, String),
    /// Nothing of its answer has come yet.
    waits: (JoinHandle<std::io::Result<Answer>>, String),
    /// A connection that rests.
    kept: Connection,
}

impl UnderWay {
    fn start(pod: &Arc<Pod>, to: SocketAddr) -> UnderWay {
        let ids = ["events", "chat", "grpc", "waits"].map(id);
        let mut connection = Connection::open(pod, to, Speaks::Http1).unwrap();
        let request = Ask::get("/events/1000000").header("x-request-id", &ids[0]);
        let opened = connection.start(&request).unwrap();
        let stream = traffic::connect(pod, to).unwrap();
        let request = ClientRequestBuilder::new(format!("ws://{to}/chat").parse().unwrap())
            .with_header("x-request-id", &ids[1]);
        let (chat, _) = tungstenite::client::client(request, stream).unwrap();
        let grpc = Stream::grpc(pod, to, "/shop.Cart/Watch", &ids[2], b"first").unwrap();
        let (owner, from, waiting) = (runner::current(), Arc::clone(pod), ids[3].clone());
        let waits = std::thread::spawn(move || {
            runner::adopt(owner);
            let request = Ask::get("/hang").header("x-request-id", &waiting);
            http::ask(&from, to, Speaks::Http1, &request)
        });
        let mut kept = Connection::open(pod, to, Speaks::Http1).unwrap();
        assert_eq!(kept.send(&Ask::get("/kept")).unwrap().status, 200);
        let [a, b, c, d] = ids;
        let mut this = UnderWay {
            events: (connection, opened, a),
            chat: (chat, b),
            grpc: (grpc, c),
            waits: (waits, d),
            kept,
        };
        let mut first = [0_u8; 10];
        this.grpc.0.read_exact(&mut first).unwrap();
        assert_eq!(&first, &grpc_message(b"first")[..]);
        this.goes_on();
        this
    }

    fn goes_on(&mut self) {
        let (connection, opened, _) = &mut self.events;
        assert!(connection.next(opened).unwrap().is_some());
        let message = Message::text("still there?");
        self.chat.0.send(message.clone()).unwrap();
        assert_eq!(self.chat.0.read().unwrap(), message);
        let message = grpc_message(b"still there?");
        self.grpc.0.write_all(&message).unwrap();
        let mut got = vec![0_u8; message.len()];
        self.grpc.0.read_exact(&mut got).unwrap();
        assert_eq!(got, message);
        assert!(!self.waits.0.is_finished());
        assert_eq!(self.kept.send(&Ask::get("/kept")).unwrap().status, 200);
    }

    /// All of it ends, and not as if it had come to its end.
    fn ends(mut self) -> Connection {
        let (connection, opened, _) = &mut self.events;
        loop {
            match connection.next(opened) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the events ended in order"),
                Err(e) => {
                    assert!(!e.to_string().contains("rests"), "{e}");
                    break;
                }
            }
        }
        // No closing frame: the mesh does not speak for the application.
        match self.chat.0.read() {
            Err(tungstenite::Error::Io(e)) => assert_ne!(End::of(&e), End::Hang, "{e}"),
            Err(tungstenite::Error::Protocol(_) | tungstenite::Error::ConnectionClosed) => {}
            other => panic!("{other:?}"),
        }
        let e = self.grpc.0.read(&mut [0]).expect_err("the stream is reset");
        assert_ne!(End::of(&e), End::Hang, "{e}");
        let answer = self.waits.0.join().unwrap().unwrap();
        assert_eq!(
            (answer.status, answer.reason().as_deref()),
            (403, Some("policy_denied")),
            "{answer:?}"
        );
        self.kept
    }

    fn ids(&self) -> [String; 4] {
        let ids = [&self.events.2, &self.chat.1, &self.grpc.1, &self.waits.1];
        ids.map(Clone::clone)
    }
}

fn deny(rules: &str) -> String {
    format!("  selector: {{matchLabels: {{app: live}}}}\n  action: DENY\n  rules: [{rules}]")
}

fn a_change_ends_what_is_under_way() {
    let mesh = Mesh::plan(2)
        .pod(0, "client")
        .pod_of(0, "reader", "office", "reader")
        .outsider(0, "ext")
        .pod(1, "live")
        .file(
            "service-live.yaml",
            &service("shop", "live", 1, "live", &[(80, 8080, "http")]),
        )
        .start();
    let live = mesh.pod("live");
    let _server = HttpServer::start(live, live.v4(8080), "live");
    let to = vip(1, 80);
    let loses = UnderWay::start(mesh.pod("client"), to);
    let mut wins = UnderWay::start(mesh.pod("reader"), to);
    let plain = UnderWay::start(mesh.pod("ext"), live.v4(8080));
    let ids = [loses.ids(), plain.ids()].concat();
    // All but what comes from the office.
    mesh.config.authorization(
        "shop",
        "live",
        &deny(
            "{from: [{source: {notNamespaces: [office]}}], to: [{operation: {ports: [8080], \
             paths: [\"/events/*\", /chat, \"/shop.Cart/*\", /hang]}}]}",
        ),
    );
    let mut kept = [loses.ends(), plain.ends()];
    wins.goes_on();
    let agent = mesh.agent_of("live");
    for id in ids {
        let line = log_line(agent, "inbound", &id);
        assert_eq!(field(&line, "reason"), "policy_denied", "{line}");
        assert_eq!(field(&line, "policy"), "shop/live", "{line}");
    }
    // Connections on which something else may be asked are still there.
    for connection in &mut kept {
        let answer = connection.send(&Ask::get("/kept")).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = connection.send(&Ask::get("/events/1")).unwrap();
        assert_eq!(
            answer.reason().as_deref(),
            Some("policy_denied"),
            "{answer:?}"
        );
    }
    // Nothing may be asked any more: the connection itself goes.
    let resting = traffic::connect(mesh.pod("ext"), live.v4(8080)).unwrap();
    (&resting)
        .write_all(b"GET /kept HTTP/1.1\r\nhost: live\r\n\r\n")
        .unwrap();
    assert_ne!((&resting).read(&mut [0; 4096]).unwrap(), 0);
    mesh.config.authorization(
        "shop",
        "live",
        &deny("{from: [{source: {notNamespaces: [office]}}]}"),
    );
    let (rest, end) = traffic::read_to_end(&resting);
    assert!(!String::from_utf8_lossy(&rest).contains("403"), "{rest:?}");
    assert_eq!(end, End::Reset);
    let [mut tunnelled, _] = kept;
    eventually_some("the tunnel's end", Duration::from_secs(5), || {
        let answer = tunnelled
            .send(&Ask::get("/kept"))
            .map_err(|e| e.to_string())?;
        match answer.reason().as_deref() {
            Some("denied_by_peer") if answer.status == 403 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    });
    wins.goes_on();
    mesh.config.no_authorization("shop", "live");
    eventually("allowed again", Duration::from_secs(10), || {
        tunnelled
            .send(&Ask::get("/kept"))
            .is_ok_and(|a| a.status == 200)
    });
}
