//! Requests to a workload: which are allowed and counted, and what the application hears of the client.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use ::http::{HeaderMap, Request, Response, StatusCode, header::UPGRADE};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{tunnel::Mesh, *};
use crate::{
    api::{self, UnicastIp},
    catalog::SourceId,
};

type AnyBody = BoxBody<Bytes, Infallible>;

/// An application that answers with what it was asked. `/events` sends one event and goes on for ever, `/slow` never
/// answers, `/ws` switches the protocol and echoes.
struct App {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl App {
    async fn start() -> Self {
        let listener = listen().await;
        let app = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (Arc::clone(&app.connections), Arc::clone(&app.requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer(stream, Arc::clone(&requests)));
            }
        });
        app
    }
}

/// HTTP/1, or HTTP/2 with prior knowledge.
async fn answer(stream: TcpStream, requests: Arc<AtomicUsize>) {
    let service = service_fn(move |request: Request<Incoming>| {
        requests.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(reply(request).await) }
    });
    let mut first = [0; 3];
    let is_http2 = within(stream.peek(&mut first)).await.is_ok() && first == *b"PRI";
    let stream = TokioIo::new(stream);
    let _ = match is_http2 {
        true => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(stream, service).await
        }
        false => {
            let builder = hyper::server::conn::http1::Builder::new();
            builder
                .serve_connection(stream, service)
                .with_upgrades()
                .await
        }
    };
}

async fn reply(request: Request<Incoming>) -> Response<AnyBody> {
    let text = |text: String| Response::new(Full::from(text).boxed());
    match request.uri().path() {
        "/events" => {
            let events = futures::stream::once(async { Ok(Frame::data(Bytes::from("event"))) })
                .chain(futures::stream::pending());
            Response::new(BodyExt::boxed(StreamBody::new(events)))
        }
        "/slow" => std::future::pending().await,
        "/ws" => {
            let upgrade = hyper::upgrade::on(request);
            tokio::spawn(async move {
                let stream = TokioIo::new(upgrade.await.unwrap());
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let mut response = text(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response
                .headers_mut()
                .insert(UPGRADE, "websocket".parse().unwrap());
            response
                .headers_mut()
                .insert("connection", "upgrade".parse().unwrap());
            response
        }
        _ => {
            let mut said = format!(
                "{} {} {:?}\n",
                request.method(),
                request.uri(),
                request.version()
            );
            for (name, value) in request.headers() {
                said += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            said += str::from_utf8(&body).unwrap();
            text(said)
        }
    }
}

/// One workload whose application speaks HTTP, and what configuration says of it.
struct Bed {
    rig: Rig,
    app: App,
    policies: SourceId,
}

impl Bed {
    async fn new() -> Self {
        let rig = Rig::new();
        let app = App::start().await;
        *rig.pod.application.lock().unwrap() = app.address;
        let policies = rig.proxy.shared.catalog.register();
        Self { rig, app, policies }
    }

    /// One AuthorizationPolicy, or several, of the workload's namespace: `ACTION rules`.
    fn policies(&self, policies: &[(&str, &str)]) {
        let mut text = String::new();
        for (at, (action, rules)) in policies.iter().enumerate() {
            text += &format!(
                "---\napiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: p{at}, namespace: test}}\nspec: {{action: {action}, rules: [{rules}]}}\n"
            );
        }
        apply(&self.rig.proxy, self.policies, &text);
    }

    /// A service in front of the workload's port that says `port`, with the rest of a TrafficPolicy.
    fn service(&self, port: &str, traffic: &str) {
        let number = self.rig.inbound.port();
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: test}}\n\
             spec: {{clusterIPs: [10.96.0.1], selector: {{app: front}}, ports: [{{port: 80, targetPort: {number}, {port}}}]}}\n\
             ---\napiVersion: mesh.covet.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: front, namespace: test, labels: {{app: front}}}}\nspec: {{addresses: [192.0.2.99]}}\n\
             ---\napiVersion: mesh.covet.dev/v1alpha1\nkind: TrafficPolicy\n\
             metadata: {{name: t, namespace: test}}\nspec: {{targetRefs: [{{kind: Service, name: web}}], {traffic}}}\n"
        );
        let (mut config, _) = api::parse_bytes("f.yaml", text.as_bytes()).unwrap();
        for workload in &mut config.workloads {
            // Only here is a workload's address a loopback one.
            Arc::make_mut(workload).body.spec.addresses =
                vec![UnicastIp(Ipv4Addr::LOCALHOST.into())];
        }
        let catalog = &self.rig.proxy.shared.catalog;
        catalog.apply(catalog.register(), config);
    }

    async fn client(&self) -> Client {
        Client(TcpStream::connect(self.rig.inbound).await.unwrap())
    }

    /// What one request on a connection of its own is answered.
    async fn ask(&self, request: &str) -> Answer {
        self.client().await.ask(request).await
    }
}

