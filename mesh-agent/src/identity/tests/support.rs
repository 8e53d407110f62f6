//! Nodes, authorities and handshakes of the tests.

use std::{
    collections::BTreeSet,
    fs,
    io::Cursor,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, DigitallySignedStruct, ServerConfig,
    ServerConnection, SignatureScheme,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::{task::JoinHandle, time::Instant};

use super::super::*;

/// Longer than the longest back-off: some tests wait for it in paused time.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

pub(super) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
        .parse()
        .unwrap()
}

/// One node: identities, and the task that keeps them.
pub(super) struct Node {
    pub(super) identities: Arc<Identities>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::ops::Deref for Node {
    type Target = Arc<Identities>;

    fn deref(&self) -> &Self::Target {
        &self.identities
    }
}

impl Node {
    pub(super) fn start(ca: Arc<dyn CertificateAuthority>, options: IdentityOptions) -> Self {
        let identities = Identities::new(ca, options).unwrap();
        let task = tokio::spawn(identities.clone().run());
        Self { identities, task }
    }

    /// With a certificate for each of these accounts.
    pub(super) async fn with(self, accounts: &[&str]) -> Self {
        self.want(accounts.iter().map(|account| id(account)).collect());
        for account in accounts {
            self.first(account).await;
        }
        self
    }

    pub(super) async fn first(&self, account: &str) -> Arc<TlsIdentity> {
        self.tls_by(&id(account), Instant::now() + PATIENCE)
            .await
            .unwrap()
    }

    /// Until its trust is not the one of `since` any more.
    pub(super) async fn trust_after(&self, since: u64) -> u64 {
        let mut trust = self.trust();
        let changed = trust.wait_for(|now| *now != since);
        *tokio::time::timeout(PATIENCE, changed)
            .await
            .unwrap()
            .unwrap()
    }

    pub(super) fn trust_now(&self) -> u64 {
        *self.trust().borrow()
    }

    pub(super) fn of(&self, account: &str) -> Arc<TlsIdentity> {
        self.tls(&id(account)).unwrap()
    }
}

pub(super) fn only(account: &str) -> BTreeSet<SpiffeId> {
    BTreeSet::from([id(account)])
}

/// A folder with an authority in it.
pub(super) struct Authority {
    dir: tempfile::TempDir,
    /// Of the root above an intermediate.
    pub(super) above: Option<Keys>,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            above: None,
        }
    }

    pub(super) fn state(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    pub(super) fn ca(&self) -> Arc<BuiltInCa> {
        Arc::new(BuiltInCa::open(self.state()).unwrap())
    }
}

/// Waits for a condition by looking at it.
pub(super) async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both ends after a handshake that both accepted.
#[derive(Debug)]
pub(super) struct Shaken {
    pub(super) client: ClientConnection,
    pub(super) server: ServerConnection,
}

/// Which end failed first, and how.
#[derive(Debug)]
pub(super) enum Failed {
    Client(rustls::Error),
    Server(rustls::Error),
}

impl Failed {
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Client(error) | Self::Server(error) => handshake_cause(error),
        }
    }
}

pub(super) fn server_name() -> ServerName<'static> {
    ServerName::from(std::net::IpAddr::from([10, 0, 0, 7]))
}

/// A handshake in memory, up to and with the server's tickets.
pub(super) fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<Shaken, Failed> {
    let mut client = ClientConnection::new(client.clone(), server_name()).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    loop {
        let mut moved = 0;
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        moved += wire.len();
        feed(&mut (&mut server).into(), &wire).map_err(Failed::Server)?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        moved += wire.len();
        feed(&mut (&mut client).into(), &wire).map_err(Failed::Client)?;
        if moved == 0 {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(Shaken { client, server });
        }
    }
}

enum End<'a> {
    Client(&'a mut ClientConnection),
    Server(&'a mut ServerConnection),
}

impl<'a> From<&'a mut ClientConnection> for End<'a> {
    fn from(connection: &'a mut ClientConnection) -> Self {
        Self::Client(connection)
    }
}

impl<'a> From<&'a mut ServerConnection> for End<'a> {
    fn from(connection: &'a mut ServerConnection) -> Self {
        Self::Server(connection)
    }
}

fn feed(end: &mut End<'_>, wire: &[u8]) -> Result<(), rustls::Error> {
    let mut wire = Cursor::new(wire);
    while wire.position() < wire.get_ref().len() as u64 {
        match end {
            End::Client(client) => {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets()?;
            }
            End::Server(server) => {
                server.read_tls(&mut wire).unwrap();
                server.process_new_packets()?;
            }
        }
    }
    Ok(())
}

/// What is in a CA's folder, for tests to sign whatever they like with.
pub(super) struct Keys {
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn keys(&self) -> Keys {
        let read = |name| fs::read_to_string(self.folder().join(name)).unwrap();
        let key = KeyPair::from_pem(&read("key.pem")).unwrap();
        Keys {
            issuer: Issuer::from_ca_cert_pem(&read("chain.pem"), key).unwrap(),
        }
    }

    pub(super) fn bundle(&self) -> String {
        fs::read_to_string(self.folder().join("roots.pem")).unwrap()
    }

    /// An authority whose key is that of an intermediate, below a root whose key is elsewhere.
    pub(super) fn intermediate() -> Self {
        let mut authority = Self::new();
        let root_key = KeyPair::generate().unwrap();
        let root = ca_params("a root elsewhere")
            .self_signed(&root_key)
            .unwrap();
        let issuer = Issuer::from_ca_cert_der(root.der(), root_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let middle = ca_params("an intermediate")
            .signed_by(&key, &issuer)
            .unwrap();
        fs::create_dir(authority.folder()).unwrap();
        authority.write("key.pem", &key.serialize_pem());
        authority.write("chain.pem", &middle.pem());
        authority.write("roots.pem", &root.pem());
        for (path, mode) in [
            (authority.folder(), 0o700),
            (authority.folder().join("key.pem"), 0o600),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        authority.above = Some(Keys { issuer });
        authority
    }

    /// Replaces a file of the folder at once.
    pub(super) fn write(&self, name: &str, contents: &str) {
        replace(&self.folder().join(name), contents.as_bytes());
    }
}

/// Replaces a file at once, as an operator's tools do.
pub(super) fn replace(path: &Path, contents: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, contents).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

pub(super) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Keys {
    /// A leaf with these names and uses.
    pub(super) fn leaf(&self, names: Vec<SanType>, uses: Vec<ExtendedKeyUsagePurpose>) -> Rogue {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.extended_key_usages = uses;
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Rogue {
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    /// A revocation list, valid from a minute ago for a day.
    pub(super) fn list(&self, serials: &[&str]) -> String {
        self.list_until(serials, SystemTime::now() + Duration::from_secs(86_400))
    }

    pub(super) fn list_until(&self, serials: &[&str], next_update: SystemTime) -> String {
        let revoked = |serial: &&str| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&unhex(serial)),
            revocation_time: SystemTime::now().into(),
            reason_code: Some(rcgen::RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: (next_update - Duration::from_secs(86_460)).into(),
            next_update: next_update.into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// A peer that is not one of ours: any certificate, and it accepts everybody.
pub(super) struct Rogue {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Rogue {
    pub(super) fn client(self) -> Arc<ClientConfig> {
        let mut config = rogue_client(provider())
            .with_client_auth_cert(self.chain, self.key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    pub(super) fn server(self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain, self.key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

pub(super) fn rogue_client(
    provider: Arc<CryptoProvider>,
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
}

/// Accepts every server.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
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
        unreachable!()
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
