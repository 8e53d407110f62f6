//! Circuit breaker, limits, retries and rate limits: no I/O, no clock, no runtime. Time and random numbers are
//! arguments; what waits is told until when by a future of the caller.
//!
//! How the proxy uses them, for one connection to a service:
//! 1. `state.connections.acquire(max_connections)` holds the service's permit for the life of the connection;
//! 2. for each candidate: [`EndpointState::acquire`] holds the endpoint's permit, [`EndpointState::admit`] asks the
//!    breaker and gives an [`Attempt`];
//! 3. after the connect: [`Attempt::succeeded`] or [`Attempt::failed`]. An attempt that is dropped without either
//!    counts as nothing and gives its half-open probe back.
//!
//! And for one request:
//! 1. [`Limiters::check`], where rate limits are charged here;
//! 2. [`ServiceState::acquire_request`] holds the service's permit until the response has ended, and
//!    [`Budget::request`] counts it;
//! 3. for each candidate: [`EndpointState::admit`], [`EndpointState::acquire_request`]; where all are at their limit,
//!    [`ServiceState::acquire_place`] waits for one;
//! 4. [`Attempt::failed`] or [`Attempt::connected`] for a connection that was made for it, then
//!    [`Attempt::answered`], and at the end [`Attempt::request_ended`] with the [`Verdict`] of the answer and
//!    [`EndpointState::observe`];
//! 5. [`Retries::next`] decides what follows.

mod attempt;
mod breaker;
mod budget;
mod ejection;
mod endpoint;
mod moment;
mod pending;
mod permits;
mod rate_limit;
mod retry;
mod ring;
mod service;
mod verdict;
mod window;

pub use attempt::Attempt;
pub use breaker::{Admit, Breaker, BreakerState, Cause, Kind, Transition};
pub use budget::Budget;
pub use ejection::{Ejection, Ejections, may_eject};
pub use endpoint::{EndpointState, Health, LastFailure};
pub use pending::{Line, Order};
pub use permits::{Permit, Permits};
pub use rate_limit::{Decision, LimitCounts, Limiters, Quota, Refusal, RequestFacts};
pub use retry::{Circumstances, Next, Outcome, Pushback, Retries};
pub use service::{Busy, ServiceState};
pub use verdict::Verdict;
