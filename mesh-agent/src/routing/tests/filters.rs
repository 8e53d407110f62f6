//! Headers, redirects, rewrites, CORS and fractions.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use proptest::prelude::*;

use crate::routing::{Cors, Dialled, Fraction, HeaderModifier, PathRewrite, Redirect, Rewrite};

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, value.parse().unwrap());
    }
    headers
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(HeaderName, HeaderValue)> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

fn all<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect()
}

#[test]
fn headers_are_set_joined_and_removed() {
    let modifier = HeaderModifier {
        set: pairs(&[("x-set", "new"), ("x-set-absent", "new")]),
        add: pairs(&[
            ("x-add", "new"),
            ("x-add-absent", "new"),
            ("set-cookie", "b=2"),
            ("cookie", "b=2"),
        ]),
        remove: vec!["x-remove".parse().unwrap(), "x-absent".parse().unwrap()],
    };
    let mut map = headers(&[
        ("X-Set", "one"),
        ("X-Set", "two"),
        ("X-Add", "one"),
        ("X-Add", "two"),
        ("X-Remove", "one"),
        ("X-Remove", "two"),
        ("Set-Cookie", "a=1"),
        ("Cookie", "a=1"),
        ("x-other", "kept"),
    ]);
    modifier.apply(&mut map);
    assert_eq!(all(&map, "x-set"), ["new"]);
    assert_eq!(all(&map, "x-set-absent"), ["new"]);
    assert_eq!(all(&map, "x-add"), ["one,two,new"]);
    assert_eq!(all(&map, "x-add-absent"), ["new"]);
    assert_eq!(all(&map, "x-remove"), Vec::<&str>::new());
    assert_eq!(all(&map, "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(all(&map, "cookie"), ["a=1; b=2"]);
    assert_eq!(all(&map, "x-other"), ["kept"]);
}

/// The table of Gateway API.
#[test]
fn a_prefix_is_replaced_by_segment() {
    for (path, prefix, replacement, result) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "", "/xyz", "/xyz/foo/bar"),
        ("*", "", "/xyz", "*"),
    ] {
        let rewrite = PathRewrite::Prefix(replacement.into());
        assert_eq!(
            rewrite.apply(path, Some(prefix)),
            result,
            "{path} {prefix} {replacement}"
        );
    }
    let full = PathRewrite::Full("/one".into());
    assert_eq!(full.apply("/foo/bar", Some("/foo")), "/one");
    assert_eq!(full.apply("/foo/bar", None), "/one");
    assert_eq!(PathRewrite::Prefix("/x".into()).apply("/foo", None), "/foo");
}

const TO: Redirect = Redirect {
    scheme: None,
    hostname: None,
    path: None,
    port: None,
    status: 302,
};

fn location(redirect: &Redirect, host: Option<&str>, port: u16) -> String {
    let uri: Uri = "/foo/bar?a=b".parse().unwrap();
    let dialled = Dialled {
        scheme: "http",
        host,
        port,
    };
    redirect.location(&uri, dialled, Some("/foo"))
}

