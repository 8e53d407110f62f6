//! What `mesh-agent certs` and the metrics show of identities.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use super::{CaError, moment::moment};
use crate::model::SpiffeId;

/// Everything at one moment. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct IdentityStatus {
    /// Who signs.
    pub ca: String,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub certificates: Vec<CertificateStatus>,
    /// Answers of the authority since the agent started.
    pub requests: RequestCounts,
    /// Its last good answer.
    pub last_signed_ms: Option<u64>,
    /// Why its last answer was none; `None` after a good one.
    pub last_error: Option<ErrorStatus>,
    pub bundle: BundleStatus,
    pub revocation: Option<RevocationStatus>,
}

/// By outcome, as [`CaError`] tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RequestCounts {
    pub signed: u64,
    pub unavailable: u64,
    pub refused: u64,
    pub rubbish: u64,
}

impl RequestCounts {
    /// With the values of the metric label.
    pub fn by_outcome(&self) -> [(&'static str, u64); 4] {
        [
            ("signed", self.signed),
            ("unavailable", self.unavailable),
            ("refused", self.refused),
            ("rubbish", self.rubbish),
        ]
    }

    pub(super) fn count<T>(&mut self, outcome: &Result<T, CaError>) {
        match outcome {
            Ok(_) => self.signed += 1,
            Err(CaError::Unavailable(_)) => self.unavailable += 1,
            Err(CaError::Refused(_)) => self.refused += 1,
            Err(CaError::Rubbish(_)) => self.rubbish += 1,
        }
    }
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
    /// Requests that failed since the agent started.
    pub failures_total: u64,
    /// The authority said that it will not sign.
    pub refused: bool,
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
    /// Readings that failed since the agent started.
    pub errors: u64,
    /// Why the file as it is now is not used.
    pub error: Option<ErrorStatus>,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct RootStatus {
    pub subject: String,
    /// Hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct RevocationStatus {
    pub file: PathBuf,
    pub lists: Vec<ListStatus>,
    /// When the lists in effect were read.
    pub loaded_ms: u64,
    /// Readings that failed since the agent started.
    pub errors: u64,
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
#[error("no certificate for {id}: {why}{}", after(.last_error.as_deref(), .ca))]
pub struct NoCertificate {
    pub id: SpiffeId,
    pub why: Missing,
    pub ca: Arc<str>,
    /// The last failure to get one, and when.
    pub last_error: Option<Box<(SystemTime, CaError)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error("it is no identity of this node")]
    NotHere,
    #[error("there has not been one yet")]
    NotYet,
    #[error("it has expired on {}", moment(*.0))]
    Expired(SystemTime),
}

fn after(error: Option<&(SystemTime, CaError)>, ca: &str) -> String {
    error.map_or_else(String::new, |(at, error)| {
        format!("; {error} ({ca}, {})", moment(*at))
    })
}

pub(super) fn ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
