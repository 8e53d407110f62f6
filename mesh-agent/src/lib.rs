//! The node agent of Covet Mesh.
//!
//! Data flows down this list; a module uses only modules below it or beside it:
//! `agent` (composition root), `admin`, `discovery`, `capture`, `proxy`, `health`, `catalog`, `routing`, `balance`, `policy` and
//! `resilience` (pure decisions), `telemetry`, `api` (resources as users write them), `model` (plain data).

pub mod admin;
pub mod agent;
pub mod api;
pub mod balance;
pub mod capture;
pub mod catalog;
pub mod cli;
pub mod discovery;
pub mod health;
pub mod identity;
pub mod model;
pub mod policy;
pub mod proxy;
pub mod resilience;
pub mod routing;
pub mod telemetry;