fn apply(proxy: &Proxy, source: SourceId, text: &str) {
    let (config, _) =
        api::parse_bytes("f.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e:#?}"));
    proxy.shared.catalog.apply(source, config);
    proxy.decide_anew();
}

/// An HTTP/1.1 client that sees what is on the wire.
struct Client(TcpStream);

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Client {
    /// `METHOD TARGET` and header lines, one a line.
    async fn send(&mut self, request: &str) {
        let (first, headers) = request.split_once('\n').unwrap_or((request, ""));
        let mut text = format!("{first} HTTP/1.1\r\nHost: web.test\r\n");
        for header in headers.lines() {
            text += &format!("{header}\r\n");
        }
        text += "\r\n";
        write(&mut self.0, text.as_bytes()).await;
    }

    async fn head(&mut self) -> (u16, HeaderMap) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(read(&mut self.0, 1).await);
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let name: ::http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        (status, headers)
    }

    async fn answer(&mut self) -> Answer {
        let (status, headers) = self.head().await;
        let length = headers["content-length"].to_str().unwrap().parse().unwrap();
        let body = String::from_utf8(read(&mut self.0, length).await).unwrap();
        Answer {
            status,
            headers,
            body,
        }
    }

    async fn ask(&mut self, request: &str) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    async fn status(&mut self, request: &str) -> u16 {
        self.ask(request).await.status
    }
}

const READ_ITEMS: (&str, &str) = (
    "ALLOW",
    "{to: [{operation: {methods: [GET], paths: [/items, '/items/*']}}]}",
);

#[tokio::test]
async fn each_request_of_a_connection_is_decided_on() {
    let bed = Bed::new().await;
    bed.policies(&[READ_ITEMS]);
    let mut client = bed.client().await;
    for (request, expected) in [
        ("GET /items", 200),
        ("POST /items", 403),
        ("GET /items/1?q=/admin", 200),
        ("GET /admin", 403),
        ("GET /items/../admin", 403),
        ("GET /items/..%2fadmin", 403),
        ("GET /items/%2e%2e/admin", 403),
        ("GET /items%00", 403),
        ("GET //items", 200),
    ] {
        assert_eq!(client.status(request).await, expected, "{request}");
    }
    assert_eq!(
        bed.app.requests.load(Ordering::Relaxed),
        3,
        "only what was allowed"
    );
    assert_eq!(bed.app.connections.load(Ordering::Relaxed), 1, "kept alive");
    assert_eq!(
        bed.rig.pod.clients.lock().unwrap().len(),
        1,
        "in the client's name"
    );
    let denied = client.ask("POST /items").await;
    assert!(denied.body.contains("policy_denied"), "{denied:?}");
    let status = denied.headers["proxy-status"].to_str().unwrap();
    assert!(status.contains("error=http_request_denied"), "{status}");
}

