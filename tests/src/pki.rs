//! A certificate authority of the tests, with none of the agent's code: roots, intermediates, leafs with any name and
//! validity, revocation lists.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use time::OffsetDateTime;

use crate::run;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What signs: a root or an intermediate.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate first, the root last.
    chain: Vec<CertificateDer<'static>>,
}

/// What a leaf will say.
#[derive(Clone, Debug)]
pub struct Leaf {
    uris: Vec<String>,
    ips: Vec<IpAddr>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    serial: Option<u64>,
}

/// A certificate with its chain and key.
#[derive(Debug)]
pub struct Credential {
    /// Leaf first; no root.
    pub chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

/// `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`
pub fn spiffe(trust_domain: &str, namespace: &str, account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")
}

impl Leaf {
    /// A leaf with one URI name, valid for a day.
    pub fn of(uri: impl Into<String>) -> Leaf {
        let now = OffsetDateTime::now_utc();
        Leaf {
            uris: vec![uri.into()],
            ips: Vec::new(),
            not_before: now - Duration::from_secs(60),
            not_after: now + DAY,
            serial: None,
        }
    }

    /// Another name behind those it has.
    #[must_use]
    pub fn and(mut self, uri: impl Into<String>) -> Leaf {
        self.uris.push(uri.into());
        self
    }

    /// An address as a name, for servers that are dialled by it.
    #[must_use]
    pub fn at(mut self, ip: IpAddr) -> Leaf {
        self.ips.push(ip);
        self
    }

    #[must_use]
    pub fn expired(mut self) -> Leaf {
        self.not_before -= DAY;
        self.not_after = OffsetDateTime::now_utc() - Duration::from_secs(60);
        self
    }

    #[must_use]
    pub fn not_yet(mut self) -> Leaf {
        self.not_before = OffsetDateTime::now_utc() + Duration::from_secs(3600);
        self
    }

    #[must_use]
    pub fn for_the_next(mut self, time: Duration) -> Leaf {
        self.not_after = OffsetDateTime::now_utc() + time;
        self
    }

    #[must_use]
    pub fn serial(mut self, serial: u64) -> Leaf {
        self.serial = Some(serial);
        self
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(3600);
    params.not_after = OffsetDateTime::now_utc() + 30 * DAY;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// A new root.
    pub fn root(name: &str) -> Authority {
        let key = KeyPair::generate().expect("generate a key");
        let params = ca_params(name);
        let cert = params.self_signed(&key).expect("sign a root");
        Authority {
            chain: vec![cert.der().clone()],
            issuer: Issuer::new(params, key),
        }
    }

    /// An authority of the agent's, from its folder: `key.pem`, `chain.pem` (its own certificate first), `roots.pem`.
    pub fn load(dir: &Path) -> Authority {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<_, _>>()
                .expect("PEM certificates")
        };
        let mut chain = certificates(&read("chain.pem"));
        let roots = certificates(&read("roots.pem"));
        if !roots.contains(&chain[chain.len() - 1]) {
            chain.push(roots[0].clone());
        }
        let key = KeyPair::from_pem(&read("key.pem")).expect("a PEM key");
        Authority {
            issuer: Issuer::from_ca_cert_der(&chain[0], key).expect("a CA certificate"),
            chain,
        }
    }

    /// An intermediate below this one.
    pub fn intermediate(&self, name: &str) -> Authority {
        let key = KeyPair::generate().expect("generate a key");
        let mut params = ca_params(name);
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).expect("sign");
        let mut chain = vec![cert.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Authority {
            issuer: Issuer::new(params, key),
            chain,
        }
    }

    pub fn leaf(&self, leaf: &Leaf) -> Credential {
        let key = KeyPair::generate().expect("generate a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = leaf.not_before;
        params.not_after = leaf.not_after;
        params.serial_number = leaf.serial.map(SerialNumber::from);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = leaf
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.clone().try_into().expect("ASCII")))
            .chain(leaf.ips.iter().map(|ip| SanType::IpAddress(*ip)))
            .collect();
        let cert = params.signed_by(&key, &self.issuer).expect("sign a leaf");
        let mut chain = vec![cert.der().clone()];
        chain.extend(self.chain[..self.chain.len() - 1].iter().cloned());
        Credential { chain, key }
    }

