//! `GET /v1/policies`

use serde::{Deserialize, Serialize};

/// One AuthorizationPolicy and those it applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `namespace/name`
    pub name: String,
    /// `ALLOW` or `DENY`.
    pub action: String,
    /// It is logged and counted what it would decide, and nothing is decided by it.
    pub dry_run: bool,
    /// `mesh`, `namespace` or `workloads` (it has a selector).
    pub scope: String,
    /// `app=web,tier=front`; empty without one.
    pub selector: String,
    /// 0: an ALLOW policy that allows nothing, or a DENY policy that denies nothing.
    pub rules: usize,
    /// `namespace/name` of every workload that it applies to.
    pub workloads: Vec<String>,
    /// As many of them run on this node; it is this agent that decides for them.
    pub local: usize,
}
