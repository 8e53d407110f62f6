//! What tunnels need of identities; a seam, so that tests bring their own.

use std::{sync::Arc, time::SystemTime};

use futures::future::BoxFuture;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{sync::watch, time::Instant};

use crate::{
    identity::{Identities, PeerIdentity, PeerRefused, Role, Standing, TlsIdentity},
    model::SpiffeId,
    telemetry::Reason,
};

/// Certificates and trust of this node.
pub trait Credentials: Send + Sync + 'static {
    /// TLS as this identity; waits for its first certificate, not longer than the deadline.
    fn tls<'a>(&'a self, id: &'a SpiffeId, deadline: Instant)
    -> BoxFuture<'a, Result<Tls, Reason>>;

    /// Verifies what a peer showed, after every handshake. `role` is the peer's.
    ///
    /// # Errors
    /// It is refused.
    fn verify(&self, chain: &[CertificateDer<'_>], role: Role)
    -> Result<PeerIdentity, PeerRefused>;

    /// What becomes of a living tunnel to such a peer.
    fn standing(&self, chain: &[CertificateDer<'_>], role: Role) -> Standing;

    /// Changes when the answers of [`Self::standing`] may have.
    fn trust(&self) -> watch::Receiver<u64>;
}

/// TLS as one identity.
#[derive(Clone, Debug)]
pub struct Tls {
    pub client: Arc<rustls::ClientConfig>,
    pub server: Arc<rustls::ServerConfig>,
    /// Whose sessions may have to be forgotten.
    identity: Option<Arc<TlsIdentity>>,
}

impl Tls {
    pub fn new(client: Arc<rustls::ClientConfig>, server: Arc<rustls::ServerConfig>) -> Self {
        Self {
            client,
            server,
            identity: None,
        }
    }

    /// When the certificate ends, if that is known.
    pub(super) fn ends(&self) -> Option<SystemTime> {
        self.identity.as_ref().map(|identity| identity.not_after)
    }

    /// Makes the next handshake with this server a full one: it may have another certificate by now.
    pub(super) fn forget(&self, server: &ServerName<'static>) {
        if let Some(identity) = &self.identity {
            identity.forget(server);
        }
    }
}

/// Why a peer with this certificate gets no connection.
pub(super) fn reason(refused: &PeerRefused) -> Reason {
    match refused {
        PeerRefused::Revoked => Reason::CertificateRevoked,
        PeerRefused::NoIdentity => Reason::PeerIdentity,
        _ => Reason::TlsFailed,
    }
}

impl Credentials for Identities {
    fn tls<'a>(
        &'a self,
        id: &'a SpiffeId,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Tls, Reason>> {
        Box::pin(async move {
            match self.tls_by(id, deadline).await {
                Ok(identity) => Ok(Tls {
                    client: Arc::clone(&identity.client),
                    server: Arc::clone(&identity.server),
                    identity: Some(identity),
                }),
                Err(missing) => {
                    tracing::warn!(error = %missing, "no tunnel");
                    Err(Reason::NoCertificate)
                }
            }
        })
    }

    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
    ) -> Result<PeerIdentity, PeerRefused> {
        match role {
            Role::Client => self.verify_client(chain),
            Role::Server => self.verify_server(chain),
        }
    }

    fn standing(&self, chain: &[CertificateDer<'_>], role: Role) -> Standing {
        Self::standing(self, chain, role)
    }

    fn trust(&self) -> watch::Receiver<u64> {
        Self::trust(self)
    }
}

/// Of an agent that has no identities: every answer is no.
#[derive(Clone, Copy, Debug)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn tls<'a>(&'a self, _: &'a SpiffeId, _: Instant) -> BoxFuture<'a, Result<Tls, Reason>> {
        Box::pin(async { Err(Reason::NoCertificate) })
    }

    fn verify(&self, _: &[CertificateDer<'_>], _: Role) -> Result<PeerIdentity, PeerRefused> {
        Err(PeerRefused::UnknownRoot)
    }

    fn standing(&self, _: &[CertificateDer<'_>], _: Role) -> Standing {
        Standing::Close(PeerRefused::UnknownRoot)
    }

    fn trust(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}
