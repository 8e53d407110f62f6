//! String formats: what a name, label, address, range or duration may look like, and the types that hold them.
//!
//! A format's name stands in the JSON Schema; `shape` looks it up here, so that schema, parser and message agree.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr, time::Duration};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, Visitor},
};

use super::pattern;
use crate::model::TrustDomain;

/// Whether a string has the format, and if not what was expected. An unknown format accepts everything, as JSON
/// Schema says; a test keeps our types from naming one.
pub(crate) fn check(format: &str, text: &str) -> Result<(), String> {
    let (ok, expected): (bool, &str) = match format {
        "dns-1123-label" => (
            is_dns_label(text),
            "at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
        ),
        "dns-1123-subdomain" => (
            is_dns_subdomain(text),
            "at most 253 lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit",
        ),
        "port-name" => (
            is_port_name(text),
            "at most 15 lower-case letters, digits and single '-', with at least one letter",
        ),
        "label-key" | "app-protocol" => (
            is_label_key(text),
            "a name of at most 63 letters, digits, '-', '_' and '.', with an optional DNS prefix and '/'",
        ),
        "label-value" => (
            text.is_empty() || is_qualified_name(text),
            "at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        ),
        "absolute-path" => (
            text.starts_with('/') && !text.contains('\0') && text.len() < 4096,
            "an absolute path",
        ),
        "unicast-ip" => return text.parse::<UnicastIp>().map(drop),
        "cluster-ip" => return text.parse::<ClusterIp>().map(drop),
        "cidr" => return text.parse::<Cidr>().map(drop),
        "gep-2257-duration" => return text.parse::<GepDuration>().map(drop),
        "port" => return text.parse::<Port>().map(drop),
        "trust-domain" => return TrustDomain::new(text).map(drop).map_err(|_| {
            "a trust domain: at most 255 lower-case letters, digits, '.', '-' and '_', beginning and ending with a letter or digit, without spiffe://".into()
        }),
        "principal-pattern" => return pattern::check_principal(text),
        "namespace-pattern" => return pattern::check_namespace(text),
        "service-account" => return pattern::check_service_account(text),
        "method-pattern" => return pattern::check_method(text),
        "path-pattern" => return crate::policy::path::check_pattern(text),
        "host-pattern" => return pattern::check_host(text),
        "header-value-pattern" => return pattern::check_header_value(text),
        _ => {
            return requests::check(format, text)
                .or_else(|| routes::check(format, text))
                .unwrap_or(Ok(()));
        }
    };
    if ok { Ok(()) } else { Err(expected.to_owned()) }
}

/// Every format that `check` knows, besides those of requests.
#[cfg(test)]
pub(crate) const KNOWN: &[&str] = &[
    "dns-1123-label",
    "dns-1123-subdomain",
    "port-name",
    "label-key",
    "app-protocol",
    "label-value",
    "absolute-path",
    "unicast-ip",
    "cluster-ip",
    "cidr",
    "gep-2257-duration",
    "port",
    "trust-domain",
    "principal-pattern",
    "namespace-pattern",
    "service-account",
    "method-pattern",
    "path-pattern",
    "host-pattern",
    "header-value-pattern",
];

pub(super) fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= 63
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// IANA service name (RFC 6335 section 5.1), as Kubernetes wants it for a named target port.
fn is_port_name(text: &str) -> bool {
    text.len() <= 15
        && is_dns_label(text)
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.contains("--")
}

fn is_qualified_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => {
            prefix.len() <= 253 && prefix.split('.').all(is_dns_label) && is_qualified_name(name)
        }
        None => is_qualified_name(text),
    }
}

/// Declares the serde and schema sides of a type that is written as a string.
macro_rules! string_type {
    ($type:ident, $format:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse()
                    .map_err(|expected| D::Error::custom(format!("expected {expected}")))
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
                json_schema!({ "type": "string", "format": $format })
            }
        }
    };
}

// Below the macro, which it uses.
mod requests;
mod routes;

