//! Whom a limit counts: its conditions, and the key of a request's bucket.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::IpAddr,
};

use http::{HeaderMap, Method};

use crate::model::{RateLimit, RateLimitKey, SpiffeId};

/// What rate limits look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// Proved by mutual TLS.
    pub identity: Option<&'a SpiffeId>,
    pub source: IpAddr,
    pub method: &'a Method,
    /// In its normal form and without the query, so that one path cannot be written in many ways.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

pub(super) fn applies(limit: &RateLimit, facts: &RequestFacts<'_>) -> bool {
    let method = facts.method.as_str();
    (limit.methods.is_empty() || limit.methods.iter().any(|m| **m == *method))
        && limit
            .path_prefix
            .as_deref()
            .is_none_or(|prefix| has_prefix(facts.path, prefix))
}

/// By segments, as in routes: `/v2` is not a prefix of `/v2example`.
fn has_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The bucket of a request: a keyed hash of 64 bits, so that a long path or header costs no memory. Nobody who does not
/// know the random key of the hash can aim at somebody else's bucket.
///
/// Who lacks what the key asks for does not escape: without an identity the source address stands for it, and all
/// requests without the header share one bucket.
pub(super) fn bucket(limit: &RateLimit, facts: &RequestFacts<'_>, hashes: &RandomState) -> u64 {
    let mut hasher = hashes.build_hasher();
    for key in &limit.key {
        match key {
            RateLimitKey::ClientIdentity => match facts.identity {
                Some(identity) => (0u8, identity).hash(&mut hasher),
                None => (1u8, facts.source).hash(&mut hasher),
            },
            RateLimitKey::SourceAddress => facts.source.hash(&mut hasher),
            // The first of duplicates, as in routes.
            RateLimitKey::Header(name) => facts
                .headers
                .get(name)
                .map(|value| value.as_bytes())
                .hash(&mut hasher),
            RateLimitKey::Path => facts.path.hash(&mut hasher),
        }
    }
    hasher.finish()
}
