//! Who a peer is by its certificate, and why it is refused.

use std::time::SystemTime;

use crate::model::{SpiffeId, TrustDomain};

/// A peer whose chain verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The first well-formed URI name: what policies see.
    pub id: SpiffeId,
    /// Every well-formed URI name, [`Self::id`] first. Names of other forms are ignored.
    pub ids: Vec<SpiffeId>,
    /// Hexadecimal, as `openssl x509 -serial` prints it but in lower case.
    pub serial: String,
    pub not_after: SystemTime,
}

impl PeerIdentity {
    /// Whether the peer is whom we dialled.
    pub fn is(&self, expected: &SpiffeId) -> bool {
        self.ids.contains(expected)
    }
}

/// Why a peer's certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    #[error("it shows no certificate")]
    NoCertificate,
    #[error("its certificate cannot be used: {0}")]
    BadCertificate(String),
    #[error("its certificate does not lead to a root of the trust bundle")]
    UnknownRoot,
    #[error("its certificate has expired")]
    Expired,
    #[error("its certificate is not valid yet; do the clocks of both nodes agree?")]
    NotYetValid,
    #[error("its certificate is revoked")]
    Revoked,
    #[error("its certificate is not made for this side of a connection")]
    Usage,
    #[error("its certificate has no name of the form spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    NoIdentity,
    #[error(
        "its trust domain {0} is neither this mesh's nor one of the aliases in MeshPolicy.spec.trustDomainAliases"
    )]
    TrustDomain(TrustDomain),
}

impl PeerRefused {
    /// Every value of [`Self::cause`].
    pub const CAUSES: &'static [&'static str] = &[
        "no_certificate",
        "bad_certificate",
        "unknown_root",
        "expired",
        "not_yet_valid",
        "revoked",
        "wrong_usage",
        "no_identity",
        "trust_domain",
    ];

    /// Value of the metric label.
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate(_) => "bad_certificate",
            Self::UnknownRoot => "unknown_root",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::Usage => "wrong_usage",
            Self::NoIdentity => "no_identity",
            Self::TrustDomain(_) => "trust_domain",
        }
    }
}

impl From<webpki::Error> for PeerRefused {
    fn from(error: webpki::Error) -> Self {
        match error {
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Self::UnknownRoot
            }
            webpki::Error::CertExpired { .. } => Self::Expired,
            webpki::Error::CertNotValidYet { .. } => Self::NotYetValid,
            webpki::Error::CertRevoked => Self::Revoked,
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => {
                Self::Usage
            }
            other => Self::BadCertificate(format!("{other:?}")),
        }
    }
}

/// What becomes of a living tunnel when trust has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing changed for it.
    Good,
    /// It would not be let in today (its root left the bundle, its certificate expired): what it carries lives on, new
    /// connections need a new tunnel.
    Drain(PeerRefused),
    /// It must end now, with all it carries: revoked, or of a trust domain that is no longer accepted.
    Close(PeerRefused),
}
