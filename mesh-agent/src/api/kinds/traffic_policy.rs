//! `mesh.covet.dev/v1alpha1` TrafficPolicy: what it is for, and how endpoints are chosen, limited and taken out of use.
//! `requests` holds what concerns requests, `effective` makes of it what the agent works with.

mod effective;
mod requests;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use requests::{
    Backoff, GrpcProbe, HealthCheck, HttpProbe, RateLimit, RateLimitKey, Retries, RetryBudget,
    RetryOn, TcpProbe,
};

use crate::{
    api::{
        format::{CookieName, GepDuration, Header},
        metadata::{Ignored, ObjectMeta},
    },
    model::Strategy,
};

/// How requests and connections to Services are balanced, limited, repeated and timed, or how the requests of routes are
/// repeated and timed. One policy at most for a target.
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
    /// Services, HTTPRoutes and GRPCRoutes of the policy's namespace. For a route only `retries`, `timeouts` and
    /// `redistributeUnavailable` can be set; they win over the policy of the Service.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// Absent: no breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Absent: only what is always repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub rate_limits: Option<Vec<RateLimit>>,
    /// Absent: an endpoint's health is what traffic shows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// In a rule of a route with several backends, the share of one that has no ready endpoint goes to the others instead
    /// of being answered with 503. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redistribute_unavailable: Option<bool>,
}

/// A Service or a route, as Gateway API refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// `""` for a Service, `gateway.networking.k8s.io` for a route; may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "target_group")]
    pub group: Option<String>,
    pub kind: TargetKind,
    #[schemars(extend("format" = "dns-1123-subdomain"))]
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum TargetKind {
    Service,
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
}

impl TargetKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
        }
    }

    /// API group that the kind is of.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Service => "",
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io",
        }
    }
}

crate::api::one_of_schema! {
    target_group: ["", "gateway.networking.k8s.io"];
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
    /// The key, with strategy `consistent_hash` only. Default: the client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// Whether near endpoints go first. Default: all are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// When fewer than this percentage of the endpoints are usable, all are used; 0: never. Default: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold: Option<u32>,
}

/// Exactly one of these. A request without the key is balanced at random, except that a missing cookie is issued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHash {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Cookie>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "query-parameter"))]
    pub query_parameter: Option<String>,
    /// Only `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cookie {
    pub name: CookieName,
    /// Of an issued cookie. Default: the path of the request that had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "cookie-path"))]
    pub path: Option<String>,
    /// How long clients keep an issued cookie. Default: until the browser's session ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<GepDuration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Locality {
    pub prefer: Prefer,
    /// Percentage of the endpoints of one ring (node, zone) that must be usable for it to take all traffic; with fewer
    /// the rest overflows into the next. Default: 70.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub threshold: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// All endpoints alike, whatever the Service's `trafficDistribution`.
    None,
    /// Endpoints of the client's zone.
    Zone,
    /// Endpoints of the client's node, then those of its zone.
    Node,
}

/// Limits hold in each agent; absent is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
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
    /// Requests in flight to the whole service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_requests: Option<u32>,
    /// Requests in flight to one endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_requests_per_endpoint: Option<u32>,
    /// Requests that wait for one of the limits above. Default: none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pending_requests: Option<u32>,
    /// How long one waits. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_timeout: Option<GepDuration>,
}

/// HTTP connections to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionPool {
    /// A connection without a request is closed after this. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<GepDuration>,
    /// A connection is not used for more requests than this. Default: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_requests_per_connection: Option<u32>,
    /// Idle HTTP/1 connections that are kept for one client workload to one endpoint. Default: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_idle_per_endpoint: Option<u32>,
    /// Streams on one HTTP/2 connection, where the peer allows as many. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_concurrent_streams: Option<u32>,
    /// Age at which a connection takes no more requests. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_age: Option<GepDuration>,
}

/// Takes an endpoint out of use for a time when it keeps failing. Failed connects and failed requests are counted apart.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Consecutive failures that open it. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub failure_threshold: Option<u32>,
    /// Share of failures over `window` that opens it, once `minVolume` results were seen. Default: not used.
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

impl CircuitBreaker {
    pub(crate) fn recovery_timeout(&self) -> Duration {
        self.recovery_timeout
            .map_or(Duration::from_secs(10), |d| d.0)
    }
}

/// Absent is none, except for `connect`. `0s` is none too, and in the policy of a route takes away what the policy of the
/// Service says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// For all attempts to connect together. Of Services only. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<GepDuration>,
    /// All attempts of a request together, up to the end of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<GepDuration>,
    /// One attempt, up to the end of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<GepDuration>,
    /// A stream on which nothing moves in either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<GepDuration>,
    /// The longest that a stream may last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stream: Option<GepDuration>,
}
