//! Circuit breaker and limits: pure, no I/O, no clock, no runtime. Time and random numbers are arguments.
//!
//! How the proxy uses them, for one connection to a service:
//! 1. `limits.acquire(max_connections)` holds the service's permit for the life of the connection;
//! 2. for each candidate: [`EndpointState::acquire`] holds the endpoint's permit, [`EndpointState::admit`] asks the
//!    breaker and gives an [`Attempt`];
//! 3. after the connect: [`Attempt::succeeded`] or [`Attempt::failed`]. An attempt that is dropped without either
//!    counts as nothing and gives its half-open probe back.

mod breaker;
mod ejection;
mod endpoint;
mod permits;
mod ring;

pub use breaker::{Admit, Breaker, BreakerState, Transition};
pub use ejection::{Ejection, Ejections, may_eject};
pub use endpoint::{Attempt, EndpointState, LastFailure};
pub use permits::{Permit, Permits};