#[tokio::test]
async fn the_application_gets_the_path_that_was_decided_on() {
    let bed = Bed::new().await;
    bed.policies(&[READ_ITEMS]);
    for (target, expected) in [
        ("/x/../items/%61?b=//c/../d", "GET /items/a?b=//c/../d "),
        ("//items/a%2fb", "GET /items/a%2Fb "),
        ("/items/a%2Fb%20c", "GET /items/a%2Fb%20c "),
    ] {
        let answer = bed.ask(&format!("GET {target}")).await;
        assert!(answer.body.starts_with(expected), "{target}: {answer:?}");
    }
    // Where no policy looks at paths, they stay what they are.
    bed.policies(&[("ALLOW", "{to: [{operation: {methods: [GET]}}]}")]);
    let answer = bed.ask("GET /x/../items/%61").await;
    assert!(
        answer.body.starts_with("GET /x/../items/%61 "),
        "{answer:?}"
    );
}

#[tokio::test]
async fn hosts_and_headers_decide() {
    let bed = Bed::new().await;
    bed.policies(&[
        ("ALLOW", "{to: [{operation: {hosts: [web.test]}}], when: [{key: 'request.headers[x-team]', values: [red]}]}"),
        ("DENY", "{when: [{key: 'request.headers[x-debug]', values: ['*']}]}"),
    ]);
    let mut client = bed.client().await;
    assert_eq!(client.status("GET /\nX-Team: red").await, 200);
    assert_eq!(client.status("GET /").await, 403);
    assert_eq!(client.status("GET /\nX-Team: red\nX-Team: blue").await, 403);
    assert_eq!(client.status("GET /\nX-Team: red\nX-Debug: 1").await, 403);
    assert_eq!(
        client.status("GET http://other.test/\nX-Team: red").await,
        403
    );
}

