//! One connection as the admin interface shows it.

use serde::{Deserialize, Serialize};

/// A connection, open or closed. Bytes are the enrolled workload's own: what it sent and what it received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// `namespace/name` of the enrolled workload.
    pub workload: Option<String>,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// `proxied`, `passthrough`, `unmeshed` or `vouched`.
    pub path: String,
    /// `tcp`, or `http` where requests are read from it.
    pub protocol: String,
    /// Requests that have come on it.
    #[serde(default)]
    pub requests: u64,
    /// Address and port of who dialled.
    pub source: String,
    pub source_workload: Option<String>,
    /// What was dialled.
    pub original_dst: String,
    pub service: Option<String>,
    /// The endpoint that the agent chose.
    pub upstream: Option<String>,
    pub upstream_workload: Option<String>,
    /// TCP state of the workload's socket; `open` where the kernel has no record of it, `closed` for a finished one.
    pub state: String,
    /// `mutual_tls`, or `none`: plain, as the mesh sees it.
    #[serde(default)]
    pub security: String,
    /// `spiffe://...` of who dialled and of who was dialled, from their certificates; only with mutual TLS.
    pub source_principal: Option<String>,
    pub destination_principal: Option<String>,
    /// The AuthorizationPolicy that allowed or denied it, `namespace/name`; only where this agent asked one.
    pub policy: Option<String>,
    /// Milliseconds since the epoch.
    pub started_unix_ms: u64,
    pub duration_ms: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Smoothed, microseconds.
    pub rtt_us: Option<u32>,
    pub retransmits: Option<u32>,
    /// Only of a closed one.
    pub reason: Option<String>,
    pub response_flags: Option<String>,
    /// `agent`, `client`, `upstream` or `node`.
    pub caused_by: Option<String>,
    /// Key of the kernel's record, 0 when not known.
    pub app_cookie: u64,
    pub agent_cookie: u64,
}

impl Connection {
    pub fn is_closed(&self) -> bool {
        self.state == "closed"
    }
}

/// The kernel's numbers (`include/net/tcp_states.h`).
pub(super) const fn tcp_state_name(state: u8) -> &'static str {
    match state {
        1 => "established",
        2 => "syn_sent",
        3 | 12 => "syn_received",
        4 => "fin_wait1",
        5 => "fin_wait2",
        6 => "time_wait",
        7 => "closing_done",
        8 => "close_wait",
        9 => "last_ack",
        10 => "listen",
        11 => "closing",
        _ => "open",
    }
}
