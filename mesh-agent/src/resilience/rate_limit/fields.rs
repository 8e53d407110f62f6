//! The header fields of draft-ietf-httpapi-ratelimit-headers (revision 10): `RateLimit-Policy` says what the limit is,
//! `RateLimit` what is left of it. Both are lists of strings with parameters (RFC 9651).

use std::{fmt::Write as _, sync::Arc, time::Duration};

use crate::model::RateLimit;

/// A limit and what a request left of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Quota {
    pub limit: Arc<RateLimit>,
    /// Requests that may come at once now.
    pub remaining: u64,
    /// Until as many as ever may come at once again.
    pub reset: Duration,
}

impl Quota {
    /// Value of `RateLimit-Policy`, such as `"per-client";q=100;w=60`. The window is left out where it is not of whole
    /// seconds, which the field cannot say.
    pub fn policy_field(&self) -> String {
        let mut field = quoted(&self.limit.name);
        // Writing to a string cannot fail.
        let _ = write!(field, ";q={}", self.limit.requests);
        let per = self.limit.per;
        if per.subsec_nanos() == 0 && !per.is_zero() {
            let _ = write!(field, ";w={}", per.as_secs());
        }
        field
    }

    /// Value of `RateLimit`, such as `"per-client";r=50;t=30`.
    pub fn field(&self) -> String {
        let mut field = quoted(&self.limit.name);
        let _ = write!(
            field,
            ";r={};t={}",
            self.remaining,
            whole_seconds(self.reset)
        );
        field
    }
}

/// For `Retry-After` and `t`: rounded up, so that who waits that long is not too early.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// A string of RFC 9651; what it cannot hold is left out.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 24);
    out.push('"');
    for c in text.chars().filter(|c| matches!(c, ' '..='~')) {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}
