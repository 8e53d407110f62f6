//! Requests that turn their connection into another protocol's: `Upgrade` of HTTP/1.1 (WebSocket and others), extended
//! CONNECT of HTTP/2 (RFC 8441), plain CONNECT; and the bytes that flow then.
//!
//! A WebSocket client and its server may speak different versions of HTTP. What differs is the handshake: HTTP/1 has a
//! key that is proved to be understood, HTTP/2 has `:protocol`. The bytes that follow are the same.

use ::http::{
    HeaderValue, Method, Response, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
    response,
    uri::{Authority, Scheme},
};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use hyper::{ext::Protocol, upgrade::OnUpgrade};

use super::{
    HttpVersion,
    headers::Hop,
    pool::{Upgraded, UpstreamBody},
    splice,
};
use crate::telemetry::{Reason, RequestBytes};

/// RFC 6455 1.3.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const WEBSOCKET: &str = "websocket";

/// An upgrade that a client asks for.
#[derive(Debug)]
pub(in crate::proxy) struct Upgrade {
    client: OnUpgrade,
    from: HttpVersion,
    /// `None`: plain CONNECT.
    protocol: Option<HeaderValue>,
    /// What a WebSocket server has to answer to: the client's, or one that was drawn for it.
    key: HeaderValue,
}

/// What an upstream says to it. One at a time lives, for moments.
#[allow(clippy::large_enum_variant)]
pub(in crate::proxy) enum Answer {
    /// Yes: the client's answer, and the connection that follows.
    Switched(response::Parts, Switched),
    /// As to any other request.
    Other(Response<UpstreamBody>),
    /// Yes, but it has not understood the handshake.
    Broken,
}

impl Upgrade {
    /// Takes what is needed out of a request whose fields of the connection are in `hop`.
    pub(in crate::proxy) fn of(parts: &mut Parts, hop: &Hop) -> Option<Self> {
        let client = parts.extensions.remove::<OnUpgrade>()?;
        let protocol = parts.extensions.remove::<Protocol>();
        let from = match parts.version {
            Version::HTTP_2 => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        };
        let connects = parts.method == Method::CONNECT;
        let protocol = match (&hop.upgrade, protocol) {
            (_, Some(protocol)) if connects => {
                Some(HeaderValue::from_bytes(protocol.as_ref()).ok()?)
            }
            (Some(protocol), _) if !connects => Some(protocol.clone()),
            _ if connects => None,
            _ => return None,
        };
        let key = parts.headers.get(SEC_WEBSOCKET_KEY).cloned();
        Some(Self {
            client,
            from,
            protocol,
            key: key.unwrap_or_else(new_key),
        })
    }

    /// Whether an upstream of this version can be asked. Of the protocols that HTTP/1 switches to only WebSocket has a
    /// form in HTTP/2; others are sent there as if they had not been asked for, which is what a server may do, too.
    fn can_ask(&self, to: HttpVersion) -> bool {
        match (self.from, to) {
            _ if self.protocol.is_none() => true,
            (HttpVersion::Http1, HttpVersion::Http1) | (HttpVersion::Http2, HttpVersion::Http2) => {
                true
            }
            _ => self.is_websocket(),
        }
    }

