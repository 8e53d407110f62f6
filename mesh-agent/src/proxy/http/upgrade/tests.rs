//! Upgrades through the server side and the pools, in every pair of versions.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ::http::Request;
use bytes::Bytes;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};

use super::*;
use crate::proxy::http::pool::Take;
use crate::{
    model::ConnectionPool,
    proxy::{
        connect::{Connected, Link},
        http::{
            body::Body,
            headers,
            io::Io,
            pool::{PoolKey, Pools},
            server::{self, Handler, ServerSettings},
        },
        socket::Leg,
    },
};

const SOON: Duration = Duration::from_secs(10);
/// Of RFC 6455 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A proxy from one version to another; the reasons that switched connections ended with come out of it.
struct Proxy {
    upstream: SocketAddr,
    to: HttpVersion,
    pools: OnceLock<Pools<Body>>,
    ended: mpsc::UnboundedSender<(Reason, Arc<RequestBytes>)>,
}

impl Handler for Proxy {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, _) = request.into_parts();
        headers::canonical(&mut parts);
        let hop = headers::strip_hop_by_hop(&mut parts.headers);
        let upgrade = Upgrade::of(&mut parts, &hop);
        headers::for_upstream(&mut parts, self.to, &hop, "fallback", false);
        if let Some(upgrade) = &upgrade {
            upgrade.ask(&mut parts, self.to);
        }
        let key = PoolKey {
            pod: 1,
            endpoint: self.upstream,
            source: None,
            version: self.to,
            identity: None,
        };
        let connect = || async {
            let stream = TcpStream::connect(self.upstream).await.unwrap();
            Ok(Connected {
                endpoint: self.upstream,
                link: Link::Plain(Leg::new(stream)),
                permits: None,
                principals: None,
            })
        };
        let pools = self.pools.get_or_init(Pools::new);
        let options = ConnectionPool::default();
        let checkout = pools.checkout(&key, &options, Take::Any, connect);
        let checkout = checkout.await.unwrap();
        let response = checkout.send(Request::from_parts(parts, Body::Empty)).await;
        let mut response = match response {
            Ok(response) => response,
            Err(failed) => {
                let mut response = Response::new(Body::fixed(failed.reason.as_str()));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                return response;
            }
        };
        headers::strip_hop_by_hop(response.headers_mut());
        let Some(upgrade) = upgrade else {
            let (parts, _) = response.into_parts();
            return Response::from_parts(parts, Body::Empty);
        };
        match upgrade.answered(response, self.to) {
            Answer::Switched(parts, switched) => {
                let ended = self.ended.clone();
                tokio::spawn(async move {
                    let bytes = Arc::<RequestBytes>::default();
                    let reason = switched.carry(&bytes).await;
                    ended.send((reason, bytes)).unwrap();
                });
                Response::from_parts(parts, Body::Empty)
            }
            Answer::Other(response) => {
                let (parts, _) = response.into_parts();
                Response::from_parts(parts, Body::Empty)
            }
            Answer::Broken => {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }
}

/// How switched connections end. Keeps the pools, which would take their connections along.
struct Ended {
    reasons: mpsc::UnboundedReceiver<(Reason, Arc<RequestBytes>)>,
    _proxy: Arc<Proxy>,
}

impl Ended {
    async fn next(&mut self) -> (Reason, Arc<RequestBytes>) {
        timeout(SOON, self.reasons.recv()).await.unwrap().unwrap()
    }
}

async fn proxy(from: HttpVersion, to: HttpVersion, upstream: SocketAddr) -> (TcpStream, Ended) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await;
    let (accepted, _) = listener.accept().await.unwrap();
    let (ended, reasons) = mpsc::unbounded_channel();
    let handler = Arc::new(Proxy {
        upstream,
        to,
        pools: OnceLock::new(),
        ended,
    });
    let proxy = Arc::clone(&handler);
    tokio::spawn(async move {
        let io = Io::from(Leg::new(accepted));
        let (_drain, draining) = watch::channel(false);
        let settings = ServerSettings::default();
        server::serve(io, from, &settings, draining, handler).await;
    });
    let ends = Ended {
        reasons,
        _proxy: proxy,
    };
    (client.unwrap(), ends)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let byte = timeout(SOON, stream.read_u8()).await.unwrap().unwrap();
        head.push(byte.into());
    }
    head.to_ascii_lowercase()
}

/// Takes one WebSocket handshake, echoes until the end, says what it was asked.
async fn http1_server(
    answer: impl Fn(&str) -> String + Send + 'static,
) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, asks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = read_head(&mut stream).await;
        let reply = answer(&head);
        asked.send(head).unwrap();
        stream.write_all(reply.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    (address, asks)
}

