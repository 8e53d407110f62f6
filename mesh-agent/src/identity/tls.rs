//! TLS of one identity: rustls configurations, built once for a certificate and a state of trust.
//!
//! TLS 1.3 only, provider AWS-LC named explicitly (never the process default).
//! - **Suites**: AES-128-GCM before AES-256-GCM. Both are what ztunnel speaks; the shorter key does 10 rounds a block instead of 14, which is
//!   the larger part of what the tunnel costs beside copying. A client's order wins, so that a peer that wants 256 gets it.
//! - **Key exchange**: X25519MLKEM768 first, so that what is recorded today is not read by a quantum computer tomorrow; its client hello
//!   carries an X25519 share as well, so a peer without it costs no extra round trip.
//! - **Records**: full size (16 KiB). Smaller ones would cost throughput: each has its own seal and header.
//! - **Resumption** on both ends; see [`TlsIdentity`] for what a user of it has to do.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use rustls::{
    ClientConfig, ServerConfig,
    client::{ClientSessionMemoryCache, ClientSessionStore as _, Resumption},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::ServerName;

use super::{
    clock::{Clock, RustlsClock},
    roots::Described,
    trust::TrustCell,
    verify::Verifier,
};
use crate::model::SpiffeId;

/// The only protocol inside.
const ALPN: &[u8] = b"h2";
/// Tickets that a client keeps: eight for each of 256 destinations.
const CLIENT_SESSIONS: usize = 8 * 256;
/// Tickets that a server sends after a handshake, full or resumed. A tunnel uses one ticket at most and brings a new one, so one is enough to
/// resume for ever; the default of two would cost another 1.5 KB (it carries the client's chain) and another seal each time.
const TICKETS: usize = 1;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The provider of every TLS connection of this agent.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// A certificate of this node and its TLS configurations.
///
/// A handshake verifies the peer's chain, validity, usage and revocation, and that it has a SPIFFE identity; a server also that
/// the client's trust domain is accepted. **Left to the caller**:
///
/// - A *client* compares the server's identity with the one it dialled ([`super::PeerIdentity::is`]) before it sends anything.
/// - **A resumed handshake verifies nothing**: rustls restores the chain that the peer showed when the session was made.
///   So after *every* handshake call [`super::Identities::verify_server`] or [`super::Identities::verify_client`] with
///   `peer_certificates()`. It costs two signature checks, and catches what happened since: expiry, revocation, a root that
///   left, another trust domain.
/// - A client that is refused after a *resumed* handshake calls [`Self::forget`], so that the next one is full: a server that has a new
///   certificate by now can only show it then.
///
/// Sessions do not outlive the configuration. A new certificate, bundle, revocation list or trust domain builds new configurations with
/// new ticket keys and an empty session memory, and so does every identity have its own: a ticket for one never opens
/// another.
pub struct TlsIdentity {
    pub id: SpiffeId,
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
    /// When it stops being used.
    pub not_after: SystemTime,
    pub(super) described: Described,
    pub(super) certified: Arc<CertifiedKey>,
    sessions: Arc<ClientSessionMemoryCache>,
}

impl TlsIdentity {
    pub(super) fn new(
        id: SpiffeId,
        certified: Arc<CertifiedKey>,
        described: Described,
        trust: &Arc<TrustCell>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, rustls::Error> {
        let verifier = Verifier::new(trust.clone(), clock.clone(), &PROVIDER);
        let time = Arc::new(RustlsClock(clock.clone()));
        let resolver = Arc::new(SingleCertAndKey::from(certified.clone()));

        let mut client = ClientConfig::builder_with_details(provider(), time.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(resolver.clone());
        let sessions = Arc::new(ClientSessionMemoryCache::new(CLIENT_SESSIONS));
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        // Tunnels seal and open records themselves, with the keys of the handshake.
        client.enable_secret_extraction = true;
        client.resumption = Resumption::store(sessions.clone());

        let mut server = ServerConfig::builder_with_details(provider(), time)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.enable_secret_extraction = true;
        // All that a session needs is sealed into its ticket; the default keeps room for 256 beside.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = aws_lc_rs::Ticketer::new()?;
        server.send_tls13_tickets = TICKETS;

        Ok(Self {
            id,
            client: Arc::new(client),
            server: Arc::new(server),
            not_after: described.not_after,
            described,
            certified,
            sessions,
        })
    }

    /// Serial number of the certificate, hexadecimal.
    pub fn serial(&self) -> &str {
        &self.described.serial
    }

    /// Forgets the sessions with a server.
    pub fn forget(&self, server: &ServerName<'static>) {
        while self.sessions.take_tls13_ticket(server).is_some() {}
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("id", &self.id)
            .field("serial", &self.described.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
