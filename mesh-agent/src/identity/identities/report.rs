//! What identities say of themselves.

use std::time::SystemTime;

use tokio::time::Instant;

use super::{Entry, Identities};
use crate::{
    identity::{
        CaError,
        roots::{describe, fingerprint},
        status::{
            BundleStatus, CertificateDetails, CertificateStatus, ErrorStatus, IdentityStatus,
            ListStatus, RevocationStatus, RootStatus, ms,
        },
    },
    model::SpiffeId,
};

impl Identities {
    /// Everything, for the admin interface and the metrics. Certificates are ordered by identity.
    pub fn status(&self) -> IdentityStatus {
        let trust = self.trust.get();
        let now = self.options.clock.now();
        let writer = self.writer();
        let revocation = self.options.crl.as_ref().map(|file| RevocationStatus {
            file: file.clone(),
            lists: trust
                .crls
                .lists()
                .iter()
                .map(|list| ListStatus {
                    issuer: list.issuer.clone(),
                    revoked: list.revoked,
                    this_update_ms: ms(list.this_update),
                    next_update_ms: ms(list.next_update),
                    overdue: list.next_update < now,
                })
                .collect(),
            loaded_ms: ms(writer.crl_loaded),
            errors: writer.crl.errors,
            error: error(writer.crl.error.as_ref()).or_else(|| {
                trust.disowned_list().map(|issuer| ErrorStatus {
                    message: format!(
                        "the list of {issuer} is not signed by the root of that name, and has no effect"
                    ),
                    at_ms: ms(now),
                })
            }),
        });
        let entries = self.entries.load();
        let mut certificates: Vec<_> = entries
            .values()
            .map(|entry| entry.status(self.problem(&entry.id)))
            .collect();
        certificates.sort_by(|a, b| a.id.cmp(&b.id));
        IdentityStatus {
            ca: self.ca_name.to_string(),
            trust_domain: trust.domains.own.to_string(),
            trust_domain_aliases: trust
                .domains
                .aliases
                .iter()
                .map(ToString::to_string)
                .collect(),
            certificates,
            requests: writer.requests,
            last_signed_ms: writer.last_signed.map(ms),
            last_error: error(writer.last_error.as_ref()),
            bundle: BundleStatus {
                file: writer.bundle_file.clone(),
                roots: trust
                    .roots
                    .certificates()
                    .iter()
                    .filter_map(|root| {
                        let described = describe(root).ok()?;
                        Some(RootStatus {
                            subject: described.subject,
                            serial: described.serial,
                            fingerprint: fingerprint(root),
                            not_before_ms: ms(described.not_before),
                            not_after_ms: ms(described.not_after),
                        })
                    })
                    .collect(),
                errors: writer.bundle.errors,
                error: error(writer.bundle.error.as_ref()),
            },
            revocation,
        }
    }

    fn problem(&self, id: &SpiffeId) -> Option<String> {
        self.tls(id).err().map(|missing| missing.why.to_string())
    }
}

impl Entry {
    fn status(&self, problem: Option<String>) -> CertificateStatus {
        let progress = self.progress();
        let certificate = self.tls.load_full().map(|tls| CertificateDetails {
            serial: tls.described.serial.clone(),
            issuer: tls.described.issuer.clone(),
            not_before_ms: ms(tls.described.not_before),
            not_after_ms: ms(tls.not_after),
            rotation_ms: ms(progress.renew_at.unwrap_or(tls.not_after)),
            refused: progress.refused,
        });
        CertificateStatus {
            id: self.id.to_string(),
            certificate,
            usable: problem.is_none(),
            problem,
            failures: progress.failures,
            failures_total: progress.failures_total,
            refused: matches!(progress.last_error, Some((_, CaError::Refused(_)))),
            last_error: error(progress.last_error.as_ref()),
            retry_in_ms: progress
                .retry_at
                .filter(|_| progress.failures > 0)
                .map(|at| {
                    let wait = at.saturating_duration_since(Instant::now());
                    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
                }),
        }
    }
}

fn error<E: ToString>(error: Option<&(SystemTime, E)>) -> Option<ErrorStatus> {
    error.map(|(at, error)| ErrorStatus {
        message: error.to_string(),
        at_ms: ms(*at),
    })
}
