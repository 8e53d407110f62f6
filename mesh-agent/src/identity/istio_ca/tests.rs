//! The client against our server, and against servers that are down, slow, wrong or lying.

use std::{fs, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinHandle};

use super::*;
use crate::identity::{
    roots::describe,
    server::testing::{ANY_PORT, Placed, TestAuthority, acceptor, csr_for, id},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const HOUR: Duration = Duration::from_secs(3600);
const PLACED: &[Placed<'static>] = &[(Some("n1"), "shop", "web"), (Some("n2"), "shop", "db")];

/// Options as the agent of node n1 has them.
fn options(authority: &TestAuthority, address: SocketAddr) -> IstioCaOptions {
    let token = authority.file("token", &authority.token("n1"));
    let mut options = IstioCaOptions::new(format!("localhost:{}", address.port()));
    options.root_file = Some(authority.state.bundle_file());
    options.token_file = Some(token);
    options.connect_timeout = Duration::from_secs(20);
    options.call_timeout = Duration::from_secs(20);
    options
}

async fn ask(ca: &IstioCa, identity: &str) -> Result<Signed, CaError> {
    let identity = id(identity);
    ca.sign(&identity, &csr_for(&identity), HOUR).await
}

/// The error's kind and what it says.
async fn error(ca: &IstioCa, identity: &str) -> (char, String) {
    match ask(ca, identity).await.unwrap_err() {
        CaError::Unavailable(text) => ('u', text.to_string()),
        CaError::Refused(text) => ('r', text.to_string()),
        CaError::Rubbish(text) => ('x', text.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_with_the_roots_and_many_over_one_connection() {
    let authority = TestAuthority::new(PLACED);
    let server = authority.serve(ANY_PORT).await;
    let ca = IstioCa::new(options(&authority, server.address)).unwrap();
    assert_eq!(
        ca.name(),
        format!("https://localhost:{}", server.address.port())
    );
    let signed = ask(&ca, WEB).await.unwrap();
    assert_eq!((signed.chain.len(), signed.roots.len()), (1, 1));
    let leaf = describe(&signed.chain[0]).unwrap();
    assert_eq!(leaf.issuer, describe(&signed.roots[0]).unwrap().subject);
    let all = futures::future::join_all((0..50).map(|_| ask(&ca, WEB))).await;
    assert!(all.iter().all(Result::is_ok));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why() {
    let authority = TestAuthority::new(PLACED);
    let server = authority.serve(ANY_PORT).await;
    let options = options(&authority, server.address);
    let ca = IstioCa::new(options.clone()).unwrap();
    let token_file = options.token_file.clone().unwrap();
    let (kind, text) = error(&ca, DB).await;
    assert!(
        kind == 'r' && text.contains("is placed on node n1"),
        "{text}"
    );

    // The files are read for each request.
    for (content, kind, why) in [
        ("", 'u', "it was not asked, because the credential in"),
        ("two words", 'u', "no token"),
        (
            "x.y.z",
            'r',
            "the credential is no token of `mesh-agent ca token` (the credential is in",
        ),
        (&"x".repeat(20_000), 'u', "20000 bytes are too many"),
    ] {
        fs::write(&token_file, content).unwrap();
        let (is, text) = error(&ca, WEB).await;
        assert!(is == kind && text.contains(why), "{is} {text}");
    }
    fs::remove_file(&token_file).unwrap();
    let (kind, text) = error(&ca, WEB).await;
    assert!(kind == 'u' && text.contains("No such file"), "{text}");
    fs::write(&token_file, authority.token("n1") + "\n").unwrap();
    ask(&ca, WEB).await.unwrap();

    let without = IstioCa::new(IstioCaOptions {
        token_file: None,
        ..options
    });
    let (kind, text) = error(&without.unwrap(), WEB).await;
    assert!(
        kind == 'r' && text.contains("(no credential is configured)"),
        "{text}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_back_by_itself_after_the_server_was_away_and_changed_its_root() {
    let authority = TestAuthority::new(PLACED);
    let server = authority.serve(ANY_PORT).await;
    let options = options(&authority, server.address);
    let roots = authority.file(
        "roots.pem",
        &fs::read_to_string(authority.state.bundle_file()).unwrap(),
    );
    let address = server.address;
    let token_file = options.token_file.clone().unwrap();
    let ca = IstioCa::new(IstioCaOptions {
        root_file: Some(roots.clone()),
        ..options
    })
    .unwrap();
    ask(&ca, WEB).await.unwrap();
    server.stop().await;
    let (kind, text) = error(&ca, WEB).await;
    assert!(
        kind == 'u' && text.contains("is it running, and is the address right?"),
        "{text}"
    );

    // Another authority at the same place, as after a loss of the state folder.
    let other = TestAuthority::new(PLACED);
    let server = other.serve(address).await;
    fs::write(&token_file, other.token("n1")).unwrap();
    let (kind, text) = error(&ca, WEB).await;
    assert!(
        kind == 'u' && text.contains("is not signed by a root in"),
        "{text}"
    );
    fs::write(
        &roots,
        fs::read_to_string(other.state.bundle_file()).unwrap(),
    )
    .unwrap();
    ask(&ca, WEB).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_there_must_be_the_authority() {
    let authority = TestAuthority::new(PLACED);
    let server = authority.serve(ANY_PORT).await;
    let good = options(&authority, server.address);
    let expect = async |options: IstioCaOptions, why: &str| {
        let (kind, text) = error(&IstioCa::new(options).unwrap(), WEB).await;
        assert!(kind == 'u' && text.contains(why), "{text}");
    };
    let with = |change: fn(&mut IstioCaOptions)| {
        let mut options = good.clone();
        change(&mut options);
        options
    };
    expect(
        with(|o| o.server_name = Some("ca.example".into())),
        "is not for ca.example",
    )
    .await;
    expect(
        with(|o| o.root_file = Some("/nonexistent".into())),
        "the roots in /nonexistent cannot be used",
    )
    .await;
    let empty = authority.file("empty", "");
    expect(
        IstioCaOptions {
            root_file: Some(empty),
            ..good.clone()
        },
        "it holds no certificate",
    )
    .await;
    server.stop().await;

    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let http1 = serve_tls(listener, acceptor(&authority, b"http/1.1"), |_| {
        panic!("not asked")
    });
    expect(options(&authority, http1.0), "alert").await;

    // A port that takes connections and says nothing.
    let silent = TcpListener::bind(ANY_PORT).await.unwrap();
    let mut slow = options(&authority, silent.local_addr().unwrap());
    slow.connect_timeout = Duration::from_millis(300);
    expect(slow, "no connection within 300ms").await;

    // No TLS at all.
    let plain = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = plain.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    });
    expect(options(&authority, address), "TLS: ").await;
    task.await.unwrap();
}

/// What a lying server sends: HTTP status, gRPC message, trailers' status (`None`: no trailers).
type Lie = (u16, Vec<u8>, Option<&'static str>);

/// Answers each request with a lie.
fn serve_tls(
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    lie: impl Fn(usize) -> Lie + Send + Sync + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut asked, mut held) = (0, Vec::new());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let (status, message, trailers) = lie(asked);
                asked += 1;
                let head = Response::builder()
                    .status(status)
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                let mut send = respond.send_response(head, false).unwrap();
                let mut data = vec![0];
                data.extend((message.len() as u32).to_be_bytes());
                data.extend(message);
                if trailers == Some("hang") {
                    held.push(send);
                    continue;
                }
                send.send_data(Bytes::from(data), trailers.is_none())
                    .unwrap();
                if let Some(status) = trailers {
                    let map = HeaderMap::from_iter([(
                        http::HeaderName::from_static("grpc-status"),
                        HeaderValue::from_static(status),
                    )]);
                    send.send_trailers(map).unwrap();
                }
            }
        }
    });
    (address, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_is_called_rubbish() {
    let authority = TestAuthority::new(PLACED);
    let answer = |elements: &[&str]| {
        IstioCertificateResponse {
            cert_chain: elements.iter().map(ToString::to_string).collect(),
        }
        .encode_to_vec()
    };
    let roots = fs::read_to_string(authority.state.bundle_file()).unwrap();
    let lies: Vec<(Lie, char, &str)> = vec![
        (
            (200, answer(&[]), Some("0")),
            'x',
            "the chain has 0 elements",
        ),
        (
            (200, answer(&["x", &roots]), Some("0")),
            'x',
            "element 1 of the chain",
        ),
        (
            (200, answer(&[&roots, "x"]), Some("0")),
            'x',
            "the roots: it holds no certificate",
        ),
        ((200, vec![0xff; 100], Some("0")), 'x', "failed to decode"),
        (
            (200, vec![b'a'; 2 << 20], Some("0")),
            'x',
            "message length too large",
        ),
        (
            (200, answer(&[]), Some("12")),
            'r',
            "is no Istio certificate authority",
        ),
        ((200, answer(&[]), Some("14")), 'u', "Unavailable"),
        ((200, answer(&[]), Some("8")), 'u', "ResourceExhausted"),
        (
            (404, answer(&[]), None),
            'r',
            "is no Istio certificate authority",
        ),
        ((503, answer(&[]), None), 'u', "Unavailable"),
        ((200, Vec::new(), Some("hang")), 'u', "no answer within 1s"),
        // After all that, the next request finds the way again.
        ((200, answer(&[&roots, &roots]), Some("0")), ' ', ""),
    ];
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let told: Vec<Lie> = lies.iter().map(|(lie, ..)| lie.clone()).collect();
    let (address, task) = serve_tls(listener, acceptor(&authority, b"h2"), move |at| {
        told[at].clone()
    });
    let mut options = options(&authority, address);
    options.call_timeout = Duration::from_secs(1);
    let ca = IstioCa::new(options).unwrap();
    for ((status, ..), kind, why) in &lies {
        if *kind == ' ' {
            ask(&ca, WEB).await.unwrap();
        } else {
            let (is, text) = error(&ca, WEB).await;
            assert!(
                is == *kind && text.contains(why),
                "{status} {why}: {is} {text}"
            );
        }
    }
    task.abort();
}

#[test]
fn options_that_make_no_client_are_named() {
    let new = |address: &str| IstioCaOptions::new(address);
    assert_eq!(
        IstioCa::new(new("ca.example")).unwrap_err().to_string(),
        "\"ca.example\" is no address of a certificate authority: expected HOST:PORT"
    );
    let mut options = new("ca.example:15012");
    options.server_name = Some("a b".into());
    assert!(matches!(
        IstioCa::new(options),
        Err(IstioCaError::ServerName(_))
    ));
    let mut options = new("ca.example:15012");
    options.cluster_id = "a\nb".into();
    assert!(matches!(
        IstioCa::new(options),
        Err(IstioCaError::ClusterId(_))
    ));
    // No runtime is needed to make one.
    let _: Arc<dyn CertificateAuthority> = Arc::new(IstioCa::new(new("[::1]:15012")).unwrap());
}
