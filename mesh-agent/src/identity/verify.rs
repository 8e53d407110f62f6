//! The verifiers that rustls calls in a handshake, and how an error of a handshake is named.
//!
//! They look the state of trust up each time, so that a handshake that began before a change of trust ends by the new one.

use std::sync::Arc;

use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, PeerMisbehaved, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime};

use super::{
    clock::Clock,
    peer::PeerRefused,
    trust::{Role, TrustCell},
};

/// Signatures that certificates and revocation lists may carry: ECDSA, RSA from 2048 bits, Ed25519; nothing with SHA-1.
pub(super) static SIGNATURES: &[&dyn SignatureVerificationAlgorithm] =
    webpki::ALL_VERIFICATION_ALGS;

/// Verifies the peer of a handshake, whichever side it is.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Arc<TrustCell>,
    clock: Arc<dyn Clock>,
    signatures: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(
        trust: Arc<TrustCell>,
        clock: Arc<dyn Clock>,
        provider: &CryptoProvider,
    ) -> Arc<Self> {
        Arc::new(Self {
            trust,
            clock,
            signatures: provider.signature_verification_algorithms,
        })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
    ) -> Result<(), Error> {
        let mut chain = Vec::with_capacity(1 + intermediates.len());
        chain.push(CertificateDer::from(leaf.as_ref()));
        chain.extend(
            intermediates
                .iter()
                .map(|der| CertificateDer::from(der.as_ref())),
        );
        self.trust
            .get()
            .verify_peer(&chain, role, self.clock.now())
            .map(|_| ())
            .map_err(|refused| Error::InvalidCertificate(refused.into()))
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.signatures)
    }
}

/// TLS 1.2 is not compiled in; rustls asks for the method all the same.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
}

impl ServerCertVerifier for Verifier {
    /// The server's name is not looked at: it is an address. Whether the server is the expected workload is checked right
    /// after the handshake.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Role::Server)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// No hints: a workload has one certificate, and names of authorities would only lengthen the handshake.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, Role::Client)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

impl From<PeerRefused> for CertificateError {
    /// Chooses the alert that the peer sees. What has no alert of its own travels inside `Other`, so that
    /// [`handshake_cause`] finds it again.
    fn from(refused: PeerRefused) -> Self {
        match refused {
            PeerRefused::UnknownRoot => Self::UnknownIssuer,
            PeerRefused::Expired => Self::Expired,
            PeerRefused::NotYetValid => Self::NotValidYet,
            PeerRefused::Revoked => Self::Revoked,
            PeerRefused::Usage => Self::InvalidPurpose,
            other => Self::Other(OtherError(Arc::new(other))),
        }
    }
}

/// What a failed handshake is counted as: a cause of [`PeerRefused`] when the peer's certificate was refused here,
/// `refused_by_peer` when it refused ours, and otherwise what it did wrong.
pub fn handshake_cause(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => PeerRefused::NoCertificate.cause(),
        Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer => PeerRefused::UnknownRoot.cause(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                PeerRefused::Expired.cause()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                PeerRefused::NotYetValid.cause()
            }
            CertificateError::Revoked => PeerRefused::Revoked.cause(),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                PeerRefused::Usage.cause()
            }
            CertificateError::Other(other) => other
                .0
                .downcast_ref::<PeerRefused>()
                .map_or("bad_certificate", PeerRefused::cause),
            _ => "bad_certificate",
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired => "refused_by_peer",
            _ => "alert",
        },
        Error::NoApplicationProtocol => "alpn",
        Error::PeerIncompatible(_) => "incompatible",
        _ => "protocol",
    }
}
