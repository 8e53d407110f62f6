//! HTTP: requests that are read, decided on one by one and sent on.
//!
//! `detect` tells what a client speaks, `server` reads requests, `outbound` and `inbound` are the two pipelines, `attempt`
//! is one try at one endpoint, `pool` keeps the connections upstream, `headers` reads
//! and writes what HTTP says there, `body` streams, counts and replays, `reply` are the
//! answers that the proxy makes itself.

#[allow(dead_code, unused_imports, reason = "the pipeline follows")]
mod body;
#[allow(dead_code, reason = "the pipeline follows")]
mod detect;
#[allow(dead_code, unused_imports, reason = "the pipeline follows")]
mod headers;
#[allow(dead_code, reason = "the pipeline follows")]
mod io;
#[allow(dead_code, unused_imports, reason = "the pipeline follows")]
mod pool;
#[allow(dead_code, reason = "the pipeline follows")]
mod reply;
#[allow(dead_code, reason = "the pipeline follows")]
mod server;
mod splice;
#[allow(dead_code, unused_imports, reason = "the pipeline follows")]
mod upgrade;

/// The versions that are spoken; HTTP/1.0 is a kind of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy) enum HttpVersion {
    Http1,
    Http2,
}
