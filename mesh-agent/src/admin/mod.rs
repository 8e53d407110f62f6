//! The interface behind the command line (Unix socket, root only) and behind Prometheus and the kubelet (TCP).
//!
//! The servers know the agent only through [`AgentView`], which the composition root implements.

pub mod api;
mod bundle;
pub mod client;
mod filter;
mod http;
mod local;
mod public;
pub mod query;
mod socket;
mod tap;
#[cfg(test)]
mod tests;

use std::{fmt, io, path::PathBuf, sync::Arc};

pub use bundle::redact;
pub use filter::ConnectionFilter;
pub(crate) use filter::named;
use futures::future::BoxFuture;
pub use local::serve as serve_local;
pub use public::serve as serve_public;
pub use socket::LocalSocket;
pub use tap::TapQuery;
pub(crate) use tap::{LONGEST as LONGEST_TAP, MOST as MOST_TAPPED};

use crate::telemetry::{Telemetry, logging::LogControl};

/// What the admin interface asks of the agent. Every call answers from memory or takes a few system calls; the servers
/// make them on threads that may block.
pub trait AgentView: Send + Sync {
    /// All but the fields that the server fills in itself: `ready` and `conditions` (from [`AgentView::conditions`] and
    /// [`AgentView::certificates`]), `identity` and `connections`.
    fn status(&self) -> api::Status;
    /// What must hold before the agent is ready: programs attached, configuration applied, every pod enrolled or
    /// failed with its reason.
    fn conditions(&self) -> Vec<api::Condition>;
    /// Every workload the mesh knows of, enrolled or not.
    fn workloads(&self) -> Vec<api::Workload>;
    fn services(&self) -> Vec<api::Service>;
    /// Every identity of this node, and whom it trusts.
    fn certificates(&self) -> api::Certificates {
        api::Certificates::default()
    }
    /// Every AuthorizationPolicy, and whom it applies to.
    fn policies(&self) -> Vec<api::Policy> {
        Vec::new()
    }
    /// The endpoints of a service, NAME or NAMESPACE/NAME, as this agent balances over them.
    ///
    /// # Errors
    /// A sentence for whoever asked: there is no such service.
    fn endpoints(&self, _: &str, _: Option<&str>) -> Result<Vec<api::PortEndpoints>, String> {
        Err("this agent balances over nothing".into())
    }
    /// Which routes are bound to the services with that name, NAME or NAMESPACE/NAME, or without one to all; and which
    /// are not, with the reason.
    ///
    /// # Errors
    /// A sentence for whoever asked: there is no such service.
    fn routes(&self, _: Option<&str>, _: Option<&str>) -> Result<api::Routes, String> {
        Ok(api::Routes::default())
    }
    /// What would happen to a connection, decided by the code that decides on real ones.
    ///
    /// # Errors
    /// A sentence for whoever asked: the source or destination is not known.
    fn explain(&self, _: &api::ExplainQuery) -> Result<api::Explanation, String> {
        Err("this agent explains nothing".into())
    }
    /// The configuration in effect.
    fn config(&self) -> serde_json::Value;
    /// Releases every workload and removes all that the agent made in the kernel; then the agent ends.
    fn release(&self) -> BoxFuture<'static, Vec<String>>;
}

/// What the two servers serve.
#[derive(Clone)]
pub struct AdminState {
    pub node: String,
    pub telemetry: Telemetry,
    pub log: LogControl,
    pub agent: Arc<dyn AgentView>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("another agent already answers on {path}; stop it, or give this one another --node")]
    AlreadyRunning { path: PathBuf },
    #[error("{path} exists and is not a socket; remove it or give another --socket")]
    NotASocket { path: PathBuf },
    #[error("cannot make the admin socket {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
}

impl AdminState {
    /// Ready, and the conditions that say so.
    pub fn readiness(&self) -> (bool, Vec<api::Condition>) {
        self.readiness_with(&self.agent.certificates())
    }

    fn readiness_with(&self, certificates: &api::Certificates) -> (bool, Vec<api::Condition>) {
        let mut conditions = self.agent.conditions();
        conditions.extend(certificates.condition());
        (conditions.iter().all(|c| c.ok), conditions)
    }

    pub(crate) fn status(&self) -> api::Status {
        let certificates = self.agent.certificates();
        let (ready, conditions) = self.readiness_with(&certificates);
        api::Status {
            ready,
            identity: certificates.summary(),
            conditions,
            connections: api::ConnectionCounts {
                active: self.telemetry.active(),
                closed_kept: self.telemetry.closed_kept(),
            },
            ..self.agent.status()
        }
    }
}
