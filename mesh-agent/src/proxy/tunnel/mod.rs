//! Tunnels between agents: HBONE, that is HTTP/2 CONNECT over mutual TLS, one stream for each carried connection.
//!
//! [`Tunnels::open`] gives a stream to a destination, on a pooled tunnel where there is one (`pool`, `client`); [`run`]
//! carries a captured connection on it to its end. [`serve`] takes the tunnels that others dial (`server`), and hands each
//! stream to the workload's inbound pipeline, which answers it and carries it with [`run_accepted`]. `stream` says how
//! the ends of TCP and HTTP/2 map to one another, `carry` moves the bytes, `bytestream` lets a protocol be spoken through a stream,
//! `io` is TLS, `headers` what a CONNECT says.

mod buffers;
mod bytestream;
mod carry;
mod client;
mod credentials;
mod handshake;
pub mod headers;
mod io;
mod life;
mod link;
mod pool;
mod record;
mod server;
mod stream;
mod watch;

use std::{
    net::SocketAddr,
    sync::Weak,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::{net::TcpStream, time::Instant};

pub use self::credentials::{Credentials, NoCredentials, Tls};
pub(super) use self::{
    bytestream::{TunnelBytes, TunnelGone},
    pool::Tunnels,
    server::{Incoming, serve},
};
use self::{
    carry::{End, Moved, carry},
    stream::{Gone, Stream},
};
use super::{Shared, served::Report, socket::Leg};
use crate::{
    model::SpiffeId,
    telemetry::{LegProbe, Reason},
};

/// How tunnels work; the defaults suit a node.
#[derive(Clone, Copy, Debug)]
pub struct TunnelOptions {
    /// Streams that one tunnel carries before another is made to the same destination.
    pub max_streams: usize,
    /// TCP, TLS and HTTP/2 together, until a tunnel that we dial stands; also TLS and HTTP/2 of one that we accept.
    pub handshake_timeout: Duration,
    /// Handshakes under way at once, of the tunnels that we dial and as many of those that we accept.
    pub max_handshakes: usize,
    /// How often a peer is asked whether it is there, and how long it may take to show that it is.
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// A tunnel without streams is closed after this.
    pub idle_timeout: Duration,
}

impl Default for TunnelOptions {
    fn default() -> Self {
        Self {
            max_streams: 100,
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 1024,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(300),
        }
    }
}

/// One connection to be tunnelled.
#[derive(Clone, Debug)]
pub(super) struct TunnelRequest {
    /// The workload that dials.
    pub(super) source: SpiffeId,
    /// Where the tunnel leads: the destination's address, port 15008.
    pub(super) peer: SocketAddr,
    /// Who must be there.
    pub(super) expected: SpiffeId,
    /// Where the connection goes.
    pub(super) authority: SocketAddr,
    pub(super) client: SocketAddr,
    /// The application bound its socket to the client's address: the tunnel comes from there too.
    pub(super) chosen: bool,
    pub(super) service: Option<String>,
    pub(super) baggage: String,
    pub(super) deadline: Instant,
}

/// A stream that the other agent has accepted. Dropped, it is reset.
#[derive(Debug)]
pub(super) struct TunnelStream {
    stream: Stream,
    probe: Weak<TcpStream>,
}

impl TunnelStream {
    /// For telemetry to look at the tunnel's round-trip time.
    pub(super) fn probe(&self) -> Weak<dyn LegProbe> {
        self.probe.clone()
    }

    /// What came first and stays to be received: all of it that has come, once that is more than `have` bytes or the
    /// peer has ended. Bounded by the stream's window.
    #[allow(dead_code, reason = "the inbound pipeline follows")]
    pub(super) fn poll_peek(
        &mut self,
        cx: &mut Context<'_>,
        have: usize,
    ) -> Poll<Result<Bytes, Reason>> {
        self.stream.poll_peek(cx, have).map_err(|gone| match gone {
            Gone::Ended | Gone::Reset | Gone::Refused => Reason::ClientReset,
            Gone::Tunnel(reason) => reason,
        })
    }
}

/// Carries a captured connection to its end, closes both sides accordingly and reports it.
pub(super) async fn run(client: Leg, mut upstream: TunnelStream, shared: &Shared, report: Report) {
    let counters = report.counters();
    report.established(upstream.probe());
    let moved = Moved {
        out: &counters.sent,
        back: &counters.received,
    };
    let end = carry(
        &client,
        &mut upstream.stream,
        moved,
        &shared.options.keepalive,
    )
    .await;
    finish(
        end,
        client,
        upstream.stream,
        report,
        Reason::ClientReset,
        Reason::UpstreamReset,
    );
}

/// The same for a stream that was accepted: the leg is the application's.
pub(super) async fn run_accepted(
    mut client: TunnelStream,
    application: Leg,
    shared: &Shared,
    report: Report,
) {
    let counters = report.counters();
    report.established(application.probe());
    let moved = Moved {
        out: &counters.received,
        back: &counters.sent,
    };
    let end = carry(
        &application,
        &mut client.stream,
        moved,
        &shared.options.keepalive,
    )
    .await;
    finish(
        end,
        application,
        client.stream,
        report,
        Reason::UpstreamReset,
        Reason::ClientReset,
    );
}

/// `of_leg`, `of_stream`: the reasons when that side reset.
fn finish(end: End, leg: Leg, stream: Stream, report: Report, of_leg: Reason, of_stream: Reason) {
    let reason = match end {
        End::Completed => {
            leg.close();
            stream.close();
            Reason::Completed
        }
        End::Dropped => {
            leg.close();
            stream.close();
            of_stream
        }
        // The drop of the leg resets it.
        End::Stream(gone) => {
            stream.close();
            match gone {
                Gone::Ended | Gone::Reset | Gone::Refused => of_stream,
                Gone::Tunnel(reason) => reason,
            }
        }
        // The drop of both resets both.
        End::Leg(error) => {
            tracing::debug!(%error, "the leg of a tunnelled connection broke");
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                    Reason::PeerVanished
                }
                // ECONNABORTED: the kernel was told to destroy the socket.
                Some(Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED | Errno::NOTCONN) => {
                    of_leg
                }
                _ => Reason::Internal,
            }
        }
    };
    report.finish(reason);
}
