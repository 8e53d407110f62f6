//! One direction of a connection: bytes from one socket to the other, then the FIN.
//!
//! An idle direction owns no buffer. Bytes are read into a scratch buffer of the thread and written at once; only what
//! the destination does not take is kept, on the heap, until it does. A direction that has proven to carry bulk moves
//! its bytes with splice(2) through a pooled pipe instead, and goes back to copying when the reads get small.
//!
//! Readiness (tokio's epoll is edge-triggered): a system call that must not be repeated before the next event runs
//! inside `try_io`, which notices an event that came in between. A write is tried without asking first, since a socket
//! is nearly always writable; only after it fell short does it go through `try_io`.
//!
//! Urgent data: the bytes around it are carried, the urgent byte itself is not.

use std::{
    cell::RefCell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use rustix::{
    io::Errno,
    net::{SendFlags, Shutdown, send, shutdown},
    pipe::{SpliceFlags, splice},
};
use tokio::{io::Interest, net::TcpStream};

use super::pipes::{Pipe, Pipes};
use crate::capture::sys::tcp::at_urgent_mark;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How to copy; the defaults are the winners of docs/adr/0003-copying.md.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    /// Bytes of the scratch buffer that each worker thread has.
    pub scratch: usize,
    /// Whether bulk goes through splice(2).
    pub splice: bool,
    /// Bytes asked for per pipe.
    pub pipe_size: usize,
    /// Bytes that one direction moves before it lets other connections run.
    pub turn: usize,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            scratch: 64 * 1024,
            splice: true,
            pipe_size: 256 * 1024,
            turn: 512 * 1024,
        }
    }
}

/// What all directions of a proxy share.
#[derive(Debug)]
pub(super) struct CopyShared {
    pub(super) options: CopyOptions,
    pub(super) pipes: Arc<Pipes>,
}

impl CopyShared {
    pub(super) fn new(options: CopyOptions, max_pipes: usize) -> Self {
        Self {
            options,
            pipes: Pipes::new(max_pipes, options.pipe_size),
        }
    }
}

/// Which socket failed, and how.
#[derive(Debug)]
pub(super) enum Broken {
    Source(io::Error),
    Destination(io::Error),
}

/// Where a direction stands after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Waits for the source: the waker is registered with its read readiness.
    Starved,
    /// Waits for the destination: the waker is registered with its write readiness, nothing with the source.
    Blocked,
    /// Moved its share; the task has to be woken again.
    Yield,
    /// The source's FIN was passed on.
    Finished,
}

/// Reads at least half of the scratch buffer in a row that make a direction bulk.
const BULK_AFTER: u8 = 8;
/// Bytes that one splice(2) has to move to be worth it.
const BULK_READ: usize = 16 * 1024;
/// Small splices in a row that end bulk.
const BULK_MISSES: u8 = 16;

/// The state of one direction.
#[derive(Debug, Default)]
pub(super) struct Direction {
    /// What the destination did not take yet. `None`, or not empty.
    rest: Option<Rest>,
    /// Reads that looked like bulk, or in bulk mode splices that did not.
    streak: u8,
    bulk: bool,
    finished: bool,
}

#[derive(Debug)]
enum Rest {
    Bytes { data: Box<[u8]>, sent: usize },
    Pipe(Pipe),
}

impl Direction {
    /// Moves what can be moved now, up to its share. `moved` counts what the destination's kernel took.
    pub(super) fn turn(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        destination: &TcpStream,
        moved: &AtomicU64,
        shared: &CopyShared,
    ) -> Result<Turn, Broken> {
        if self.finished {
            return Ok(Turn::Finished);
        }
        let mut left = shared.options.turn;
        loop {
            if self.rest.is_some()
                && let Some(turn) = self.push_rest(cx, destination, moved)?
            {
                return Ok(turn);
            }
            if left == 0 {
                return Ok(Turn::Yield);
            }
            let pipe = if self.bulk { shared.pipes.get() } else { None };
            let took = match pipe {
                Some(pipe) => self.splice(pipe, source, destination, moved)?,
                None => self.copy(source, destination, moved, &shared.options)?,
            };
            match took {
                Took::Bytes(n) => left = left.saturating_sub(n),
                Took::Nothing => match source.poll_read_ready(cx) {
                    Poll::Pending => return Ok(Turn::Starved),
                    Poll::Ready(ready) => ready.map_err(Broken::Source)?,
                },
                Took::End => {
                    // ENOTCONN: the destination is gone already; its error is found by who watches it.
                    match shutdown(destination, Shutdown::Write) {
                        Ok(()) | Err(Errno::NOTCONN) => {}
                        Err(e) => return Err(Broken::Destination(e.into())),
                    }
                    self.finished = true;
                    return Ok(Turn::Finished);
                }
            }
        }
    }