fn switching(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    )
}

async fn http2_server(status: u16) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, asks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::Builder::new()
            .enable_connect_protocol()
            .handshake::<_, Bytes>(stream)
            .await
            .unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let protocol = request.extensions().get::<h2::ext::Protocol>();
            let protocol = protocol.map(|p| p.as_str().to_owned());
            let (method, uri) = (request.method(), request.uri());
            asked
                .send(format!(
                    "{method} {uri} {protocol:?} {:?}",
                    request.headers()
                ))
                .unwrap();
            let response = Response::builder().status(status).body(()).unwrap();
            if status != 200 {
                respond.send_response(response, true).unwrap();
                continue;
            }
            let mut send = respond.send_response(response, false).unwrap();
            let mut receive = request.into_body();
            tokio::spawn(async move {
                while let Some(Ok(data)) = receive.data().await {
                    let _ = receive.flow_control().release_capacity(data.len());
                    send.send_data(data, false).unwrap();
                }
                send.send_data(Bytes::new(), true).unwrap();
            });
        }
    });
    (address, asks)
}

fn handshake() -> String {
    format!(
        "GET /chat?a=b HTTP/1.1\r\nHost: shop\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// Both ways, then FIN both ways, and it was counted.
async fn talks(mut client: TcpStream, ends: &mut Ended) {
    let text = vec![b'x'; 300_000];
    let (mut read, mut write) = client.split();
    let mut back = Vec::new();
    let (sent, received) = tokio::join!(
        async {
            write.write_all(&text).await?;
            write.shutdown().await
        },
        timeout(SOON, read.read_to_end(&mut back)),
    );
    sent.unwrap();
    received.unwrap().unwrap();
    assert!(back == text);
    let (reason, bytes) = ends.next().await;
    assert_eq!(reason, Reason::Completed);
    assert_eq!(
        format!("{bytes:?}").matches("300000").count(),
        2,
        "{bytes:?}"
    );
}

#[test]
fn the_key_of_the_standard_has_the_answer_of_the_standard() {
    assert_eq!(accept(&HeaderValue::from_static(KEY)), ACCEPT);
    for (bytes, text) in [(&b"f"[..], "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v")] {
        assert_eq!(base64(bytes), text);
    }
}

#[tokio::test]
async fn http1_to_http1() {
    let (server, mut asks) = http1_server(|_| switching(ACCEPT)).await;
    let (mut client, mut ends) = proxy(HttpVersion::Http1, HttpVersion::Http1, server).await;
    client.write_all(handshake().as_bytes()).await.unwrap();
    let asked = asks.recv().await.unwrap();
    for part in [
        "get /chat?a=b http/1.1",
        "upgrade: websocket",
        "connection: upgrade",
        "host: shop",
    ] {
        assert!(asked.contains(part), "{asked}");
    }
    let answer = read_head(&mut client).await;
    for part in [
        "http/1.1 101",
        "upgrade: websocket",
        "connection: upgrade",
        &ACCEPT.to_ascii_lowercase(),
    ] {
        assert!(answer.contains(part), "{answer}");
    }
    talks(client, &mut ends).await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_ordinary_answer() {
    let refuse = |_: &str| "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_owned();
    let (server, _asks) = http1_server(refuse).await;
    let (mut client, _ends) = proxy(HttpVersion::Http1, HttpVersion::Http1, server).await;
    client.write_all(handshake().as_bytes()).await.unwrap();
    let answer = read_head(&mut client).await;
    assert!(
        answer.starts_with("http/1.1 403") && !answer.contains("upgrade"),
        "{answer}"
    );
}

#[tokio::test]
async fn http1_to_http2() {
    let (server, mut asks) = http2_server(200).await;
    let (mut client, mut ends) = proxy(HttpVersion::Http1, HttpVersion::Http2, server).await;
    client.write_all(handshake().as_bytes()).await.unwrap();
    let asked = asks.recv().await.unwrap();
    assert!(
        asked.starts_with("CONNECT http://shop/chat?a=b Some(\"websocket\")")
            && !asked.contains("sec-websocket-key"),
        "{asked}"
    );
    let answer = read_head(&mut client).await;
    for part in [
        "http/1.1 101",
        "upgrade: websocket",
        "connection: upgrade",
        &ACCEPT.to_ascii_lowercase(),
    ] {
        assert!(answer.contains(part), "{answer}");
    }
    talks(client, &mut ends).await;
}

#[tokio::test]
async fn other_protocols_are_not_asked_of_http2() {
    let (server, mut asks) = http2_server(204).await;
    let (mut client, _ends) = proxy(HttpVersion::Http1, HttpVersion::Http2, server).await;
    let request = b"GET / HTTP/1.1\r\nHost: shop\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n";
    client.write_all(request).await.unwrap();
    let asked = asks.recv().await.unwrap();
    assert!(asked.starts_with("GET http://shop/ None"), "{asked}");
    let answer = read_head(&mut client).await;
    assert!(answer.starts_with("http/1.1 204"), "{answer}");
}

/// Opens an extended CONNECT.
async fn connect(client: TcpStream) -> (Response<h2::RecvStream>, h2::SendStream<Bytes>) {
    let (requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap() });
    let mut requests = requests.ready().await.unwrap();
    let end = tokio::time::Instant::now() + SOON;
    while !requests.is_extended_connect_protocol_enabled() {
        assert!(tokio::time::Instant::now() < end);
        tokio::task::yield_now().await;
    }
    let request = Request::connect("http://shop/chat")
        .extension(h2::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap();
    let (response, send) = requests.send_request(request, false).unwrap();
    (timeout(SOON, response).await.unwrap().unwrap(), send)
}

async fn talks_http2(
    response: Response<h2::RecvStream>,
    mut send: h2::SendStream<Bytes>,
    ends: &mut Ended,
) {
    assert_eq!(response.status(), 200);
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let mut receive = response.into_body();
    send.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let mut back = Vec::new();
    while let Some(data) = timeout(SOON, receive.data()).await.unwrap() {
        back.extend_from_slice(&data.unwrap());
    }
    assert_eq!(back, b"hello");
    let (reason, _) = ends.next().await;
    assert_eq!(reason, Reason::Completed);
}

#[tokio::test]
async fn http2_to_http1() {
    // The server reads its key as it came, so that it can answer it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        let mut stream = stream;
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
        let field = |name: &str| {
            let line = head.lines().find(|line| line.starts_with(name));
            line.unwrap_or_else(|| panic!("{name}: {head}"))[name.len()..]
                .trim()
                .to_owned()
        };
        assert_eq!(field("host:"), "shop");
        assert_eq!(field("upgrade:"), "websocket");
        let key = HeaderValue::from_str(&field("sec-websocket-key:")).unwrap();
        let reply = switching(accept(&key).to_str().unwrap());
        stream.write_all(reply.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let (client, mut ends) = proxy(HttpVersion::Http2, HttpVersion::Http1, server).await;
    let (response, send) = connect(client).await;
    talks_http2(response, send, &mut ends).await;
}

#[tokio::test]
async fn http2_to_http2() {
    let (server, mut asks) = http2_server(200).await;
    let (client, mut ends) = proxy(HttpVersion::Http2, HttpVersion::Http2, server).await;
    let (response, send) = connect(client).await;
    let asked = asks.recv().await.unwrap();
    assert!(
        asked.starts_with("CONNECT http://shop/chat Some(\"websocket\")"),
        "{asked}"
    );
    talks_http2(response, send, &mut ends).await;
}

#[tokio::test]
async fn a_server_that_has_not_understood_the_handshake_is_not_believed() {
    let (server, _asks) = http1_server(|_| switching(ACCEPT)).await;
    let (client, _ends) = proxy(HttpVersion::Http2, HttpVersion::Http1, server).await;
    let (response, _send) = connect(client).await;
    assert_eq!(response.status(), 502);
}

#[tokio::test]
async fn what_is_cut_on_one_side_is_cut_on_the_other() {
    let (server, _asks) = http2_server(200).await;
    let (mut client, mut ends) = proxy(HttpVersion::Http1, HttpVersion::Http2, server).await;
    client.write_all(handshake().as_bytes()).await.unwrap();
    read_head(&mut client).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(
        timeout(SOON, client.read_u8()).await.unwrap().unwrap(),
        b'x'
    );
    client.set_zero_linger().unwrap();
    drop(client);
    let (reason, _) = ends.next().await;
    assert_eq!(reason, Reason::ClientReset);

    let (server, _asks) = http1_server(|_| switching(ACCEPT)).await;
    let (mut client, mut ends) = proxy(HttpVersion::Http1, HttpVersion::Http1, server).await;
    client.write_all(handshake().as_bytes()).await.unwrap();
    read_head(&mut client).await;
    client.set_zero_linger().unwrap();
    drop(client);
    let (reason, _) = ends.next().await;
    assert_eq!(reason, Reason::ClientReset);
}
