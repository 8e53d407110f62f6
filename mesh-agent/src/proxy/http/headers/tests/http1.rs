//! What HTTP/1 requests become: the bytes of a client against the answer.

use super::served::exchange;
use crate::proxy::http::HttpVersion;

/// `answers`: for each response its status and, where the handler was reached, its text.
struct Case {
    name: &'static str,
    sent: &'static str,
    answers: &'static [&'static str],
}

const fn case(name: &'static str, sent: &'static str, answers: &'static [&'static str]) -> Case {
    Case {
        name,
        sent,
        answers,
    }
}

/// hyper's own refusals have no text.
const BY_HYPER: &[&str] = &["400"];

const CASES: &[Case] = &[
    case(
        "plain",
        "GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n",
        &["200 GET /a?b x []"],
    ),
    case(
        "length",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        &["200 POST / x [abc]"],
    ),
    case(
        "two requests",
        "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
        &["200 POST /1 x [abc]", "200 GET /2 x []"],
    ),
    case(
        "chunked",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;e=1\r\nabc\r\n0\r\nt: 1\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
        &["200 POST / x [abc]", "200 GET /2 x []"],
    ),
    case(
        "a body that looks like a request with two lengths",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 49\r\n\r\n\r\n\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
        &[
            "200 POST / x [\r\n\r\nContent-Length: 1\r\nTransfer-Encoding: chunked]",
            "200 GET /2 x []",
        ],
    ),
    case(
        "empty line before",
        "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &["200 GET / x []"],
    ),
    // Lengths.
    case(
        "length, then chunked",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nZ\r\n0\r\n\r\n",
        &["400 both Content-Length and Transfer-Encoding"],
    ),
    case(
        "chunked, then length",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\ncontent-length: 4\r\n\r\n1\r\nZ\r\n0\r\n\r\n",
        &["400 both Content-Length and Transfer-Encoding"],
    ),
    case(
        "two lengths on the second request",
        "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n1\r\nZ\r\n0\r\n\r\n",
        &[
            "200 GET /1 x []",
            "400 both Content-Length and Transfer-Encoding",
        ],
    ),
    case(
        "two lengths after a chunked body",
        "POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nZ\r\n0\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n1\r\nZ\r\n0\r\n\r\n",
        &[
            "200 POST /1 x [Z]",
            "400 both Content-Length and Transfer-Encoding",
        ],
    ),
    case(
        "other lengths",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        BY_HYPER,
    ),
    case(
        "same lengths",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        &["200 POST / x [abc]"],
    ),
    case(
        "lengths in a list",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc",
        BY_HYPER,
    ),
    case(
        "length with a sign",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
        BY_HYPER,
    ),
    case(
        "length in hexadecimal",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\nabc",
        BY_HYPER,
    ),
    case(
        "negative length",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nabc",
        BY_HYPER,
    ),
    case(
        "empty length",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\nabc",
        BY_HYPER,
    ),
    case(
        "length beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
        BY_HYPER,
    ),
    case(
        "short body",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
        &["200 POST / x [cut]"],
    ),
    // Codings.
    case(
        "xchunked",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "identity",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "chunked, identity",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "chunked and identity",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "empty coding",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "gzip, chunked",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        &["400 a Transfer-Encoding other than chunked, or several"],
    ),
    case(
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &["400 a Transfer-Encoding other than chunked, or several"],
    ),
    case(
        "chunked, chunked",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        &["400 a Transfer-Encoding other than chunked, or several"],
    ),
    case(
        "Chunked",
        "POST / HTTP/1.1\r\nHost: x\r\ntransfer-encoding:\tChunked \r\n\r\n1\r\na\r\n0\r\n\r\n",
        &["200 POST / x [a]"],
    ),
    case(
        "coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BY_HYPER,
    ),
    // Chunks.
    case(
        "chunk without a size",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "chunk of a negative size",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "chunk beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\na",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "chunk longer than its size",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "chunk size that ends in LF",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "extension that ends in LF",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\n0\r\n\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "CR in an extension",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a\rb\r\na\r\n0\r\n\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "CR in a long extension",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;34567890123456789012345678901234567890123456789012345678901234567890\r1\r\na\r\n0\r\n\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    case(
        "long extension",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;345678901234567890123456789012345678901234567890123456789012345\r\na\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
        &["200 POST / x [a]", "200 GET /2 x []"],
    ),
    case(
        "chunk that ends in LF",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
        &["400 a chunk of the body is not valid"],
    ),
    // Lines.
    case(
        "obs-fold",
        "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "obs-fold of the first field",
        "GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "blank before the colon",
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "blank before the colon of a length",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc",
        BY_HYPER,
    ),
    case(
        "no colon",
        "GET / HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "empty name",
        "GET / HTTP/1.1\r\nHost: x\r\n: abc\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "NUL in a value",
        "GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "NUL in a name",
        "GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "CR in a value",
        "GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "LF after a field",
        "GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n",
        &["400 a line of the head ends in LF alone"],
    ),
    case(
        "LF throughout",
        "GET / HTTP/1.1\nHost: x\n\n",
        &["400 a line of the head ends in LF alone"],
    ),
    case(
        "LF at the end of the head",
        "GET / HTTP/1.1\r\nHost: x\r\n\n",
        &["400 a line of the head ends in LF alone"],
    ),
    case(
        "two blanks in the first line",
        "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        BY_HYPER,
    ),
    case(
        "blank in the target",
        "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        BY_HYPER,
    ),
    case("HTTP/0.9", "GET /\r\n\r\n", BY_HYPER),
    case("HTTP/3.0", "GET / HTTP/3.0\r\nHost: x\r\n\r\n", BY_HYPER),
    // Hosts.
    case("no Host", "GET / HTTP/1.1\r\n\r\n", &["400 no Host"]),
    case(
        "no Host in HTTP/1.0",
        "GET / HTTP/1.0\r\n\r\n",
        &["200 GET / - []"],
    ),
    case(
        "two Hosts",
        "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        &["400 several Host fields"],
    ),
    case(
        "the same Host twice",
        "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        &["400 several Host fields"],
    ),
    case(
        "empty Host",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        &["400 a Host that is not valid"],
    ),
    case(
        "Host with a path",
        "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
        &["400 a Host that is not valid"],
    ),
    case(
        "Host with a user",
        "GET / HTTP/1.1\r\nHost: x@y\r\n\r\n",
        &["400 a Host that is not valid"],
    ),
    case(
        "list of Hosts",
        "GET / HTTP/1.1\r\nHost: x, y\r\n\r\n",
        &["400 a Host that is not valid"],
    ),
    case(
        "port too high",
        "GET / HTTP/1.1\r\nHost: x:65536\r\n\r\n",
        &["400 a Host that is not valid"],
    ),
    case(
        "IPv6",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        &["200 GET / [::1]:80 []"],
    ),
    // Targets.
    case(
        "absolute",
        "GET http://y:81/a?b HTTP/1.1\r\nHost: x\r\n\r\n",
        &["200 GET /a?b y:81 []"],
    ),
    case(
        "absolute without a path",
        "GET http://y HTTP/1.1\r\nHost: y\r\n\r\n",
        &["200 GET / y []"],
    ),
    case(
        "absolute without Host",
        "GET http://y/ HTTP/1.1\r\n\r\n",
        &["400 no Host"],
    ),
    case(
        "absolute with a user",
        "GET http://x@y/ HTTP/1.1\r\nHost: y\r\n\r\n",
        &["400 a target whose host is not valid"],
    ),
    case(
        "absolute of another scheme",
        "GET ftp://y/ HTTP/1.1\r\nHost: y\r\n\r\n",
        &["400 a target of another scheme than http"],
    ),
    case(
        "target without a path",
        "GET y HTTP/1.1\r\nHost: y\r\n\r\n",
        &["400 a target without a path"],
    ),
    case(
        "OPTIONS *",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        &["200 OPTIONS * x []"],
    ),
    case(
        "GET *",
        "GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        &["400 the target * with another method than OPTIONS"],
    ),
    case(
        "CONNECT with a path",
        "CONNECT /a HTTP/1.1\r\nHost: x\r\n\r\n",
        &["400 CONNECT without host and port alone as its target"],
    ),
    case(
        "CONNECT with a body",
        "CONNECT y:1 HTTP/1.1\r\nHost: y:1\r\nContent-Length: 3\r\n\r\nabc",
        &["400 CONNECT with a body"],
    ),
];

/// Status, and the text where there is one, of each response.
fn answers(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    text.split("HTTP/1.")
        .skip(1)
        .map(|response| {
            let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
            let body = body.strip_suffix('\n').unwrap_or(body);
            if body.is_empty() {
                head.split(' ').nth(1).unwrap_or_default().to_owned()
            } else {
                body.to_owned()
            }
        })
        .collect()
}

#[tokio::test]
async fn what_is_read_in_one_way_is_taken_and_the_rest_refused() {
    let mut wrong = Vec::new();
    for case in CASES {
        for piece in [1 << 16, 7, 1] {
            let answer = exchange(HttpVersion::Http1, case.sent.as_bytes(), piece).await;
            let answers = answers(&answer);
            if answers != case.answers {
                let bytes = String::from_utf8_lossy(&answer);
                wrong.push(format!("{} (pieces of {piece}): {bytes:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
