//! The headers of a CONNECT request and its answer: authority, `forwarded`, `baggage`, `traceparent`.
//!
//! Pure functions over bytes that a peer sent. None of them fails a connection, but for the authority: what does not
//! parse is as if it were not there. None of them decides anything by itself either: `forwarded` and `baggage` are what
//! the peer says, and who the peer is comes from its certificate alone.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

pub use crate::telemetry::TraceParent;

/// Longest value that is looked at, and longest item that is kept.
const MAX_VALUE: usize = 4096;
const MAX_ITEM: usize = 256;

/// Where the connection is to go: an address and a port, in the form of RFC 3986 and nothing else. No names, no user
/// information, no zone, no IPv4 dressed up as IPv6.
pub fn parse_authority(authority: &str) -> Option<SocketAddr> {
    let address: SocketAddr = authority.parse().ok()?;
    let strange = match address {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(v6) => v6.scope_id() != 0 || v6.ip().to_ipv4_mapped().is_some(),
    };
    let (_, port) = authority.rsplit_once(':')?;
    (!strange && address.port() != 0 && !port.starts_with('0')).then_some(address)
}

/// What a `forwarded` header says of the client (RFC 7239), first element only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    pub client: Option<SocketAddr>,
    pub host: Option<String>,
}

impl Forwarded {
    /// Unknown parameters, identifiers that are no addresses and broken syntax count as absent.
    pub fn parse(value: &[u8]) -> Self {
        let mut found = Self::default();
        let Some(text) = text(value) else {
            return found;
        };
        let mut rest = text;
        loop {
            rest = rest.trim_start_matches([' ', '\t']);
            let Some((name, after)) = rest.split_once('=') else {
                return found;
            };
            let Some((item, after)) = token_or_quoted(after) else {
                return found;
            };
            if name.trim().eq_ignore_ascii_case("for") {
                found.client = found.client.or_else(|| node(&item));
            } else if name.trim().eq_ignore_ascii_case("host") && found.host.is_none() {
                found.host = (!item.is_empty() && item.len() <= MAX_ITEM).then_some(item);
            }
            match after.trim_start_matches([' ', '\t']).strip_prefix(';') {
                Some(next) => rest = next,
                // The end, or the next element, which is of a proxy further away.
                None => return found,
            }
        }
    }

    /// The value of the header.
    pub fn format(client: SocketAddr, host: Option<&str>) -> String {
        // Both kinds of addresses need the quotes, for the colon.
        let mut value = format!("for=\"{client}\"");
        if let Some(host) =
            host.filter(|h| !h.is_empty() && h.bytes().all(|b| b.is_ascii_graphic()))
        {
            value.push_str(";host=");
            if host.bytes().all(is_token) {
                value.push_str(host);
            } else {
                value.push('"');
                for c in host.chars() {
                    if matches!(c, '"' | '\\') {
                        value.push('\\');
                    }
                    value.push(c);
                }
                value.push('"');
            }
        }
        value
    }
}

/// An address with a port, as the `for` parameter has it.
fn node(item: &str) -> Option<SocketAddr> {
    let address: SocketAddr = item.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// A value up to its end, and what follows.
fn token_or_quoted(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t', '"']).unwrap_or(text.len());
        let (item, rest) = text.split_at(end);
        return Some((item.to_owned(), rest));
    };
    let mut item = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((item, &quoted[at + 1..])),
            '\\' => item.push(chars.next()?.1),
            c => item.push(c),
        }
    }
    None
}

/// Characters of a token (RFC 9110 5.6.2).
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn text(value: &[u8]) -> Option<&str> {
    (value.len() <= MAX_VALUE)
        .then(|| std::str::from_utf8(value).ok())
        .flatten()
}

/// Who the application at the other end is, as its agent says: for telemetry, never for a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    pub cluster: Option<String>,
    pub namespace: Option<String>,
    /// Of a Deployment, Job, CronJob or Pod.
    pub workload: Option<String>,
    pub service: Option<String>,
    pub version: Option<String>,
    pub region: Option<String>,
    pub zone: Option<String>,
}

