//! The fields one by one.

use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use proptest::prelude::*;

use super::super::{
    grpc::parse_grpc_timeout, hop::*, refuse::is_host, retry::parse_retry_after, wire::*, *,
};
use crate::proxy::http::HttpVersion;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        })
        .collect()
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn fields_of_the_connection_stay_on_it() {
    let mut all = headers(&[
        ("connection", "close, X-Mine"),
        ("connection", "host, content-length"),
        ("x-mine", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip, trailers"),
        ("upgrade", "websocket"),
        ("host", "x"),
        ("content-length", "3"),
        ("trailer", "t"),
    ]);
    let hop = strip_hop_by_hop(&mut all);
    assert_eq!(names(&all), ["content-length", "host", "trailer"]);
    // `Connection` does not name the upgrade.
    assert_eq!(hop.upgrade, None);
    assert!(hop.trailers);

    let mut upgrade = headers(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
    ]);
    let hop = strip_hop_by_hop(&mut upgrade);
    assert!(upgrade.is_empty());
    assert!(!hop.trailers);
    assert_eq!(hop.upgrade, Some(HeaderValue::from_static("websocket")));

    let mut h2c = headers(&[
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "A"),
    ]);
    assert_eq!(strip_hop_by_hop(&mut h2c), Hop::default());
    assert!(h2c.is_empty());
}

#[test]
fn requests_change_their_form_with_the_version() {
    let (mut parts, ()) = Request::get("http://x:80/a?b")
        .version(Version::HTTP_2)
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(())
        .unwrap()
        .into_parts();
    assert_eq!(authority(&parts), Some("x:80"));
    canonical(&mut parts);
    assert_eq!(parts.uri, "/a?b");
    assert_eq!(authority(&parts), Some("x:80"));
    let trailers = Hop {
        trailers: true,
        upgrade: None,
    };

    let mut one = parts.clone();
    for_upstream(&mut one, HttpVersion::Http1, &trailers, "fallback", false);
    assert_eq!(one.version, Version::HTTP_11);
    assert_eq!(one.uri, "/a?b");
    assert_eq!(
        one.headers,
        headers(&[
            ("cookie", "a=1; b=2"),
            ("host", "x:80"),
            ("te", "trailers"),
            ("connection", "te")
        ])
    );

    let mut two = one.clone();
    strip_hop_by_hop(&mut two.headers);
    for_upstream(
        &mut two,
        HttpVersion::Http2,
        &Hop::default(),
        "fallback",
        true,
    );
    assert_eq!(two.version, Version::HTTP_2);
    assert_eq!(two.uri, "http://x:80/a?b");
    assert_eq!(two.headers, headers(&[("cookie", "a=1; b=2")]));

    // An HTTP/1.0 client need not name a host, and hyper takes a GET without a length for one without a body.
    let (mut old, ()) = Request::get("/")
        .version(Version::HTTP_10)
        .body(())
        .unwrap()
        .into_parts();
    for_upstream(
        &mut old,
        HttpVersion::Http1,
        &Hop::default(),
        "fallback",
        true,
    );
    assert_eq!(
        old.headers,
        headers(&[("host", "fallback"), ("transfer-encoding", "chunked")])
    );
}

