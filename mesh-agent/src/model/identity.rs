//! Identities: trust domains and SPIFFE IDs of workloads.

use std::{fmt, ops::Range, str::FromStr, sync::Arc};

/// Longest SPIFFE ID (SPIFFE-ID 2.3), and longest trust domain, in bytes.
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
/// Names of namespaces and service accounts are DNS names (RFC 1123).
const MAX_NAME: usize = 253;

/// Name of a trust domain: lower-case letters, digits, `.`, `-` and `_` (SPIFFE-ID 2.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. A value of this type is always well-formed; cheap to
/// clone.
#[derive(Clone)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
    namespace: Range<usize>,
    service_account: Range<usize>,
}

/// Why a text is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("does not begin with spiffe://")]
    Scheme,
    #[error(
        "the trust domain must be 1 to 255 lower-case letters, digits, '.', '-' or '_', beginning and ending with a letter or digit"
    )]
    TrustDomain,
    #[error("the path must be /ns/<namespace>/sa/<service account>")]
    Path,
    #[error("the namespace is not a DNS name")]
    Namespace,
    #[error("the service account is not a DNS name")]
    ServiceAccount,
    #[error("longer than 2048 bytes")]
    TooLong,
}

impl TrustDomain {
    /// # Errors
    /// The text is no name of a trust domain.
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        let within =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = name.as_bytes();
        let good = bytes.len() <= MAX_TRUST_DOMAIN
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| within(*b));
        if good {
            Ok(Self(name.into()))
        } else {
            Err(IdentityError::TrustDomain)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl SpiffeId {
    /// # Errors
    /// The namespace or service account is not a DNS name.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        if !is_dns_name(namespace) {
            return Err(IdentityError::Namespace);
        }
        if !is_dns_name(service_account) {
            return Err(IdentityError::ServiceAccount);
        }
        let uri = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}");
        let namespace_at = "spiffe://".len() + trust_domain.as_str().len() + "/ns/".len();
        let namespace = namespace_at..namespace_at + namespace.len();
        let service_account = namespace.end + "/sa/".len()..uri.len();
        if uri.len() > MAX_ID {
            return Err(IdentityError::TooLong);
        }
        Ok(Self {
            uri: uri.into(),
            trust_domain: trust_domain.clone(),
            namespace,
            service_account,
        })
    }

    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Without `spiffe://`, as AuthorizationPolicy writes principals.
    pub fn principal(&self) -> &str {
        self.uri.strip_prefix("spiffe://").unwrap_or(&self.uri)
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn namespace(&self) -> &str {
        self.uri.get(self.namespace.clone()).unwrap_or_default()
    }

    pub fn service_account(&self) -> &str {
        self.uri
            .get(self.service_account.clone())
            .unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_ID {
            return Err(IdentityError::TooLong);
        }
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or(IdentityError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(IdentityError::Path)?;
        let trust_domain = TrustDomain::new(trust_domain)?;
        let mut segments = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) else {
            return Err(IdentityError::Path);
        };
        Self::new(&trust_domain, namespace, service_account)
    }
}

fn is_dns_name(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= MAX_NAME
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.uri, &other.uri) || self.uri == other.uri
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.uri.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uri.cmp(&other.uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

impl serde::Serialize for TrustDomain {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_found() {
        let id: SpiffeId = "spiffe://mesh.example/ns/shop/sa/web.v2".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "mesh.example");
        assert_eq!((id.namespace(), id.service_account()), ("shop", "web.v2"));
        assert_eq!(id.principal(), "mesh.example/ns/shop/sa/web.v2");
    }

    #[test]
    fn other_forms_are_refused() {
        for (text, error) in [
            ("", IdentityError::Scheme),
            ("SPIFFE://td/ns/a/sa/b", IdentityError::Scheme),
            ("https://td/ns/a/sa/b", IdentityError::Scheme),
            ("spiffe://td", IdentityError::Path),
            ("spiffe:///ns/a/sa/b", IdentityError::TrustDomain),
            ("spiffe://TD/ns/a/sa/b", IdentityError::TrustDomain),
            ("spiffe://td:8443/ns/a/sa/b", IdentityError::TrustDomain),
            ("spiffe://user@td/ns/a/sa/b", IdentityError::TrustDomain),
            ("spiffe://td/ns/a/sa", IdentityError::Path),
            ("spiffe://td/ns/a/sa/b/c", IdentityError::Path),
            ("spiffe://td/ns/a/sa/b/", IdentityError::Path),
            ("spiffe://td//ns/a/sa/b", IdentityError::Path),
            ("spiffe://td/NS/a/sa/b", IdentityError::Path),
            ("spiffe://td/ns//sa/b", IdentityError::Namespace),
            ("spiffe://td/ns/../sa/b", IdentityError::Namespace),
            ("spiffe://td/ns/a%2fb/sa/b", IdentityError::Namespace),
            ("spiffe://td/ns/a/sa/", IdentityError::ServiceAccount),
            ("spiffe://td/ns/a/sa/b?x", IdentityError::ServiceAccount),
            ("spiffe://td/ns/a/sa/b#x", IdentityError::ServiceAccount),
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap_err(), error, "{text}");
        }
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(3000));
        assert_eq!(
            long.parse::<SpiffeId>().unwrap_err(),
            IdentityError::TooLong
        );
    }

    proptest! {
        #[test]
        fn what_parses_shows_itself(text in "(spiffe://)?[a-z0-9._-]{0,9}(/ns)?/[a-z0-9./-]{0,9}(/sa/)?[a-z.]{0,5}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), &*text);
                let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
                prop_assert_eq!(again.unwrap(), id);
            }
        }

        #[test]
        fn nothing_panics(text in ".*") {
            let _ = text.parse::<SpiffeId>();
        }
    }
}
