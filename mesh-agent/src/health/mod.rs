//! Active health checks, for endpoints whose service's TrafficPolicy asks for them.
//!
//! `plan` says what is to be checked when, and what results come to: pure. `probe` is one check over one connection.
//! `runner` is the task that owns both: it follows the catalog, checks a bounded number of endpoints at once, and tells
//! each endpoint's run-time state. A check never closes a breaker: what live traffic has put out, live traffic brings back.

mod board;
mod plan;
pub(crate) mod probe;
mod runner;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use futures::future::BoxFuture;
use tokio::time::Instant;

pub use board::{Board, CheckReport, Counts};
pub use plan::Key;
#[cfg(test)]
pub(crate) use runner::AT_ONCE;
pub use runner::run;

/// A connection to an endpoint, as hyper wants it.
pub trait Wire: hyper::rt::Read + hyper::rt::Write + Unpin + Send {}

impl<T: hyper::rt::Read + hyper::rt::Write + Unpin + Send> Wire for T {}

/// The seam to the proxy: connections to endpoints, made as those of the node's own workloads are.
pub trait Dial: Send + Sync + 'static {
    /// Connects to an endpoint of a service of `namespace`, by the deadline.
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        endpoint: SocketAddr,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Box<dyn Wire>, Failed>>;
}

/// Why a check did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The endpoint is not well.
    #[error("{0}")]
    Endpoint(String),
    /// It says nothing about the endpoint: there is nobody here to ask in whose name, or a policy refused.
    #[error("not checked: {0}")]
    Unknown(String),
}
