//! Both directions of one TCP connection: half-close, reset and back-pressure kept as they are without a proxy.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
};

use rustix::io::Errno;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Shared,
    copy::{Broken, CopyShared, Direction, Turn},
    served::Report,
    socket::{Keepalive, Leg},
};
use crate::{
    capture::sys::tcp::tcp_info,
    telemetry::{ByteCounters, Reason},
};

/// One of the two legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

/// How the copying ended.
#[derive(Debug)]
pub(super) enum End {
    /// FIN both ways.
    Completed,
    /// This side's socket failed; the other one has to be reset.
    Broken { side: Side, error: io::Error },
}

impl End {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Completed => Reason::Completed,
            Self::Broken { side, error } => {
                match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                        Reason::PeerVanished
                    }
                    // ECONNABORTED: the kernel was told to destroy the socket.
                    Some(Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED | Errno::NOTCONN) => {
                        match side {
                            Side::Client => Reason::ClientReset,
                            Side::Upstream => Reason::UpstreamReset,
                        }
                    }
                    _ => Reason::Internal,
                }
            }
        }
    }
}

/// Carries a connection to its end, closes both legs accordingly and reports it.
pub(super) async fn run(client: Leg, upstream: Leg, shared: &Shared, report: Report) {
    let counters = report.counters();
    report.established(upstream.probe());
    let end = carry(
        &client,
        &upstream,
        &counters,
        &shared.copy,
        &shared.options.keepalive,
    )
    .await;
    if let Ok(info) = tcp_info(&*upstream) {
        report.set_rtt(info.rtt, info.retransmits);
    }
    match &end {
        End::Completed => {
            client.close();
            upstream.close();
        }
        // The drop of the legs resets both.
        End::Broken { side, error } => tracing::debug!(?side, %error, "connection broken"),
    }
    report.finish(end.reason());
}

/// Carries bytes both ways until both have ended or one failed. Does not close anything.
pub(super) async fn carry(
    client: &TcpStream,
    upstream: &TcpStream,
    counters: &ByteCounters,
    shared: &CopyShared,
    keepalive: &Keepalive,
) -> End {
    let mut duplex = Duplex {
        client,
        upstream,
        counters,
        shared,
        keepalive,
        up: Direction::default(),
        down: Direction::default(),
        watch: [None, None],
        check: None,
        lifted: [false, false],
    };
    match poll_fn(|cx| duplex.poll(cx)).await {
        Ok(()) => End::Completed,
        Err((side, error)) => End::Broken { side, error },
    }
}

/// Resolves when the socket has an error, whatever its read and write readiness say.
type ErrorWatch<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + Send + 'a>>;

struct Duplex<'a> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    counters: &'a ByteCounters,
    shared: &'a CopyShared,
    keepalive: &'a Keepalive,
    /// Client to upstream.
    up: Direction,
    /// Upstream to client.
    down: Direction,
    /// Of client and upstream; made when first needed.
    watch: [Option<ErrorWatch<'a>>; 2],
    /// Set while bytes may be in flight that nobody acknowledged.
    check: Option<Pin<Box<Sleep>>>,
    /// TCP_USER_TIMEOUT is off, on client and upstream.
    lifted: [bool; 2],
}

impl<'a> Duplex<'a> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), (Side, io::Error)>> {
        let before = self.moved();
        let up = self
            .up
            .turn(
                cx,
                self.client,
                self.upstream,
                &self.counters.sent,
                self.shared,
            )
            .map_err(|broken| match broken {
                Broken::Source(e) => (Side::Client, e),
                Broken::Destination(e) => (Side::Upstream, e),
            })?;
        let down = self
            .down
            .turn(
                cx,
                self.upstream,
                self.client,
                &self.counters.received,
                self.shared,
            )
            .map_err(|broken| match broken {
                Broken::Source(e) => (Side::Upstream, e),
                Broken::Destination(e) => (Side::Client, e),
            })?;
        if up == Turn::Finished && down == Turn::Finished {
            return Poll::Ready(Ok(()));
        }
        if up == Turn::Yield || down == Turn::Yield {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // A socket that we wait to read from reports its reset as readable. One that we do not (its FIN came, or the
        // other side blocks) would hide it.
        if up != Turn::Starved {
            self.poll_error(cx, Side::Client)?;
        }
        if down != Turn::Starved {
            self.poll_error(cx, Side::Upstream)?;
        }
        if self.check.is_none() && self.moved() != before {
            self.check = Some(Box::pin(sleep_until(Instant::now() + self.keepalive.check)));
        }
        self.poll_check(cx)?;
        Poll::Pending
    }

    fn moved(&self) -> u64 {
        self.counters
            .sent
            .load(Ordering::Relaxed)
            .wrapping_add(self.counters.received.load(Ordering::Relaxed))
    }

    fn socket(&self, side: Side) -> &'a TcpStream {
        match side {
            Side::Client => self.client,
            Side::Upstream => self.upstream,
        }
    }

    fn poll_error(&mut self, cx: &mut Context<'_>, side: Side) -> Result<(), (Side, io::Error)> {
        let socket = self.socket(side);
        let watch = self.watch[side as usize]
            .get_or_insert_with(|| Box::pin(socket.ready(Interest::ERROR)));
        match watch.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(Err(e)) => Err((side, e)),
            Poll::Ready(Ok(_)) => {
                let error = socket.take_error().map_err(|e| (side, e))?;
                // Taken by a call that has not reported it yet; what it was is lost, that it was is not.
                Err((side, error.unwrap_or_else(|| Errno::CONNRESET.into())))
            }
        }
    }

    /// Tells readers that pause from peers that are gone, as long as something is in flight.
    fn poll_check(&mut self, cx: &mut Context<'_>) -> Result<(), (Side, io::Error)> {
        while let Some(check) = &mut self.check {
            if check.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let mut in_flight = false;
            for side in [Side::Client, Side::Upstream] {
                in_flight |= self.check_leg(side).map_err(|e| (side, e))?;
            }
            if in_flight {
                let next = Instant::now() + self.keepalive.check;
                check_again(&mut self.check, next);
            } else {
                self.check = None;
            }
        }
        Ok(())
    }

    /// Whether something is in flight on this leg.
    fn check_leg(&mut self, side: Side) -> io::Result<bool> {
        let socket = self.socket(side);
        let leg = tcp_info(socket)?;
        let lifted = &mut self.lifted[side as usize];
        // All that was sent is acknowledged, more waits: the peer keeps its window shut. It lives if it answers probes.
        let shut = leg.unsent > 0 && leg.unacked == 0;
        if *lifted && leg.probes >= 2 && leg.last_ack >= self.keepalive.user_timeout {
            return Err(Errno::TIMEDOUT.into());
        }
        if shut != *lifted {
            self.keepalive.limit_unacknowledged(socket, !shut)?;
            *lifted = shut;
        }
        Ok(leg.unsent > 0 || leg.unacked > 0)
    }
}

fn check_again(check: &mut Option<Pin<Box<Sleep>>>, at: Instant) {
    if let Some(check) = check {
        check.as_mut().reset(at);
    }
}
