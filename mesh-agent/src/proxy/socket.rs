//! Options of the sockets that the proxy carries bytes between, and how they are closed.

use std::{
    io,
    net::SocketAddr,
    ops::Deref,
    os::fd::AsFd,
    sync::{Arc, Weak},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::{capture::sys::tcp::tcp_info, telemetry::LegProbe};

/// How a peer that vanished without a word is noticed; the application's own settings reach only the agent.
///
/// With nothing in flight the first probe goes out after `idle`, one more each `interval`, and the kernel gives up when
/// `user_timeout` has passed without an answer. With data in flight it gives up when none was acknowledged for
/// `user_timeout`. The defaults make that 90 s.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub user_timeout: Duration,
    /// How often a leg with data in flight is looked at. TCP_USER_TIMEOUT also ends connections whose peer is alive but
    /// keeps its window shut (a reader that pauses; RFC 1122 4.2.2.17 wants those to live), so it is lifted for them.
    /// Less than half of `user_timeout`.
    pub check: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(45),
            interval: Duration::from_secs(15),
            user_timeout: Duration::from_secs(90),
            check: Duration::from_secs(30),
        }
    }
}

impl Keepalive {
    /// Sets TCP_NODELAY and keepalive.
    pub(super) fn apply(&self, socket: impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd();
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_tcp_keepidle(socket, self.idle)?;
        sockopt::set_tcp_keepintvl(socket, self.interval)?;
        sockopt::set_socket_keepalive(socket, true)?;
        self.limit_unacknowledged(socket, true)
    }

    /// As a socket has it that [`Self::apply`] was called with, as far as it matters to one who writes to it.
    pub(super) fn of(socket: impl AsFd) -> Self {
        let millis = sockopt::tcp_user_timeout(socket).unwrap_or(0);
        let user_timeout = match millis {
            0 => Self::default().user_timeout,
            millis => Duration::from_millis(millis.into()),
        };
        Self {
            user_timeout,
            check: user_timeout / 3,
            ..Self::default()
        }
    }

    /// TCP_USER_TIMEOUT on or off.
    pub(super) fn limit_unacknowledged(&self, socket: impl AsFd, on: bool) -> io::Result<()> {
        let millis = if on {
            self.user_timeout.as_millis() as u32
        } else {
            0
        };
        Ok(sockopt::set_tcp_user_timeout(socket.as_fd(), millis)?)
    }
}

/// A connection that is reset when dropped, unless it was closed in order. So every way out, abort, panic and kill -9
/// included, tells the peers that the stream was cut, never that it ended.
#[derive(Debug)]
pub(super) struct Leg {
    /// Shared only with telemetry, which looks at it for moments.
    stream: Arc<TcpStream>,
}

impl Leg {
    pub(super) fn new(stream: TcpStream) -> Self {
        // Now, not on drop: nothing of ours runs when the agent is killed.
        reset_on_close(&stream);
        Self {
            stream: Arc::new(stream),
        }
    }

    /// For telemetry to look at its round-trip time.
    pub(super) fn probe(&self) -> Weak<dyn LegProbe> {
        let stream: Weak<TcpStream> = Arc::downgrade(&self.stream);
        stream
    }

    /// Both FINs have gone; close() has nothing left to cut off.
    pub(super) fn close(self) {
        // Fails on a socket that is dead already.
        let _ = sockopt::set_socket_linger(self.stream.as_fd(), None);
    }
}

impl Deref for Leg {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl LegProbe for TcpStream {
    fn rtt(&self) -> Option<(Duration, u32)> {
        let info = tcp_info(self).ok()?;
        Some((info.rtt, info.retransmits))
    }
}

/// Makes close() send RST instead of FIN.
pub(super) fn reset_on_close(socket: impl AsFd) {
    // Fails on a socket that is dead already: then the peer knows.
    let _ = sockopt::set_socket_linger(socket.as_fd(), Some(Duration::ZERO));
}

/// Turns ::ffff:a.b.c.d into a.b.c.d.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