    /// Reads once into the scratch buffer and writes it on.
    fn copy(
        &mut self,
        source: &TcpStream,
        destination: &TcpStream,
        moved: &AtomicU64,
        options: &CopyOptions,
    ) -> Result<Took, Broken> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < options.scratch {
                scratch.resize(options.scratch, 0);
            }
            let scratch = &mut scratch[..options.scratch];
            let mut read = None;
            let outcome = source.try_io(Interest::READABLE, || {
                let n = retry(|| rustix::io::read(source, &mut *scratch))?;
                read = Some(n);
                // A short read has drained the socket: clear the readiness now and save the read that would say so.
                // The FIN and errors stay visible, tokio does not clear those. Unless it ended before an urgent byte:
                // no event would tell of what is queued behind that.
                if n != 0 && n < scratch.len() && !at_urgent_mark(source) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            let n = match (read, outcome) {
                (Some(0), _) => return Ok(Took::End),
                (Some(n), _) => n,
                (None, Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Took::Nothing);
                }
                (None, Err(e)) => return Err(Broken::Source(e)),
                (None, Ok(())) => return Ok(Took::Nothing),
            };
            self.streak = if options.splice && n >= options.scratch / 2 {
                self.streak + 1
            } else {
                0
            };
            if self.streak >= BULK_AFTER {
                self.bulk = true;
                self.streak = 0;
            }
            let data = &scratch[..n];
            let sent = send_now(destination, data).map_err(Broken::Destination)?;
            moved.fetch_add(sent as u64, Ordering::Relaxed);
            if sent < n {
                self.rest = Some(Rest::Bytes {
                    data: data[sent..].into(),
                    sent: 0,
                });
            }
            Ok(Took::Bytes(n))
        })
    }

    /// Splices once into the pipe and out again.
    fn splice(
        &mut self,
        mut pipe: Pipe,
        source: &TcpStream,
        destination: &TcpStream,
        moved: &AtomicU64,
    ) -> Result<Took, Broken> {
        let taken = source.try_io(Interest::READABLE, || {
            match splice_once(source, &pipe.write, pipe.capacity()) {
                // It stops at an urgent byte for good: as if nothing came, or, after a FIN, as if this were the end.
                Ok(0) if at_urgent_mark(source) => Err(Errno::INVAL.into()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && at_urgent_mark(source) => {
                    Err(Errno::INVAL.into())
                }
                taken => taken,
            }
        });
        let n = match taken {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                pipe.put_back();
                return Ok(Took::Nothing);
            }
            // Urgent data, which only a read gets past. (Or a socket that cannot splice, never seen for TCP.)
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                pipe.put_back();
                self.bulk = false;
                self.streak = 0;
                return Ok(Took::Bytes(0));
            }
            Err(e) => return Err(Broken::Source(e)),
        };
        if n == 0 {
            pipe.put_back();
            return Ok(Took::End);
        }
        if n < BULK_READ {
            self.streak += 1;
            if self.streak >= BULK_MISSES {
                self.bulk = false;
                self.streak = 0;
            }
        } else {
            self.streak = 0;
        }
        pipe.held = n;
        drain_pipe(&mut pipe, destination, moved).map_err(Broken::Destination)?;
        if pipe.held == 0 {
            pipe.put_back();
        } else {
            self.rest = Some(Rest::Pipe(pipe));
        }
        Ok(Took::Bytes(n))
    }

    /// Writes what was left over. `None`: all of it is gone.
    fn push_rest(
        &mut self,
        cx: &mut Context<'_>,
        destination: &TcpStream,
        moved: &AtomicU64,
    ) -> Result<Option<Turn>, Broken> {
        let Some(mut rest) = self.rest.take() else {
            return Ok(None);
        };
        loop {
            let outcome = destination.try_io(Interest::WRITABLE, || match &mut rest {
                Rest::Bytes { data, sent } => {
                    let n = send_now(destination, &data[*sent..])?;
                    moved.fetch_add(n as u64, Ordering::Relaxed);
                    *sent += n;
                    done_or_would_block(*sent == data.len())
                }
                Rest::Pipe(pipe) => {
                    drain_pipe(pipe, destination, moved)?;
                    done_or_would_block(pipe.held == 0)
                }
            });
            match outcome {
                Ok(()) => {
                    if let Rest::Pipe(pipe) = rest {
                        pipe.put_back();
                    }
                    return Ok(None);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    match destination.poll_write_ready(cx) {
                        Poll::Pending => {
                            self.rest = Some(rest);
                            return Ok(Some(Turn::Blocked));
                        }
                        Poll::Ready(ready) => ready.map_err(Broken::Destination)?,
                    }
                }
                Err(e) => return Err(Broken::Destination(e)),
            }
        }
    }
}

/// What one read brought.
enum Took {
    Bytes(usize),
    Nothing,
    End,
}

fn done_or_would_block(done: bool) -> io::Result<()> {
    if done {
        Ok(())
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// Writes until all is gone or the socket takes no more; what it took.
fn send_now(destination: &TcpStream, data: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < data.len() {
        match retry(|| send(destination, &data[sent..], SendFlags::NOSIGNAL)) {
            Ok(n) => sent += n,
            Err(Errno::AGAIN) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(sent)
}

/// Splices out until the pipe is empty or the socket takes no more.
fn drain_pipe(pipe: &mut Pipe, destination: &TcpStream, moved: &AtomicU64) -> io::Result<()> {
    while pipe.held > 0 {
        match splice_once(&pipe.read, destination, pipe.held) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                pipe.held -= n;
                moved.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn splice_once(
    from: impl std::os::fd::AsFd,
    to: impl std::os::fd::AsFd,
    len: usize,
) -> io::Result<usize> {
    Ok(retry(|| {
        splice(
            from.as_fd(),
            None,
            to.as_fd(),
            None,
            len,
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        )
    })?)
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
