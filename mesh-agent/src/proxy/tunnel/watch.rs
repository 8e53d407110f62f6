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
};

use crate::proxy::{pause::Pause, socket::Keepalive};

type ErrorWatch<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + Send + 'a>>;

/// Of one leg; makes what it needs when first needed, so that an idle leg costs little.
pub(super) struct LegWatch<'a> {
    leg: &'a TcpStream,
    keepalive: &'a Keepalive,
    error: Option<ErrorWatch<'a>>,
    pause: Pause,
}

impl<'a> LegWatch<'a> {
    pub(super) fn new(leg: &'a TcpStream, keepalive: &'a Keepalive) -> Self {
        Self {
            leg,
            keepalive,
            error: None,
            pause: Pause::default(),
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

    /// See [`Pause::poll`].
    pub(super) fn poll_check(&mut self, cx: &mut Context<'_>, moved: u64) -> io::Result<()> {
        self.pause.poll(cx, self.leg, self.keepalive, moved)
    }
}
