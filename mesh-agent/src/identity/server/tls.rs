//! TLS of the authority's own port: a certificate from its own root, renewed in memory.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{KeyPair, SanType};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::authority::Authority;
use crate::identity::provider;

/// It is made again after half of this, and with each change of the authority.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// What the certificate of the port is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
}

impl Names {
    fn alternatives(&self) -> Result<Vec<SanType>, String> {
        let dns = self.dns.iter().map(|name| {
            let name = name.as_str().try_into();
            name.map(SanType::DnsName)
                .map_err(|error| format!("{error}"))
        });
        dns.chain(self.ips.iter().map(|ip| Ok(SanType::IpAddress(*ip))))
            .collect()
    }
}

/// The port's certificate, replaced while it is served.
#[derive(Debug)]
pub(super) struct PortCertificate {
    names: Names,
    current: ArcSwap<CertifiedKey>,
}

impl PortCertificate {
    pub(super) fn new(
        names: Names,
        authority: &Authority,
        now: SystemTime,
    ) -> Result<Arc<Self>, String> {
        let first = make(&names, authority, now)?;
        Ok(Arc::new(Self {
            names,
            current: ArcSwap::from_pointee(first),
        }))
    }

    /// Makes another one.
    pub(super) fn renew(&self, authority: &Authority, now: SystemTime) -> Result<(), String> {
        self.current
            .store(Arc::new(make(&self.names, authority, now)?));
        Ok(())
    }

    pub(super) const fn renew_every() -> Duration {
        Duration::from_secs(TTL.as_secs() / 2)
    }

    pub(super) fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, String> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for PortCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn make(names: &Names, authority: &Authority, now: SystemTime) -> Result<CertifiedKey, String> {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
    let chain = authority
        .signer
        .sign_names(&pair, names.alternatives()?, TTL, now)
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| error.to_string())?;
    Ok(CertifiedKey::new(chain, key))
}
