//! What policies make of paths, and that no server we know of can make something else of them.

use proptest::prelude::*;

use super::*;

/// The readings, then what the application gets.
fn show(path: &str) -> String {
    let path = RequestPath::new(path);
    if !path.is_readable() {
        return format!("unreadable -> {}", path.normal());
    }
    let readings: Vec<&str> = path.readings().collect();
    format!("{} -> {}", readings.join(" | "), path.normal())
}

#[test]
fn paths_are_read() {
    for (path, expected) in [
        // Nothing to do.
        ("/", "/ -> /"),
        ("/a/b.c/d-e_f~g", "/a/b.c/d-e_f~g -> /a/b.c/d-e_f~g"),
        ("/a/", "/a/ -> /a/"),
        ("/a.b/..c/...", "/a.b/..c/... -> /a.b/..c/..."),
        ("/shop.Cart/Add", "/shop.Cart/Add -> /shop.Cart/Add"),
        // No paths.
        ("*", "* -> *"),
        ("", " -> "),
        // Dots and slashes.
        ("/a/./b", "/a/b -> /a/b"),
        ("/a/../b", "/b -> /b"),
        ("/a/..", "/ -> /"),
        ("/a/b/..", "/a/ -> /a/"),
        ("/a/.", "/a/ -> /a/"),
        ("/../../a", "/a -> /a"),
        ("//a///b//", "/a/b/ -> /a/b/"),
        ("/a//../b", "/b -> /b"),
        // Encodings that mean nothing.
        ("/%61dmin", "/admin -> /admin"),
        ("/%2e%2E/a", "/a -> /a"),
        ("/a%2f../b", "unreadable -> /a%2f../b"),
        ("/caf%c3%a9", "/café -> /caf%C3%A9"),
        ("/café", "/café -> /café"),
        ("/a%20b%40c", "/a b@c -> /a%20b%40c"),
        ("/a%3fb%23c", "/a?b#c -> /a%3Fb%23c"),
        ("/100%25", "/100%25 -> /100%25"),
        // Readings.
        ("/a%2fb", "/a%2Fb | /a/b -> /a%2Fb"),
        ("/a%5Cb", "/a%5Cb | /a/b -> /a%5Cb"),
        ("/a\\b", "/a%5Cb | /a/b -> /a%5Cb"),
        ("/a%2F%2Fb", "/a%2F%2Fb | /a/b -> /a%2F%2Fb"),
        ("/a;v=1/b", "/a;v=1/b | /a/b -> /a;v=1/b"),
        ("/;x/a", "/;x/a | /a -> /;x/a"),
        ("/a%3Bv/b", "/a;v/b | /a/b -> /a%3Bv/b"),
        // What could be anything.
        ("/a%00", "unreadable -> /a%00"),
        ("/a%0d%0ab", "unreadable -> /a%0d%0ab"),
        ("/a%7f", "unreadable -> /a%7f"),
        ("/a%", "unreadable -> /a%"),
        ("/a%2", "unreadable -> /a%2"),
        ("/a%zz", "unreadable -> /a%zz"),
        ("/a%u002f", "unreadable -> /a%u002f"),
        ("/a%252fb", "unreadable -> /a%252fb"),
        ("/a%25%32%66b", "unreadable -> /a%25%32%66b"),
        ("/a%c0%afb", "unreadable -> /a%c0%afb"),
        ("/a%e9", "unreadable -> /a%e9"),
        ("/a%2F..%2Fb", "unreadable -> /a%2F..%2Fb"),
        ("/a/..%2Fb", "unreadable -> /a/..%2Fb"),
        ("/a\\..\\b", "unreadable -> /a\\..\\b"),
        ("/a/..;/b", "unreadable -> /a/..;/b"),
        ("/a/.;x/b", "unreadable -> /a/.;x/b"),
        ("/a%2Fb;c", "unreadable -> /a%2Fb;c"),
        ("/a;x/b%3By", "unreadable -> /a;x/b%3By"),
        ("/a%2F.;x", "unreadable -> /a%2F.;x"),
    ] {
        assert_eq!(show(path), expected, "{path}");
    }
}

#[test]
fn patterns_that_match_nothing_are_refused() {
    for pattern in [
        "/",
        "*",
        "/a",
        "/a/*",
        "/a*",
        "*/a",
        "*.json",
        "/*",
        "/a%20b",
        "/a b",
        "/caf%C3%A9",
        "/café",
        "/.git*",
        "/a/..*",
        "*.",
        "/a;b",
        "/a%2Fb",
        "/100%25",
        "*/",
        "/a/.b/c",
    ] {
        assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
    }
    for pattern in [
        "", "a", "a/*", "/a/*/b", "*a*", "**", "/a//b", "//*", "/a/./b", "/a/../b", "/a/..",
        "*/../a", "*//a", "/a?b", "/a#b", "/a%", "/a%2*", "/a%00", "/a%252F", "/a/{*}", "/{**}/b",
    ] {
        assert!(check_pattern(pattern).is_err(), "{pattern}");
    }
}

