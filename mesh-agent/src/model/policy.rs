//! Policies in effect, after scopes were merged and defaults filled in.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;

/// MeshPolicy as it applies to one workload.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct EffectivePolicy {
    pub outbound: OutboundMode,
    pub fail_policy: FailPolicy,
    /// Ports that are not captured, dialled or served.
    pub exclude_ports: Vec<u16>,
    /// Ranges that are not captured, as destination or as client.
    pub exclude_cidrs: Vec<IpNet>,
    pub drain_timeout: Duration,
    /// Inbound mTLS mode of ports that `port_mtls` does not name.
    pub mtls: MtlsMode,
    pub port_mtls: BTreeMap<u16, MtlsMode>,
}

impl EffectivePolicy {
    /// Inbound mTLS mode of one port of the workload.
    pub fn mtls_of(&self, port: u16) -> MtlsMode {
        self.port_mtls.get(&port).copied().unwrap_or(self.mtls)
    }

    /// Whether any port takes tunnels only.
    pub fn any_strict(&self) -> bool {
        self.mtls == MtlsMode::Strict || self.port_mtls.values().any(|m| *m == MtlsMode::Strict)
    }
}

impl Default for EffectivePolicy {
    fn default() -> Self {
        Self {
            outbound: OutboundMode::Allow,
            fail_policy: FailPolicy::Closed,
            exclude_ports: Vec::new(),
            exclude_cidrs: Vec::new(),
            drain_timeout: Duration::from_secs(30),
            mtls: MtlsMode::default(),
            port_mtls: BTreeMap::new(),
        }
    }
}

/// What happens to a destination that the mesh does not know.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum OutboundMode {
    /// It is passed through.
    Allow,
    /// It is refused, unless it lies in one of these ranges (link-local and DNS are always among them).
    RegisteredOnly { exceptions: Vec<IpNet> },
}

/// What a workload accepts from others (inbound). Sources tunnel to every port that does not say `disable`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum MtlsMode {
    /// Tunnels only; plain text is refused with a reset.
    Strict,
    /// Both.
    #[default]
    Permissive,
    /// Sources are asked not to tunnel; plain text is accepted. A tunnel that comes all the same is served.
    Disable,
}

impl MtlsMode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
            Self::Disable => "disable",
        }
    }
}

/// What happens while no agent listens.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum FailPolicy {
    /// Connections are refused.
    Closed,
    /// Connections to real addresses pass plain.
    Open,
}

/// TrafficPolicy of one service, defaults filled in.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct TrafficPolicy {
    pub load_balancer: LoadBalancer,
    pub limits: ConnectionLimits,
    /// `None`: no breaker.
    pub breaker: Option<CircuitBreaker>,
    /// `None`: the default of 10 s.
    pub connect_timeout: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct LoadBalancer {
    pub strategy: Strategy,
    /// Traffic grows over this time after an endpoint joins or recovers.
    pub slow_start: Option<Duration>,
}

#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    #[default]
    RoundRobin,
    WeightedRoundRobin,
    LeastConnections,
    Random,
}

/// Limits on connections; `None` is no limit. Per agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ConnectionLimits {
    /// At once to the whole service.
    pub max_connections: Option<u32>,
    /// At once to one endpoint.
    pub max_connections_per_endpoint: Option<u32>,
}

/// traffic.md, "Circuit breaker", as far as plain TCP has it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct CircuitBreaker {
    /// Consecutive connect failures that open it.
    pub failure_threshold: u32,
    /// Share of failed connects (0..=1) over `window` that opens it, once `min_volume` connects were seen.
    pub failure_ratio: Option<f64>,
    pub window: Duration,
    pub min_volume: u32,
    /// First time open; doubled with each opening up to `max_recovery_timeout`, full jitter above the first.
    pub recovery_timeout: Duration,
    pub max_recovery_timeout: Duration,
    /// Successes in half-open that close it.
    pub success_threshold: u32,
    /// Percent of a service's endpoints that may be open at once.
    pub max_ejection_percent: u32,
}
