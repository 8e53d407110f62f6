//! The resources as users write them, one file a kind.

mod authorization_policy;
mod endpoint_slice;
mod grpc_route;
mod http_route;
mod mesh_policy;
mod namespace;
mod route;
mod service;
mod traffic_policy;
mod workload;

pub use authorization_policy::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Condition, ConditionKey, From, Operation,
    Rule, Source, To,
};
pub use endpoint_slice::{
    AddressType, EndpointConditions, EndpointHints, EndpointSlice, Hint, SliceEndpoint, SlicePort,
};
pub use grpc_route::{
    GrpcBackendRef, GrpcFilterType, GrpcMethodMatch, GrpcRoute, GrpcRouteFilter, GrpcRouteMatch,
    GrpcRouteRule, GrpcRouteSpec,
};
pub use http_route::{
    CorsFilter, HttpBackendRef, HttpFilterType, HttpMethod, HttpPathMatch, HttpRoute,
    HttpRouteFilter, HttpRouteMatch, HttpRouteRetry, HttpRouteRule, HttpRouteSpec,
    HttpRouteTimeouts, PathMatchType, PathModifier, PathModifierType, QueryParamMatch,
    RequestRedirect, Scheme, UrlRewrite,
};
pub use mesh_policy::{Exclude, Level, MeshPolicy, MeshPolicySpec, Mtls, Outbound, OutboundMode};
pub use namespace::Namespace;
pub use route::{
    BackendObjectReference, Fraction, HeaderFilter, HeaderMatch, HeaderValueOf, MatchType,
    ParentReference, RequestMirror, Route,
};
pub use service::{
    Service, ServicePort, ServiceSpec, SessionAffinity, TargetPort, TrafficDistribution,
};
pub use traffic_policy::{
    Backoff, CircuitBreaker, ConnectionPool, ConsistentHash, Cookie, GrpcProbe, HealthCheck,
    HttpProbe, Limits, LoadBalancer, Locality, Prefer, RateLimit, RateLimitKey, Retries,
    RetryBudget, RetryOn, TargetKind, TargetRef, TcpProbe, Timeouts, TrafficPolicy,
    TrafficPolicySpec,
};
pub use workload::{Workload, WorkloadSpec};
