//! Credentials for tests: certificates by rcgen, trust by a table of them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::{sync::watch, time::Instant};

use super::id;
use crate::{
    identity::{PeerIdentity, PeerRefused, Role, Standing},
    model::SpiffeId,
    proxy::tunnel::{Credentials, Tls},
    telemetry::Reason,
};

/// A certificate counts if it is in the table and not revoked.
#[derive(Debug)]
pub(in crate::proxy) struct Pki {
    tls: HashMap<SpiffeId, Tls>,
    certificates: HashMap<Vec<u8>, SpiffeId>,
    revoked: Mutex<HashSet<SpiffeId>>,
    trust: watch::Sender<u64>,
}

impl Pki {
    pub(in crate::proxy) fn new(accounts: &[&str]) -> Arc<Self> {
        let mut pki = Self {
            tls: HashMap::new(),
            certificates: HashMap::new(),
            revoked: Mutex::default(),
            trust: watch::Sender::new(0),
        };
        for account in accounts {
            let id = id(account);
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let der = certificate.der().clone();
            pki.certificates.insert(der.to_vec(), id.clone());
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            pki.tls.insert(id, tls(der, key));
        }
        Arc::new(pki)
    }

    pub(in crate::proxy) fn of(&self, account: &str) -> Tls {
        self.tls[&id(account)].clone()
    }

    pub(in crate::proxy) fn revoke(&self, account: &str) {
        self.revoked.lock().unwrap().insert(id(account));
        self.trust.send_modify(|version| *version += 1);
    }
}

fn tls(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Tls {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody(Arc::clone(&provider)));
    let chain = vec![certificate];
    let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .unwrap();
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.enable_sni = false;
    client.enable_secret_extraction = true;
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    server.enable_secret_extraction = true;
    Tls::new(Arc::new(client), Arc::new(server))
}

impl Credentials for Pki {
    fn tls<'a>(&'a self, id: &'a SpiffeId, _: Instant) -> BoxFuture<'a, Result<Tls, Reason>> {
        let tls = self.tls.get(id).cloned().ok_or(Reason::NoCertificate);
        Box::pin(async { tls })
    }

    fn verify(&self, chain: &[CertificateDer<'_>], _: Role) -> Result<PeerIdentity, PeerRefused> {
        let leaf = chain.first().ok_or(PeerRefused::NoCertificate)?;
        let found = self.certificates.get(leaf.as_ref());
        let id = found.ok_or(PeerRefused::UnknownRoot)?;
        if self.revoked.lock().unwrap().contains(id) {
            return Err(PeerRefused::Revoked);
        }
        Ok(PeerIdentity {
            id: id.clone(),
            ids: vec![id.clone()],
            serial: "1".into(),
            not_after: SystemTime::now() + Duration::from_secs(3600),
        })
    }

    fn standing(&self, chain: &[CertificateDer<'_>], role: Role) -> Standing {
        match self.verify(chain, role) {
            Ok(_) => Standing::Good,
            Err(refused) => Standing::Close(refused),
        }
    }

    fn trust(&self) -> watch::Receiver<u64> {
        self.trust.subscribe()
    }
}

/// Verifies that the peer has the key of its certificate, and nothing else.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl Anybody {
    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::HandshakeNotComplete)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::HandshakeNotComplete)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
