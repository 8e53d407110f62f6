//! Tells a reader that pauses from a peer that is gone.
//!
//! TCP_USER_TIMEOUT ends connections whose peer acknowledges nothing, but also those whose peer is alive and keeps its
//! window shut, which RFC 1122 4.2.2.17 wants to live. So it is lifted for the latter, and whether they answer window
//! probes is looked at from here.

use std::{future::Future, io, pin::Pin, task::Context};

use rustix::io::Errno;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use super::socket::Keepalive;
use crate::capture::sys::tcp::tcp_info;

/// Of one leg; makes what it needs when first needed, so that an idle leg costs little.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Set while bytes may be in flight that nobody acknowledged.
    check: Option<Pin<Box<Sleep>>>,
    /// Bytes written to the leg when last looked.
    moved: u64,
    /// TCP_USER_TIMEOUT is off.
    lifted: bool,
}

impl Pause {
    /// To be polled with the leg, as long as something is in flight; see [`Keepalive::check`]. `moved` is what was
    /// written to the leg so far. Fails when the peer is gone.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        leg: &TcpStream,
        keepalive: &Keepalive,
        moved: u64,
    ) -> io::Result<()> {
        if self.check.is_none() && moved != self.moved {
            self.moved = moved;
            self.check = Some(Box::pin(sleep_until(Instant::now() + keepalive.check)));
        }
        while let Some(check) = &mut self.check {
            if check.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            let next = Instant::now() + keepalive.check;
            if self.in_flight(leg, keepalive)? {
                if let Some(check) = &mut self.check {
                    check.as_mut().reset(next);
                }
            } else {
                self.check = None;
            }
        }
        Ok(())
    }

    fn in_flight(&mut self, leg: &TcpStream, keepalive: &Keepalive) -> io::Result<bool> {
        let info = tcp_info(leg)?;
        // All that was sent is acknowledged, more waits: the peer keeps its window shut. It lives if it answers probes.
        let shut = info.unsent > 0 && info.unacked == 0;
        if self.lifted && info.probes >= 2 && info.last_ack >= keepalive.user_timeout {
            return Err(Errno::TIMEDOUT.into());
        }
        if shut != self.lifted {
            keepalive.limit_unacknowledged(leg, !shut)?;
            self.lifted = shut;
        }
        Ok(info.unsent > 0 || info.unacked > 0)
    }
}
