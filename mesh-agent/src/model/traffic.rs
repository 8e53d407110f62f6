//! TrafficPolicy as it applies to one service or one route, defaults filled in.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, StatusCode};

/// How requests and connections to a service are balanced, limited, repeated and timed.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct TrafficPolicy {
    pub load_balancer: LoadBalancer,
    pub limits: Limits,
    pub pool: ConnectionPool,
    /// `None`: no breaker.
    pub breaker: Option<CircuitBreaker>,
    /// `None`: the default of 10 s.
    pub connect_timeout: Option<Duration>,
    pub timeouts: Timeouts,
    /// `None`: only what is always repeated (`resilience::retry`).
    pub retry: Option<RetryPolicy>,
    pub retry_budget: RetryBudget,
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// `None`: passive health alone.
    pub health_check: Option<HealthCheck>,
    /// The share of a backend that has no ready endpoint goes to the other backends of the rule, not to 503.
    pub redistribute_unavailable: bool,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LoadBalancer {
    pub strategy: Strategy,
    /// Traffic grows over this time after an endpoint joins or recovers.
    pub slow_start: Option<Duration>,
    /// What [`Strategy::ConsistentHash`] hashes.
    pub hash: HashKey,
    /// Whether endpoints of the client's node and zone go first.
    pub locality: Locality,
    /// Below this percentage of usable endpoints all are used (panic); 0: never.
    pub panic_threshold: u32,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            slow_start: None,
            hash: HashKey::SourceAddress,
            locality: Locality::default(),
            panic_threshold: 50,
        }
    }
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
    /// Maglev over a key of the request, with bounded load.
    ConsistentHash,
    /// Two random choices by decayed peak latency times requests in flight.
    PeakEwma,
}

/// The key of consistent hashing. A request without it is balanced at random.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum HashKey {
    SourceAddress,
    #[serde(serialize_with = "as_str")]
    Header(HeaderName),
    /// Issued when the request has none; `ttl` absent: for the browser's session.
    Cookie {
        name: Arc<str>,
        path: Option<Arc<str>>,
        ttl: Option<Duration>,
    },
    QueryParameter(Arc<str>),
}

/// Preference for near endpoints. With too few healthy ones near, traffic overflows to the next ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Locality {
    pub prefer: Prefer,
    /// Percentage of a ring's endpoints that must be usable for it to take all traffic; below it the ring takes its
    /// share of it and the rest overflows.
    pub threshold: u32,
}

impl Locality {
    /// Near the 1.4 times overprovisioning of Envoy.
    pub const DEFAULT_THRESHOLD: u32 = 70;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum Prefer {
    /// All endpoints alike.
    #[default]
    None,
    /// Same zone, then others (`trafficDistribution: PreferSameZone`).
    Zone,
    /// Same node, then same zone, then others (`PreferSameNode`).
    Node,
}

/// Limits per agent; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Connections at once to the whole service.
    pub max_connections: Option<u32>,
    /// Connections at once to one endpoint.
    pub max_connections_per_endpoint: Option<u32>,
    /// Requests in flight to the whole service, to one endpoint.
    pub max_requests: Option<u32>,
    pub max_requests_per_endpoint: Option<u32>,
    /// Requests that wait for one of the limits above; `None` with one of them set: none waits.
    pub max_pending_requests: Option<u32>,
    /// How long one waits.
    pub pending_timeout: Option<Duration>,
}

/// Upstream HTTP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ConnectionPool {
    /// A connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// A connection is not used for more requests than this.
    pub max_requests_per_connection: Option<u32>,
    /// Idle HTTP/1 connections that are kept to one endpoint.
    pub max_idle_per_endpoint: u32,
    /// Streams on one HTTP/2 connection, where the peer allows as many.
    pub max_concurrent_streams: u32,
    /// Time after which a connection takes no more requests; `None`: any.
    pub max_connection_age: Option<Duration>,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(300),
            max_requests_per_connection: None,
            max_idle_per_endpoint: 64,
            max_concurrent_streams: 100,
            max_connection_age: None,
        }
    }
}

/// traffic.md, "Circuit breaker". Connect failures and failed requests are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct CircuitBreaker {
    /// Consecutive failures that open it.
    pub failure_threshold: u32,
    /// Share of failures (0..=1) over `window` that opens it, once `min_volume` results were seen.
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

/// `None` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Timeouts {
    /// All attempts of a request together, up to the end of the response.
    pub request: Option<Duration>,
    /// One attempt, up to the end of the response.
    pub attempt: Option<Duration>,
    /// A stream on which nothing moves in either direction.
    pub idle: Option<Duration>,
    /// The longest that a stream may last.
    pub max_stream: Option<Duration>,
}

/// What is repeated, and how.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RetryPolicy {
    /// Retries after the first attempt.
    pub attempts: u32,
    pub conditions: RetryConditions,
    /// Also methods that are not idempotent, after something may have been sent.
    pub non_idempotent: bool,
    pub backoff: Backoff,
    /// One attempt; wins over [`Timeouts::attempt`].
    pub attempt_timeout: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RetryConditions {
    pub connect_failure: bool,
    /// Reset before response headers.
    pub reset: bool,
    pub refused_stream: bool,
    pub attempt_timeout: bool,
    /// Inclusive ranges.
    pub status_codes: Vec<(u16, u16)>,
    pub grpc_codes: Vec<u8>,
}

/// Exponential with full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Backoff {
    /// The least wait.
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(25),
            max: Duration::from_millis(250),
        }
    }
}

/// Retries that a service may get, per agent.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct RetryBudget {
    /// Percent of the requests of `window` (0..=100).
    pub percent: f64,
    pub window: Duration,
    /// Retries a second that are always allowed.
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20.0,
            window: Duration::from_secs(10),
            min_per_second: 10,
        }
    }
}

/// A local token bucket (GCRA).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RateLimit {
    pub name: Arc<str>,
    pub requests: u32,
    pub per: Duration,
    /// Requests that may come at once above the rate.
    pub burst: u32,
    /// Empty: one bucket for all.
    pub key: Vec<RateLimitKey>,
    /// Only requests that match.
    pub methods: Vec<Arc<str>>,
    pub path_prefix: Option<Arc<str>>,
    /// Keys that are remembered; the least recently used is forgotten.
    pub max_keys: u32,
    /// Counts and refuses nothing.
    pub shadow: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum RateLimitKey {
    ClientIdentity,
    SourceAddress,
    #[serde(serialize_with = "as_str")]
    Header(HeaderName),
    Path,
}

/// Active checks, from the network namespace of a workload of this node.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct HealthCheck {
    pub probe: HealthProbe,
    pub interval: Duration,
    pub timeout: Duration,
    pub healthy_threshold: u32,
    pub unhealthy_threshold: u32,
    /// Another port than the endpoint's.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum HealthProbe {
    Tcp,
    Http {
        path: Arc<str>,
        host: Option<Arc<str>>,
        /// Inclusive ranges.
        expected: Vec<(u16, u16)>,
    },
    Grpc {
        service: Arc<str>,
    },
}

fn as_str<S: serde::Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

impl RetryConditions {
    pub fn has_status(&self, status: StatusCode) -> bool {
        let code = status.as_u16();
        self.status_codes
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&code))
    }
}
