//! The resources as users write them, one file a kind.

mod authorization_policy;
mod endpoint_slice;
mod mesh_policy;
mod namespace;
mod service;
mod traffic_policy;
mod workload;

pub use authorization_policy::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Condition, ConditionKey, From, Operation,
    Rule, Source, To,
};
pub use endpoint_slice::{
    AddressType, EndpointConditions, EndpointSlice, SliceEndpoint, SlicePort,
};
pub use mesh_policy::{Exclude, Level, MeshPolicy, MeshPolicySpec, Mtls, Outbound, OutboundMode};
pub use namespace::Namespace;
pub use service::{Service, ServicePort, ServiceSpec, SessionAffinity, TargetPort};
pub use traffic_policy::{
    Backoff, CircuitBreaker, ConnectionPool, ConsistentHash, Cookie, GrpcProbe, HealthCheck,
    HttpProbe, Limits, LoadBalancer, Locality, Prefer, RateLimit, RateLimitKey, Retries,
    RetryBudget, RetryOn, TargetKind, TargetRef, TcpProbe, Timeouts, TrafficPolicy,
    TrafficPolicySpec,
};
pub use workload::{Workload, WorkloadSpec};
