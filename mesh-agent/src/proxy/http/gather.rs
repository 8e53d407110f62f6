//! What an HTTP/2 connection writes in one turn, gathered into one write.
//!
//! h2 flushes after every frame with a body: a connection whose streams all have something to say would make a system call
//! for each of them. Here a flush of its own does nothing; whoever polls the connection calls [`Gathered::send`] after it.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Writes of at least so many bytes are sent from where they are, behind what has gathered. Frames, of 16 KiB unless a peer
/// asks for more, are copied: that costs less than a call, and a trip through the network, for each.
const LARGE: usize = 32 * 1024;
/// Bytes that gather before they are sent in the middle of a turn.
const MOST: usize = 64 * 1024;

thread_local! {
    /// Empty between turns, as long as sockets take what they are given: a connection that rests holds none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// One connection, shared by h2 and who polls it.
#[derive(Debug)]
pub(super) struct Gathered<I>(Arc<Mutex<State<I>>>);

#[derive(Debug)]
struct State<I> {
    io: I,
    /// Not sent yet: from `sent` on.
    waiting: Vec<u8>,
    sent: usize,
    /// Met while nobody was there to be told.
    failed: Option<io::Error>,
}

impl<I> Clone for Gathered<I> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<I: Read + Write + Unpin> Gathered<I> {
    pub(super) fn new(io: I) -> Self {
        Self(Arc::new(Mutex::new(State {
            io,
            waiting: Vec::new(),
            sent: 0,
            failed: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State<I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what has gathered, as far as the socket takes it; the rest when it takes more. To be called after each poll of
    /// the connection, with its context: a failure wakes it, to meet it itself.
    pub(super) fn send(&self, cx: &mut Context<'_>) {
        let mut state = self.lock();
        if let Poll::Ready(Err(error)) = state.poll_send(cx) {
            state.forget();
            state.failed = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl<I: Read + Write + Unpin> State<I> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let written = Pin::new(&mut self.io).poll_write(cx, &self.waiting[self.sent..]);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        self.forget();
        Poll::Ready(Ok(()))
    }

    /// Nothing waits any more.
    fn forget(&mut self) {
        self.sent = 0;
        self.waiting.clear();
        if self.waiting.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.waiting));
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.waiting.len() - self.sent >= MOST {
            ready!(self.poll_send(cx))?;
        }
        if total >= LARGE {
            ready!(self.poll_send(cx))?;
            return Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        }
        if self.waiting.capacity() == 0 {
            self.waiting = SPARE.take();
            self.waiting.reserve(MOST + LARGE);
        }
        for slice in slices {
            self.waiting.extend_from_slice(slice);
        }
        Poll::Ready(Ok(total))
    }
}

impl<I: Read + Write + Unpin> Read for Gathered<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if let Some(error) = state.failed.take() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut state.io).poll_read(cx, buf)
    }
}

impl<I: Read + Write + Unpin> Write for Gathered<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        ready!(state.poll_send(cx))?;
        Pin::new(&mut state.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(cx, bufs)
    }
}

#[cfg(test)]
mod tests;
