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