impl Baggage {
    /// Takes the items it knows (W3C Baggage: `key=value;property,...`); of two alike the first.
    pub fn parse(value: &[u8]) -> Self {
        let mut found = Self::default();
        for item in text(value).unwrap_or_default().split(',') {
            let Some((key, rest)) = item.split_once('=') else {
                continue;
            };
            let value = rest.split_once(';').map_or(rest, |(value, _)| value);
            let slot = match key.trim() {
                "k8s.cluster.name" => &mut found.cluster,
                "k8s.namespace.name" => &mut found.namespace,
                "k8s.deployment.name" | "k8s.job.name" | "k8s.cronjob.name" | "k8s.pod.name" => {
                    &mut found.workload
                }
                "service.name" => &mut found.service,
                "service.version" => &mut found.version,
                "cloud.region" => &mut found.region,
                "cloud.availability_zone" => &mut found.zone,
                _ => continue,
            };
            if slot.is_none() {
                *slot = percent_decode(value.trim());
            }
        }
        found
    }

    /// The value of the header; empty items are left out.
    pub fn format(items: &[(&str, &str)]) -> String {
        let mut value = String::new();
        for (key, item) in items.iter().filter(|(_, item)| !item.is_empty()) {
            if !value.is_empty() {
                value.push(',');
            }
            value.push_str(key);
            value.push('=');
            for b in item.bytes() {
                // baggage-octet, without the percent sign.
                if matches!(b, b'!' | b'#'..=b'$' | b'&'..=b'+' | b'-'..=b':' | b'<'..=b'[' | b']'..=b'~')
                {
                    value.push(char::from(b));
                } else {
                    let _ = write!(value, "%{b:02X}");
                }
            }
        }
        value
    }
}

/// `None` for what is empty, too long or does not decode to text without control characters.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        if b == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(b);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.is_empty() && text.len() <= MAX_ITEM && !text.contains(char::is_control)).then_some(text)
}

