//! What keeps and ends a tunnel, at either side: windows by the number of streams, PING, trust.

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    time::{Duration, SystemTime},
};

use h2::{Ping, PingPong};
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Credentials, TunnelOptions, io::Outgoing, link::all_streams};
use crate::identity::{PeerIdentity, PeerRefused, Role, Standing};

/// Receive window of a tunnel as a whole. It is only a permission: what a stream may hold back is bounded by its own
/// window, so this one is large enough that no number of stalled streams can use it up.
pub(super) const TUNNEL_WINDOW: u32 = 1 << 30;
/// Largest frame that is taken.
pub(super) const MAX_FRAME: u32 = 1 << 20;
/// Bytes of one stream that wait to be sent, at most.
pub(super) const SEND_BUFFER: usize = 512 * 1024;
/// What small frames that nobody reads may cost (see h2's `data_frame_budget`).
pub(super) const SMALL_FRAMES: usize = 64 << 20;

/// Receive window of a stream while its tunnel has few, and what they share when it has many; the least one.
const STREAM_WINDOW: u32 = 512 << 10;
const ALL_STREAMS: u32 = 16 << 20;
const LEAST_WINDOW: u32 = 64 << 10;
/// What the streams of all tunnels of the process share.
const WHOLE_PROCESS: usize = 256 << 20;

/// Window of each stream, for so many of them on the tunnel and so many in the process.
fn window_of(streams: usize, all: usize) -> u32 {
    let own = ALL_STREAMS / streams.next_power_of_two().min(1 << 20) as u32;
    let of_all = (WHOLE_PROCESS / all.max(1).next_power_of_two()) as u32;
    own.min(of_all).clamp(LEAST_WINDOW, STREAM_WINDOW)
}

/// The windows of the streams of one tunnel.
#[derive(Debug)]
pub(super) struct Windows {
    announced: u32,
}

impl Windows {
    pub(super) fn initial() -> u32 {
        window_of(1, all_streams())
    }

    pub(super) fn new(announced: u32) -> Self {
        Self { announced }
    }

    /// Announces larger windows if the number of streams allows it. `set` fails while an earlier announcement is not
    /// acknowledged; the next call tries again.
    ///
    /// Never smaller ones: what a stream has received and not yet given back in a WINDOW_UPDATE (up to half of its window)
    /// would be taken off as well, its window could become nothing, and of a stream on which nothing moves nobody would
    /// ever say that there is room again.
    pub(super) fn adjust(
        &mut self,
        streams: usize,
        set: impl FnOnce(u32) -> Result<(), h2::Error>,
    ) {
        let window = window_of(streams, all_streams());
        // Only when it is worth it, not with each stream that goes.
        if window / 4 >= self.announced && set(window).is_ok() {
            self.announced = window;
        }
    }
}

/// Asks the peer whether it is there; resolves when it is not. An answer may be stuck behind much data on a slow network:
/// as long as anything moves, the peer is there.
pub(super) async fn beat(ping: Option<PingPong>, options: &TunnelOptions, outgoing: &Outgoing) {
    let Some(mut ping) = ping else {
        return std::future::pending().await;
    };
    let mut next = Instant::now() + options.ping_interval;
    loop {
        sleep_until(next).await;
        next = Instant::now() + options.ping_interval;
        if ping.send_ping(Ping::opaque()).is_err() {
            // The connection is over, which its driver learns.
            return std::future::pending().await;
        }
        let mut pong = pin!(poll_fn(|cx| ping.poll_pong(cx)));
        loop {
            let before = outgoing.progress();
            match timeout(options.ping_timeout, pong.as_mut()).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) if outgoing.progress() == before => return,
                Err(_) => {}
            }
        }
    }
}

/// When the first of the two certificates of a tunnel ends.
pub(super) fn first_end(peer: &PeerIdentity, own: Option<SystemTime>) -> SystemTime {
    own.map_or(peer.not_after, |own| own.min(peer.not_after))
}

/// Resolves when all that a tunnel carries has to end. `retire` is called when it only gets nothing new: also when the
/// first of its certificates `ends`, since what comes after is for those who have got another one. `role` is the peer's.
pub(super) async fn distrust(
    credentials: &dyn Credentials,
    chain: &[CertificateDer<'static>],
    role: Role,
    ends: SystemTime,
    retire: impl Fn(&dyn fmt::Display),
) -> PeerRefused {
    let mut trust = credentials.trust();
    let mut ended = false;
    loop {
        match credentials.standing(chain, role) {
            Standing::Good => {}
            Standing::Drain(refused) => retire(&refused),
            Standing::Close(refused) => return refused,
        }
        loop {
            let left = ends.duration_since(SystemTime::now());
            if left.is_err() && !ended {
                ended = true;
                retire(&"one of its certificates has ended");
            }
            // The clock may be set meanwhile.
            let look = left.unwrap_or(LOOK).min(LOOK);
            match timeout(look, trust.changed()).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => {}
            }
        }
    }
}

/// How often a tunnel looks whether a certificate of it has ended.
const LOOK: Duration = Duration::from_secs(30);

/// How often a tunnel looks after itself.
pub(super) fn tick(options: &TunnelOptions) -> tokio::time::Interval {
    let every =
        (options.idle_timeout / 4).clamp(Duration::from_millis(10), Duration::from_secs(10));
    let mut tick = tokio::time::interval_at(Instant::now() + every, every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_with_streams() {
        assert_eq!(window_of(0, 0), 512 << 10);
        assert_eq!(window_of(1, 1), 512 << 10);
        assert_eq!(window_of(5, 5), 512 << 10);
        assert_eq!(window_of(100, 100), 128 << 10);
        assert_eq!(window_of(1, 1000), 256 << 10);
        assert_eq!(window_of(usize::MAX / 4, 0), 64 << 10);
        assert_eq!(window_of(1, 1 << 40), 64 << 10);
    }

    #[test]
    fn windows_never_shrink_under_a_stream() {
        let mut windows = Windows::new(window_of(1, 1));
        windows.adjust(200, |window| panic!("{window} announced"));
    }

    /// However many streams stall, the tunnel's own window is not used up.
    #[test]
    fn stalled_streams_leave_the_tunnels_window() {
        let worst = 200 * u64::from(STREAM_WINDOW);
        assert!(worst < u64::from(TUNNEL_WINDOW) / 4, "{worst}");
    }
}