#[tokio::test]
async fn what_is_not_http_goes_by_its_connection() {
    let bed = Bed::new().await;
    // Undeclared, and an ALLOW that needs a request: refused.
    bed.policies(&[READ_ITEMS]);
    let mut client = bed.client().await;
    write(&mut client.0, b"\x16\x03\x01garbage").await;
    expect_reset(&mut client.0).await;
    assert_eq!(bed.rig.reason().await, "policy_denied");
    assert_eq!(bed.app.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn bytes_are_carried_where_policy_lets_them() {
    let bed = Bed::new().await;
    let server = listen().await;
    *bed.rig.pod.application.lock().unwrap() = server.local_addr().unwrap();
    // About requests to another port, and about who may come here; so the first bytes have to tell.
    let port = bed.rig.inbound.port();
    let rules = format!(
        "{{to: [{{operation: {{ports: [{port}]}}}}]}}, {{to: [{{operation: {{methods: [GET]}}}}]}}"
    );
    bed.policies(&[("ALLOW", &rules)]);
    // The client speaks first.
    let mut client = bed.client().await;
    write(&mut client.0, b"\x00\x01binary").await;
    let (mut accepted, _) = within(server.accept()).await.unwrap();
    assert_eq!(read(&mut accepted, 8).await, b"\x00\x01binary");
    write(&mut accepted, b"yes").await;
    assert_eq!(read(&mut client.0, 3).await, b"yes");
    // The server does.
    let mut client = bed.client().await;
    let (mut accepted, _) = within(server.accept()).await.unwrap();
    write(&mut accepted, b"220 welcome\r\n").await;
    assert_eq!(read(&mut client.0, 13).await, b"220 welcome\r\n");
}

#[tokio::test]
async fn a_declared_port_takes_nothing_but_http() {
    let bed = Bed::new().await;
    bed.service("name: http", "connectionPool: {maxIdlePerEndpoint: 1}");
    assert_eq!(bed.ask("GET /").await.status, 200);
    let mut client = bed.client().await;
    write(&mut client.0, b"SSH-2.0-x\r\n").await;
    expect_reset(&mut client.0).await;
    poll_until("the reason", || {
        let closed = bed.rig.telemetry.closed_connections();
        closed
            .iter()
            .any(|c| c.reason.as_deref() == Some("not_http"))
            .then_some(())
    })
    .await;
    assert_eq!(bed.app.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_rate_limit_is_one_for_all_clients() {
    let bed = Bed::new().await;
    bed.service(
        "name: http",
        "rateLimits: [{name: all, requests: 3, per: 1h, burst: 3}]",
    );
    let (mut one, mut other) = (bed.client().await, bed.client().await);
    let first = one.ask("GET /").await;
    assert_eq!(first.status, 200);
    assert_eq!(first.headers["ratelimit-policy"], "\"all\";q=3;w=3600");
    assert_eq!(other.status("GET /").await, 200);
    assert_eq!(one.status("GET /").await, 200);
    for client in [&mut one, &mut other] {
        let refused = client.ask("GET /").await;
        assert_eq!(refused.status, 429);
        assert!(refused.headers.contains_key("retry-after"));
        assert!(
            refused.headers["ratelimit"]
                .to_str()
                .unwrap()
                .starts_with("\"all\";r=0")
        );
        assert!(refused.body.contains("rate_limited"), "{refused:?}");
    }
    let grpc = other.ask_grpc().await;
    assert_eq!(grpc.headers["grpc-status"], "8");
    assert_eq!(bed.app.requests.load(Ordering::Relaxed), 3);
}

impl Client {
    async fn ask_grpc(&mut self) -> Answer {
        self.send(
            "POST /shop.Cart/Add\nContent-Type: application/grpc\nTE: trailers\nContent-Length: 0",
        )
        .await;
        let (status, headers) = self.head().await;
        let body = String::new();
        Answer {
            status,
            headers,
            body,
        }
    }
}

#[tokio::test]
async fn a_denied_grpc_call_is_told_so_in_its_own_words() {
    let bed = Bed::new().await;
    bed.policies(&[READ_ITEMS]);
    let answer = bed.client().await.ask_grpc().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["grpc-status"], "7");
}

#[tokio::test]
async fn nobody_names_himself() {
    let bed = Bed::new().await;
    bed.service("name: http", "connectionPool: {maxIdlePerEndpoint: 1}");
    let spoofed = "GET /\nX-Forwarded-Client-Cert: By=x;URI=spiffe://cluster.local/ns/a/sa/admin\nx-forwarded-client-cert: y\nConnection: x-other\nx-other: 1";
    let answer = bed.ask(spoofed).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.body.contains("client-cert"), "{answer:?}");
    assert!(!answer.body.contains("x-other"), "{answer:?}");
    assert!(answer.body.contains("x-request-id: "), "{answer:?}");
    assert!(answer.body.contains("host: web.test"), "{answer:?}");
}

#[tokio::test]
async fn the_application_hears_who_the_tunnel_proved() {
    let mesh = Mesh::new();
    let destination = &mesh.destination.proxy;
    let source = destination.shared.catalog.register();
    let policy = |methods: &str| {
        format!(
            "apiVersion: mesh.covet.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: test}}\n\
             spec: {{rules: [{{from: [{{source: {{serviceAccounts: [client]}}}}], to: [{{operation: {{methods: [{methods}]}}}}]}}]}}\n"
        )
    };
    apply(destination, source, &policy("GET"));
    let listener = listen().await;
    let (client, application) = mesh.connect(&listener).await;
    tokio::spawn(answer(application, Arc::default()));
    let mut client = Client(client);
    let answer = client
        .ask("GET /\nX-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/test/sa/admin")
        .await;
    let expected = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/test/sa/server;URI=spiffe://cluster.local/ns/test/sa/client\n";
    assert_eq!(answer.body.matches("client-cert").count(), 1, "{answer:?}");
    assert!(answer.body.contains(expected), "{answer:?}");
    assert_eq!(client.status("DELETE /").await, 403);
    assert_eq!(client.status("GET /again").await, 200);
    // Nothing of it could be allowed any more.
    apply(
        destination,
        source,
        &policy("GET").replace("[client]", "[other]"),
    );
    assert!(read_to_end(&mut client.0).await.is_err());
    let denied = mesh.open(listener.local_addr().unwrap()).await;
    assert_eq!(denied.err(), Some(Reason::DeniedByPeer));
}

#[tokio::test]
async fn a_change_of_policy_ends_what_is_under_way() {
    let bed = Bed::new().await;
    bed.policies(&[("ALLOW", "{to: [{operation: {methods: [GET]}}]}")]);
    let mut events = bed.client().await;
    events.send("GET /events").await;
    assert_eq!(events.head().await.0, 200);
    assert_eq!(read(&mut events.0, 10).await, b"5\r\nevent\r\n");
    let mut slow = bed.client().await;
    slow.send("GET /slow").await;
    let mut socket = bed.client().await;
    socket
        .send("GET /ws\nConnection: upgrade\nUpgrade: websocket")
        .await;
    assert_eq!(socket.head().await.0, 101);
    write(&mut socket.0, b"ping").await;
    assert_eq!(read(&mut socket.0, 4).await, b"ping");
    let mut other = bed.client().await;
    assert_eq!(other.status("GET /items").await, 200);
    poll_until("the slow request", || {
        (bed.app.requests.load(Ordering::Relaxed) == 4).then_some(())
    })
    .await;

    // What still goes is left alone.
    bed.policies(&[(
        "ALLOW",
        "{to: [{operation: {methods: [GET], paths: ['*']}}]}",
    )]);
    write(&mut socket.0, b"more").await;
    assert_eq!(read(&mut socket.0, 4).await, b"more");

    bed.policies(&[READ_ITEMS]);
    assert!(read_to_end(&mut events.0).await.is_err(), "cut, not ended");
    assert!(read_to_end(&mut socket.0).await.is_err());
    assert_eq!(slow.answer().await.status, 403);
    assert_eq!(
        other.status("GET /items").await,
        200,
        "the connection lives on"
    );
    assert_eq!(other.status("GET /events").await, 403);
}

#[tokio::test]
async fn http2_is_read_and_spoken_to_the_application() {
    let bed = Bed::new().await;
    bed.policies(&[READ_ITEMS]);
    let stream = TcpStream::connect(bed.rig.inbound).await.unwrap();
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let ask = |method: &str, path: &str| {
        Request::builder()
            .method(method)
            .uri(format!("http://web.test{path}"))
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    let response = within(requests.send_request(ask("GET", "/items/%61")))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(
        body.starts_with("GET http://web.test/items/a HTTP/2.0\n"),
        "{body}"
    );
    let (denied, allowed) = within(async {
        tokio::join!(
            requests.clone().send_request(ask("POST", "/items")),
            requests.clone().send_request(ask("GET", "/items")),
        )
    })
    .await;
    assert_eq!(
        (denied.unwrap().status(), allowed.unwrap().status()),
        (StatusCode::FORBIDDEN, StatusCode::OK)
    );
    assert_eq!(bed.app.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_application_that_does_not_listen_is_an_answer() {
    let bed = Bed::new().await;
    bed.service("name: http", "connectionPool: {maxIdlePerEndpoint: 1}");
    *bed.rig.pod.application.lock().unwrap() = refusing();
    let mut client = bed.client().await;
    let answer = client.ask("GET /").await;
    assert_eq!(answer.status, 502);
    assert!(answer.body.contains("upstream_refused"), "{answer:?}");
    // It comes back, on the same connection of the client.
    *bed.rig.pod.application.lock().unwrap() = bed.app.address;
    assert_eq!(client.status("GET /").await, 200);
}
