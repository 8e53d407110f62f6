//! The access log: one line for every finished connection, target `access`, level INFO.

use std::{net::SocketAddr, time::Duration};

use super::Reason;
use crate::model::{ResourceName, SpiffeId};

/// Target of the lines, for the log filter (`access=off` silences them).
pub const TARGET: &str = "access";

/// All that a line says.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) direction: &'static str,
    pub(super) path: &'static str,
    pub(super) protocol: &'static str,
    pub(super) workload: Option<&'a ResourceName>,
    pub(super) source: SocketAddr,
    pub(super) source_workload: Option<&'a ResourceName>,
    /// From the certificates; `None` without mutual TLS.
    pub(super) source_principal: Option<&'a SpiffeId>,
    pub(super) destination_principal: Option<&'a SpiffeId>,
    pub(super) security: &'static str,
    /// The AuthorizationPolicy that decided.
    pub(super) policy: Option<&'a ResourceName>,
    pub(super) original_dst: SocketAddr,
    pub(super) service: Option<&'a ResourceName>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) upstream_workload: Option<&'a ResourceName>,
    /// The workload's own view, as everywhere but in the Istio metrics.
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) duration: Duration,
    pub(super) rtt_us: Option<u32>,
    pub(super) retransmits: Option<u32>,
    pub(super) reason: Reason,
}

pub(super) fn write(line: &Line<'_>) {
    tracing::info!(
        target: TARGET,
        direction = line.direction,
        workload = line.workload.map(display),
        source = %line.source,
        source_workload = line.source_workload.map(display),
        source_principal = line.source_principal.map(display),
        original_dst = %line.original_dst,
        service = line.service.map(display),
        upstream = line.upstream.map(display),
        upstream_workload = line.upstream_workload.map(display),
        destination_principal = line.destination_principal.map(display),
        security = line.security,
        policy = line.policy.map(display),
        protocol = line.protocol,
        path = line.path,
        bytes_sent = line.bytes_sent,
        bytes_received = line.bytes_received,
        duration_ms = line.duration.as_millis() as u64,
        rtt_us = line.rtt_us,
        retransmits = line.retransmits,
        reason = line.reason.as_str(),
        response_flags = line.reason.flag(),
        caused_by = line.reason.party().as_str(),
        "connection closed"
    );
}
