//! Each kind of check against servers that are well, ill, slow, and something else altogether.

use std::{net::SocketAddr, time::Duration};

use super::{
    check,
    servers::{self, Loopback},
};
use crate::{
    health::{Failed, Key, probe},
    model::{HealthCheck, HealthProbe, ResourceName},
};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(150);

fn key(endpoint: SocketAddr) -> Key {
    Key {
        service: ResourceName::new("shop", "web"),
        port: 80,
        endpoint,
    }
}

async fn run(endpoint: SocketAddr, probe: HealthProbe, timeout: Duration) -> Result<(), Failed> {
    let check = check(probe, LONG, timeout);
    probe::check(&Loopback::default(), &key(endpoint), &check).await
}

fn ill(text: &str) -> Result<(), Failed> {
    Err(Failed::Endpoint(text.into()))
}

fn get(path: &str, expected: &[(u16, u16)]) -> HealthProbe {
    HealthProbe::Http {
        path: path.into(),
        host: None,
        expected: expected.to_vec(),
    }
}

#[tokio::test]
async fn tcp() {
    let (open, mut ended) = servers::silent().await;
    assert_eq!(run(open, HealthProbe::Tcp, LONG).await, Ok(()));
    assert_eq!(
        ended.recv().await.unwrap().unwrap(),
        0,
        "the server sees an end, not a reset"
    );
    let refused = run(servers::closed().await, HealthProbe::Tcp, LONG).await;
    assert_eq!(refused, ill("Connection refused (os error 111)"));
}

#[tokio::test]
async fn http_by_status() {
    let answer = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
    let (server, says, mut head) = servers::http(&answer("200 OK")).await;
    assert_eq!(
        run(server, get("/ok?a=b", &[(200, 299)]), LONG).await,
        Ok(())
    );
    let request = head.recv().await.unwrap();
    assert!(request.starts_with("GET /ok?a=b HTTP/1.1\r\n"), "{request}");
    assert!(
        request.contains(&format!("host: {server}\r\n")),
        "{request}"
    );

    for (status, expected, result) in [
        ("204 No Content", vec![(200, 299)], Ok(())),
        ("302 Found", vec![(200, 299)], ill("status 302")),
        ("302 Found", vec![(200, 200), (300, 399)], Ok(())),
        ("299 Odd", vec![(200, 299)], Ok(())),
        ("300 Odd", vec![(200, 299)], ill("status 300")),
        ("503 Gone Fishing", vec![(200, 399)], ill("status 503")),
    ] {
        says.lock().unwrap().clone_from(&answer(status));
        let got = run(server, get("/", &expected), LONG).await;
        assert_eq!(got, result, "{status} of {expected:?}");
    }
}

#[tokio::test]
async fn http_with_a_host_of_its_own() {
    let (server, _, mut head) = servers::http("HTTP/1.1 200 OK\r\n\r\n").await;
    let probe = HealthProbe::Http {
        path: "/".into(),
        host: Some("shop.example".into()),
        expected: vec![(200, 200)],
    };
    assert_eq!(run(server, probe, LONG).await, Ok(()));
    let request = head.recv().await.unwrap();
    assert!(request.contains("host: shop.example\r\n"), "{request}");
}

#[tokio::test]
async fn what_is_not_http() {
    let (server, _, _head) = servers::http("220 smtp.example ESMTP\r\n").await;
    let got = run(server, get("/", &[(200, 299)]), LONG).await;
    assert!(matches!(got, Err(Failed::Endpoint(_))), "{got:?}");
    let (server, _, _head) = servers::http("").await;
    let got = run(server, get("/", &[(200, 299)]), LONG).await;
    assert!(matches!(got, Err(Failed::Endpoint(_))), "{got:?}");
}

/// Its status is the answer; that the rest never ends is no failure, nor is it waited for.
#[tokio::test]
async fn a_body_without_end() {
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1 << 20));
    let (server, _, _head) = servers::http(&endless).await;
    assert_eq!(run(server, get("/", &[(200, 299)]), LONG).await, Ok(()));
}

#[tokio::test]
async fn one_that_does_not_answer_in_time() {
    let (server, _ended) = servers::silent().await;
    let late = ill("no answer within 150ms");
    assert_eq!(run(server, get("/", &[(200, 299)]), SHORT).await, late);
    let grpc = HealthProbe::Grpc { service: "".into() };
    assert_eq!(run(server, grpc, SHORT).await, late);
    let server = servers::grpc(&[("", -1)]).await;
    let grpc = HealthProbe::Grpc { service: "".into() };
    assert_eq!(run(server, grpc, SHORT).await, late);
}

