//! Bytes that are HTTP, and bytes that are not.

use std::time::Duration;

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::*;

#[test]
fn known_protocols() {
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_URI));
    let words = format!("word {}", "a".repeat(MAX_URI + 1));
    for (bytes, expected) in [
        (&b""[..], Sniff::More),
        (b"GET / HTTP/1.1\r\n", Sniff::Http1),
        (b"GET / HTTP/1.0\nHost: x\n\n", Sniff::Http1),
        (b"\r\nPOST /a?b HTTP/1.1\r\n", Sniff::Http1),
        (b"M-SEARCH * HTTP/1.1\r\n", Sniff::Http1),
        (b"CONNECT a:1 HTTP/1.1\r\n", Sniff::Http1),
        (b"GET / HTTP/1.1\r", Sniff::More),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Sniff::Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Sniff::Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSM", Sniff::More),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Sniff::NotHttp),
        (b"PROPFIND / HTTP/1.1\r\n", Sniff::Http1),
        (b"GET / HTTP/2.0\r\n", Sniff::NotHttp),
        (b"GET  / HTTP/1.1\r\n", Sniff::NotHttp),
        (b"GET /\r\n", Sniff::NotHttp),
        // TLS, SSH, Redis, memcached, SMTP, PostgreSQL, MongoDB, AMQP, Kafka.
        (b"\x16\x03\x01\x02\0", Sniff::NotHttp),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Sniff::NotHttp),
        (b"*1\r\n$4\r\nPING\r\n", Sniff::NotHttp),
        (b"SET key value\r\n", Sniff::NotHttp),
        (b"get key\r\n", Sniff::NotHttp),
        (b"EHLO example.org\r\n", Sniff::NotHttp),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Sniff::NotHttp),
        (b"\x3a\0\0\0", Sniff::NotHttp),
        (b"AMQP\0\0\x09\x01", Sniff::NotHttp),
        (b"\0\0\0\x20\0\x12", Sniff::NotHttp),
        // Longer than any request line; a method that is known is for the server to refuse.
        (long.as_bytes(), Sniff::Http1),
        (words.as_bytes(), Sniff::NotHttp),
        (&[b'a'; 33], Sniff::NotHttp),
    ] {
        assert_eq!(
            classify(bytes),
            expected,
            "{:?}",
            String::from_utf8_lossy(bytes)
        );
    }
}

fn beginnings() -> impl Strategy<Value = Vec<u8>> {
    let request = (
        "[A-Z]{1,9}",
        "[!-~]{0,20}",
        "(HTTP/1[.][0-9]|HTTP/2.0|HTTP/1)?",
        "(\r\n|\n|\r)?.{0,8}",
    )
        .prop_map(|(method, target, version, end)| {
            format!("{method} {target} {version}{end}").into_bytes()
        });
    let near_preface = (0..=PREFACE.len(), any::<Vec<u8>>())
        .prop_map(|(length, rest)| [&PREFACE[..length], &rest].concat());
    prop_oneof![request, near_preface, any::<Vec<u8>>()]
}

proptest! {
    #[test]
    fn an_answer_never_changes_with_more_bytes(bytes in beginnings()) {
        let mut before = Sniff::More;
        for length in 0..=bytes.len() {
            let now = classify(&bytes[..length]);
            if before != Sniff::More {
                prop_assert_eq!(now, before, "at {}", length);
            }
            before = now;
        }
    }

    #[test]
    fn requests_are_known_whatever_follows(
        method in "[A-Za-z-]{1,32}",
        target in "[!-~]{1,40}",
        minor in 0..10u8,
        rest in any::<Vec<u8>>(),
    ) {
        let line = format!("{method} {target} HTTP/1.{minor}\r\n");
        prop_assert_eq!(classify(&[line.as_bytes(), &rest].concat()), Sniff::Http1);
        for length in 0..line.len() {
            prop_assert_eq!(classify(&line.as_bytes()[..length]), Sniff::More);
        }
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn bytes_are_looked_at_and_left_where_they_are() {
    for (pieces, expected) in [
        (
            &["GET / HTTP/1.1\r\n"][..],
            Peeked::Http(HttpVersion::Http1),
        ),
        (
            &["GE", "T", " / HT", "TP/1.1\r", "\n"],
            Peeked::Http(HttpVersion::Http1),
        ),
        (
            &["PRI * HTTP/2", ".0\r\n\r\nSM\r\n\r\n"],
            Peeked::Http(HttpVersion::Http2),
        ),
        (&["SE", "T a b"], Peeked::NotHttp),
    ] {
        let (mut client, mut server) = pair().await;
        let peek = peek_protocol(&server, soon(), MAX_REQUEST_LINE);
        let send = async {
            for piece in pieces {
                client.write_all(piece.as_bytes()).await.unwrap();
                // So that they arrive one by one.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (peeked, ()) = tokio::join!(peek, send);
        assert_eq!(peeked, expected, "{pieces:?}");
        let mut read = vec![0; pieces.concat().len()];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(read, pieces.concat().as_bytes());
    }
}

#[tokio::test]
async fn a_silent_client_is_undecided_and_a_closed_one_closed() {
    for sent in ["", "GET"] {
        let (mut client, server) = pair().await;
        client.write_all(sent.as_bytes()).await.unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        // Waiting costs no processor: the peek is asked again only when something has come.
        assert_eq!(
            peek_protocol(&server, deadline, MAX_REQUEST_LINE).await,
            Peeked::Undecided
        );
        assert!(Instant::now() >= deadline);
        client.shutdown().await.unwrap();
        assert_eq!(
            peek_protocol(&server, soon(), MAX_REQUEST_LINE).await,
            Peeked::Closed,
            "{sent:?}"
        );
    }
}

#[tokio::test]
async fn what_does_not_fit_the_bound_is_not_http() {
    let (mut client, server) = pair().await;
    client.write_all(b"GET /abcdefghijklm").await.unwrap();
    assert_eq!(peek_protocol(&server, soon(), 10).await, Peeked::NotHttp);
}
