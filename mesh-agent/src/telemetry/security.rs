//! How a connection is secured, and whom the certificates at its ends name.

use mesh_common::ConnRecord;

use crate::model::SpiffeId;

/// Values of the label `connection_security_policy`, of the field `security` and of the filter.
pub(crate) const MUTUAL_TLS: &str = "mutual_tls";
pub(crate) const NONE: &str = "none";

/// What mutual TLS proved about a connection; a connection without it has none of this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Principals {
    /// Of who dialled.
    pub(crate) source: Option<SpiffeId>,
    /// Of who was dialled.
    pub(crate) destination: Option<SpiffeId>,
}

/// The word for it.
pub(super) const fn policy_name(security: Option<&Principals>) -> &'static str {
    match security {
        Some(_) => MUTUAL_TLS,
        None => NONE,
    }
}

/// The word for what an agent has noted in the kernel's record; whom the certificates named is not there.
pub(super) const fn of_record(record: &ConnRecord) -> &'static str {
    if record.security == 1 {
        MUTUAL_TLS
    } else {
        NONE
    }
}
