//! Doors to what parses foreign bytes, for the fuzz targets in tests/fuzz and for tests of the same properties.

use std::{sync::Arc, time::SystemTime};

use ::http::{HeaderMap, HeaderName, HeaderValue};

use super::{detect, headers, reply};

/// The beginning of a connection: an answer never changes with more bytes.
pub fn detect(bytes: &[u8]) {
    let mut before = detect::Sniff::More;
    for length in 0..=bytes.len() {
        let now = detect::classify(&bytes[..length]);
        assert!(before == detect::Sniff::More || now == before);
        before = now;
    }
}

/// Requests of HTTP/1: what is found wrong with them does not depend on how the bytes come in.
pub fn requests(bytes: &[u8], piece: usize) {
    let read = |piece: usize| {
        let doubts = Arc::new(headers::Doubts::default());
        let mut heads = headers::Heads::new(Arc::clone(&doubts));
        for piece in bytes.chunks(piece) {
            heads.feed(piece);
        }
        (0..8).map(|_| doubts.next()).collect::<Vec<_>>()
    };
    assert_eq!(read(piece.max(1)), read(bytes.len().max(1)));
}

/// A value, as that of every field that is read.
pub fn field(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else {
        return;
    };
    let with =
        |name: &'static str| HeaderMap::from_iter([(HeaderName::from_static(name), value.clone())]);
    if let Some(timeout) = headers::grpc_timeout(&with("grpc-timeout")) {
        let mut reduced = with("grpc-timeout");
        headers::reduce_grpc_timeout(&mut reduced, timeout / 2);
        let left = headers::grpc_timeout(&reduced);
        assert!(left.is_some_and(|left| left <= timeout / 2));
    }
    let _ = headers::retry_after(&with("retry-after"), SystemTime::UNIX_EPOCH);
    let _ = headers::pushback(&with("grpc-retry-pushback-ms"));
    let _ = headers::is_grpc(&with("content-type"));
    let cookies = with("cookie");
    if let Some(found) = headers::cookie(&cookies, "key") {
        assert!(found.len() + "key=".len() <= value.len());
    }
    let mut id = with("x-request-id");
    assert!(headers::ensure_request_id(&mut id, || 7).to_str().is_ok());
    for name in ["connection", "te", "upgrade", "transfer-encoding"] {
        let mut hop = with(name);
        headers::strip_hop_by_hop(&mut hop);
        assert!(hop.is_empty());
    }
    if headers::is_host(value.as_bytes()) {
        assert!(value.as_bytes().is_ascii());
        let authority = ::http::uri::Authority::try_from(value.as_bytes());
        assert!(authority.is_ok_and(|authority| !authority.as_str().contains('@')));
    }
}

/// A detail of an answer, which may hold what the client sent.
pub fn detail(detail: &str, grpc: bool) {
    let about = reply::About {
        grpc,
        node: "node",
        detail,
        retry_after: None,
    };
    let response = reply::reply(crate::telemetry::Reason::BadRequest, &about);
    assert_eq!(response.headers().len(), if grpc { 4 } else { 2 });
    for value in response.headers().values() {
        assert!(value.to_str().is_ok());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const WORDS: &[&str] = &[
        "GET / HTTP/1.1",
        "POST /a HTTP/1.1",
        "\r\n",
        "\n",
        "\r",
        "Host: x",
        "Content-Length: 3",
        "Transfer-Encoding: chunked",
        "abc",
        "3\r\nabc\r\n",
        "3;0123456789012345678901234567890123456789012345678901234567890123456789\r\nabc\r\n",
        "0\r\n\r\n",
        ":",
        " ",
        ";",
        "key=",
        "\"",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            4 => proptest::sample::select(WORDS).prop_map(|word| word.as_bytes().to_vec()),
            1 => any::<Vec<u8>>(),
        ];
        proptest::collection::vec(word, 0..16).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn the_properties_hold(bytes in text(), piece in 1usize..40, value in "[ -~]{0,40}", detail in ".{0,300}", grpc: bool) {
            super::detect(&bytes);
            super::requests(&bytes, piece);
            super::field(&bytes);
            super::field(value.as_bytes());
            super::detail(&detail, grpc);
        }
    }
}
