//! Telemetry as a whole.

mod access;
mod fake;
mod guard;
mod join;
mod kernel;
mod metrics;
mod security;
