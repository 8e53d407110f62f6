//! Capture against the running kernel: real namespaces, real sockets, the prebuilt kernel programs. Needs root; says so
//! and passes without.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod bed;
mod destroy;
mod inbound;
mod life;
mod outbound;
mod protected;
mod records;
mod shares;
mod tunnel;
mod vouched;
