//! Bytes between a TCP leg and a stream of a tunnel, both ways, until both have ended or one was cut.
//!
//! Bounded memory: towards the tunnel nothing is read from the leg before the stream has room for it, and room is asked
//! for only when the leg has something. From the tunnel the peer's window is opened again only for what the leg's kernel
//! has taken, so a leg that stalls holds one window of its own stream and nothing of its neighbours'.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use rustix::{
    io::Errno,
    net::{Shutdown, shutdown},
};
use tokio::{io::Interest, net::TcpStream};

use super::{
    buffers::{CHUNK, CHUNKS},
    stream::{Gone, Received, Stream},
    watch::LegWatch,
};
use crate::{capture::sys::tcp::at_urgent_mark, proxy::socket::Keepalive};

/// Bytes that one direction moves before it lets others run.
const TURN: usize = 512 * 1024;
/// Bytes of a read while a direction has not proven to carry bulk. What is read is copied to its size then.
const SMALL: usize = 16 * 1024;
/// Full reads in a row that make a direction bulk: from then on it reads into chunks that go out without a copy.
const BULK_AFTER: u8 = 2;
/// Slices and bytes taken from the stream for one write.
const GATHER: usize = 32;
const GATHER_BYTES: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How the carrying ended.
#[derive(Debug)]
pub(super) enum End {
    /// FIN both ways.
    Completed,
    /// The leg failed: the stream has to be reset.
    Leg(io::Error),
    /// The stream was reset, or its tunnel broke: the leg has to be reset.
    Stream(Gone),
    /// The peer dropped the stream after what it had to say. All of it was delivered, with a FIN; the leg is to be closed.
    Dropped,
}

/// Where a direction stands after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Starved,
    Blocked,
    Yield,
    Finished,
}

/// Counters: from the leg to the stream, and back.
pub(super) struct Moved<'a> {
    pub(super) out: &'a AtomicU64,
    pub(super) back: &'a AtomicU64,
}

/// Carries bytes. Closes neither.
pub(super) async fn carry(
    leg: &TcpStream,
    stream: &mut Stream,
    moved: Moved<'_>,
    keepalive: &Keepalive,
) -> End {
    let mut duplex = Duplex {
        leg,
        stream,
        moved,
        out: Out::default(),
        back: Back::default(),
        watch: LegWatch::new(leg, keepalive),
    };
    match poll_fn(|cx| duplex.poll(cx)).await {
        Ok(end) | Err(end) => end,
    }
}

struct Duplex<'a> {
    leg: &'a TcpStream,
    stream: &'a mut Stream,
    moved: Moved<'a>,
    out: Out,
    back: Back,
    watch: LegWatch<'a>,
}

impl Duplex<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, End>> {
        let back = self.back.turn(cx, self.stream, self.leg, self.moved.back)?;
        if self.back.dropped {
            // The stream is closed both ways; what the leg still says has nobody to go to.
            return if back == Turn::Finished {
                Poll::Ready(Ok(if self.out.finished {
                    End::Completed
                } else {
                    End::Dropped
                }))
            } else {
                self.wait(cx, back, Turn::Blocked)
            };
        }
        let out = match self.out.turn(cx, self.leg, self.stream, self.moved.out) {
            Err(End::Stream(Gone::Ended)) => {
                // Takes what came before, then ends.
                self.back.dropped = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turn => turn?,
        };
        if out == Turn::Finished && back == Turn::Finished {
            return Poll::Ready(Ok(End::Completed));
        }
        self.wait(cx, back, out)
    }

    /// What else could end the waiting.
    fn wait(&mut self, cx: &mut Context<'_>, back: Turn, out: Turn) -> Poll<Result<End, End>> {
        if out == Turn::Yield || back == Turn::Yield {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // A leg that is not read from, and a stream that is not received from, would hide their reset.
        if out != Turn::Starved {
            self.watch.poll_error(cx).map_err(End::Leg)?;
        }
        if back != Turn::Starved && !self.back.dropped {
            match self.stream.poll_gone(cx) {
                Poll::Pending => {}
                Poll::Ready(Gone::Ended) => {
                    self.back.dropped = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(gone) => return Poll::Ready(Err(End::Stream(gone))),
            }
        }
        let moved = self.moved.back.load(Ordering::Relaxed);
        self.watch.poll_check(cx, moved).map_err(End::Leg)?;
        Poll::Pending
    }
}

/// Leg to stream.
#[derive(Default)]
struct Out {
    /// Full reads in a row.
    streak: u8,
    finished: bool,
}

/// What one read brought.
enum Read {
    Data { data: Bytes, drained: bool },
    Nothing,
    End,
}

impl Out {
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        leg: &TcpStream,
        stream: &mut Stream,
        moved: &AtomicU64,
    ) -> Result<Turn, End> {
        if self.finished {
            return Ok(Turn::Finished);
        }
        let mut left = TURN;
        loop {
            // First this: room that is asked for and not used would be missing to others.
            match leg.poll_read_ready(cx) {
                Poll::Pending => {
                    if left < TURN {
                        stream.give_room_back();
                    }
                    return Ok(Turn::Starved);
                }
                Poll::Ready(ready) => ready.map_err(End::Leg)?,
            }
            if left == 0 {
                stream.give_room_back();
                return Ok(Turn::Yield);
            }
            let want = if self.streak >= BULK_AFTER {
                CHUNK
            } else {
                SMALL
            };
            let room = match stream.poll_room(cx, want) {
                Poll::Ready(room) => room.map_err(End::Stream)?,
                Poll::Pending => return Ok(Turn::Blocked),
            };
            match self.read(leg, room).map_err(End::Leg)? {
                Read::Data { data, drained } => {
                    let n = data.len();
                    stream.send(data).map_err(End::Stream)?;
                    moved.fetch_add(n as u64, Ordering::Relaxed);
                    left = left.saturating_sub(n);
                    self.streak = match n {
                        n if n == room && n >= SMALL => self.streak.saturating_add(1),
                        _ if drained && n < CHUNK / 8 => 0,
                        _ => self.streak,
                    };
                }
                Read::Nothing => {}
                Read::End => {
                    stream.give_room_back();
                    stream.send_end().map_err(End::Stream)?;
                    self.finished = true;
                    return Ok(Turn::Finished);
                }
            }
        }
    }

    fn read(&self, leg: &TcpStream, room: usize) -> io::Result<Read> {
        if self.streak >= BULK_AFTER && room > SMALL {
            let mut chunk = CHUNKS.take();
            let room = room.min(CHUNK);
            let (n, drained) = match read_once(leg, &mut chunk[..room])? {
                Some(read) => read,
                None => return Ok(Read::Nothing),
            };
            if n == 0 {
                return Ok(Read::End);
            }
            let data = chunk.freeze(n);
            return Ok(Read::Data { data, drained });
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(SMALL, 0);
            let room = room.min(SMALL);
            Ok(match read_once(leg, &mut scratch[..room])? {
                None => Read::Nothing,
                Some((0, _)) => Read::End,
                Some((n, drained)) => Read::Data {
                    data: Bytes::copy_from_slice(&scratch[..n]),
                    drained,
                },
            })
        })
    }
}

