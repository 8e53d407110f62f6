//! Certificate requests (PKCS #10): the one that the agent writes, and the reader that a signer uses.

use rcgen::{CertificateParams, DistinguishedName, SanType, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
    public_key::PublicKey,
};

use super::keys::WorkloadKey;
use crate::model::SpiffeId;

/// Longest request that is looked at, in bytes of PEM; one for a 4096-bit RSA key has about 1,800.
const MAX_PEM: usize = 16 * 1024;
const MIN_RSA_BITS: usize = 2048;

/// Why a request is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("the request is not PKCS #10 in PEM")]
    Unreadable,
    #[error("the request is not signed by the key that it names")]
    Signature,
    #[error("the request's key is of a kind or size that is not signed")]
    Key,
    #[error("the request asks for {0}, not for {1}")]
    Names(String, SpiffeId),
    #[error("the request cannot be written: {0}")]
    Write(String),
}

/// A request whose signature has been checked, so that whoever made it holds the key.
#[derive(Clone, Debug)]
pub struct Csr {
    pub(super) key: SubjectPublicKeyInfo,
    /// URI names, as text.
    uris: Vec<String>,
    /// Names of other kinds.
    others: usize,
}

impl Csr {
    /// # Errors
    /// It is not a request, its key is weak or of an unknown kind, or its signature is wrong.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > MAX_PEM {
            return Err(CsrError::Unreadable);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| CsrError::Unreadable)?;
        let (rest, csr) =
            X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Unreadable)?;
        if !rest.is_empty() {
            return Err(CsrError::Unreadable);
        }
        csr.verify_signature().map_err(|_| CsrError::Signature)?;
        let spki = &csr.certification_request_info.subject_pki;
        if let Ok(PublicKey::RSA(rsa)) = spki.parsed()
            && rsa.key_size() < MIN_RSA_BITS
        {
            return Err(CsrError::Key);
        }
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::Key)?;
        let (mut uris, mut others) = (Vec::new(), 0);
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                        _ => others += 1,
                    }
                }
            }
        }
        Ok(Self { key, uris, others })
    }

    /// The URI names that it asks for.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// Whether its only name is this identity.
    ///
    /// # Errors
    /// It asks for something else, or for more.
    pub fn asks_only_for(&self, id: &SpiffeId) -> Result<(), CsrError> {
        match &*self.uris {
            [uri] if self.others == 0 && uri == id.as_str() => Ok(()),
            [] => Err(CsrError::Names("no URI".into(), id.clone())),
            uris => {
                let mut names = uris.join(", ");
                if self.others > 0 {
                    names += " and names of other kinds";
                }
                Err(CsrError::Names(names, id.clone()))
            }
        }
    }
}

/// A request with an empty subject, for which RFC 5280 (4.1.2.6) wants the alternative name critical: rcgen does so.
pub(super) fn request(key: &WorkloadKey, id: &SpiffeId) -> Result<String, CsrError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri_name(id).map_err(write)?];
    params
        .serialize_request(key)
        .and_then(|csr| csr.pem())
        .map_err(write)
}

pub(super) fn uri_name(id: &SpiffeId) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(id.as_str().try_into()?))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn write(error: rcgen::Error) -> CsrError {
    CsrError::Write(error.to_string())
}
