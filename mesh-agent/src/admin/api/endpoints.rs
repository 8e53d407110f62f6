//! `GET /v1/endpoints`: the endpoints of a service, as this agent balances over them.

use serde::{Deserialize, Serialize};

/// One port of the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortEndpoints {
    /// `namespace/name`
    pub service: String,
    pub port: u16,
    pub name: Option<String>,
    pub protocol: String,
    /// `round_robin` ...
    pub strategy: String,
    /// Of the whole service, all ports together; the limits are those of its TrafficPolicy.
    pub connections: u32,
    pub max_connections: Option<u32>,
    pub requests: u32,
    pub max_requests: Option<u32>,
    /// In the order of addresses.
    pub endpoints: Vec<EndpointDetail>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointDetail {
    pub address: String,
    pub workload: Option<String>,
    pub node: Option<String>,
    pub zone: Option<String>,
    /// It takes traffic now.
    pub ready: bool,
    pub weight: u32,
    /// Part of its weight that slow start leaves to it, 0.1 to 1.
    pub slow_start: f64,
    /// `weight` times `slow_start`.
    pub effective_weight: f64,
    /// In flight from this node.
    pub connections: u32,
    pub requests: u32,
    /// How long its answers took of late, failures too, microseconds. `None`: nothing was seen.
    pub latency_us: Option<u64>,
    /// What `peak_ewma` compares, microseconds: the decayed peak of what answers took, where a failure counts as a slow
    /// one. Of a failing endpoint this is a penalty, nothing that was measured.
    #[serde(default)]
    pub expected_latency_us: Option<u64>,
    /// `closed` (it takes traffic), `open` or `half-open`; `none` without a breaker.
    pub breaker: String,
    /// Milliseconds since the epoch: when an open breaker lets a probe through.
    pub open_until_unix_ms: Option<u64>,
    /// Since the last success.
    pub consecutive_failures: u32,
    /// Of active checks: `healthy`, `unhealthy`, `unknown` before the first verdict; `none` when it is not checked.
    pub health: String,
    pub last_check_unix_ms: Option<u64>,
    /// Why the last check was not good.
    pub check_error: Option<String>,
    pub last_error: Option<String>,
    pub last_error_unix_ms: Option<u64>,
}
