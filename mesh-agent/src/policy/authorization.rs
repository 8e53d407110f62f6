//! AuthorizationPolicy: who may connect to a workload. traffic.md, "Authorization".

use std::net::IpAddr;

use crate::model::{ResourceName, SpiffeId};

/// What a decision goes by. The source's identity comes from the tunnel only; without a tunnel there is none.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub source: Option<&'a SpiffeId>,
    /// Of the client itself, not of an agent.
    pub source_ip: IpAddr,
    pub destination_ip: IpAddr,
    pub destination_port: u16,
}

/// What is decided, and by which policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'p> {
    /// `None`: no ALLOW policy applies to the workload.
    Allow(Option<&'p ResourceName>),
    /// By a DENY policy; `None`: ALLOW policies apply and none matches.
    Deny(Option<&'p ResourceName>),
}

impl Verdict<'_> {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}
