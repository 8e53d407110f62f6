//! What HTTP says in headers, read and written: pure, no I/O, no clock.
//!
//! `refuse` is what is never sent on; `hop` and `wire` are what changes from one connection to the next; `grpc`, `retry`
//! and `cookie` are the fields that decisions are made from.

mod cookie;
mod grpc;
mod hop;
mod raw;
mod refuse;
mod retry;
mod wire;

use ::http::{HeaderMap, HeaderName, HeaderValue};

#[cfg(test)]
pub(in crate::proxy) use self::refuse::Refusal;
pub(in crate::proxy) use self::{
    cookie::{cookie, set_cookie},
    grpc::{grpc_timeout, is_grpc, reduce_grpc_timeout},
    hop::{Hop, strip_hop_by_hop},
    raw::{Doubts, Heads},
    refuse::refuse,
    retry::{Pushback, pushback, retry_after},
    wire::{authority, canonical, for_upstream},
};
#[cfg(any(test, fuzzing))]
pub(in crate::proxy) use self::{grpc::format_grpc_timeout, raw::BAD_CHUNK, refuse::is_host};

/// Header fields of a request (431 above).
pub(in crate::proxy) const MAX_HEADERS: usize = 100;
/// Bytes of a request line and its header fields (431 above).
pub(in crate::proxy) const MAX_HEADER_BYTES: usize = 60 << 10;
/// Bytes of a request target (414 above).
pub(in crate::proxy) const MAX_URI: usize = 8 << 10;
/// A longer x-request-id is not one.
const MAX_REQUEST_ID: usize = 128;

pub(in crate::proxy) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The request's id: the client's own, or a new one (UUID version 4 of the 128 random bits), which is set.
pub(in crate::proxy) fn ensure_request_id(
    headers: &mut HeaderMap,
    random: impl FnOnce() -> u128,
) -> HeaderValue {
    if let Some(id) = headers.get(X_REQUEST_ID)
        && is_request_id(id)
    {
        return id.clone();
    }
    let id = uuid(random());
    // Replaces all that were there.
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

fn is_request_id(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

fn uuid(random: u128) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    // RFC 9562: version in bits 48..52, variant in bits 64..66.
    let bits = random & !(0xf << 76) | 4 << 76;
    let bits = bits & !(0b11 << 62) | 0b10 << 62;
    let mut text = [b'-'; 36];
    let mut left = 32;
    for (at, byte) in text.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&at) {
            left -= 1;
            *byte = HEX[(bits >> (left * 4) & 0xf) as usize];
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests;