/// The client that an application is told of: always the address that the tunnel came from, which is the source pod's
/// since agents dial tunnels inside of it. A `forwarded` header adds the port, if it is about that very address.
pub fn client_of(peer: SocketAddr, forwarded: Option<&[u8]>) -> SocketAddr {
    let said: Option<SocketAddr> = forwarded.and_then(|value| Forwarded::parse(value).client);
    let ip: IpAddr = peer.ip().to_canonical();
    match said {
        Some(said) if said.ip() == ip && said.port() != 0 => said,
        _ => SocketAddr::new(ip, peer.port()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn authorities() {
        for good in ["10.1.2.3:80", "[fd00::1]:65535", "127.0.0.1:1"] {
            assert_eq!(parse_authority(good), Some(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "",
            "10.1.2.3",
            "10.1.2.3:",
            "10.1.2.3:0",
            "10.1.2.3:080",
            "10.1.2.3:65536",
            "10.1.2.3:80:80",
            "10.1.2.3:+80",
            " 10.1.2.3:80",
            "10.1.2.3:80/",
            "user@10.1.2.3:80",
            "web.shop.svc:80",
            "fd00::1:80",
            "[fd00::1%2]:80",
            "[::ffff:10.1.2.3]:80",
            "010.1.2.3:80",
        ] {
            assert_eq!(parse_authority(bad), None, "{bad}");
        }
    }

    #[test]
    fn forwarded() {
        let parse = |value: &str| Forwarded::parse(value.as_bytes());
        let client = |text: &str| Some(text.parse().unwrap());
        for (value, expected, host) in [
            ("for=\"10.0.0.1:1234\"", client("10.0.0.1:1234"), None),
            (
                "For=\"[2001:db8::1]:80\"; Host=web.shop",
                client("[2001:db8::1]:80"),
                Some("web.shop"),
            ),
            (
                "host=\"a;b\";for=\"10.0.0.1:1\"",
                client("10.0.0.1:1"),
                Some("a;b"),
            ),
            ("by=x;for=10.0.0.1:5;proto=http", client("10.0.0.1:5"), None),
            (
                "for=\"10.0.0.1:1\", for=\"10.0.0.2:2\"",
                client("10.0.0.1:1"),
                None,
            ),
            ("for=\"\\10.0.0.1:1\"", client("10.0.0.1:1"), None),
            ("for=\"[::ffff:10.0.0.1]:1\"", client("10.0.0.1:1"), None),
            ("for=unknown", None, None),
            ("for=\"_hidden\"", None, None),
            ("for=\"10.0.0.1\"", None, None),
            ("for=\"10.0.0.1:1", None, None),
            ("", None, None),
            (";;;", None, None),
        ] {
            let found = parse(value);
            assert_eq!(found.client, expected, "{value}");
            assert_eq!(found.host.as_deref(), host, "{value}");
        }
    }

    #[test]
    fn forwarded_is_written_as_the_rfc_says() {
        let format = |client: &str, host| Forwarded::format(client.parse().unwrap(), host);
        assert_eq!(format("10.0.0.1:5", None), "for=\"10.0.0.1:5\"");
        assert_eq!(
            format("[fd00::1]:5", Some("web.shop.svc.cluster.local")),
            "for=\"[fd00::1]:5\";host=web.shop.svc.cluster.local"
        );
        assert_eq!(
            format("10.0.0.1:5", Some("web:80")),
            "for=\"10.0.0.1:5\";host=\"web:80\""
        );
    }

    #[test]
    fn the_tunnels_address_is_the_client_whatever_forwarded_says() {
        let peer: SocketAddr = "10.1.0.1:40000".parse().unwrap();
        let client = |value: &str| client_of(peer, Some(value.as_bytes())).to_string();
        assert_eq!(client("for=\"10.1.0.1:1234\""), "10.1.0.1:1234");
        assert_eq!(client("for=\"10.1.0.2:1234\""), "10.1.0.1:40000");
        assert_eq!(client("for=\"10.1.0.1:0\""), "10.1.0.1:40000");
        assert_eq!(client_of(peer, None), peer);
    }

    #[test]
    fn baggage() {
        let value = "k8s.cluster.name=c1,k8s.namespace.name=shop, k8s.deployment.name=web;x=y,service.name=w%C3%A9b,\
                     cloud.region=,unknown=1,broken,service.name=second";
        let found = Baggage::parse(value.as_bytes());
        let expected = Baggage {
            cluster: Some("c1".into()),
            namespace: Some("shop".into()),
            workload: Some("web".into()),
            service: Some("wéb".into()),
            ..Baggage::default()
        };
        assert_eq!(found, expected);
        assert_eq!(Baggage::parse(b"service.name=%zz"), Baggage::default());
        assert_eq!(Baggage::parse(b"service.name=%"), Baggage::default());
        assert_eq!(Baggage::parse(b"service.name=a%0Ab"), Baggage::default());
        assert_eq!(
            Baggage::format(&[
                ("k8s.namespace.name", "shop"),
                ("cloud.region", ""),
                ("service.name", "a,b;c=%")
            ]),
            "k8s.namespace.name=shop,service.name=a%2Cb%3Bc=%25"
        );
    }

    proptest! {
        /// Nothing that a peer sends makes a parser panic.
        #[test]
        fn any_bytes(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            Forwarded::parse(&value);
            Baggage::parse(&value);
            parse_authority(&String::from_utf8_lossy(&value));
        }

        #[test]
        fn any_likely_text(value in "[for=\";,\\\\host0-9.:\\[\\]% a-f-]{0,80}") {
            Forwarded::parse(value.as_bytes());
            Baggage::parse(value.as_bytes());
            parse_authority(&value);
        }

        #[test]
        fn what_is_written_is_read(ip in any::<IpAddr>(), port in 1_u16.., host in proptest::option::of("[!-~]{1,60}")) {
            let client = SocketAddr::new(ip, port);
            let found = Forwarded::parse(Forwarded::format(client, host.as_deref()).as_bytes());
            prop_assert_eq!(found.client, Some(SocketAddr::new(ip.to_canonical(), port)));
            prop_assert_eq!(found.host, host);
        }

        #[test]
        fn baggage_is_read_as_written(namespace in "[ -~é]{1,40}", service in "[ -~]{1,40}") {
            let value = Baggage::format(&[("k8s.namespace.name", &namespace), ("service.name", &service)]);
            let found = Baggage::parse(value.as_bytes());
            prop_assert_eq!(found.namespace, Some(namespace));
            prop_assert_eq!(found.service, Some(service));
        }

        #[test]
        fn an_authority_is_the_text_of_its_address(ip in any::<IpAddr>(), port in 1_u16..) {
            let address = SocketAddr::new(ip, port);
            let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            prop_assert_eq!(parse_authority(&address.to_string()), (!mapped).then_some(address));
        }
    }
}
