//! Identities: made from the options, told who runs here, shown to the admin interface and the metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;

use super::options::{AgentOptions, CaChoice};
use crate::{
    admin::api,
    catalog::Snapshot,
    identity::{
        self, BuiltInCa, CertificateAuthority, CertificateStatus, Identities, IdentityStatus,
        IstioCa, IstioCaOptions,
    },
    model::{Enrolment, SpiffeId},
    telemetry::{CertificateGauge, FileGauge, IdentityGauges},
};

/// Makes the identities of an agent.
///
/// # Errors
/// A file that was named cannot be used, or the state folder is not fit for a key.
pub(super) fn build(options: &AgentOptions) -> anyhow::Result<Arc<Identities>> {
    let chosen = &options.identity;
    let ca: Arc<dyn CertificateAuthority> = match &chosen.ca {
        CaChoice::BuiltIn => Arc::new(
            BuiltInCa::open(&options.state_dir)
                .context("cannot open the built-in certificate authority")?,
        ),
        CaChoice::Istio {
            url,
            token_file,
            root_file,
            cluster_id,
        } => Arc::new(
            IstioCa::new(IstioCaOptions {
                token_file: token_file.clone(),
                root_file: root_file.clone(),
                cluster_id: cluster_id.clone(),
                ..IstioCaOptions::new(url)
            })
            .context("cannot use the certificate authority")?,
        ),
    };
    let identities = Identities::new(
        ca,
        identity::IdentityOptions {
            ttl: chosen.cert_ttl,
            trust_bundle: chosen.trust_bundle.clone(),
            crl: chosen.crl.clone(),
            ..identity::IdentityOptions::default()
        },
    )?;
    Ok(identities)
}

/// Makes identities follow the catalog: the mesh's trust domains, and who runs here.
pub(super) fn follow(identities: &Identities, snapshot: &Snapshot) {
    identities.set_mesh(
        snapshot.trust_domain().clone(),
        snapshot.trust_aliases().to_vec(),
    );
    identities.want(here(snapshot).into_keys().collect::<BTreeSet<_>>());
}

/// Identities of this node, with the names of those that have them.
fn here(snapshot: &Snapshot) -> BTreeMap<SpiffeId, Vec<String>> {
    let mut here: BTreeMap<SpiffeId, Vec<String>> = BTreeMap::new();
    for workload in snapshot.local_workloads() {
        if workload.enrolment == Enrolment::Enrolled {
            let names = here.entry(workload.identity.clone()).or_default();
            names.push(workload.name.to_string());
        }
    }
    here
}

/// For `mesh-agent certs`.
pub(super) fn certificates(identities: &Identities, snapshot: &Snapshot) -> api::Certificates {
    let status = identities.status();
    let here = here(snapshot);
    let workloads = |id: &str| -> Vec<String> {
        id.parse::<SpiffeId>()
            .ok()
            .and_then(|id| here.get(&id).cloned())
            .unwrap_or_default()
    };
    let last_error = status.last_error.as_ref();
    api::Certificates {
        ca: api::CaState {
            name: status.ca.clone(),
            last_signed_unix_ms: status.last_signed_ms,
            last_error: last_error.map(|e| e.message.clone()),
            last_error_unix_ms: last_error.map(|e| e.at_ms),
        },
        trust_domain: status.trust_domain.clone(),
        trust_domain_aliases: status.trust_domain_aliases.clone(),
        identities: status
            .certificates
            .iter()
            .map(|c| certificate(c, workloads(&c.id)))
            .collect(),
        roots: roots(&status),
        trust_bundle: status.bundle.file.as_ref().map(|file| api::TrustBundle {
            path: file.display().to_string(),
            error: status.bundle.error.as_ref().map(|e| e.message.clone()),
        }),
        revocation_list: status.revocation.as_ref().map(|crl| api::RevocationList {
            path: crl.file.display().to_string(),
            revoked: crl.lists.iter().map(|l| l.revoked as u64).sum(),
            loaded_unix_ms: Some(crl.loaded_ms),
            next_update_unix_ms: crl.lists.iter().map(|l| l.next_update_ms).min(),
            error: crl.error.as_ref().map(|e| e.message.clone()),
        }),
    }
}

const DISTRUSTED: &str =
    "this node's own trust refuses it: its root left the bundle, or it is revoked";

/// When it is asked for again: at its rotation, or after failures, whichever comes last.
fn next_attempt(status: &CertificateStatus) -> Option<u64> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let retry = status
        .retry_in_ms
        .map(|wait| u64::try_from(now.as_millis()).unwrap_or(u64::MAX) + wait);
    status
        .certificate
        .as_ref()
        .map(|details| details.rotation_ms)
        .max(retry)
}