    fn is_websocket(&self) -> bool {
        let protocol = self.protocol.as_ref();
        protocol.is_some_and(|p| p.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
    }

    /// Asks the upstream. The request is in the form of its version already.
    pub(in crate::proxy) fn ask(&self, parts: &mut Parts, to: HttpVersion) {
        if !self.can_ask(to) {
            return;
        }
        let Some(protocol) = &self.protocol else {
            return;
        };
        match to {
            HttpVersion::Http1 => {
                if self.from == HttpVersion::Http2 {
                    parts.method = Method::GET;
                    parts.headers.insert(SEC_WEBSOCKET_KEY, self.key.clone());
                    if let Some(host) = parts.uri.authority()
                        && let Ok(host) = HeaderValue::from_str(host.as_str())
                    {
                        parts.headers.insert(HOST, host);
                    }
                    let target = parts.uri.path_and_query().cloned();
                    parts.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
                }
                parts.headers.insert(UPGRADE, protocol.clone());
                parts
                    .headers
                    .insert(CONNECTION, HeaderValue::from_static("upgrade"));
            }
            HttpVersion::Http2 => {
                parts.method = Method::CONNECT;
                parts.headers.remove(SEC_WEBSOCKET_KEY);
                let protocol = protocol
                    .to_str()
                    .map_or(Protocol::from_static(WEBSOCKET), |p| {
                        Protocol::from(p.to_ascii_lowercase().as_str())
                    });
                parts.extensions.insert(protocol);
                // CONNECT was left alone where other requests got these.
                let uri = std::mem::take(&mut parts.uri);
                parts.uri = whole(&uri, parts.headers.get(HOST)).unwrap_or(uri);
            }
        }
    }

    /// Reads the upstream's response, whose fields of the connection were taken already.
    pub(in crate::proxy) fn answered(
        self,
        response: Response<UpstreamBody>,
        to: HttpVersion,
    ) -> Answer {
        if !self.can_ask(to) {
            return Answer::Other(response);
        }
        let (mut parts, body) = response.into_parts();
        let upstream = match body.into_upgraded() {
            Ok(upstream) => upstream,
            Err(body) => {
                return Answer::Other(Response::from_parts(parts, body));
            }
        };
        let headers = &mut parts.headers;
        // RFC 9110 9.3.6: neither means anything here, and both could be misunderstood.
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
        if let Some(protocol) = &self.protocol {
            match (self.from, to) {
                (HttpVersion::Http1, _) => {
                    parts.status = StatusCode::SWITCHING_PROTOCOLS;
                    if to == HttpVersion::Http2 {
                        headers.insert(SEC_WEBSOCKET_ACCEPT, accept(&self.key));
                    }
                    headers.entry(UPGRADE).or_insert_with(|| protocol.clone());
                    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                }
                (HttpVersion::Http2, HttpVersion::Http1) => {
                    if headers.remove(SEC_WEBSOCKET_ACCEPT) != Some(accept(&self.key)) {
                        return Answer::Broken;
                    }
                    parts.status = StatusCode::OK;
                    headers.remove(UPGRADE);
                    headers.remove(CONNECTION);
                }
                (HttpVersion::Http2, HttpVersion::Http2) => {}
            }
        }
        let switched = Switched {
            client: self.client,
            upstream,
        };
        Answer::Switched(parts, switched)
    }
}

/// A connection whose both sides speak the new protocol.
pub(in crate::proxy) struct Switched {
    client: OnUpgrade,
    upstream: Upgraded,
}

impl Switched {
    /// Carries bytes both ways to the end. The client's side is there once the response has gone out.
    pub(in crate::proxy) async fn carry(self, bytes: &RequestBytes) -> Reason {
        match self.client.await {
            Ok(client) => splice::carry(client, self.upstream, bytes).await,
            Err(error) => {
                tracing::debug!(%error, "a client went away before its connection was switched");
                Reason::ClientReset
            }
        }
    }
}

fn whole(uri: &Uri, host: Option<&HeaderValue>) -> Option<Uri> {
    if uri.scheme().is_some() {
        return None;
    }
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    if parts.authority.is_none() {
        parts.authority = Authority::try_from(host?.as_bytes()).ok();
    }
    Uri::from_parts(parts).ok()
}

fn new_key() -> HeaderValue {
    value(&base64(&rand::random::<[u8; 16]>()))
}

/// RFC 6455 4.2.2.
fn accept(key: &HeaderValue) -> HeaderValue {
    let mut text = key.as_bytes().to_vec();
    text.extend_from_slice(KEY_SUFFIX);
    value(&base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text).as_ref()))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// RFC 4648 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0u32;
        for i in 0..3 {
            bits = bits << 8 | u32::from(group.get(i).copied().unwrap_or(0));
        }
        for i in 0..4 {
            let c = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= group.len() { char::from(c) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests;
