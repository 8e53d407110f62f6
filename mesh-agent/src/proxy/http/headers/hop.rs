//! What belongs to one connection and is not sent on (RFC 9110 section 7.6.1).

use ::http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What the fields said that were taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct Hop {
    /// The protocol to switch to. `h2c` is left out: the agent speaks HTTP/2 with prior knowledge or not at all.
    pub(in crate::proxy) upgrade: Option<HeaderValue>,
    /// The sender takes trailers.
    pub(in crate::proxy) trailers: bool,
}

/// Removes the fields of the connection, and those that `Connection` names.
pub(in crate::proxy) fn strip_hop_by_hop(headers: &mut HeaderMap) -> Hop {
    let mut hop = Hop {
        upgrade: None,
        trailers: has_token(headers, &TE, "trailers"),
    };
    if headers.contains_key(CONNECTION) {
        if has_token(headers, &CONNECTION, "upgrade") {
            hop.upgrade = headers
                .get(UPGRADE)
                .filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"h2c"))
                .cloned();
        }
        for name in named(headers) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    headers.remove(TE);
    headers.remove(UPGRADE);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    hop
}

/// The fields that `Connection` names. Not those without which the message would mean something else: naming them is an
/// attack, not a wish.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, TRAILER].contains(name))
        .collect()
}

/// Whether a list of tokens has this one.
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(tokens)
        .any(|t| t.eq_ignore_ascii_case(token.as_bytes()))
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|b| *b == b',')
        .map(|token| token.trim_ascii())
        .filter(|token| !token.is_empty())
}
