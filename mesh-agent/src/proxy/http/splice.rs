//! Bytes both ways between a client and an upstream whose connection has been switched to another protocol, until both
//! have ended or one was cut. Half-close is kept.
//!
//! Bounded memory: a side is read only when the other has taken what came before, and nothing is held while nothing moves.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::h2::{RecvStream, SendStream};
use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBuf, Write};

use super::{
    io::{Io, reason},
    pool::{Slot, Upgraded},
};
use crate::telemetry::{Reason, RequestBytes};

/// Bytes of one read.
const CHUNK: usize = 16 * 1024;
/// Bytes that one direction moves before it lets others run.
const TURN: usize = 512 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Who failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// Carries bytes until both have ended. What is cut on one side is cut on the other.
pub(super) async fn carry(
    client: hyper::upgrade::Upgraded,
    upstream: Upgraded,
    bytes: &RequestBytes,
) -> Reason {
    let mut client = End::of_client(client);
    // What the connection holds is given back when it ends.
    let (mut upstream, _held) = match upstream {
        Upgraded::Io { io, prefix, held } => (End::Io { io, prefix }, Ok::<_, Slot>(held)),
        Upgraded::Stream {
            send,
            receive,
            slot,
        } => {
            let stream = End::Stream {
                send,
                receive,
                unread: Bytes::new(),
            };
            (stream, Err(slot))
        }
    };
    let mut up = Direction::default();
    let mut down = Direction::default();
    let result = poll_fn(|cx| {
        let up = up.poll(cx, &mut client, &mut upstream, |n| bytes.add_request(n));
        let up = up.map_err(|broken| broken.between(Side::Client, Side::Upstream))?;
        let down = down.poll(cx, &mut upstream, &mut client, |n| bytes.add_response(n));
        let down = down.map_err(|broken| broken.between(Side::Upstream, Side::Client))?;
        if up.is_ready() && down.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    })
    .await;
    match result {
        Ok(()) => Reason::Completed,
        Err((side, error)) => {
            tracing::debug!(?side, %error, "a switched connection broke");
            client.cut();
            upstream.cut();
            reason(&error).unwrap_or(match side {
                Side::Client => Reason::ClientReset,
                Side::Upstream => Reason::UpstreamReset,
            })
        }
    }
}

/// One side.
enum End {
    Io {
        io: Io,
        /// Read already.
        prefix: Bytes,
    },
    /// A stream of a client's HTTP/2 connection.
    Hyper(hyper::upgrade::Upgraded),
    /// A stream of a connection of ours.
    Stream {
        send: SendStream<Bytes>,
        receive: RecvStream,
        unread: Bytes,
    },
}

impl End {
    fn of_client(client: hyper::upgrade::Upgraded) -> Self {
        match super::server::into_io(client) {
            Ok((io, prefix)) => Self::Io { io, prefix },
            Err(client) => Self::Hyper(client),
        }
    }

    /// 0: the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Io { prefix, .. } if !prefix.is_empty() => {
                let n = prefix.len().min(space.len());
                prefix.copy_to_slice(&mut space[..n]);
                Poll::Ready(Ok(n))
            }
            Self::Io { io, .. } => poll_read(io, cx, space),
            Self::Hyper(upgraded) => poll_read(upgraded, cx, space),
            Self::Stream {
                receive, unread, ..
            } => {
                while unread.is_empty() {
                    match ready!(receive.poll_data(cx)) {
                        Some(Ok(data)) => *unread = data,
                        Some(Err(error)) => return Poll::Ready(Err(h2_error(error))),
                        None => return Poll::Ready(Ok(0)),
                    }
                }
                let n = unread.len().min(space.len());
                unread.copy_to_slice(&mut space[..n]);
                // Fails on a stream that is gone: then nobody waits for room.
                let _ = receive.flow_control().release_capacity(n);
                Poll::Ready(Ok(n))
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Io { io, .. } => Pin::new(io).poll_write(cx, data),
            Self::Hyper(upgraded) => Pin::new(upgraded).poll_write(cx, data),
            Self::Stream { send, .. } => {
                send.reserve_capacity(data.len());
                while send.capacity() == 0 {
                    match ready!(send.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Poll::Ready(Err(h2_error(error))),
                        None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                    }
                }
                let room = send.capacity().min(data.len());
                let data = Bytes::copy_from_slice(&data[..room]);
                send.send_data(data, false).map_err(h2_error)?;
                Poll::Ready(Ok(room))
            }
        }
    }

    /// Ends one direction; the other goes on.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Io { io, .. } => Poll::Ready(io.half_close()),
            Self::Hyper(upgraded) => Pin::new(upgraded).poll_shutdown(cx),
            Self::Stream { send, .. } => {
                Poll::Ready(send.send_data(Bytes::new(), true).map_err(h2_error))
            }
        }
    }

    /// Tells the other end that the stream was cut; a leg is reset by its drop.
    fn cut(&mut self) {
        if let Self::Stream { send, .. } = self {
            // RFC 8441 5: what RST is to TCP.
            send.send_reset(::h2::Reason::CANCEL);
        }
    }
}

fn poll_read(
    io: &mut (impl Read + Unpin),
    cx: &mut Context<'_>,
    space: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(space);
    ready!(Pin::new(io).poll_read(cx, buffer.unfilled()))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

fn h2_error(error: ::h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Broken {
    fn between(self, source: Side, sink: Side) -> (Side, io::Error) {
        match self {
            Self::Source(error) => (source, error),
            Self::Sink(error) => (sink, error),
        }
    }
}

/// One direction.
#[derive(Default)]
struct Direction {
    /// Read and not written yet.
    left: Bytes,
    read_ended: bool,
    finished: bool,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut End,
        sink: &mut End,
        moved: impl Fn(u64),
    ) -> Result<Poll<()>, Broken> {
        let mut budget = TURN;
        while !self.finished {
            if !self.left.is_empty() {
                let Poll::Ready(n) = sink.poll_write(cx, &self.left) else {
                    return Ok(Poll::Pending);
                };
                let n = n.map_err(Broken::Sink)?;
                self.left.advance(n);
                moved(n as u64);
                continue;
            }
            if self.read_ended {
                let Poll::Ready(ended) = sink.poll_end(cx) else {
                    return Ok(Poll::Pending);
                };
                ended.map_err(Broken::Sink)?;
                self.left = Bytes::new();
                self.finished = true;
                break;
            }
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Ok(Poll::Pending);
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let read = source.poll_read(cx, scratch);
                let Poll::Ready(Ok(n)) = read else {
                    return read;
                };
                if n == 0 {
                    return read;
                }
                // What goes out at once was never held.
                match sink.poll_write(cx, &scratch[..n]) {
                    Poll::Ready(Ok(written)) => {
                        moved(written as u64);
                        self.left = Bytes::copy_from_slice(&scratch[written..n]);
                    }
                    // An error comes again with the rest.
                    _ => self.left = Bytes::copy_from_slice(&scratch[..n]),
                }
                read
            });
            let Poll::Ready(n) = read else {
                return Ok(Poll::Pending);
            };
            let n = n.map_err(Broken::Source)?;
            self.read_ended = n == 0;
            budget = budget.saturating_sub(n);
        }
        Ok(Poll::Ready(()))
    }
}
