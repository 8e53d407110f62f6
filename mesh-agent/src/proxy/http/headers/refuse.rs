//! Requests that are never sent on, because two servers could read them in two ways, or because they are too large.
//!
//! hyper refuses the worst of it by itself (the table in the tests says which); this is the rest.

use std::{net::Ipv6Addr, str};

use ::http::{
    HeaderMap, Method, Version,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
    request::Parts,
};

use super::{MAX_HEADERS, MAX_URI};
use crate::telemetry::Reason;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Refusal {
    /// 400; says what is wrong.
    Bad(&'static str),
    /// 414
    UriTooLong,
    /// 431
    TooManyHeaders,
}

impl Refusal {
    pub(in crate::proxy) fn reason(self) -> Reason {
        match self {
            Self::Bad(_) => Reason::BadRequest,
            Self::UriTooLong => Reason::UriTooLong,
            Self::TooManyHeaders => Reason::RequestTooLarge,
        }
    }

    /// What to check.
    pub(in crate::proxy) fn detail(self) -> &'static str {
        match self {
            Self::Bad(what) => what,
            Self::UriTooLong => "the request target is longer than 8 KiB",
            Self::TooManyHeaders => "the request has more than 100 header fields",
        }
    }
}

/// Checks a request as hyper read it.
pub(in crate::proxy) fn refuse(parts: &Parts) -> Result<(), Refusal> {
    if parts.headers.len() > MAX_HEADERS {
        return Err(Refusal::TooManyHeaders);
    }
    let target = parts.uri.path_and_query().map_or(0, |p| p.as_str().len());
    if target > MAX_URI {
        return Err(Refusal::UriTooLong);
    }
    check_length(parts).map_err(Refusal::Bad)?;
    check_target(parts).map_err(Refusal::Bad)?;
    check_host(parts).map_err(Refusal::Bad)
}

/// How long the body is may be said in one way only.
fn check_length(parts: &Parts) -> Result<(), &'static str> {
    let headers = &parts.headers;
    let coded = headers.contains_key(TRANSFER_ENCODING);
    let length = headers.contains_key(CONTENT_LENGTH);
    if coded && length {
        return Err("both Content-Length and Transfer-Encoding");
    }
    if coded {
        if parts.version != Version::HTTP_11 {
            return Err("Transfer-Encoding in another version than HTTP/1.1");
        }
        if !only(headers, &TRANSFER_ENCODING)
            .is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"chunked"))
        {
            return Err("a Transfer-Encoding other than chunked, or several");
        }
    }
    if length
        && !only(headers, &CONTENT_LENGTH)
            .is_some_and(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit))
    {
        return Err("a Content-Length that is not one number");
    }
    if parts.method == Method::CONNECT && (coded || length) {
        return Err("CONNECT with a body");
    }
    Ok(())
}

fn check_target(parts: &Parts) -> Result<(), &'static str> {
    let uri = &parts.uri;
    let path = uri.path();
    if parts.method == Method::CONNECT {
        return match uri.authority() {
            // Extended CONNECT (RFC 8441) has a path as well.
            Some(_) if parts.version == Version::HTTP_2 || path.is_empty() => Ok(()),
            _ => Err("CONNECT without host and port alone as its target"),
        };
    }
    if uri.authority().is_some() && uri.scheme().is_none() {
        return Err("a target without a path");
    }
    if uri
        .scheme()
        .is_some_and(|scheme| !["http", "https"].contains(&scheme.as_str()))
    {
        return Err("a target of another scheme than http");
    }
    if path == "*" {
        return match parts.method {
            Method::OPTIONS => Ok(()),
            _ => Err("the target * with another method than OPTIONS"),
        };
    }
    if !path.starts_with('/') {
        return Err("a target without a path");
    }
    Ok(())
}

/// Whom the request is for may be said in one way only (RFC 9112 section 3.2, RFC 9113 section 8.3.1).
fn check_host(parts: &Parts) -> Result<(), &'static str> {
    let authority = parts.uri.authority().map(|a| a.as_str().as_bytes());
    if let Some(authority) = authority
        && !is_host(authority)
    {
        return Err("a target whose host is not valid");
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next().map(|host| host.as_bytes());
    if hosts.next().is_some() {
        return Err("several Host fields");
    }
    match (host, authority) {
        (Some(host), _) if !is_host(host) => Err("a Host that is not valid"),
        // In HTTP/1 the target wins (RFC 9112 section 3.2.2) and `canonical` makes the Host of it.
        (Some(host), Some(authority))
            if parts.version == Version::HTTP_2 && !host.eq_ignore_ascii_case(authority) =>
        {
            Err("a Host other than :authority")
        }
        (Some(_), _) => Ok(()),
        (None, _) if parts.version == Version::HTTP_11 => Err("no Host"),
        (None, None) if parts.version == Version::HTTP_2 => Err("neither :authority nor Host"),
        (None, _) => Ok(()),
    }
}

/// `host [":" port]`. Narrower than RFC 3986: no user, no percent-encoding, no delimiters that another server could take
/// for the end of the name.
pub(in crate::proxy) fn is_host(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else {
        return false;
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else {
            return false;
        };
        if host.parse::<Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            Some(port) => ("v6", Some(port)),
            None if port.is_empty() => ("v6", None),
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let name = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    !host.is_empty()
        && host.bytes().all(name)
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit())
                && (port.is_empty() || port.parse::<u16>().is_ok())
        })
}

/// The value of a field that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &::http::HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}
