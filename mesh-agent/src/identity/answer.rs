//! What an authority answers is checked in full before it is used.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::PublicKeyData as _;
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::extensions::GeneralName;

use super::{
    CaError, Signed,
    keys::WorkloadKey,
    moment::moment,
    roots::{Described, Roots, describe},
    trust::{Role, Trust, within},
};
use crate::model::SpiffeId;

/// A certificate may begin this far in the future: the authority's clock is ahead, or ours behind.
pub(super) const SKEW: Duration = Duration::from_secs(5 * 60);

/// A certificate that may be used.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) leaf: Described,
    /// The roots that came with it.
    pub(super) roots: Arc<Roots>,
}

/// Checks that the certificate is for our key and exactly the identity that was asked for, that it may be used now, on both sides of a
/// connection, and that it leads to a root: of the bundle file when there is one (`trust`), else of the answer's own.
pub(super) fn check(
    signed: Signed,
    id: &SpiffeId,
    key: &WorkloadKey,
    bundle: Option<&Trust>,
    trust: &Trust,
    now: SystemTime,
) -> Result<Checked, CaError> {
    let rubbish = |why: String| CaError::Rubbish(why.into());
    let leaf_der = signed
        .chain
        .first()
        .ok_or_else(|| rubbish("no certificate".into()))?;
    let leaf = describe(leaf_der)
        .map_err(|error| rubbish(format!("a certificate that cannot be read: {error}")))?;
    {
        let parsed = EndEntityCert::try_from(leaf_der)
            .map_err(|error| rubbish(format!("a certificate that cannot be read: {error:?}")))?;
        if parsed.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err(rubbish("a certificate for another key".into()));
        }
    }
    check_name(leaf_der, id).map_err(rubbish)?;
    if leaf.not_after <= leaf.not_before {
        return Err(rubbish("a certificate that ends before it begins".into()));
    }
    if leaf.not_after <= now {
        return Err(rubbish(format!(
            "a certificate that ended at {}, and here it is {}; is the clock of this node right?",
            moment(leaf.not_after),
            moment(now)
        )));
    }
    if leaf.not_before > now + SKEW {
        return Err(rubbish(format!(
            "a certificate that begins at {}, and here it is {}; is the clock of this node right?",
            moment(leaf.not_before),
            moment(now)
        )));
    }
    let roots = Arc::new(
        Roots::new(signed.roots)
            .map_err(|error| rubbish(format!("roots that cannot be used: {error}")))?,
    );
    let own;
    let trust = match bundle {
        Some(bundle) => bundle,
        None => {
            own = trust.with_roots(roots.clone());
            &own
        }
    };
    for role in [Role::Client, Role::Server] {
        trust
            .verify_chain(&signed.chain, role, within(leaf_der, now))
            .map_err(|refused| {
                rubbish(format!("a certificate that peers would refuse: {refused}"))
            })?;
    }
    Ok(Checked {
        chain: signed.chain,
        leaf,
        roots,
    })
}

fn check_name(leaf: &CertificateDer<'_>, id: &SpiffeId) -> Result<(), String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| error.to_string())?
        .map(|names| &names.value.general_names);
    match names.map(Vec::as_slice) {
        Some([GeneralName::URI(uri)]) if *uri == id.as_str() => Ok(()),
        Some([GeneralName::URI(uri)]) => Err(format!("a certificate for {uri}, not for {id}")),
        Some(names) => Err(format!(
            "a certificate with {} names, not the one of {id}",
            names.len()
        )),
        None => Err(format!("a certificate without a name, not for {id}")),
    }
}
