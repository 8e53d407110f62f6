//! Formats of Gateway API: groups, kinds, host names, headers, origins; and moments.

use std::{borrow::Cow, net::IpAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{Port, is_dns_subdomain, is_qualified_name};
use crate::model::Timestamp;

/// Every format that `check` knows.
#[cfg(test)]
pub(crate) const KNOWN: &[&str] = &[
    "api-group",
    "kind",
    "hostname",
    "precise-hostname",
    "http-header-name",
    "http-header-value",
    "match-value",
    "query-value",
    "at-most-1024",
    "cors-origin",
    "date-time",
];

/// As `format::check`; `None`: not one of these.
pub(super) fn check(format: &str, text: &str) -> Option<Result<(), String>> {
    let (ok, expected): (bool, &str) = match format {
        "api-group" => (
            text.is_empty() || is_dns_subdomain(text),
            "a group such as gateway.networking.k8s.io, or \"\" for the core group",
        ),
        "kind" => (
            is_qualified_name(text) && text.starts_with(|c: char| c.is_ascii_alphabetic()),
            "a kind such as Service",
        ),
        "hostname" => (
            is_dns_subdomain(text.strip_prefix("*.").unwrap_or(text)) && !is_address(text),
            "a host name, with '*.' before it at most",
        ),
        "precise-hostname" => (
            is_dns_subdomain(text) && !is_address(text),
            "a host name without port",
        ),
        "http-header-name" => (
            text.len() <= 256 && !text.is_empty() && text.bytes().all(is_token),
            "a header name: at most 256 letters, digits and !#$%&'*+-.^_`|~",
        ),
        "http-header-value" => (
            (1..=4096).contains(&text.len())
                && text
                    .bytes()
                    .all(|b| (b' '..=b'~').contains(&b) || b == b'\t')
                && !text.starts_with([' ', '\t'])
                && !text.ends_with([' ', '\t']),
            "a header value: 1 to 4096 characters of printable ASCII, without white space at its ends",
        ),
        "match-value" => ((1..=4096).contains(&text.len()), "1 to 4096 characters"),
        "query-value" => ((1..=1024).contains(&text.len()), "1 to 1024 characters"),
        "at-most-1024" => (text.len() <= 1024, "at most 1024 characters"),
        "cors-origin" => (
            is_origin(text),
            "an origin such as https://example.com:8443, with '*' in the host for any text, or '*'",
        ),
        "date-time" => return Some(text.parse::<Timestamp>().map(drop)),
        _ => return None,
    };
    Some(if ok { Ok(()) } else { Err(expected.to_owned()) })
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return false;
    };
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, port.parse::<Port>().is_ok()),
        None => (rest, true),
    };
    let label = |label: &str| {
        let bytes = label.bytes();
        !label.is_empty()
            && label.len() <= 63
            && bytes
                .into_iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'*'))
    };
    matches!(scheme, "http" | "https") && port && host.len() <= 253 && host.split('.').all(label)
}

string_type!(Timestamp, "date-time");
