//! What AuthorizationPolicies look at in a request.

use std::borrow::Cow;

use http::HeaderMap;

use super::path::RequestPath;

/// The part of a decision's facts that a request brings.
#[derive(Clone, Copy, Debug)]
pub struct HttpFacts<'a> {
    pub method: &'a str,
    pub path: &'a RequestPath<'a>,
    pub host: &'a RequestHost<'a>,
    pub headers: &'a HeaderMap,
}

/// `:authority` or Host, in lower case and without a final dot. Does not allocate for one that is so already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHost<'h> {
    full: Cow<'h, str>,
    /// Length of the host, without the port.
    name: usize,
}

impl<'h> RequestHost<'h> {
    pub fn new(authority: &'h str) -> Self {
        // Nobody has a user name in here; what stands before it would hide the host.
        let text = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        let name = name(text);
        let dot = text[..name].ends_with('.');
        let upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
        if !dot && !upper {
            return Self {
                full: text.into(),
                name,
            };
        }
        let kept = name - usize::from(dot);
        let mut full = text[..kept].to_ascii_lowercase();
        full.push_str(&text[name..]);
        Self {
            full: full.into(),
            name: kept,
        }
    }

    /// With the port, if the client wrote one.
    pub(super) fn full(&self) -> &str {
        &self.full
    }

    /// Without the port, if there is one.
    pub(super) fn bare(&self) -> Option<&str> {
        (self.name < self.full.len()).then(|| &self.full[..self.name])
    }

    pub fn into_owned(self) -> RequestHost<'static> {
        RequestHost {
            full: self.full.into_owned().into(),
            name: self.name,
        }
    }
}

/// Where the port begins, at its colon.
fn name(text: &str) -> usize {
    match text.rfind(':') {
        // A colon within [...] belongs to an IPv6 address.
        Some(colon) if !text[colon..].contains(']') => colon,
        _ => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_its_name_and_with_a_port_both() {
        for (given, full, bare) in [
            ("shop", "shop", None),
            ("SHOP.Example", "shop.example", None),
            ("shop.example.", "shop.example", None),
            (
                "Shop.example.:8080",
                "shop.example:8080",
                Some("shop.example"),
            ),
            ("shop:80", "shop:80", Some("shop")),
            ("[fd00::1]", "[fd00::1]", None),
            ("[FD00::1]:80", "[fd00::1]:80", Some("[fd00::1]")),
            ("user:pass@shop:80", "shop:80", Some("shop")),
            ("", "", None),
            (":", ":", Some("")),
            (".", "", None),
        ] {
            let host = RequestHost::new(given);
            assert_eq!((host.full(), host.bare()), (full, bare), "{given}");
        }
    }
}
