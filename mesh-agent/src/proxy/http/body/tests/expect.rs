//! `Expect: 100-continue` and responses without a body, over sockets: a client, a server of the agent, its pool, and an
//! upstream that says what it is told to say.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};

use super::super::{Body, Relay, Replay, Times, pass_expectation};
use crate::proxy::http::pool::Take;
use crate::{
    model::ConnectionPool,
    proxy::{
        connect::{Connected, Link},
        http::{
            HttpVersion, Pools,
            headers::{canonical, for_upstream, strip_hop_by_hop},
            pool::PoolKey,
            server::{Handler, ServerSettings, serve},
        },
        socket::Leg,
    },
    telemetry::Reason,
};

struct Through {
    upstream: SocketAddr,
    pools: Pools<Body>,
}

impl Handler for Through {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, incoming) = request.into_parts();
        let client = parts.version;
        canonical(&mut parts);
        let hop = strip_hop_by_hop(&mut parts.headers);
        let mut replay = Replay::new(incoming, 1 << 16, Arc::default());
        let key = PoolKey {
            pod: 1,
            endpoint: self.upstream,
            source: None,
            version: HttpVersion::Http1,
            identity: None,
        };
        let dial = || async {
            let stream = TcpStream::connect(self.upstream).await;
            Ok(Connected {
                endpoint: self.upstream,
                link: Link::Plain(Leg::new(stream.map_err(|_| Reason::UpstreamRefused)?)),
                permits: None,
                principals: None,
            })
        };
        let checkout = self
            .pools
            .checkout(&key, &ConnectionPool::default(), Take::Any, dial)
            .await
            .unwrap();
        for_upstream(&mut parts, HttpVersion::Http1, &hop, "x", false);
        let mut request = Request::from_parts(parts, replay.next().unwrap());
        pass_expectation(&mut request, &replay, client);
        let Ok(response) = checkout.send(request).await else {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            return response;
        };
        let (mut head, body) = response.into_parts();
        strip_hop_by_hop(&mut head.headers);
        let sent = replay.sent();
        let body = Relay::body(
            &head,
            body,
            false,
            sent,
            Times::default(),
            Arc::default(),
            |_| {},
        );
        Response::from_parts(head, body)
    }
}

/// A client's connection through the agent, and the upstream's end of it.
async fn through() -> (TcpStream, TcpListener) {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = Arc::new(Through {
        upstream: upstream.local_addr().unwrap(),
        pools: Pools::new(),
    });
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    tokio::spawn(async move {
        let (_drain, draining) = watch::channel(false);
        let settings = ServerSettings::default();
        let io = TokioIo::new(accepted);
        serve(io, HttpVersion::Http1, &settings, draining, through).await;
    });
    (client, upstream)
}

/// Reads until the text has come.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    let found = timeout(Duration::from_secs(10), async {
        while !String::from_utf8_lossy(&read).contains(text) {
            let mut bytes = [0; 1024];
            let n = stream.read(&mut bytes).await.unwrap_or(0);
            if n == 0 {
                break;
            }
            read.extend_from_slice(&bytes[..n]);
        }
    });
    found.await.expect("what was waited for did not come");
    String::from_utf8(read).unwrap()
}

const EXPECTING: &[u8] =
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_final_answer_comes_before_the_body_is_asked_for() {
    for status in ["413 Payload Too Large", "417 Expectation Failed"] {
        let (mut client, upstream) = through().await;
        client.write_all(EXPECTING).await.unwrap();
        let (mut server, _) = upstream.accept().await.unwrap();
        let head = until(&mut server, "\r\n\r\n").await;
        assert!(head.contains("expect: 100-continue"), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "no byte of the body: {head}");
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
        server.write_all(answer.as_bytes()).await.unwrap();
        let got = until(&mut client, "\r\n\r\nno").await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{got}");
    }
}

#[tokio::test]
async fn the_body_goes_when_the_upstream_asks_for_it() {
    let (mut client, upstream) = through().await;
    client.write_all(EXPECTING).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    until(&mut server, "\r\n\r\n").await;
    server
        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    let got = until(&mut client, "\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 100"), "{got}");
    client.write_all(b"abc").await.unwrap();
    assert_eq!(until(&mut server, "abc").await, "abc");
    server
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let got = until(&mut client, "\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
}

#[tokio::test]
async fn an_upstream_that_says_nothing_gets_the_body_after_a_second() {
    let (mut client, upstream) = through().await;
    client.write_all(EXPECTING).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    until(&mut server, "\r\n\r\n").await;
    let begun = Instant::now();
    until(&mut client, "HTTP/1.1 100").await;
    assert!(
        begun.elapsed() > Duration::from_millis(700),
        "{:?}",
        begun.elapsed()
    );
    client.write_all(b"abc").await.unwrap();
    until(&mut server, "abc").await;
}

#[tokio::test]
async fn the_answer_to_head_keeps_the_length_that_it_tells() {
    let (mut client, upstream) = through().await;
    client
        .write_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    until(&mut server, "\r\n\r\n").await;
    server
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")
        .await
        .unwrap();
    let got = until(&mut client, "\r\n\r\n").await;
    assert!(got.contains("content-length: 1234"), "{got}");
    assert!(got.ends_with("\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn trailers_go_both_ways_to_those_who_take_them() {
    let (mut client, upstream) = through().await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: te\r\nTrailer: t\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nt: up\r\n\r\n")
        .await
        .unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    let sent = until(&mut server, "t: up").await;
    assert!(sent.contains("te: trailers"), "{sent}");
    server
        .write_all(b"HTTP/1.1 200 OK\r\nTrailer: t\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nt: down\r\n\r\n")
        .await
        .unwrap();
    until(&mut client, "t: down").await;
}
