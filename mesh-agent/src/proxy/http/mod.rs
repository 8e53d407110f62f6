//! HTTP: requests that are read, decided on one by one and sent on.
//!
//! `detect` tells what a client speaks, `server` reads requests, `outbound` and `inbound` are the two pipelines, `attempt`
//! is one try at one endpoint, `pool` keeps the connections upstream, `headers` reads and
//! writes what HTTP says there, `body` streams, counts and replays, `mirror` sends copies, `reply` are the answers that the
//! proxy makes itself.

mod attempt;
mod body;
#[cfg(test)]
mod defaults;
pub(super) mod detect;
#[cfg(any(test, fuzzing))]
#[allow(unreachable_pub, reason = "reached by the fuzz targets alone")]
pub mod fuzz;
mod gather;
mod headers;
mod inbound;
mod io;
mod mirror;
mod outbound;
mod plan;
mod pool;
mod reply;
mod running;
mod server;
mod splice;
mod upgrade;

pub(crate) use self::plan::Plan;
pub(super) use self::{
    body::Body,
    inbound::Inbound,
    io::Io,
    mirror::Mirrors,
    outbound::{Outbound, adopt},
    pool::Pools,
    running::Requests,
    server::ServerSettings,
};

/// The versions that are spoken; HTTP/1.0 is a kind of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy) enum HttpVersion {
    Http1,
    Http2,
}