#[test]
fn a_redirect_says_what_is_new_and_keeps_the_rest() {
    let host = Some("web.shop:8080");
    let hostname = || Some("example.org".into());
    let https = || Some("https".into());
    let cases = [
        (
            Redirect {
                hostname: hostname(),
                ..TO
            },
            80,
            "http://example.org/foo/bar?a=b",
        ),
        (
            Redirect {
                hostname: hostname(),
                ..TO
            },
            8080,
            "http://example.org:8080/foo/bar?a=b",
        ),
        (TO, 80, "http://web.shop/foo/bar?a=b"),
        (
            Redirect {
                scheme: https(),
                ..TO
            },
            8080,
            "https://web.shop/foo/bar?a=b",
        ),
        (
            Redirect {
                scheme: https(),
                port: Some(443),
                ..TO
            },
            80,
            "https://web.shop/foo/bar?a=b",
        ),
        (
            Redirect {
                scheme: https(),
                port: Some(80),
                ..TO
            },
            80,
            "https://web.shop:80/foo/bar?a=b",
        ),
        (
            Redirect {
                port: Some(8083),
                ..TO
            },
            80,
            "http://web.shop:8083/foo/bar?a=b",
        ),
        (
            Redirect {
                port: Some(80),
                ..TO
            },
            8080,
            "http://web.shop/foo/bar?a=b",
        ),
        (
            Redirect {
                path: Some(PathRewrite::Prefix("/new".into())),
                hostname: hostname(),
                ..TO
            },
            80,
            "http://example.org/new/bar?a=b",
        ),
        (
            Redirect {
                path: Some(PathRewrite::Full("/all".into())),
                ..TO
            },
            80,
            "http://web.shop/all?a=b",
        ),
    ];
    for (redirect, port, expected) in cases {
        assert_eq!(location(&redirect, host, port), expected, "{redirect:?}");
    }
    assert_eq!(
        location(&TO, Some("[fd00::1]:8080"), 81),
        "http://[fd00::1]:81/foo/bar?a=b"
    );
    assert_eq!(
        location(&TO, Some("[fd00::1]"), 80),
        "http://[fd00::1]/foo/bar?a=b"
    );
    assert_eq!(location(&TO, None, 80), "/foo/bar?a=b");
}

#[test]
fn a_rewrite_changes_host_and_path_in_both_versions() {
    let rewrite = Rewrite {
        hostname: Some(HeaderValue::from_static("new.example")),
        path: Some(PathRewrite::Prefix("/one".into())),
    };
    let mut uri: Uri = "/foo/bar?a=b".parse().unwrap();
    let mut map = headers(&[("host", "old:80")]);
    rewrite.apply(&mut uri, &mut map, Some("/foo"));
    assert_eq!(uri, "/one/bar?a=b");
    assert_eq!(all(&map, "host"), ["new.example"]);

    let mut uri: Uri = "http://old:80/foo".parse().unwrap();
    let mut map = HeaderMap::new();
    rewrite.apply(&mut uri, &mut map, Some("/foo"));
    assert_eq!(uri, "http://new.example/one");
    assert!(map.is_empty());
}

fn cors() -> Cors {
    Cors {
        allow_origins: vec![
            "https://*.shop.example".into(),
            "http://plain.example:8080".into(),
        ],
        allow_methods: vec![Method::PUT, Method::DELETE],
        allow_any_method: false,
        allow_headers: vec!["x-one".parse().unwrap(), "x-two".parse().unwrap()],
        allow_any_header: false,
        expose_headers: Some(HeaderValue::from_static("x-three")),
        allow_credentials: false,
        max_age: Some(Duration::from_secs(5)),
    }
}

fn preflight(origin: &str) -> HeaderMap {
    headers(&[
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-one, x-nine"),
    ])
}

#[test]
fn a_preflight_is_answered_for_the_origins_that_are_allowed() {
    let asked = preflight("https://a.b.shop.example");
    assert!(Cors::is_preflight(&Method::OPTIONS, &asked));
    assert!(!Cors::is_preflight(&Method::GET, &asked));
    assert!(!Cors::is_preflight(
        &Method::OPTIONS,
        &headers(&[("origin", "https://a")])
    ));

    let answer = cors().preflight(&asked);
    assert_eq!(
        answer[header::ACCESS_CONTROL_ALLOW_ORIGIN],
        "https://a.b.shop.example"
    );
    assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_METHODS], "PUT, DELETE");
    assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_HEADERS], "x-one, x-two");
    assert_eq!(answer[header::ACCESS_CONTROL_MAX_AGE], "5");
    assert!(!answer.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));

    for (origin, allowed) in [
        ("https://shop.example", false),
        ("https://.shop.example", false),
        ("https://a.shop.example", true),
        ("https://a.shop.example:443", true),
        ("https://a.shop.example:444", false),
        ("http://a.shop.example", false),
        ("https://a.shop.example.evil", false),
        ("http://plain.example:8080", true),
        ("http://plain.example", false),
        ("null", false),
    ] {
        let answer = cors().preflight(&preflight(origin));
        let given = answer.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(given, allowed, "{origin}");
        assert_eq!(answer.len() > 1, allowed, "{answer:?}");
    }
}

