//! What the admin interface answers, one place for the server and the command line. Paths start with `/v1`; fields are
//! only added within a version.

use serde::{Deserialize, Serialize};

mod endpoints;
mod explain;
mod identity;
mod policies;
mod routes;

pub use endpoints::{EndpointDetail, PortEndpoints};
pub use explain::{
    Candidate, Considered, ExplainQuery, Explanation, Mtls, Party, Transport, Verdict,
};
pub use identity::{
    CaState, Certificate, Certificates, IdentitySummary, RevocationList, TrustBundle, TrustRoot,
};
pub use policies::Policy;
pub use routes::{BoundMatch, Route, RouteBackend, RouteCondition, RouteParent, Routes};

pub use crate::telemetry::{Connection, TappedRequest};

/// `GET /v1/status`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub node: String,
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub ready: bool,
    pub conditions: Vec<Condition>,
    pub sources: Vec<SourceState>,
    pub workloads: WorkloadCounts,
    pub services: usize,
    pub connections: ConnectionCounts,
    pub kernel: KernelState,
    pub limits: Limits,
    #[serde(default)]
    pub identity: IdentitySummary,
    /// Connections older than the enrolment that a policy forbids and that could not be closed.
    #[serde(default)]
    pub unmeshed_forbidden: u64,
    /// Anything an operator should look at.
    pub warnings: Vec<String>,
}

/// One thing that must hold before the agent is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `kernel programs attached`, `configuration applied`, `pods enrolled`.
    pub name: String,
    pub ok: bool,
    /// Why not, or what it rests on.
    pub detail: String,
}

/// One source of configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    pub name: String,
    /// Milliseconds since the epoch; `None`: never.
    pub last_applied_unix_ms: Option<u64>,
    pub version: String,
    pub resources: usize,
    /// Why the newest state was refused; empty when it is in effect.
    pub errors: Vec<String>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadCounts {
    pub known: usize,
    pub local: usize,
    pub enrolled: usize,
    pub failed: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Carried by the agent now.
    pub active: u64,
    /// Closed ones that are kept for `connections --closed`.
    pub closed_kept: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    /// Folder of the pinned programs and maps.
    pub bpffs: String,
    pub attached: bool,
    pub programs: Vec<String>,
    pub maps: Vec<MapState>,
    /// Counters of the kernel programs.
    pub counters: Vec<CounterValue>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapState {
    pub name: String,
    pub entries: u64,
    pub max_entries: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterValue {
    pub name: String,
    pub value: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub max_connections: u64,
    pub max_connections_per_workload: u64,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    pub resident_bytes: Option<u64>,
}

/// `GET /v1/workloads`: one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// `namespace/name`
    pub name: String,
    pub node: Option<String>,
    pub addresses: Vec<String>,
    /// `enrolled`, `enrolling`, `releasing`, `failed` or `not enrolled`.
    pub state: String,
    /// Why it is not enrolled, or failed.
    pub reason: Option<String>,
    pub netns: Option<String>,
    pub netns_cookie: Option<u64>,
    /// Ports on which its applications listen, as far as they are captured.
    pub listen_ports: Vec<u16>,
    /// `closed` or `open`.
    pub fail_policy: String,
    /// `allow` or `registered-only`.
    pub outbound: String,
    pub service_account: String,
    pub zone: Option<String>,
    pub weight: u32,
    pub connections: u64,
    /// `spiffe://...`
    #[serde(default)]
    pub identity: String,
    /// `HBONE`: its agent takes tunnels for it; `TCP`: it is reached in plain text.
    #[serde(default)]
    pub protocol: String,
    /// Inbound mTLS mode, `strict`, `permissive` or `disable`, with the ports that have another: `strict, 80: disable`.
    #[serde(default)]
    pub mtls: String,
    /// Milliseconds since the epoch, of the state.
    pub since_unix_ms: Option<u64>,
}

/// `GET /v1/services`: one of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/name`
    pub name: String,
    pub addresses: Vec<String>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: String,
    /// `round_robin` ...
    pub strategy: String,
    pub max_connections: Option<u32>,
    pub connections: u32,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: String,
    pub workload: Option<String>,
    pub weight: u32,
    pub zone: Option<String>,
    pub in_flight: u32,
    /// `closed` (it takes traffic), `open` or `half-open`; `none` without a breaker.
    pub breaker: String,
    pub last_error: Option<String>,
}

/// `GET /v1/log-level`, `PUT /v1/log-level`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    pub filter: String,
}

/// `POST /v1/release`: what was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub removed: Vec<String>,
}

/// `POST /v1/support-bundle`: the files of the bundle, redacted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupportBundle {
    pub files: Vec<BundleFile>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    pub name: String,
    pub content: String,
}

/// `GET /v1/tap`: one line of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TapLine {
    /// `None` in the last line.
    pub request: Option<TappedRequest>,
    /// Requests so far that matched and are not shown, because the reader is slow.
    pub dropped: u64,
    /// Only in the last line: `limit`, `duration`.
    pub end: Option<String>,
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}
