//! `mesh.covet.dev/v1alpha1` TrafficPolicy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    api::{
        format::GepDuration,
        metadata::{Ignored, ObjectMeta},
    },
    model::{self, Strategy},
};

/// How connections to Services are balanced, limited and timed. One policy at most for a Service.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    #[serde(skip_serializing)]
    #[schemars(schema_with = "version")]
    pub(crate) api_version: Ignored,
    #[serde(skip_serializing)]
    #[schemars(schema_with = "kind")]
    pub(crate) kind: Ignored,
    pub metadata: ObjectMeta,
    pub spec: TrafficPolicySpec,
    #[serde(default, skip_serializing)]
    pub(crate) status: Ignored,
}

crate::api::kind_schema!("mesh.covet.dev/v1alpha1", "TrafficPolicy");

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// Services of the policy's namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Absent: no breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// A Service, as Gateway API refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Only the core group, written `""` or left out.
    #[serde(default, skip_serializing)]
    #[schemars(schema_with = "core_group")]
    group: Ignored,
    /// Only `Service`.
    #[serde(skip_serializing)]
    #[schemars(schema_with = "service_kind")]
    kind: Ignored,
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub name: String,
}

crate::api::one_of_schema! {
    core_group: [""];
    service_kind: ["Service"];
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// Default: round_robin.
    #[serde(default)]
    pub strategy: Strategy,
    /// Traffic grows over this time after an endpoint joins or recovers. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<GepDuration>,
}

/// Limits hold in each agent; absent is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Connections at once to the whole service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_connections: Option<u32>,
    /// Connections at once to one endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_connections_per_endpoint: Option<u32>,
}

/// Takes an endpoint out of use for a time when connecting to it keeps failing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Consecutive connect failures that open it. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub failure_threshold: Option<u32>,
    /// Share of failed connects over `window` that opens it, once `minVolume` connects were seen. Default: not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1.0))]
    pub failure_ratio: Option<f64>,
    /// Only with `failureRatio`. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<GepDuration>,
    /// Only with `failureRatio`. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_volume: Option<u32>,
    /// How long it is open the first time; doubled with each opening, with jitter. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_timeout: Option<GepDuration>,
    /// How long it is open at most. Default: 5m, or `recoveryTimeout` if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_recovery_timeout: Option<GepDuration>,
    /// Successful probes that close it. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub success_threshold: Option<u32>,
    /// Percent of a service's endpoints that may be out of use at once. Default: 50, and one endpoint always stays; with
    /// 100 the last one may go too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_ejection_percent: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// For all attempts to connect together. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<GepDuration>,
}

impl CircuitBreaker {
    pub(crate) fn recovery_timeout(&self) -> Duration {
        self.recovery_timeout
            .map_or(Duration::from_secs(10), |d| d.0)
    }
}

impl TrafficPolicySpec {
    /// With defaults filled in.
    pub fn effective(&self) -> model::TrafficPolicy {
        model::TrafficPolicy {
            load_balancer: self
                .load_balancer
                .as_ref()
                .map_or_else(Default::default, |lb| model::LoadBalancer {
                    strategy: lb.strategy,
                    slow_start: lb.slow_start.map(|d| d.0).filter(|d| !d.is_zero()),
                    ..model::LoadBalancer::default()
                }),
            limits: self
                .limits
                .map_or_else(Default::default, |limits| model::Limits {
                    max_connections: limits.max_connections,
                    max_connections_per_endpoint: limits.max_connections_per_endpoint,
                    ..model::Limits::default()
                }),
            breaker: self
                .circuit_breaker
                .as_ref()
                .map(|breaker| model::CircuitBreaker {
                    failure_threshold: breaker.failure_threshold.unwrap_or(5),
                    failure_ratio: breaker.failure_ratio,
                    window: breaker.window.map_or(Duration::from_secs(10), |d| d.0),
                    min_volume: breaker.min_volume.unwrap_or(10),
                    recovery_timeout: breaker.recovery_timeout(),
                    max_recovery_timeout: breaker.max_recovery_timeout.map_or_else(
                        || breaker.recovery_timeout().max(Duration::from_secs(300)),
                        |d| d.0,
                    ),
                    success_threshold: breaker.success_threshold.unwrap_or(1),
                    max_ejection_percent: breaker.max_ejection_percent.unwrap_or(50),
                }),
            connect_timeout: self
                .timeouts
                .and_then(|timeouts| timeouts.connect)
                .map(|d| d.0),
            ..model::TrafficPolicy::default()
        }
    }
}
