//! Who this node's workloads are, and how they prove it: certificates, trust, TLS.
//!
//! A certificate authority signs (`CertificateAuthority`, three of them), [`Identities`] holds a certificate for each
//! identity of the node and renews it, `tls` makes rustls configurations of it, once per certificate and trust bundle.

mod answer;
mod builtin;
mod bundle;
mod clock;
mod crl;
mod csr;
mod file;
#[cfg(fuzzing)]
pub mod fuzz;
mod identities;
mod istio_ca;
mod keys;
mod moment;
mod peer;
pub mod proto;
mod roots;
mod rotation;
pub mod server;
mod signer;
mod status;
mod tls;
mod trust;
mod verify;

use std::{path::Path, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rustls_pki_types::CertificateDer;

pub(crate) use self::moment::moment;
pub use self::{
    builtin::{BuiltInCa, SignerFolder},
    bundle::FileError,
    clock::{Clock, SystemClock},
    csr::{Csr, CsrError},
    identities::{Identities, IdentityOptions},
    istio_ca::{IstioCa, IstioCaError, IstioCaOptions, signed},
    peer::{PeerIdentity, PeerRefused, Standing},
    signer::{BACKDATE, DEFAULT_TTL, SignError, Signer, SignerError},
    status::{
        BundleStatus, CertificateDetails, CertificateStatus, ErrorStatus, IdentityStatus,
        ListStatus, Missing, NoCertificate, RequestCounts, RevocationStatus, RootStatus,
    },
    tls::{TlsIdentity, provider},
    trust::Role,
    verify::handshake_cause,
};
use crate::model::SpiffeId;

/// The seam to whoever signs.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// For logs and `mesh-agent certs`, such as `built-in` or `https://ca.example:15012`.
    fn name(&self) -> &str;

    /// A PEM file on this node that has the authority's roots, when it keeps one: its edits are followed at once, where
    /// [`Signed::roots`] are only heard of with the next certificate.
    fn bundle_file(&self) -> Option<&Path> {
        None
    }

    /// Signs a request (PKCS #10, PEM, with the identity as its only URI SAN) for an identity of this node.
    fn sign<'a>(
        &'a self,
        id: &'a SpiffeId,
        csr_pem: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Signed, CaError>>;
}

/// What a certificate authority answers.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Leaf first, then intermediates; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Roots to trust from now on, as the authority says.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why there is no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CaError {
    /// It did not answer, or answered that it cannot now: worth another try.
    #[error("the certificate authority does not answer: {0}")]
    Unavailable(Arc<str>),
    /// It answered that it will not.
    #[error("the certificate authority refused: {0}")]
    Refused(Arc<str>),
    /// What it answered is not what was asked for.
    #[error("the certificate authority answered rubbish: {0}")]
    Rubbish(Arc<str>),
}

#[cfg(test)]
mod tests;
