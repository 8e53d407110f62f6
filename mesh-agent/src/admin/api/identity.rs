//! `GET /v1/certs`, and its summary in `/v1/status`.

use serde::{Deserialize, Serialize};

/// Bad certificates that a sentence names.
const SHOWN: usize = 3;

/// Identities of this node, and whom it trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    pub ca: CaState,
    pub trust_domain: String,
    /// Other trust domains whose certificates are taken.
    pub trust_domain_aliases: Vec<String>,
    pub identities: Vec<Certificate>,
    pub roots: Vec<TrustRoot>,
    /// `None`: the roots are those of the certificate authority.
    pub trust_bundle: Option<TrustBundle>,
    /// `None`: no revocation list is configured.
    pub revocation_list: Option<RevocationList>,
}

/// The certificate authority as its answers show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaState {
    /// `built-in`, or the URL.
    pub name: String,
    /// Milliseconds since the epoch; `None`: it has never signed since the agent started.
    pub last_signed_unix_ms: Option<u64>,
    /// What went wrong at the last request; `None`: it was answered.
    pub last_error: Option<String>,
    pub last_error_unix_ms: Option<u64>,
}

/// One identity of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// `spiffe://...`
    pub identity: String,
    /// `valid`, `distrusted` (this node's own trust refuses it, as others' will), `expired`, `missing` (none was signed
    /// yet), or `refused`: the certificate authority said that it will
    /// not sign it, and there is no older one that is valid.
    pub state: String,
    /// `namespace/name` of the workloads of this node that have it.
    pub workloads: Vec<String>,
    /// Hexadecimal. Empty, as the next three are `None`, while there is no certificate.
    pub serial: String,
    pub issuer: String,
    /// Milliseconds since the epoch, as all times here.
    pub not_before_unix_ms: Option<u64>,
    pub not_after_unix_ms: Option<u64>,
    /// When the next one is asked for.
    pub next_rotation_unix_ms: Option<u64>,
    /// Why the last request failed; `None`: it did not.
    pub last_error: Option<String>,
    /// Requests that failed since the last that did not.
    pub failures: u64,
}

/// A root certificate that is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustRoot {
    pub subject: String,
    /// Hexadecimal.
    pub serial: String,
    pub not_before_unix_ms: u64,
    pub not_after_unix_ms: u64,
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
}

/// The file of roots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    pub path: String,
    /// Why the newest file was refused; `None`: it is the one in effect.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationList {
    pub path: String,
    /// Certificates on the list in effect.
    pub revoked: u64,
    /// When the list in effect was read; `None`: none was ever read.
    pub loaded_unix_ms: Option<u64>,
    /// When its issuer promised the next one.
    pub next_update_unix_ms: Option<u64>,
    /// Why the newest file was refused; `None`: it is the one in effect.
    pub error: Option<String>,
}

/// In `/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitySummary {
    pub ca: CaState,
    pub certificates: u64,
    pub valid: u64,
    /// The certificate that ends first.
    pub soonest_expiry_unix_ms: Option<u64>,
    pub soonest_identity: Option<String>,
}

impl Certificates {
    pub fn summary(&self) -> IdentitySummary {
        let soonest = self
            .identities
            .iter()
            .filter_map(|c| Some((c.not_after_unix_ms?, c)))
            .min_by_key(|(end, _)| *end);
        IdentitySummary {
            ca: self.ca.clone(),
            certificates: self.identities.len() as u64,
            valid: self.identities.iter().filter(|c| c.is_valid()).count() as u64,
            soonest_expiry_unix_ms: soonest.map(|(end, _)| end),
            soonest_identity: soonest.map(|(_, c)| c.identity.clone()),
        }
    }

    /// The condition of readiness: every identity of this node has a valid certificate, or the certificate authority
    /// has said that it will not sign it (as a pod whose enrolment has failed does not hold up the others), but not of
    /// all of them. Not to be ready keeps the agent from nothing. `None`: the agent has no identities at all.
    pub fn condition(&self) -> Option<super::Condition> {
        if self.ca.name.is_empty() {
            return None;
        }
        let of_state = |state: &str| self.identities.iter().filter(|c| c.state == state).count();
        let (valid, refused) = (of_state("valid"), of_state("refused"));
        let all = self.identities.len();
        let mut detail = format!("{valid} of {all} valid, signed by {}", self.ca.name);
        let bad = self.identities.iter().filter(|c| !c.is_valid());
        for c in bad.clone().take(SHOWN) {
            let error = c.last_error.as_deref().unwrap_or("not signed yet");
            detail += &format!("; {} is {}: {error}", c.identity, c.state);
        }
        if bad.clone().count() > SHOWN {
            detail += "; more in `mesh-agent certs`";
        }
        Some(super::Condition {
            name: "certificates".into(),
            ok: all == valid + refused && (valid > 0 || all == 0),
            detail,
        })
    }
}

impl Certificate {
    pub fn is_valid(&self) -> bool {
        self.state == "valid"
    }

    /// `NAMESPACE/sa/ACCOUNT`
    pub fn namespace_and_account(&self) -> &str {
        self.identity
            .split_once("/ns/")
            .map_or("", |(_, rest)| rest)
    }
}
