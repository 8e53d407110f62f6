//! From the form in which a client sent a request to the one that the pipeline works on, and on to that of an upstream.

use ::http::{
    HeaderMap, HeaderValue, Method, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use bytes::Bytes;

use super::Hop;
use crate::proxy::http::HttpVersion;

/// Whom the request is for, as the client named it. After [`canonical`] that is the Host alone.
pub(in crate::proxy) fn authority(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(HOST)?.to_str().ok(),
    }
}

/// One form for all versions: the target is a path, and Host says whom it is for (RFC 9112 section 3.2.2: a target that
/// names a host wins over the field). CONNECT keeps its target.
pub(in crate::proxy) fn canonical(parts: &mut Parts) {
    let Some(authority) = parts.uri.authority() else {
        return;
    };
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        parts.headers.insert(HOST, host);
    }
    if parts.method == Method::CONNECT {
        return;
    }
    parts.uri = match parts.uri.path_and_query() {
        Some(path) => Uri::from(path.clone()),
        None => Uri::from_static("/"),
    };
}

/// Writes a request in the form of the connection that it goes out on. `fallback`: whom it is for when the client (an
/// HTTP/1.0 one) did not say. `streamed`: it has a body of unknown length.
pub(in crate::proxy) fn for_upstream(
    parts: &mut Parts,
    version: HttpVersion,
    hop: &Hop,
    fallback: &str,
    streamed: bool,
) {
    if !parts.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(fallback)
    {
        parts.headers.insert(HOST, host);
    }
    match version {
        HttpVersion::Http1 => {
            parts.version = Version::HTTP_11;
            join_cookies(&mut parts.headers);
            if hop.trailers {
                parts
                    .headers
                    .insert(TE, HeaderValue::from_static("trailers"));
                parts
                    .headers
                    .insert(CONNECTION, HeaderValue::from_static("te"));
            }
            // hyper takes a GET without a length for one without a body.
            if streamed && !parts.headers.contains_key(CONTENT_LENGTH) {
                parts
                    .headers
                    .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        HttpVersion::Http2 => {
            parts.version = Version::HTTP_2;
            if hop.trailers {
                parts
                    .headers
                    .insert(TE, HeaderValue::from_static("trailers"));
            }
            if parts.method != Method::CONNECT
                && let Some(uri) = absolute(parts)
            {
                parts.uri = uri;
            }
            parts.headers.remove(HOST);
        }
    }
}

fn absolute(parts: &Parts) -> Option<Uri> {
    let host = parts.headers.get(HOST)?;
    let authority = Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok()?;
    let path = parts
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut uri = ::http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query = Some(path);
    Uri::from_parts(uri).ok()
}

/// HTTP/2 may split them for its compression; HTTP/1 has one field (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<_> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