#[cfg(test)]
pub(crate) use requests::KNOWN as KNOWN_OF_REQUESTS;
pub use requests::{CookieName, GrpcCode, Header, StatusRange};
#[cfg(test)]
pub(crate) use routes::KNOWN as KNOWN_OF_ROUTES;

/// An address that a workload or service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnicastIp(pub IpAddr);

impl FromStr for UnicastIp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let address: IpAddr = text.parse().map_err(|_| "an IPv4 or IPv6 address")?;
        let refused = match address {
            IpAddr::V4(v4) => {
                v4.is_unspecified()
                    || v4.is_loopback()
                    || v4.is_link_local()
                    || v4.is_multicast()
                    || v4.octets()[0] >= 240
                    || v4.octets()[0] == 0
            }
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                return Err("an IPv4 address written as IPv4".into());
            }
            IpAddr::V6(v6) => {
                v6.is_unspecified()
                    || v6.is_loopback()
                    || v6.is_unicast_link_local()
                    || v6.is_multicast()
            }
        };
        if refused {
            return Err("a unicast address, neither loopback nor link-local".into());
        }
        Ok(Self(address))
    }
}

impl fmt::Display for UnicastIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

string_type!(UnicastIp, "unicast-ip");

/// An entry of `clusterIPs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClusterIp {
    /// `None`: the service is headless.
    Headless,
    Address(UnicastIp),
}

impl FromStr for ClusterIp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "None" {
            return Ok(Self::Headless);
        }
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(expected) => Err(format!("{expected}, or None")),
        }
    }
}

impl fmt::Display for ClusterIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headless => f.write_str("None"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

string_type!(ClusterIp, "cluster-ip");

/// A range of addresses; a single address is a range of one. Host bits are cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self(net.trunc()));
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self(address.into())),
            Err(_) => Err("a range such as 10.0.0.0/8 or fd00::/8".into()),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

string_type!(Cidr, "cidr");

/// A duration as in Gateway API's GEP-2257: one to four groups of at most five digits and a unit (h, m, s, ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GepDuration(pub Duration);

impl FromStr for GepDuration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "a duration such as 500ms, 10s or 1m30s";
        let mut total = Duration::ZERO;
        let mut rest = text;
        let mut groups = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let units = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = tail.split_at(units);
            if !(1..=5).contains(&digits) {
                return Err(EXPECTED.into());
            }
            let number: u64 = number.parse().map_err(|_| EXPECTED)?;
            total += match unit {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(EXPECTED.into()),
            };
            rest = tail;
            groups += 1;
        }
        if (1..=4).contains(&groups) {
            Ok(Self(total))
        } else {
            Err(EXPECTED.into())
        }
    }
}

impl fmt::Display for GepDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (seconds, millis) = (millis / 1000, millis % 1000);
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        let (hours, minutes) = (minutes / 60, minutes % 60);
        let mut any = false;
        for (number, unit) in [(hours, "h"), (minutes, "m"), (seconds, "s"), (millis, "ms")] {
            if number > 0 {
                write!(f, "{number}{unit}")?;
                any = true;
            }
        }
        if any { Ok(()) } else { f.write_str("0s") }
    }
}

string_type!(GepDuration, "gep-2257-duration");

/// A port, written as a number or, as Istio has it, as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Port(pub u16);

impl FromStr for Port {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // `parse` alone would take "+80".
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(port) if port > 0 && digits => Ok(Self(port)),
            _ => Err("a port, 1..=65535".into()),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Port;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port")
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Port, E> {
                match u16::try_from(number) {
                    Ok(port) if port > 0 => Ok(Port(port)),
                    _ => Err(E::custom("expected 1..=65535")),
                }
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Port, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(0))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Port, E> {
                text.parse()
                    .map_err(|expected| E::custom(format_args!("expected {expected}")))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Port {
    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "format": "port" }
            ]
        })
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(D::Error::custom)
    }
}

impl JsonSchema for TrustDomain {
    fn schema_name() -> Cow<'static, str> {
        "TrustDomain".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "trust-domain" })
    }
}
