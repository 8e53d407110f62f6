//! What a rule does to requests and responses on the way.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Cors, Redirect, Rewrite};
use crate::model::ResourceName;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    pub request_headers: Option<HeaderModifier>,
    pub response_headers: Option<HeaderModifier>,
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<Mirror>,
    pub cors: Option<Cors>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Joined to what is there with a comma.
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// `None`: the backend is not there, and nothing is mirrored.
    pub service: Option<(ResourceName, u16)>,
    pub fraction: Fraction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    pub denominator: u32,
}

impl HeaderModifier {
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            add(headers, name, value);
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn add(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    // Set-Cookie is the one header whose values must not be joined (RFC 9110, 5.3); Cookie has its own separator.
    let separator: &[u8] = match *name {
        header::SET_COOKIE => {
            headers.append(name, value.clone());
            return;
        }
        header::COOKIE => b"; ",
        _ => b",",
    };
    let mut joined = Vec::new();
    for old in headers.get_all(name) {
        joined.extend_from_slice(old.as_bytes());
        joined.extend_from_slice(separator);
    }
    if joined.is_empty() {
        headers.insert(name, value.clone());
        return;
    }
    joined.extend_from_slice(value.as_bytes());
    // Values that were valid are valid when joined.
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(name, joined);
    }
}

impl Fraction {
    pub const ALL: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    /// Whether a request is of the fraction, for a random number.
    pub fn includes(self, random: u32) -> bool {
        // Spread over 0..denominator without a division.
        (u64::from(random) * u64::from(self.denominator)) >> 32 < u64::from(self.numerator)
    }
}
