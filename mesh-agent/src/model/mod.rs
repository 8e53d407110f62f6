//! Plain data that every other module speaks of: workloads, services, endpoints and the policies in effect on them.
//! Nothing here parses, decides or waits.

mod identity;
mod name;
mod policy;
mod service;
mod workload;

pub use identity::{IdentityError, SpiffeId, TrustDomain};
pub use name::ResourceName;
pub use policy::{
    CircuitBreaker, ConnectionLimits, EffectivePolicy, FailPolicy, LoadBalancer, MtlsMode,
    OutboundMode, Strategy, TrafficPolicy,
};
pub use service::{AppProtocol, Endpoint, Service, ServicePort};
pub use workload::{Enrolment, NotEnrolled, TunnelProtocol, Workload};