fn certificate(status: &CertificateStatus, workloads: Vec<String>) -> api::Certificate {
    let details = status.certificate.as_ref();
    let distrusted = details.is_some_and(|d| d.refused);
    let state = match details {
        _ if status.usable && distrusted => "distrusted",
        _ if status.usable => "valid",
        Some(_) => "expired",
        None if status.refused => "refused",
        None => "missing",
    };
    api::Certificate {
        identity: status.id.clone(),
        state: state.to_owned(),
        workloads,
        serial: details.map(|d| d.serial.clone()).unwrap_or_default(),
        issuer: details.map(|d| d.issuer.clone()).unwrap_or_default(),
        not_before_unix_ms: details.map(|d| d.not_before_ms),
        not_after_unix_ms: details.map(|d| d.not_after_ms),
        next_rotation_unix_ms: next_attempt(status),
        last_error: status
            .last_error
            .as_ref()
            .map(|e| e.message.clone())
            .or_else(|| status.problem.clone())
            .or_else(|| distrusted.then(|| DISTRUSTED.to_owned())),
        failures: u64::from(status.failures),
    }
}

fn roots(status: &IdentityStatus) -> Vec<api::TrustRoot> {
    status
        .bundle
        .roots
        .iter()
        .map(|root| api::TrustRoot {
            subject: root.subject.clone(),
            serial: root.serial.clone(),
            not_before_unix_ms: root.not_before_ms,
            not_after_unix_ms: root.not_after_ms,
            fingerprint: root.fingerprint.clone(),
        })
        .collect()
}

/// For the metrics.
pub(super) fn gauges(identities: &Identities) -> IdentityGauges {
    let status = identities.status();
    let time = |ms: u64| -> SystemTime { UNIX_EPOCH + Duration::from_millis(ms) };
    IdentityGauges {
        certificates: status
            .certificates
            .iter()
            .map(|c| CertificateGauge {
                identity: c.id.clone(),
                validity: c
                    .certificate
                    .as_ref()
                    .map(|d| (time(d.not_before_ms), time(d.not_after_ms))),
                failures: c.failures_total,
            })
            .collect(),
        ca: status.ca.clone(),
        ca_requests: status.requests.by_outcome().to_vec(),
        roots: status
            .bundle
            .roots
            .iter()
            .map(|r| time(r.not_after_ms))
            .collect(),
        bundle: status.bundle.file.as_ref().map(|_| FileGauge {
            ok: status.bundle.error.is_none(),
            errors: status.bundle.errors,
        }),
        crl: status.revocation.as_ref().map(|crl| FileGauge {
            ok: crl.error.is_none(),
            errors: crl.errors,
        }),
        revoked: status
            .revocation
            .iter()
            .flat_map(|crl| &crl.lists)
            .map(|list| list.revoked as u64)
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{CertificateDetails, ErrorStatus};

    #[test]
    fn states_and_the_next_attempt_are_told() {
        let details = |refused| CertificateDetails {
            serial: "01".into(),
            issuer: "CN=root".into(),
            not_before_ms: 1,
            not_after_ms: 5,
            rotation_ms: 3,
            refused,
        };
        for (certificate_of, usable, refused, state) in [
            (Some(details(false)), true, false, "valid"),
            (Some(details(false)), true, true, "valid"),
            (Some(details(true)), true, false, "distrusted"),
            (Some(details(false)), false, true, "expired"),
            (None, false, true, "refused"),
            (None, false, false, "missing"),
        ] {
            let status = CertificateStatus {
                id: "spiffe://cluster.local/ns/shop/sa/web".into(),
                certificate: certificate_of,
                usable,
                problem: None,
                failures: 0,
                failures_total: 0,
                refused,
                last_error: None,
                retry_in_ms: None,
            };
            let shown = certificate(&status, Vec::new());
            assert_eq!(shown.state, state);
            assert_eq!(shown.last_error.is_some(), state == "distrusted");
            assert_eq!(
                shown.next_rotation_unix_ms,
                status.certificate.as_ref().map(|_| 3)
            );
            let failing = CertificateStatus {
                failures: 2,
                retry_in_ms: Some(60_000),
                last_error: Some(ErrorStatus {
                    message: "no answer".into(),
                    at_ms: 2,
                }),
                ..status
            };
            let shown = certificate(&failing, Vec::new());
            assert!(shown.next_rotation_unix_ms > Some(60_000), "the retry");
            assert_eq!(shown.last_error.as_deref(), Some("no answer"));
        }
    }
}
