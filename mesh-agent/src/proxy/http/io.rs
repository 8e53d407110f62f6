//! What hyper and h2 read from and write to: a TCP leg or a stream of a tunnel.
//!
//! How it ends: a leg or stream that is dropped in the middle is reset, so what was cut never looks as if it had ended.
//! After [`Write::poll_shutdown`] both directions are closed in order, and nothing that was written is lost to a peer that
//! still sends (RFC 9112 9.6): the FIN goes out, what the peer sends is read and thrown away until it ends too, within
//! bounds.

use std::{
    cell::RefCell,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::{
    io::Errno,
    net::{RecvFlags, Shutdown, recv, shutdown},
};
use tokio::{
    io::Interest,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    headers::{Doubts, Heads},
    pool::Exchange,
};
use crate::{
    proxy::{
        connect::Link,
        pause::Pause,
        socket::{Keepalive, Leg},
        tunnel::{TunnelBytes, TunnelGone, TunnelStream},
    },
    telemetry::Reason,
};

/// Bytes of one read.
const READ: usize = 64 * 1024;
/// How long a peer may go on sending after it was told that nobody listens, without a pause of more than
/// [`LINGER_PAUSE`] and with no more than [`LINGER_BYTES`].
const LINGER: Duration = Duration::from_secs(30);
const LINGER_PAUSE: Duration = Duration::from_secs(5);
const LINGER_BYTES: u64 = 64 << 20;

thread_local! {
    /// What is read is copied out to its size, so a connection that waits holds no buffer of ours.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

/// One connection.
#[derive(Debug)]
pub(in crate::proxy) struct Io {
    /// `None` only once it is dropped.
    kind: Option<Kind>,
    read_ended: bool,
    write_ended: bool,
    linger: Option<Box<Linger>>,
    /// Notes what happens on a pooled connection.
    exchange: Option<Arc<Exchange>>,
    /// Looks at what an HTTP/1 client sends.
    heads: Option<Box<Heads>>,
}

#[derive(Debug)]
enum Kind {
    Plain {
        leg: Leg,
        /// Bytes written.
        written: u64,
        pause: Pause,
        /// As the leg's socket has it.
        keepalive: Option<Box<Keepalive>>,
    },
    Tunnel(Box<TunnelBytes>),
}

#[derive(Debug)]
struct Linger {
    until: Instant,
    pause: Pin<Box<Sleep>>,
    left: u64,
    over: bool,
}

impl From<Leg> for Io {
    fn from(leg: Leg) -> Self {
        Self::new(Kind::Plain {
            leg,
            written: 0,
            pause: Pause::default(),
            keepalive: None,
        })
    }
}

impl From<TunnelStream> for Io {
    fn from(stream: TunnelStream) -> Self {
        Self::new(Kind::Tunnel(Box::new(stream.into())))
    }
}

impl From<Link> for Io {
    fn from(link: Link) -> Self {
        match link {
            Link::Plain(leg) => leg.into(),
            Link::Tunnel(stream) => (*stream).into(),
        }
    }
}

impl Io {
    fn new(kind: Kind) -> Self {
        Self {
            kind: Some(kind),
            read_ended: false,
            write_ended: false,
            linger: None,
            exchange: None,
            heads: None,
        }
    }

    /// Looks at the requests that come in, for what hyper does not say of them.
    pub(super) fn watching(mut self, doubts: Arc<Doubts>) -> Self {
        self.heads = Some(Box::new(Heads::new(doubts)));
        self
    }

    /// Of a tunnel's stream: should it be dropped while this is true, the other agent learns that nothing of what was
    /// under way has reached the application.
    pub(super) fn refuse_when(mut self, refuses: &Arc<AtomicBool>) -> Self {
        if let Some(Kind::Tunnel(stream)) = &mut self.kind {
            stream.refuse_when(Arc::clone(refuses));
        }
        self
    }

    /// Tells a pooled connection what happens here.
    pub(super) fn noting(mut self, exchange: Arc<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    /// Ends a connection upstream on which nothing is owed any more. The peer learns that it has ended, not that it was
    /// cut. Waits where it takes time: for the other agent to end its side of a stream.
    pub(super) fn finish(mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        if let Some(Kind::Plain { leg, .. }) = &self.kind {
            // A server that speaks out of turn gets its RST from the kernel.
            if self.write_ended || shutdown(&**leg, Shutdown::Write).is_ok() {
                self.write_ended = true;
                self.read_ended = true;
            }
            return None;
        }
        Some(async move {
            // Its failure leaves nothing to do: the drop resets it.
            let _ = std::future::poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx)).await;
        })
    }

    fn poll_read_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        if self.read_ended {
            return Poll::Ready(Ok(take(&[])));
        }
        let exchange = self.exchange.as_ref();
        let closely = exchange.is_some_and(|exchange| exchange.looks_closely());
        let result = match &mut self.kind {
            Some(Kind::Plain { leg, .. }) => {
                let read = poll_read_leg(leg, cx, most, |data| {
                    self.read_ended = data.is_empty();
                    take(data)
                });
                match read {
                    Poll::Ready(result) => result,
                    Poll::Pending if closely => match look_at_leg(leg) {
                        Ok(false) => return Poll::Pending,
                        // hyper cannot go on with it either way: it is closed, or its server speaks out of turn.
                        Ok(true) => Err(io::ErrorKind::ConnectionReset.into()),
                        Err(error) => Err(error),
                    },
                    Poll::Pending => Err(ready!(self.poll_pause(cx))),
                }
            }
            Some(Kind::Tunnel(stream)) => match ready!(stream.poll_fill(cx)) {
                Ok(data) => {
                    let data = &data[..data.len().min(most)];
                    let taken = data.len();
                    self.read_ended = taken == 0;
                    let result = take(data);
                    stream.consume(taken);
                    Ok(result)
                }
                Err(error) => Err(error),
            },
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Some(exchange) = &self.exchange {
            match &result {
                Ok(_) if self.read_ended => {}
                Ok(_) => exchange.note_received(),
                Err(error) => exchange.note_error(error),
            }
        }
        Poll::Ready(result)
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match &mut self.kind {
            Some(Kind::Plain { leg, written, .. }) => match poll_write_leg(leg, cx, slices) {
                Poll::Ready(Ok(n)) => {
                    *written += n as u64;
                    Ok(n)
                }
                Poll::Ready(Err(error)) => Err(error),
                Poll::Pending => Err(ready!(self.poll_pause(cx))),
            },
            Some(Kind::Tunnel(stream)) => ready!(stream.poll_write(cx, slices)),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Some(exchange) = &self.exchange {
            match &result {
                Ok(_) => exchange.note_sent(),
                Err(error) => exchange.note_error(error),
            }
        }
        Poll::Ready(result)
    }

    /// Ready when the peer is gone, which only we can find out: it is not one that pauses.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(Kind::Plain {
            leg,
            written,
            pause,
            keepalive,
        }) = &mut self.kind
        else {
            return Poll::Pending;
        };
        if *written == 0 {
            return Poll::Pending;
        }
        let keepalive = keepalive.get_or_insert_with(|| Box::new(Keepalive::of(&**leg)));
        match pause.poll(cx, leg, keepalive, *written) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    /// Reads and throws away until the peer has ended, or has had its time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut linger = self.linger.take().unwrap_or_else(|| {
            let now = Instant::now();
            Box::new(Linger {
                until: now + LINGER,
                pause: Box::pin(sleep_until(now + LINGER_PAUSE)),
                left: LINGER_BYTES,
                over: false,
            })
        });
        let mut turns = 0;
        let over = loop {
            if linger.over || self.read_ended {
                break true;
            }
            match self.poll_read_with(cx, READ, |data| data.len()) {
                Poll::Ready(Ok(n)) => {
                    linger.left = linger.left.saturating_sub(n as u64);
                    let now = Instant::now();
                    linger.over = linger.left == 0 || now >= linger.until;
                    let pause = linger.until.min(now + LINGER_PAUSE);
                    linger.pause.as_mut().reset(pause);
                }
                Poll::Ready(Err(_)) => break true,
                Poll::Pending => break linger.pause.as_mut().poll(cx).is_ready(),
            }
            turns += 1;
            if turns == 16 {
                // Lets others run.
                cx.waker().wake_by_ref();
                break false;
            }
        };
        linger.over = over;
        self.linger = Some(linger);
        if over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ends what is sent, and nothing else.
    pub(super) fn half_close(&mut self) -> io::Result<()> {
        if self.write_ended {
            return Ok(());
        }
        match &mut self.kind {
            Some(Kind::Plain { leg, .. }) => shutdown(&**leg, Shutdown::Write)?,
            Some(Kind::Tunnel(stream)) => stream.shutdown()?,
            None => {}
        }
        self.write_ended = true;
        Ok(())
    }
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let most = buf.remaining();
        let mut heads = self.heads.take();
        let read = self.poll_read_with(cx, most, |data| {
            if let Some(heads) = &mut heads {
                heads.feed(data);
            }
            buf.put_slice(data);
        });
        self.heads = heads;
        read
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_slices(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.half_close()?;
        self.poll_linger(cx).map(Ok)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_slices(cx, bufs)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        let lingered = self.linger.as_ref().is_some_and(|linger| linger.over);
        let in_order = self.write_ended && (self.read_ended || lingered);
        if !in_order {
            return;
        }
        match self.kind.take() {
            Some(Kind::Plain { leg, .. }) => leg.close(),
            Some(Kind::Tunnel(stream)) => stream.close(),
            None => {}
        }
    }
}

