//! What HTTP/2 requests become: frames as no library would write them.

use super::served::exchange;
use crate::proxy::http::HttpVersion;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK literals without indexing.
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

const GET: [(&str, &str); 3] = [(":method", "GET"), (":scheme", "http"), (":path", "/")];

/// The text of the answer, or the frame that ended the stream or the connection.
async fn outcome(headers: &[(&str, &str)], body: Option<&str>) -> String {
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &[]));
    let end = if body.is_none() { END_STREAM } else { 0 };
    sent.extend(frame(1, END_HEADERS | end, 1, &fields(headers)));
    if let Some(body) = body {
        sent.extend(frame(0, END_STREAM, 1, body.as_bytes()));
    }
    let mut answer = &exchange(HttpVersion::Http2, &sent, 1 << 16).await[..];
    while answer.len() >= 9 {
        let length = u32::from_be_bytes([0, answer[0], answer[1], answer[2]]) as usize;
        let (kind, payload) = (answer[3], &answer[9..9 + length]);
        match kind {
            0 => return String::from_utf8_lossy(payload).trim_end().to_owned(),
            3 => return format!("reset {}", payload[3]),
            7 => return format!("goaway {}", payload[7]),
            _ => {}
        }
        answer = &answer[9 + length..];
    }
    "nothing".to_owned()
}

async fn with(more: &[(&str, &str)]) -> String {
    outcome(&[&GET[..], more].concat(), None).await
}

#[tokio::test]
async fn what_is_read_in_one_way_is_taken_and_the_rest_refused() {
    let host = (":authority", "x");
    assert_eq!(with(&[host]).await, "200 GET / x []");
    assert_eq!(with(&[("host", "x")]).await, "200 GET / x []");
    assert_eq!(with(&[host, ("host", "x")]).await, "200 GET / x []");
    assert_eq!(
        with(&[host, ("host", "y")]).await,
        "400 a Host other than :authority"
    );
    assert_eq!(with(&[]).await, "400 neither :authority nor Host");
    assert_eq!(
        with(&[("host", "x"), ("host", "x")]).await,
        "400 several Host fields"
    );
    assert_eq!(
        with(&[(":authority", "u@x")]).await,
        "400 a target whose host is not valid"
    );
    // PROTOCOL_ERROR is 1.
    for bad in [
        [host, ("A", "b")],
        [host, ("connection", "close")],
        [host, ("transfer-encoding", "chunked")],
        [host, ("te", "gzip")],
        [host, ("upgrade", "x")],
        [host, (":path", "/2")],
        [host, (":unknown", "1")],
        [host, ("a", "b\0c")],
        [host, ("a", "b\r\nc: d")],
    ] {
        let outcome = with(&bad).await;
        assert!(
            outcome == "reset 1" || outcome == "goaway 1",
            "{bad:?}: {outcome}"
        );
    }
    assert_eq!(with(&[host, ("te", "trailers")]).await, "200 GET / x []");
}

#[tokio::test]
async fn a_length_other_than_that_of_the_body_ends_the_stream() {
    let post = |length: &'static str| {
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "x"),
            ("content-length", length),
        ]
    };
    assert_eq!(outcome(&post("3"), Some("abc")).await, "200 POST / x [abc]");
    for (length, body) in [("2", Some("abc")), ("4", Some("abc")), ("4", None)] {
        let outcome = outcome(&post(length), body).await;
        assert!(
            outcome == "reset 1"
                || outcome == "goaway 1"
                || outcome == "400 a chunk of the body is not valid",
            "{length} {body:?}: {outcome}"
        );
    }
    assert_eq!(outcome(&post("x"), Some("abc")).await, "reset 1");
}
