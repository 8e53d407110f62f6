//! End-to-end tests: real namespaces, real sockets, a real agent. One module a capability.
//!
//! `MESH_TESTS_MESH=off` runs every traffic scenario without a mesh: the baseline that proves the scenarios themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod addresses;
mod authorization;
mod bad_peers;
mod balance;
mod ca;
mod capture_inbound;
mod capture_outbound;
mod certificates;
mod churn;
mod cli;
mod common;
mod config;
mod harness;
mod hbone_peers;
mod http_basic;
mod http_bounds;
mod http_checks;
mod http_common;
mod http_peers;
mod http_policy;
mod http_policy_live;
mod http_policy_paths;
mod http_rate_limits;
mod http_resilience;
mod http_routes;
mod http_telemetry;
mod http_traces;
mod http_upgrade;
mod life;
mod mtls;
mod proxy;
mod real;
mod sockets;
mod telemetry;

use std::process::ExitCode;

use mesh_tests::runner::{self, Module};

macro_rules! modules {
    ($($name:ident),* $(,)?) => {
        &[$(Module { name: stringify!($name), tests: $name::TESTS, teardown: $name::teardown }),*]
    };
}

fn main() -> ExitCode {
    runner::main(modules![
        proxy,
        capture_outbound,
        capture_inbound,
        addresses,
        sockets,
        real,
        life,
        balance,
        config,
        telemetry,
        cli,
        ca,
        mtls,
        bad_peers,
        hbone_peers,
        authorization,
        certificates,
        harness,
        churn,
        http_basic,
        http_bounds,
        http_routes,
        http_resilience,
        http_telemetry,
        http_policy,
        http_policy_live,
        http_policy_paths,
        http_rate_limits,
        http_checks,
        http_traces,
        http_upgrade,
        http_peers
    ])
}
