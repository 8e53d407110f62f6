//! Telemetry as a whole.

mod access;
mod fake;
mod guard;
mod join;
mod kernel;
mod metrics;
mod request_log;
mod requests;
mod security;
mod spans;
mod tap;
mod traffic;
