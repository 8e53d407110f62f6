//! A set of root certificates, and reading certificates from PEM.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject as _};
use webpki::anchor_from_trusted_cert;

/// Most certificates in a bundle or chain.
const MAX_CERTIFICATES: usize = 1024;

/// Why a set of certificates cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("it holds no certificate in PEM")]
    Empty,
    #[error("it is not PEM: {0}")]
    Pem(String),
    #[error("certificate {0} cannot be read: {1}")]
    Certificate(usize, String),
    #[error("it holds more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// Roots that are trusted; never empty but for [`Roots::none`].
#[derive(Debug)]
pub(super) struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    pub(super) anchors: Vec<TrustAnchor<'static>>,
}

impl Roots {
    /// Trusts nobody.
    pub(super) const fn none() -> Self {
        Self {
            certificates: Vec::new(),
            anchors: Vec::new(),
        }
    }

    /// One certificate that cannot be read makes the whole set unusable: half a bundle would refuse half a mesh.
    pub(super) fn new(mut certificates: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        certificates.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        certificates.dedup();
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        let anchors = certificates
            .iter()
            .enumerate()
            .map(|(at, certificate)| {
                anchor_from_trusted_cert(certificate)
                    .map(|anchor| anchor.to_owned())
                    .map_err(|error| BundleError::Certificate(at + 1, format!("{error:?}")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            certificates,
            anchors,
        })
    }

    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        Self::new(certificates(pem)?)
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

/// Every certificate of a PEM text. Text between the sections is comment, a broken section is an error.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if found.len() == MAX_CERTIFICATES {
            return Err(BundleError::TooMany);
        }
        found.push(certificate.map_err(|error| BundleError::Pem(error.to_string()))?);
    }
    if found.is_empty() {
        return Err(BundleError::Empty);
    }
    Ok(found)
}

/// What a person wants to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    /// Lower-case hexadecimal without separators.
    pub(super) serial: String,
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

pub(super) fn describe(certificate: &CertificateDer<'_>) -> Result<Described, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let time = |at: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(at.timestamp()).unwrap_or(0);
        UNIX_EPOCH + Duration::from_secs(seconds)
    };
    Ok(Described {
        serial: hex(parsed.raw_serial()),
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
    })
}

/// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` computes it.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(digest::digest(&digest::SHA256, certificate).as_ref())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
