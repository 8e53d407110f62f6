//! A signing key with its chain: what stands behind both the built-in authority and `mesh-agent ca serve`.
//!
//! A folder of three files: `key.pem` (PKCS #8), `chain.pem` (the certificate of that key, then those above it) and `roots.pem` (the
//! trust bundle). Made on first use with a root of its own; an operator may put an intermediate there instead.

mod files;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use super::{
    csr::{Csr, uri_name},
    keys::WorkloadKey,
    peer::PeerRefused,
    roots::{BundleError, Roots, describe},
    trust::{Role, Trust, within},
};
use crate::model::SpiffeId;

pub(super) use files::private;

/// Certificates begin this long before they are made, for nodes whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Life of a certificate when nothing else is asked for.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a serial number: RFC 5280 allows 20, positive.
const SERIAL: usize = 16;

/// Why the folder of an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    #[error("cannot {doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{path} may be read by others (mode {mode:04o}); it holds the authority's private key: chmod {want:o} {path}"
    )]
    Mode { path: PathBuf, mode: u32, want: u32 },
    #[error(
        "{path} belongs to user {owner}; the authority's private key must belong to root or to the user of this process"
    )]
    Owner { path: PathBuf, owner: u32 },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{0}: {1}")]
    Bundle(PathBuf, BundleError),
    #[error("certificates of {path} would not be accepted: {refused}")]
    Chain { path: PathBuf, refused: PeerRefused },
}

/// Why a certificate is not signed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SignError {
    #[error("the authority's own certificate has expired on {0}")]
    AuthorityExpired(String),
    #[error("cannot sign: {0}")]
    Crypto(String),
}

/// Signs certificates for workloads.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// Sent after the leaf.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Roots,
    /// The earliest end in the chain.
    not_after: SystemTime,
}

impl Signer {
    /// Loads the authority in a folder; makes a root there when the folder does not exist or is empty.
    ///
    /// # Errors
    /// What is there cannot be used, or may be read by others.
    pub fn open(dir: &Path) -> Result<Self, SignerError> {
        files::create_if_missing(dir)?;
        Self::load(dir)
    }

    /// Loads the authority in a folder.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn load(dir: &Path) -> Result<Self, SignerError> {
        let files = files::Files::read(dir)?;
        let refuse = |reason: String| SignerError::File {
            path: files::chain(dir),
            reason,
        };
        let (first, above) = files
            .chain
            .split_first()
            .ok_or_else(|| refuse("it is empty".into()))?;
        files::check_pair(first, &files.key).map_err(refuse)?;
        let issuer =
            Issuer::from_ca_cert_der(first, files.key).map_err(|error| SignerError::File {
                path: files::chain(dir),
                reason: error.to_string(),
            })?;
        let self_signed = |der: &CertificateDer<'_>| {
            describe(der).is_ok_and(|described| described.subject == described.issuer)
        };
        let intermediates: Vec<_> = std::iter::once(first)
            .chain(above)
            .filter(|der| !self_signed(der))
            .cloned()
            .collect();
        let mut not_after = None;
        for der in &files.chain {
            let end = describe(der)
                .map_err(|reason| SignerError::File {
                    path: files::chain(dir),
                    reason,
                })?
                .not_after;
            not_after = Some(not_after.map_or(end, |sofar: SystemTime| sofar.min(end)));
        }
        let roots = Roots::new(files.roots)
            .map_err(|error| SignerError::Bundle(files::roots(dir), error))?;
        let signer = Self {
            issuer,
            intermediates,
            roots,
            not_after: not_after.unwrap_or(SystemTime::UNIX_EPOCH),
        };
        signer.probe().map_err(|refused| SignerError::Chain {
            path: dir.to_owned(),
            refused,
        })?;
        Ok(signer)
    }

    /// The files of a folder, for who wants to see them change.
    pub(super) fn files(dir: &Path) -> [PathBuf; 3] {
        [files::key(dir), files::chain(dir), files::roots(dir)]
    }

    /// The trust bundle in a folder.
    pub fn bundle_file(dir: &Path) -> PathBuf {
        files::roots(dir)
    }

    /// Signs for an identity. Of the request only the key is used: the certificate has an empty subject, the identity as its only
    /// and critical name, and may be used on both sides of a connection. It never outlives the authority's own certificates.
    /// Answers the leaf, then intermediates.
    ///
    /// Whether the requester may have this identity is the caller's to decide.
    ///
    /// # Errors
    /// The authority has expired.
    pub fn sign(
        &self,
        csr: &Csr,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        self.sign_key(&csr.key, id, ttl, now)
    }

    fn sign_key(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let name = uri_name(id).map_err(|error| SignError::Crypto(error.to_string()))?;
        self.sign_names(key, vec![name], ttl, now)
    }

    /// As [`Self::sign`], with other names: for the authority's own port.
    pub(super) fn sign_names(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        if now >= self.not_after {
            return Err(SignError::AuthorityExpired(super::moment::moment(
                self.not_after,
            )));
        }
        let crypto = |error: rcgen::Error| SignError::Crypto(error.to_string());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(
            serial()
                .map_err(|()| SignError::Crypto("the system has no random numbers".to_owned()))?,
        );
        params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
        let end = now.checked_add(ttl).unwrap_or(self.not_after);
        params.not_after = end.min(self.not_after).into();
        let leaf = params.signed_by(key, &self.issuer).map_err(crypto)?;
        let mut chain = Vec::with_capacity(1 + self.intermediates.len());
        chain.push(leaf.der().clone());
        chain.extend(self.intermediates.iter().cloned());
        Ok(chain)
    }

    /// The trust bundle.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        self.roots.certificates()
    }

    /// Signs a certificate for nobody and verifies it as a peer would: whatever is wrong with chain and bundle shows here,
    /// not in the first handshake.
    fn probe(&self) -> Result<(), PeerRefused> {
        let broken = |what: String| PeerRefused::BadCertificate(what);
        let key = WorkloadKey::generate().map_err(|error| broken(error.to_string()))?;
        let id = SpiffeId::new(&crate::model::TrustDomain::default(), "probe", "probe")
            .map_err(|error| broken(error.to_string()))?;
        // An expired authority is for `sign` to report, with its date.
        let at = self
            .not_after
            .checked_sub(Duration::from_secs(60))
            .unwrap_or(self.not_after)
            .min(SystemTime::now());
        let chain = self
            .sign_key(&key, &id, DEFAULT_TTL, at)
            .map_err(|error| broken(error.to_string()))?;
        let roots = Roots::new(self.roots.certificates().to_vec())
            .map_err(|error| broken(error.to_string()))?;
        let trust = Trust::new(Arc::new(roots), Arc::default(), Arc::default());
        let leaf = chain.first().ok_or(PeerRefused::NoCertificate)?;
        let at = within(leaf, at);
        for role in [Role::Client, Role::Server] {
            trust.verify_chain(&chain, role, at)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

/// A random serial number, positive and never zero.
fn serial() -> Result<SerialNumber, ()> {
    let mut bytes = [0; SERIAL];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| ())?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
