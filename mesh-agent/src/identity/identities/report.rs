//! What identities say of themselves.

use tokio::time::Instant;

use super::{Entry, Identities};
use crate::{
    identity::{
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
        let error = |error: &Option<(std::time::SystemTime, String)>| {
            error.as_ref().map(|(at, message)| ErrorStatus {
                message: message.clone(),
                at_ms: ms(*at),
            })
        };
        let now = self.options.clock.now();
        let (bundle_file, bundle_error, crl_error) = {
            let writer = self.writer();
            (
                writer.bundle_file.clone(),
                error(&writer.bundle_error),
                error(&writer.crl_error),
            )
        };
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
            error: crl_error.or_else(|| {
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
            requests: self.requests.load(std::sync::atomic::Ordering::Relaxed),
            failures: self.failures.load(std::sync::atomic::Ordering::Relaxed),
            bundle: BundleStatus {
                file: bundle_file,
                roots: trust
                    .roots
                    .certificates()
                    .iter()
                    .filter_map(|root| {
                        let described = describe(root).ok()?;
                        Some(RootStatus {
                            subject: described.subject,
                            fingerprint: fingerprint(root),
                            not_after_ms: ms(described.not_after),
                        })
                    })
                    .collect(),
                error: bundle_error,
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
            last_error: progress.last_error.as_ref().map(|(at, error)| ErrorStatus {
                message: error.to_string(),
                at_ms: ms(*at),
            }),
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
