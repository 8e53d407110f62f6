//! One port of a workload as a destination of HTTP.

use std::sync::Arc;

use crate::model::{AppProtocol, RateLimit, ResourceName};

/// What the services in front of a workload's port say of it, and what its workload's policies ask for.
#[derive(Debug)]
pub struct InboundPort {
    /// Those that have the address among their endpoints, in the order of names.
    pub services: Vec<ResourceName>,
    /// What they declare; `Undeclared` where none does or two differ.
    pub protocol: AppProtocol,
    /// Of their TrafficPolicies.
    pub rate_limits: Vec<Arc<RateLimit>>,
}