#[test]
fn a_wildcard_is_said_as_such_only_without_credentials() {
    let mut cors = Cors {
        allow_origins: vec!["*".into()],
        allow_methods: Vec::new(),
        allow_any_method: true,
        allow_headers: Vec::new(),
        allow_any_header: true,
        ..cors()
    };
    let answer = cors.preflight(&preflight("https://any"));
    assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    cors.allow_credentials = true;
    let answer = cors.preflight(&preflight("https://any"));
    assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://any");
    assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
    assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_METHODS], "PUT");
    assert_eq!(
        answer[header::ACCESS_CONTROL_ALLOW_HEADERS],
        "x-one, x-nine"
    );
    let without = headers(&[
        ("origin", "https://any"),
        ("access-control-request-method", "PUT"),
    ]);
    let answer = cors.preflight(&without);
    assert!(!answer.contains_key(header::ACCESS_CONTROL_ALLOW_HEADERS));
}

#[test]
fn the_route_decides_what_a_browser_may_read_not_the_backend() {
    let mut response = headers(&[
        ("access-control-allow-origin", "*"),
        ("access-control-allow-credentials", "true"),
        ("vary", "accept"),
    ]);
    cors().respond(&headers(&[("origin", "https://evil")]), &mut response);
    assert_eq!(
        all(&response, "access-control-allow-origin"),
        Vec::<&str>::new()
    );
    assert_eq!(
        all(&response, "access-control-allow-credentials"),
        Vec::<&str>::new()
    );
    assert_eq!(all(&response, "vary"), ["accept", "origin"]);

    cors().respond(
        &headers(&[("origin", "https://a.shop.example")]),
        &mut response,
    );
    assert_eq!(
        all(&response, "access-control-allow-origin"),
        ["https://a.shop.example"]
    );
    assert_eq!(all(&response, "access-control-expose-headers"), ["x-three"]);
}

#[test]
fn a_fraction_is_that_part_of_all_random_numbers() {
    let count = |fraction: Fraction| {
        (0..10_000_u32)
            .filter(|n| fraction.includes(n * (u32::MAX / 10_000)))
            .count()
    };
    let of = |numerator, denominator| Fraction {
        numerator,
        denominator,
    };
    assert_eq!(count(of(0, 100)), 0);
    assert_eq!(count(Fraction::ALL), 10_000);
    assert_eq!(count(of(100, 100)), 10_000);
    assert!(count(of(1, 3)).abs_diff(3333) <= 1);
    assert!(Fraction::ALL.includes(u32::MAX));
    assert!(of(u32::MAX, u32::MAX).includes(u32::MAX));
}

proptest! {
    /// Whatever is added to a header, its values are those that were there and the new one.
    #[test]
    fn adding_keeps_what_was_there(old in prop::collection::vec("[a-z]{1,5}", 0..4), new in "[a-z]{1,5}") {
        let mut map = HeaderMap::new();
        for value in &old {
            map.append("x", value.parse().unwrap());
        }
        HeaderModifier { add: pairs(&[("x", &new)]), ..HeaderModifier::default() }.apply(&mut map);
        let values: Vec<String> = all(&map, "x").join(",").split(',').map(str::to_owned).collect();
        let mut expected = old;
        expected.push(new);
        prop_assert_eq!(values, expected);
    }

    #[test]
    fn a_rewritten_request_has_a_path(path in "(/[a-c]{0,2}){1,4}", prefix in "(/[a-c]{1,2}){0,2}", replacement in "(/[x-z]{1,2}){0,2}/?") {
        let rewrite = Rewrite { hostname: None, path: Some(PathRewrite::Prefix(replacement.as_str().into())) };
        let mut uri: Uri = format!("{path}?q").parse().unwrap();
        rewrite.apply(&mut uri, &mut HeaderMap::new(), Some(&prefix));
        prop_assert!(uri.path().starts_with('/'));
        prop_assert_eq!(uri.query(), Some("q"));
    }
}
