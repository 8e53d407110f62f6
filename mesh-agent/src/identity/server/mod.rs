//! A certificate authority for a mesh without Kubernetes: Istio's certificate service, for nodes that are known by a
//! token and may ask for the identities of the workloads that the configuration places on them.
//!
//! `state` is the folder that all of it lives in. A request goes from `listen` (TLS) over `service` (gRPC) to
//! `registration`, which asks `authn` who it is and `placement` what is theirs, and lets the authority sign. Nothing is
//! asked of another machine on that way: what decides is read from files, again whenever they change.

mod authn;
mod authority;
mod files;
mod followed;
#[cfg(fuzzing)]
pub mod fuzz;
mod limit;
mod listen;
mod placement;
mod registration;
mod revoked;
mod service;
mod sources;
mod state;
#[cfg(test)]
pub(super) mod testing;
mod tls;
pub mod token;

#[cfg(test)]
mod tests;

pub use self::{
    authn::{NodeAuthenticator, NodeTokens, Review},
    authority::{Generations, RotationError, Step},
    listen::{CaServer, CaServerOptions, ServeError},
    revoked::Revoked,
    state::{Issued, State, StateError},
};