/// Reads once; whether that has drained the socket. `None`: nothing is there.
fn read_once(leg: &TcpStream, space: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
    let mut read = None;
    let outcome = leg.try_io(Interest::READABLE, || {
        let n = retry(|| rustix::io::read(leg, &mut *space))?;
        // A short read has drained the socket: see `copy`.
        let drained = n != 0 && n < space.len() && !at_urgent_mark(leg);
        read = Some((n, drained));
        if drained {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    });
    match (read, outcome) {
        (None, Err(e)) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        (read, _) => Ok(read),
    }
}

/// Stream to leg.
#[derive(Default)]
struct Back {
    queue: VecDeque<Bytes>,
    queued: usize,
    /// Nothing more comes.
    ended: bool,
    /// The stream was reset in a way that reads as its end.
    dropped: bool,
    finished: bool,
}

impl Back {
    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        leg: &TcpStream,
        moved: &AtomicU64,
    ) -> Result<Turn, End> {
        if self.finished {
            return Ok(Turn::Finished);
        }
        let mut left = TURN;
        loop {
            let waits = self.fill(cx, stream)?;
            if self.queue.is_empty() {
                if self.ended {
                    // ENOTCONN: the leg is gone already; its error is found by who watches it.
                    match shutdown(leg, Shutdown::Write) {
                        Ok(()) | Err(Errno::NOTCONN) => {}
                        Err(e) => return Err(End::Leg(e.into())),
                    }
                    self.queue = VecDeque::new();
                    self.finished = true;
                    return Ok(Turn::Finished);
                }
                debug_assert!(waits);
                if self.queue.capacity() > 8 {
                    // An idle connection is to be small.
                    self.queue = VecDeque::new();
                }
                return Ok(Turn::Starved);
            }
            if left == 0 {
                return Ok(Turn::Yield);
            }
            let n = match self.write(cx, leg).map_err(End::Leg)? {
                Poll::Ready(n) => n,
                Poll::Pending => return Ok(Turn::Blocked),
            };
            moved.fetch_add(n as u64, Ordering::Relaxed);
            stream.release(n);
            left = left.saturating_sub(n);
        }
    }

    /// Takes what has come. True: the stream has nothing more now, and wakes the task when it has.
    fn fill(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Result<bool, End> {
        while !self.ended && self.queue.len() < GATHER && self.queued < GATHER_BYTES {
            match stream.poll_receive(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Ok(Received::Data(data))) => {
                    if !data.is_empty() {
                        self.queued += data.len();
                        self.queue.push_back(data);
                    }
                }
                Poll::Ready(Ok(Received::End)) => self.ended = true,
                Poll::Ready(Err(Gone::Ended)) => {
                    self.ended = true;
                    self.dropped = true;
                }
                Poll::Ready(Err(gone)) => return Err(End::Stream(gone)),
            }
        }
        Ok(false)
    }

    /// Writes once.
    fn write(&mut self, cx: &mut Context<'_>, leg: &TcpStream) -> io::Result<Poll<usize>> {
        let n = match self.write_now(leg) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => loop {
                match leg.poll_write_ready(cx) {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(ready) => ready?,
                }
                match leg.try_io(Interest::WRITABLE, || self.write_now(leg)) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    written => break written?,
                }
            },
            written => written?,
        };
        self.advance(n);
        Ok(Poll::Ready(n))
    }

    fn write_now(&self, leg: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); GATHER];
        let mut count = 0;
        for (slice, data) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(data);
            count += 1;
        }
        // A socket's writev() raises no SIGPIPE here: Rust ignores it for the process.
        Ok(retry(|| rustix::io::writev(leg, &slices[..count]))?)
    }

    fn advance(&mut self, mut n: usize) {
        self.queued -= n;
        while n > 0 {
            let Some(first) = self.queue.front_mut() else {
                return;
            };
            if first.len() > n {
                first.advance(n);
                return;
            }
            n -= first.len();
            self.queue.pop_front();
        }
    }
}

/// Again after a signal.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