#[tokio::test]
async fn grpc_by_status() {
    let server = servers::grpc(&[("", 1), ("down", 2), ("new", 0), ("gone", 3)]).await;
    for (service, result) in [
        ("", Ok(())),
        ("down", ill("the service says NOT_SERVING")),
        ("new", ill("the service says UNKNOWN")),
        ("gone", ill("the service says SERVICE_UNKNOWN")),
        (
            "other",
            ill("the server does not know the service (grpc-status 5)"),
        ),
    ] {
        let probe = HealthProbe::Grpc {
            service: service.into(),
        };
        assert_eq!(run(server, probe, LONG).await, result, "{service:?}");
    }
}

#[tokio::test]
async fn a_server_without_health_service_or_without_grpc() {
    let empty = tonic_without_services().await;
    let probe = HealthProbe::Grpc { service: "".into() };
    assert_eq!(
        run(empty, probe.clone(), LONG).await,
        ill("the server does not implement grpc.health.v1 (grpc-status 12)")
    );
    let (server, _, _head) = servers::http("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let got = run(server, probe.clone(), LONG).await;
    assert!(matches!(got, Err(Failed::Endpoint(_))), "{got:?}");
    let refused = run(servers::closed().await, probe, LONG).await;
    assert_eq!(refused, ill("Connection refused (os error 111)"));
}

/// It knows another service only.
async fn tonic_without_services() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        tonic::transport::Server::builder()
            .add_routes(tonic::service::Routes::default())
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    address
}

/// What a broken or hostile server may answer is an ill endpoint, and bounded.
#[tokio::test]
async fn answers_that_are_none() {
    for (data, trailers, text) in [
        (
            &b"\0\0\0\0\x02\x08\x01"[..],
            None,
            "the answer has no grpc-status",
        ),
        (b"\0\0\0\0\x02\x08\x01", Some("14"), "grpc-status 14"),
        (
            b"\0\0\0\0\x02\x08\x01",
            Some("\u{e9}"),
            "grpc-status \\u{e9}",
        ),
        (b"\0\0", Some("0"), "the answer is none to a health check"),
        (b"", Some("0"), "the answer is none to a health check"),
        (
            b"\x01\0\0\0\x02\x08\x01",
            Some("0"),
            "the answer is none to a health check",
        ),
        (
            b"\0\0\0\0\x02\xff\xff",
            Some("0"),
            "the answer is none to a health check",
        ),
        (
            &[0; 5000],
            Some("0"),
            "the answer is none to a health check",
        ),
    ] {
        let server = scripted(data, trailers).await;
        let probe = HealthProbe::Grpc { service: "".into() };
        let got = run(server, probe, LONG).await;
        match got {
            Err(Failed::Endpoint(got)) => assert!(got.starts_with(text), "{got:?} of {data:?}"),
            other => panic!("{other:?} of {data:?}"),
        }
    }
}

/// An HTTP/2 server that answers with these bytes and this grpc-status in the trailers.
async fn scripted(data: &'static [u8], status: Option<&'static str>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond
                .send_response(http::Response::new(()), false)
                .unwrap();
            let _ = body.send_data(bytes::Bytes::from_static(data), status.is_none());
            if let Some(status) = status {
                let value = http::HeaderValue::from_bytes(status.as_bytes());
                let mut trailers = http::HeaderMap::new();
                if let Ok(value) = value {
                    trailers.insert("grpc-status", value);
                }
                let _ = body.send_trailers(trailers);
            }
        }
    });
    address
}

#[tokio::test]
async fn another_port_and_the_namespace_of_the_service() {
    let (server, _ended) = servers::silent().await;
    let dial = Loopback::default();
    let elsewhere = SocketAddr::new(server.ip(), 1);
    let check = HealthCheck {
        port: Some(server.port()),
        ..check(HealthProbe::Tcp, LONG, LONG)
    };
    assert_eq!(probe::check(&dial, &key(elsewhere), &check).await, Ok(()));
    let dialled = dial.dialled.lock().unwrap().clone();
    assert_eq!(dialled, [("shop".to_owned(), server)]);
}

#[tokio::test]
async fn nobody_to_ask_says_nothing() {
    let dial = Loopback {
        nobody: true,
        ..Loopback::default()
    };
    let (server, _ended) = servers::silent().await;
    let got = probe::check(&dial, &key(server), &check(HealthProbe::Tcp, LONG, LONG)).await;
    assert_eq!(got, Err(Failed::Unknown("no workload of this node".into())));
}
