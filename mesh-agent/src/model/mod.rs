//! Plain data that every other module speaks of: workloads, services, endpoints and the policies in effect on them.
//! Nothing here parses, decides or waits.

mod identity;
mod name;
mod policy;
mod service;
mod timestamp;
mod traffic;
mod workload;

pub use identity::{IdentityError, SpiffeId, TrustDomain};
pub use name::ResourceName;
pub use policy::{EffectivePolicy, FailPolicy, MtlsMode, OutboundMode};
pub use service::{AppProtocol, Endpoint, Service, ServicePort};
pub use timestamp::Timestamp;
pub use traffic::{
    Backoff, CircuitBreaker, ConnectionPool, HashKey, HealthCheck, HealthProbe, Limits,
    LoadBalancer, Locality, Prefer, RateLimit, RateLimitKey, RetryBudget, RetryConditions,
    RetryPolicy, Strategy, Timeouts, TrafficPolicy,
};
pub use workload::{Enrolment, NotEnrolled, TunnelProtocol, Workload};