    /// A leaf for one URI.
    pub fn issue(&self, uri: &str) -> Credential {
        self.leaf(&Leaf::of(uri))
    }

    /// A revocation list of these serial numbers, PEM.
    pub fn crl(&self, number: u64, serials: &[Vec<u8>]) -> String {
        let now = OffsetDateTime::now_utc();
        CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: now + DAY,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: now - Duration::from_secs(60),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .expect("sign a revocation list")
        .pem()
        .expect("PEM")
    }

    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.chain[self.chain.len() - 1]
    }

    pub fn root_pem(&self) -> String {
        pem("CERTIFICATE", self.root_der())
    }

    /// Its own certificate and those above, the root last.
    pub fn chain_pem(&self) -> String {
        self.chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect()
    }

    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The roots of these authorities, for the configurations below.
    pub fn store(of: &[&Authority]) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        for authority in of {
            store.add(authority.root_der().clone()).expect("a root");
        }
        Arc::new(store)
    }
}

/// PEM by hand: 64 characters a line.
fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::new();
    for chunk in der.chunks(3) {
        let n = chunk.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            text.push(if i <= chunk.len() {
                ALPHABET[(n >> (18 - 6 * i)) as usize & 63]
            } else {
                b'='
            });
        }
    }
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

impl Credential {
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("PKCS #8")
    }

    pub fn chain_pem(&self) -> String {
        self.chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect()
    }

    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The chain, the key and the root of `trust` as files, for programs that take such.
    pub fn files(&self, trust: &Authority) -> Files {
        let dir = run::folder().join(run::unique());
        fs::create_dir_all(&dir).expect("make a folder");
        let files = Files {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            root: dir.join("root.pem"),
        };
        fs::write(&files.cert, self.chain_pem()).expect("write");
        fs::write(&files.key, self.key_pem()).expect("write");
        fs::write(&files.root, trust.root_pem()).expect("write");
        files
    }

    /// TLS 1.3, ALPN h2, this certificate; the server's chain must end in `roots`, whoever it names.
    pub fn client(&self, roots: &Arc<RootCertStore>) -> ClientConfig {
        client_builder(roots)
            .with_client_auth_cert(self.chain.clone(), self.key())
            .map(with_h2)
            .expect("a client configuration")
    }

    /// TLS 1.3, ALPN h2, this certificate; clients need one whose chain ends in `roots`.
    pub fn server(&self, roots: &Arc<RootCertStore>) -> ServerConfig {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
            .build()
            .expect("a verifier");
        self.server_with(clients)
    }

    /// As [`Credential::server`], whoever the client is, known root or not.
    pub fn server_for_anybody(&self) -> ServerConfig {
        self.server_with(Arc::new(Anybody))
    }

    /// For a service over HTTP/2 that asks clients for no certificate.
    pub fn plain_server(&self) -> ServerConfig {
        self.server_with(WebPkiClientVerifier::no_client_auth())
    }

    fn server_with(&self, clients: Arc<dyn ClientCertVerifier>) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(self.chain.clone(), self.key())
            .expect("a server configuration");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// Paths of a certificate chain, its key, and a root to trust.
#[derive(Clone, Debug)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub root: PathBuf,
}

/// A client without a certificate.
pub fn anonymous(roots: &Arc<RootCertStore>) -> ClientConfig {
    with_h2(client_builder(roots).with_no_client_auth())
}

fn client_builder(
    roots: &Arc<RootCertStore>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(Arc::clone(roots))))
}

fn with_h2(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Checks the chain of a server, not its name: names are URIs here, and the tests look at them themselves.
#[derive(Debug)]
struct AnyName(Arc<RootCertStore>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.0,
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Takes every client certificate: for servers that are the bad side themselves.
#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