/// Reads once, into a buffer that many share, and hands out what came; nothing at the end.
fn poll_read_leg<T>(
    leg: &Leg,
    cx: &mut Context<'_>,
    most: usize,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let most = most.min(READ);
        let space = &mut scratch[..most];
        loop {
            ready!(leg.poll_read_ready(cx))?;
            let mut read = None;
            let outcome = leg.try_io(Interest::READABLE, || {
                let n = again(|| rustix::io::read(&**leg, &mut *space))?;
                read = Some(n);
                if n != 0 && n < most {
                    // A short read has drained the socket: to say so saves the read that would find out.
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match (read, outcome) {
                (Some(n), _) => return Poll::Ready(Ok(take(&space[..n]))),
                (None, Err(e)) if e.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(e));
                }
                (None, _) => {}
            }
        }
    })
}

/// Whether there is something to be read, or the end.
fn look_at_leg(leg: &Leg) -> io::Result<bool> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match again(|| recv(&**leg, &mut [0; 1], flags)) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn poll_write_leg(
    leg: &Leg,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(leg.poll_write_ready(cx))?;
        match leg.try_write_vectored(slices) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

/// Again after a signal.
fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What an error of a connection says, beyond that the connection is gone.
pub(super) fn reason(error: &io::Error) -> Option<Reason> {
    if let Some(gone) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TunnelGone>())
    {
        return Some(gone.0);
    }
    match Errno::from_io_error(error) {
        Some(Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH) => {
            Some(Reason::PeerVanished)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
