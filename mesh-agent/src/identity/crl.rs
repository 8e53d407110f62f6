//! Certificate revocation lists (RFC 5280, section 5).
//!
//! A list speaks for the certificates whose issuer has the list's issuer name *and* a key that verifies the list's
//! signature; the key decides because root rotation may keep the name. Several lists of one issuer add up. webpki would use
//! the first list of that name only, and verify its signature anew at each handshake, so the search is done here and the
//! outcome of each signature is remembered.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use rustls_pki_types::{
    CertificateRevocationListDer, SubjectPublicKeyInfoDer, pem::PemObject as _,
};
use webpki::{CertRevocationList, OwnedCertRevocationList, RawPublicKeyEntity};
use x509_parser::{prelude::FromDer as _, revocation_list::CertificateRevocationList};

use super::verify::SIGNATURES;

const MAX_LISTS: usize = 1024;
/// Keys for which the outcome of a list's signature is remembered. Peers can only make webpki build paths to trusted roots, so
/// these are the mesh's own authorities; more than a handful is unusual.
const MAX_KEYS: usize = 64;

/// Why a file of lists cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CrlError {
    #[error("it holds no revocation list, in PEM or DER")]
    Empty,
    #[error("it is not PEM: {0}")]
    Pem(String),
    #[error("revocation list {0} cannot be read: {1}")]
    List(usize, String),
    #[error("it holds more than {MAX_LISTS} lists")]
    TooMany,
}

/// The lists of one file.
#[derive(Debug, Default)]
pub(super) struct Crls(Vec<Crl>);

#[derive(Debug)]
pub(super) struct Crl {
    list: CertRevocationList<'static>,
    /// What the signature covers.
    signed: Vec<u8>,
    signature: Vec<u8>,
    pub(super) issuer: String,
    pub(super) revoked: usize,
    pub(super) this_update: SystemTime,
    pub(super) next_update: SystemTime,
    /// By hash of the issuer's public key.
    verified: Mutex<HashMap<[u8; 32], bool>>,
}

impl Crls {
    /// Reads PEM, or DER when there is no PEM section.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, CrlError> {
        let mut ders = Vec::new();
        for der in CertificateRevocationListDer::pem_slice_iter(bytes) {
            if ders.len() == MAX_LISTS {
                return Err(CrlError::TooMany);
            }
            ders.push(der.map_err(|error| CrlError::Pem(error.to_string()))?);
        }
        if ders.is_empty() {
            // The tag of a SEQUENCE: anything else is neither.
            if bytes.first() != Some(&0x30) {
                return Err(CrlError::Empty);
            }
            ders.push(bytes.to_vec().into());
        }
        let lists = ders
            .iter()
            .enumerate()
            .map(|(at, der)| Crl::read(der).map_err(|error| CrlError::List(at + 1, error)));
        Ok(Self(lists.collect::<Result<_, _>>()?))
    }

    pub(super) fn lists(&self) -> &[Crl] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && std::iter::zip(&self.0, &other.0)
                .all(|(a, b)| a.signed == b.signed && a.signature == b.signature)
    }

    /// Whether a list of this issuer names the certificate.
    pub(super) fn revoked(
        &self,
        issuer: &[u8],
        serial: &[u8],
        issuer_key: &SubjectPublicKeyInfoDer<'_>,
    ) -> bool {
        self.0.iter().any(|crl| {
            crl.list.issuer() == issuer
                && crl.signed_by(issuer_key)
                && !matches!(crl.list.find_serial(serial), Ok(None))
        })
    }
}

impl Crl {
    fn read(der: &[u8]) -> Result<Self, String> {
        // webpki refuses what would be dangerous to half understand: delta and indirect lists, unknown critical extensions.
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| format!("{error:?}"))?;
        let list = CertRevocationList::from(list);
        if list.issuing_distribution_point().is_some() {
            return Err(
                "it covers only a part of its issuer's certificates (issuingDistributionPoint)"
                    .into(),
            );
        }
        let (rest, parsed) =
            CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("bytes follow it".into());
        }
        let time = |at: x509_parser::time::ASN1Time| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0))
        };
        Ok(Self {
            signed: parsed.tbs_cert_list.as_ref().to_vec(),
            signature: parsed.signature_value.data.to_vec(),
            issuer: parsed.issuer().to_string(),
            revoked: parsed.iter_revoked_certificates().count(),
            this_update: time(parsed.last_update()),
            next_update: parsed.next_update().map_or(UNIX_EPOCH, time),
            verified: Mutex::default(),
            list,
        })
    }

    /// Name of the issuer as webpki spells it: DER without the outer header.
    pub(super) fn issuer_der(&self) -> &[u8] {
        self.list.issuer()
    }

    /// Whether this key signed the list.
    pub(super) fn signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, key).as_ref());
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(good) = verified.get(&hash) {
            return *good;
        }
        let good = RawPublicKeyEntity::try_from(key).is_ok_and(|key| {
            SIGNATURES.iter().any(|algorithm| {
                key.verify_signature(*algorithm, &self.signed, &self.signature)
                    .is_ok()
            })
        });
        if verified.len() >= MAX_KEYS {
            verified.clear();
        }
        verified.insert(hash, good);
        good
    }
}
