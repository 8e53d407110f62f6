//! Whose identities the mesh takes for its own.

use crate::model::TrustDomain;

/// The mesh's trust domain, and others whose identities count as its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    pub domain: TrustDomain,
    pub aliases: Vec<TrustDomain>,
}

impl Trust {
    /// Whether identities of the trust domain count as the mesh's own.
    pub fn is_own(&self, trust_domain: &str) -> bool {
        self.domain.as_str() == trust_domain
            || self
                .aliases
                .iter()
                .any(|alias| alias.as_str() == trust_domain)
    }
}
