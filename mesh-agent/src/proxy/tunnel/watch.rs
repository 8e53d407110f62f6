//! What a TCP leg does while nobody reads from it: its errors, and whether a peer that takes nothing is alive.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::io::Errno;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use crate::{capture::sys::tcp::tcp_info, proxy::socket::Keepalive};

type ErrorWatch<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + Send + 'a>>;

/// Of one leg; makes what it needs when first needed, so that an idle leg costs little.
pub(super) struct LegWatch<'a> {
    leg: &'a TcpStream,
    keepalive: &'a Keepalive,
    error: Option<ErrorWatch<'a>>,
    /// Set while bytes may be in flight that nobody acknowledged.
    check: Option<Pin<Box<Sleep>>>,
    /// Bytes written to the leg when last looked.
    moved: u64,
    /// TCP_USER_TIMEOUT is off.
    lifted: bool,
}

impl<'a> LegWatch<'a> {
    pub(super) fn new(leg: &'a TcpStream, keepalive: &'a Keepalive) -> Self {
        Self {
            leg,
            keepalive,
            error: None,
            check: None,
            moved: 0,
            lifted: false,
        }
    }

    /// Fails when the socket has an error, whatever its read and write readiness say.
    pub(super) fn poll_error(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let leg = self.leg;
        let watch = self
            .error
            .get_or_insert_with(|| Box::pin(leg.ready(Interest::ERROR)));
        match watch.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(Err(e)) => Err(e),
            // Taken by a call that has not reported it yet: what it was is lost, that it was is not.
            Poll::Ready(Ok(_)) => Err(leg.take_error()?.unwrap_or_else(|| Errno::CONNRESET.into())),
        }
    }

    /// Tells a reader that pauses from a peer that is gone, as long as something is in flight; see
    /// [`Keepalive::check`]. `moved` is what was written to the leg so far.
    pub(super) fn poll_check(&mut self, cx: &mut Context<'_>, moved: u64) -> io::Result<()> {
        if self.check.is_none() && moved != self.moved {
            self.moved = moved;
            self.check = Some(Box::pin(sleep_until(Instant::now() + self.keepalive.check)));
        }
        while let Some(check) = &mut self.check {
            if check.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let next = Instant::now() + self.keepalive.check;
            if self.in_flight()? {
                if let Some(check) = &mut self.check {
                    check.as_mut().reset(next);
                }
            } else {
                self.check = None;
            }
        }
        Ok(())
    }

    fn in_flight(&mut self) -> io::Result<bool> {
        let info = tcp_info(self.leg)?;
        // All that was sent is acknowledged, more waits: the peer keeps its window shut. It lives if it answers probes.
        let shut = info.unsent > 0 && info.unacked == 0;
        if self.lifted && info.probes >= 2 && info.last_ack >= self.keepalive.user_timeout {
            return Err(Errno::TIMEDOUT.into());
        }
        if shut != self.lifted {
            self.keepalive.limit_unacknowledged(self.leg, !shut)?;
            self.lifted = shut;
        }
        Ok(info.unsent > 0 || info.unacked > 0)
    }
}