/// The resource that a server finds: how it decodes, whether encoded slashes and backslashes part segments, whether
/// parameters are cut off, whether dots are resolved.
#[derive(Clone, Copy, Debug)]
struct Server {
    slashes: bool,
    params_first: bool,
    params: bool,
    dots: bool,
}

impl Server {
    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            slashes: bits & 1 != 0,
            params_first: bits & 2 != 0,
            params: bits & 4 != 0,
            dots: bits & 8 != 0,
        })
    }

    fn finds(self, path: &str) -> Vec<Vec<u8>> {
        let mut bytes = path.as_bytes().to_vec();
        let cut = |bytes: Vec<u8>| {
            let segments = bytes.split(|b| *b == b'/');
            let bare = segments.map(|s| s.split(|b| *b == b';').next().unwrap_or_default());
            bare.collect::<Vec<_>>().join(&b'/')
        };
        if self.params && self.params_first {
            bytes = cut(bytes);
        }
        let mut segments: Vec<Vec<u8>> = match self.slashes {
            true => vec![percent_decode(&bytes)],
            false => bytes.split(|b| *b == b'/').map(percent_decode).collect(),
        };
        if self.slashes {
            let mut whole = segments.remove(0);
            whole
                .iter_mut()
                .filter(|b| **b == b'\\')
                .for_each(|b| *b = b'/');
            if self.params {
                whole = cut(whole);
            }
            segments = whole.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        } else if self.params {
            for segment in &mut segments {
                let end = segment.iter().position(|b| *b == b';');
                segment.truncate(end.unwrap_or(segment.len()));
            }
        }
        segments.retain(|segment| !segment.is_empty());
        if self.dots {
            let mut kept = Vec::new();
            for segment in segments {
                match segment.as_slice() {
                    b"." => {}
                    b".." => drop(kept.pop()),
                    _ => kept.push(segment),
                }
            }
            return kept;
        }
        segments
    }
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
        match (byte, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// A reading, as the segments of a server that takes it word by word.
fn segments(reading: &str) -> Vec<Vec<u8>> {
    let segments = reading.split('/').map(|s| percent_decode(s.as_bytes()));
    segments.filter(|segment| !segment.is_empty()).collect()
}

fn path() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/", "/", "/", "a", "b", ".", "..", ";", "x=1", "%2f", "%2F", "%5c", "\\", "%2e", "%61",
        "%25", "25", "2F", "%00", "%3b", "%c3%a9", "%c0%ae", "%", "é", "~", "%20",
    ]);
    prop::collection::vec(piece, 0..9).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever a server makes of the path that is sent on, it is one of the readings that were decided on.
    #[test]
    fn no_server_finds_what_was_not_decided_on(path in path()) {
        let path = RequestPath::new(&path);
        if path.is_readable() {
            let readings: Vec<_> = path.readings().map(segments).collect();
            for server in Server::all() {
                let found = server.finds(path.normal());
                prop_assert!(readings.contains(&found), "{server:?} finds {found:?} of {path:?}");
            }
        }
    }

    #[test]
    fn the_normal_form_stays(path in path()) {
        let once = RequestPath::new(&path);
        let again = RequestPath::new(once.normal());
        prop_assert_eq!(again.normal(), once.normal());
        prop_assert_eq!(again.is_readable(), once.is_readable());
        prop_assert!(once.readings().eq(again.readings()));
        for reading in once.readings().filter(|_| once.is_readable()) {
            let bad = reading.contains("//") || segments(reading).iter().any(|s| *s == b"." || *s == b"..");
            prop_assert!(!bad, "{}", reading);
        }
    }

    #[test]
    fn nothing_panics(path in ".*", pattern in ".*") {
        let _ = RequestPath::new(&path).into_owned();
        let _ = check_pattern(&pattern);
    }

    /// A pattern that is taken, read as a path, matches itself.
    #[test]
    fn an_exact_pattern_matches_its_path(path in path()) {
        if check_pattern(&path).is_ok() {
            let request = RequestPath::new(&path);
            prop_assert!(request.is_readable() || path.contains(';') || path.contains(['%', '\\']), "{}", path);
            if let Some(plain) = plain_pattern(&path).filter(|_| request.is_readable()) {
                prop_assert_eq!(request.readings().next(), Some(&*plain));
            }
        }
    }
}