#[test]
fn a_request_id_is_kept_if_it_is_one() {
    let mut given = headers(&[("x-request-id", "abc-1")]);
    assert_eq!(ensure_request_id(&mut given, || 0), "abc-1");
    let long = "x".repeat(MAX_REQUEST_ID + 1);
    for bad in ["", "a b", &long] {
        let mut headers = headers(&[("x-request-id", bad), ("x-request-id", "other")]);
        let id = ensure_request_id(&mut headers, || 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(id, "01234567-89ab-4def-8123-456789abcdef");
        assert_eq!(
            headers.get_all("x-request-id").iter().collect::<Vec<_>>(),
            [&id]
        );
    }
}

#[test]
fn hosts() {
    for good in [
        "x",
        "x.y",
        "x_y",
        "x:80",
        "x:",
        "1.2.3.4:8080",
        "[::1]",
        "[::1]:80",
        "[::ffff:1.2.3.4]",
    ] {
        assert!(is_host(good.as_bytes()), "{good}");
    }
    for bad in [
        "",
        ":80",
        "x:y",
        "x:65536",
        "x:1:2",
        "::1",
        "[::1",
        "[::1]x",
        "[x]",
        "x y",
        "x,y",
        "x/y",
        "x@y",
        "x?y",
        "x#y",
        "x%20",
        "\u{fc}",
        "[fe80::1%eth0]",
        "x\\y",
    ] {
        assert!(!is_host(bad.as_bytes()), "{bad}");
    }
}

#[test]
fn grpc_by_its_content_type() {
    for (value, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("Application/GRPC; charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/grpc-web-text", false),
        ("application/grpcx", false),
        ("application/json", false),
    ] {
        assert_eq!(
            is_grpc(&headers(&[("content-type", value)])),
            expected,
            "{value}"
        );
    }
    assert!(!is_grpc(&HeaderMap::new()));
}

#[test]
fn grpc_timeouts() {
    for (value, expected) in [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("99999999S", Some(Duration::from_secs(99_999_999))),
        ("100m", Some(Duration::from_millis(100))),
        ("7u", Some(Duration::from_micros(7))),
        ("0n", Some(Duration::ZERO)),
        ("123456789m", None),
        ("m", None),
        ("", None),
        ("1", None),
        ("-1m", None),
        ("1 m", None),
        ("1h", None),
    ] {
        assert_eq!(parse_grpc_timeout(value.as_bytes()), expected, "{value}");
    }
    let mut deadline = headers(&[("grpc-timeout", "1S")]);
    reduce_grpc_timeout(&mut deadline, Duration::from_millis(250));
    assert_eq!(deadline, headers(&[("grpc-timeout", "250000u")]));
    // More time than the client gave is not given.
    reduce_grpc_timeout(&mut deadline, Duration::from_secs(5));
    assert_eq!(deadline, headers(&[("grpc-timeout", "250000u")]));
    let mut none = HeaderMap::new();
    reduce_grpc_timeout(&mut none, Duration::from_secs(5));
    assert!(none.is_empty());
}

#[test]
fn times_to_come_again() {
    // 6 November 1994, 08:49:30 UTC.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
    for (value, expected) in [
        ("120", Some(120)),
        (" 0 ", Some(0)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
        ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
        (
            "Thu, 29 Feb 1996 00:00:00 GMT",
            Some(825_552_000 - 784_111_770),
        ),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("Wed, 31 Dec 1969 23:59:59 GMT", None),
        ("Sunday, 06-Nov-94 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 24:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("99999999999", None),
    ] {
        let wait = parse_retry_after(value.as_bytes(), now);
        assert_eq!(wait, expected.map(Duration::from_secs), "{value}");
    }
    for (value, expected) in [
        ("0", Pushback::After(Duration::ZERO)),
        ("1500", Pushback::After(Duration::from_millis(1500))),
        ("-1", Pushback::Never),
        ("x", Pushback::Never),
        ("2147483648", Pushback::Never),
    ] {
        let headers = headers(&[("grpc-retry-pushback-ms", value)]);
        assert_eq!(pushback(&headers), Some(expected), "{value}");
    }
    assert_eq!(pushback(&HeaderMap::new()), None);
}

#[test]
fn cookies() {
    let jar = headers(&[
        ("cookie", "xkey=0; key = \"a b\" ;other"),
        ("cookie", "key=2; last=3"),
    ]);
    assert_eq!(cookie(&jar, "key"), Some(&b"a b"[..]));
    assert_eq!(cookie(&jar, "last"), Some(&b"3"[..]));
    assert_eq!(cookie(&jar, "KEY"), None);
    assert_eq!(cookie(&jar, "ey"), None);
    assert_eq!(cookie(&jar, "other"), None);
    assert_eq!(
        set_cookie("key", 0xab, None, None).unwrap(),
        "key=00000000000000ab; Path=/; HttpOnly"
    );
    assert_eq!(
        set_cookie("key", 0xab, Some("/a"), Some(Duration::from_secs(60))).unwrap(),
        "key=00000000000000ab; Path=/a; Max-Age=60; HttpOnly"
    );
    assert_eq!(set_cookie("k;y", 0, None, None), None);
    assert_eq!(set_cookie("key", 0, Some("/;x"), None), None);
}

proptest! {
    #[test]
    fn a_deadline_never_grows_on_its_way(nanos in any::<u64>(), scale in 0u32..40) {
        let timeout = Duration::from_nanos(nanos >> scale);
        let written = format_grpc_timeout(timeout);
        let read = parse_grpc_timeout(written.as_bytes());
        prop_assert!(read.is_some_and(|read| read <= timeout), "{timeout:?} {written:?} {read:?}");
        // And loses little: three digits of eight at the worst.
        let read = read.unwrap_or_default();
        prop_assert!(timeout - read <= timeout / 90_000 + Duration::from_nanos(1));
        // What was read once is written as it came.
        prop_assert_eq!(format_grpc_timeout(read), format_grpc_timeout(read));
        prop_assert_eq!(parse_grpc_timeout(format_grpc_timeout(read).as_bytes()), Some(read));
    }

    #[test]
    fn what_was_issued_is_found(value in any::<u64>(), before in "[ -~]{0,40}") {
        let set = set_cookie("key", value, None, None).unwrap();
        let sent = set.to_str().unwrap().split(';').next().unwrap();
        let jar = headers(&[("cookie", &format!("{sent}; {before}"))]);
        let expected = format!("{value:016x}");
        prop_assert_eq!(cookie(&jar, "key"), Some(expected.as_bytes()));
    }
}
