//! Test harness: machines and pods made of network namespaces, agents, traffic peers and the runner of the end-to-end
//! tests.
//!
//! Everything a run makes carries the prefix `cm-PID-`, is removed when its owner is dropped (a panic included), and is
//! swept by the next run if this one is killed. So runs never meet, on one machine or in one kernel.

// A harness says what went wrong by panicking: its callers are tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod agent;
pub mod bed;
pub mod bpf;
pub mod ca;
pub mod collector;
pub mod command;
pub mod config;
pub mod fake_ca;
pub mod hbone;
pub mod http;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod nginx;
pub mod node;
pub mod pki;
pub mod prereq;
pub mod run;
pub mod runner;
pub mod sniff;
pub mod sys;
pub mod traffic;
pub mod wait;

pub use agent::Agent;
pub use bed::Bed;
pub use ca::CaServer;
pub use config::Config;
pub use fake_ca::FakeCa;
pub use mesh::Mesh;
pub use netns::NetNs;
pub use nginx::Nginx;
pub use node::{Node, Pod};
pub use wait::{eventually, eventually_some, never};
