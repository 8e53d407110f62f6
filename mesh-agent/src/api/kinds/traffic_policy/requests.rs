//! The parts of a TrafficPolicy that concern requests: retries, rate limits; and active health checks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::format::{GepDuration, GrpcCode, Header, Port, StatusRange};

/// What is repeated, and how. Every field has a default of its own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Retries after the first attempt; 0: none. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// Failures without a response that are repeated. Default: connect-failure, reset, refused-stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4))]
    pub on: Option<Vec<RetryOn>>,
    /// Statuses that are repeated: 503, or a range such as 502-504. Default: 502, 503, 504.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub codes: Option<Vec<StatusRange>>,
    /// Statuses of gRPC that are repeated, by number or name. Default: UNAVAILABLE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// Also requests whose method is not idempotent, when they may have been carried out already. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_idempotent: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// One attempt, up to the end of the response: `timeouts.attempt` under the name it has in other meshes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_timeout: Option<GepDuration>,
    /// Of Services only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// No connection: nothing was sent.
    ConnectFailure,
    /// The connection or stream broke before response headers came.
    Reset,
    /// The endpoint refused the stream without looking at it.
    RefusedStream,
    /// The attempt took too long.
    AttemptTimeout,
}

/// Exponential with full jitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// The least wait before the first retry. Default: 25ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<GepDuration>,
    /// Default: 10 times `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<GepDuration>,
}

/// Retries that a Service may get from one agent; one more is answered with 503.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries as percentage of the requests of `window`. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: Option<f64>,
    /// 1s to 60s. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<GepDuration>,
    /// Retries a second that are allowed whatever the requests. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_per_second: Option<u32>,
}

/// A token bucket of the agent that charges it: the destination's, so that it holds whatever the number of clients; the
/// source's for an endpoint outside the mesh.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// In metrics, logs and the answer; unique in the policy.
    #[schemars(extend("format" = "dns-1123-label"))]
    pub name: String,
    /// Requests that `per` allows.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// Up to 24h. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<GepDuration>,
    /// Requests that may come at once above the rate. Default: as many as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub burst: Option<u32>,
    /// A bucket for each value of these together. Absent: one for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RateLimitKey>,
    /// Only requests with one of these methods. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "methods")]
    pub methods: Option<Vec<String>>,
    /// Only requests whose path is this or below it, by segment. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path-prefix"))]
    pub path_prefix: Option<String>,
    /// Buckets that are remembered; the one that was not used for the longest time is forgotten. Only with `key`. Default:
    /// 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_keys: Option<u32>,
    /// Counts what it would refuse, and refuses nothing. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<bool>,
}

/// At least one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitKey {
    /// The identity in the client's certificate. Only `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_identity: Option<bool>,
    /// Only `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<bool>,
    /// The values of these headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4))]
    pub headers: Option<Vec<Header>>,
    /// The path without its query. Only `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<bool>,
}

/// Asks endpoints whether they are well, from the network namespace of a workload of the node. Exactly one of `tcp`, `http`
/// and `grpc`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// A connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// `grpc.health.v1.Health/Check`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcProbe>,
    /// From the end of one check to the next, with jitter. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GepDuration>,
    /// Of one check. Default: 2s, or `interval` if that is shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GepDuration>,
    /// Consecutive good checks that make an unhealthy endpoint healthy. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<u32>,
    /// Consecutive bad checks that make a healthy endpoint unhealthy. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<u32>,
    /// Another port than the endpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
}

/// Written `tcp: {}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {}

/// A GET over HTTP/1.1.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpProbe {
    /// Default: /
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "request-target"))]
    pub path: Option<String>,
    /// Default: address and port of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "authority"))]
    pub host: Option<String>,
    /// Statuses that are good: 204, or a range such as 200-399. Default: 200-299.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub expected: Option<Vec<StatusRange>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcProbe {
    /// The service that is asked for. Default: empty, the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "grpc-service"))]
    pub service: Option<String>,
}

fn methods(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["array", "null"],
        "minItems": 1,
        "maxItems": 16,
        "items": { "type": "string", "format": "http-method" }
    })
}
