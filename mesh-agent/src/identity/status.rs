//! What `mesh-agent certs` and the metrics show of identities.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use super::{CaError, clock::rfc3339};
use crate::model::SpiffeId;

/// Everything at one moment. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct IdentityStatus {
    /// Who signs.
    pub ca: String,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub certificates: Vec<CertificateStatus>,
    /// Requests to the authority, and those of them that failed.
    pub requests: u64,
    pub failures: u64,
    pub bundle: BundleStatus,
    pub revocation: Option<RevocationStatus>,
}

/// One identity of this node.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct CertificateStatus {
    pub id: String,
    /// `None`: there has not been one yet.
    pub certificate: Option<CertificateDetails>,
    /// Whether connections can be made with it now.
    pub usable: bool,
    /// Why not.
    pub problem: Option<String>,
    /// Requests in a row that failed; 0 after a success.
    pub failures: u32,
    /// The last failure, until the next success.
    pub last_error: Option<ErrorStatus>,
    /// When the next attempt is due by the failures so far.
    pub retry_in_ms: Option<u64>,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct CertificateDetails {
    /// Hexadecimal.
    pub serial: String,
    pub issuer: String,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    /// When it is to be renewed.
    pub rotation_ms: u64,
    /// Our own trust refuses it (its root left the bundle, it is revoked); a new one is being asked for.
    pub refused: bool,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ErrorStatus {
    pub message: String,
    pub at_ms: u64,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct BundleStatus {
    /// `None`: roots are what the authority said last.
    pub file: Option<PathBuf>,
    pub roots: Vec<RootStatus>,
    /// Why the file as it is now is not used.
    pub error: Option<ErrorStatus>,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct RootStatus {
    pub subject: String,
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
    pub not_after_ms: u64,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct RevocationStatus {
    pub file: PathBuf,
    pub lists: Vec<ListStatus>,
    /// Why the file as it is now is not used, or a list in it.
    pub error: Option<ErrorStatus>,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ListStatus {
    pub issuer: String,
    pub revoked: usize,
    pub this_update_ms: u64,
    pub next_update_ms: u64,
    /// Its next update is overdue. It is used all the same: who was revoked stays revoked.
    pub overdue: bool,
}

/// Why there is no certificate to make a connection with.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no certificate for {id}: {why}{}", after(.last_error.as_ref(), .ca))]
pub struct NoCertificate {
    pub id: SpiffeId,
    pub why: Missing,
    pub ca: Arc<str>,
    /// The last failure to get one, and when.
    pub last_error: Option<(SystemTime, CaError)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error("it is no identity of this node")]
    NotHere,
    #[error("there has not been one yet")]
    NotYet,
    #[error("it has expired on {}", rfc3339(*.0))]
    Expired(SystemTime),
}

fn after(error: Option<&(SystemTime, CaError)>, ca: &str) -> String {
    error.map_or_else(String::new, |(at, error)| {
        format!("; {error} ({ca}, {})", rfc3339(*at))
    })
}

pub(super) fn ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
