//! Cookies, as far as consistent hashing needs them: one is looked up, and issued where it is missing.

use std::{fmt::Write as _, time::Duration};

use ::http::{HeaderMap, HeaderValue, header::COOKIE};

/// The value of the first cookie of this name (RFC 6265 section 5.4: names compare exactly). Never of one that only ends
/// in it.
pub(in crate::proxy) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b';'))
        .find_map(|pair| {
            let at = pair.iter().position(|b| *b == b'=')?;
            let value = pair[at + 1..].trim_ascii();
            (pair[..at].trim_ascii() == name.as_bytes()).then(|| unquoted(value))
        })
        .filter(|value| !value.is_empty())
}

fn unquoted(value: &[u8]) -> &[u8] {
    value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""))
        .unwrap_or(value)
}

/// `Set-Cookie` for a cookie of the proxy; the value is hexadecimal. `None`: name or path could not be written.
pub(in crate::proxy) fn set_cookie(
    name: &str,
    value: u64,
    path: Option<&str>,
    ttl: Option<Duration>,
) -> Option<HeaderValue> {
    let token = |b: u8| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b);
    if name.is_empty() || !name.bytes().all(token) || path.is_some_and(|p| p.contains(';')) {
        return None;
    }
    let mut text = format!("{name}={value:016x}; Path={}", path.unwrap_or("/"));
    if let Some(ttl) = ttl {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    text.push_str("; HttpOnly");
    HeaderValue::from_str(&text).ok()
}
