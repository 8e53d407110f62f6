//! Formats of what is in HTTP requests: header names, methods, paths, statuses.

use std::{borrow::Cow, fmt, str::FromStr};

use http::{HeaderName, Method, Uri, uri::Authority};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, Visitor},
};

/// Every format that `check` knows.
#[cfg(test)]
pub(crate) const KNOWN: &[&str] = &[
    "header-name",
    "cookie-name",
    "cookie-path",
    "query-parameter",
    "http-method",
    "path-prefix",
    "request-target",
    "authority",
    "grpc-service",
    "status-range",
    "grpc-code",
];

/// As `format::check`; `None`: not one of these.
pub(super) fn check(format: &str, text: &str) -> Option<Result<(), String>> {
    let (ok, expected): (bool, &str) = match format {
        "header-name" => return Some(text.parse::<Header>().map(drop)),
        "cookie-name" => return Some(text.parse::<CookieName>().map(drop)),
        "status-range" => return Some(text.parse::<StatusRange>().map(drop)),
        "grpc-code" => return Some(text.parse::<GrpcCode>().map(drop)),
        "cookie-path" => (
            text.starts_with('/') && text.len() <= 1024 && is_visible(text) && !text.contains(';'),
            "a path that begins with '/', without spaces and ';'",
        ),
        "query-parameter" => (
            !text.is_empty() && text.len() <= 256 && !text.contains(['&', '=', '#']),
            "the name of a query parameter, without '&', '=' and '#'",
        ),
        "http-method" => (
            text.len() <= 64
                && Method::from_bytes(text.as_bytes()).is_ok()
                && !text.bytes().any(|b| b.is_ascii_lowercase()),
            "a method in capital letters, such as GET",
        ),
        "path-prefix" => (
            text.starts_with('/')
                && text.len() <= 1024
                && is_visible(text)
                && !text.contains(['?', '#']),
            "a path that begins with '/', without '?' and '#'",
        ),
        "request-target" => (
            text.starts_with('/')
                && text.len() <= 1024
                && is_visible(text)
                && !text.contains('#')
                && text.parse::<Uri>().is_ok(),
            "a path that begins with '/', with a query if need be",
        ),
        "authority" => (
            text.parse::<Authority>().is_ok() && !text.contains('@'),
            "a host, with a port if need be",
        ),
        "grpc-service" => (
            text.len() <= 256
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/')),
            "a service such as shop.v1.Cart",
        ),
        _ => return None,
    };
    Some(if ok { Ok(()) } else { Err(expected.to_owned()) })
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

/// The name of a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header(pub HeaderName);

impl FromStr for Header {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(name) if text.len() <= 256 => Ok(Self(name)),
            _ => Err("the name of a header".into()),
        }
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

string_type!(Header, "header-name");

/// The name of a cookie: a token (RFC 6265 section 4.1.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CookieName(pub String);

impl FromStr for CookieName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // A method is a token as well.
        match Method::from_bytes(text.as_bytes()) {
            Ok(_) if text.len() <= 64 => Ok(Self(text.to_owned())),
            _ => Err("the name of a cookie: letters, digits, '-', '_' and '.'".into()),
        }
    }
}

impl fmt::Display for CookieName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_type!(CookieName, "cookie-name");

/// A status, as a number, or several as a string: `502-504`. Both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusRange {
    pub from: u16,
    pub to: u16,
}

impl StatusRange {
    const EXPECTED: &str = "a status, 100..=599, or a range such as 502-504";

    fn single(number: i64) -> Result<Self, String> {
        match u16::try_from(number) {
            Ok(status @ 100..=599) => Ok(Self {
                from: status,
                to: status,
            }),
            _ => Err(Self::EXPECTED.into()),
        }
    }
}

impl FromStr for StatusRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // `parse` alone would take "+200".
        let status = |text: &str| match text.parse::<u16>() {
            Ok(status @ 100..=599) if text.len() == 3 => Ok(status),
            _ => Err(Self::EXPECTED),
        };
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (status(from)?, status(to)?);
        match from <= to {
            true => Ok(Self { from, to }),
            false => Err("a range whose first status is not above its last".into()),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from == self.to {
            true => self.from.fmt(f),
            false => write!(f, "{}-{}", self.from, self.to),
        }
    }
}

/// A status of gRPC but OK, by number or by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrpcCode(pub u8);

impl GrpcCode {
    /// In the order of their numbers.
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];

    const EXPECTED: &str =
        "a status of gRPC but OK, by number (14) or by its name in capital letters (UNAVAILABLE)";

    fn number(number: i64) -> Result<Self, String> {
        match u8::try_from(number) {
            Ok(code @ 1..=16) => Ok(Self(code)),
            _ => Err(Self::EXPECTED.into()),
        }
    }
}

impl FromStr for GrpcCode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match Self::NAMES.iter().position(|name| *name == text) {
            Some(code) => Self::number(code as i64),
            None => Err(Self::EXPECTED.into()),
        }
    }
}

impl fmt::Display for GrpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.get(usize::from(self.0)).unwrap_or(&"UNKNOWN"))
    }
}

/// Declares the serde and schema sides of a type that is written as a number or as a string.
macro_rules! number_or_string {
    ($type:ident, $number:path, $format:literal, $min:literal ..= $max:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;
                impl Visitor<'_> for Either {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($type::EXPECTED)
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$type, E> {
                        $number(number).map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$type, E> {
                        self.visit_i64(i64::try_from(number).unwrap_or(-1))
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "anyOf": [
                        { "type": "integer", "minimum": $min, "maximum": $max },
                        { "type": "string", "format": $format }
                    ]
                })
            }
        }
    };
}

number_or_string!(StatusRange, StatusRange::single, "status-range", 100..=599);
number_or_string!(GrpcCode, GrpcCode::number, "grpc-code", 1..=16);
