//! A stream of a tunnel as a stream of bytes that are read, written and shut down, for protocols that are spoken through
//! it.
//!
//! Bounded memory as in `carry`: nothing is taken to be sent before the stream has room for it, and the peer's window is
//! opened again only for what the reader has taken.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    TunnelStream,
    stream::{Gone, Received, Stream},
};
use crate::telemetry::Reason;

/// Bytes that one write takes.
const WRITE: usize = 64 * 1024;

/// The tunnel as a whole went away, and the stream with it; or the other agent says of the stream more than that it is gone.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel is gone: {0}")]
pub(in crate::proxy) struct TunnelGone(pub(in crate::proxy) Reason);

/// Dropped before both ends have gone through it is reset, as the stream is.
#[derive(Debug)]
pub(in crate::proxy) struct TunnelBytes {
    stream: Stream,
    /// Received and not read yet.
    unread: Bytes,
    read_ended: bool,
    write_ended: bool,
}

impl From<TunnelStream> for TunnelBytes {
    fn from(stream: TunnelStream) -> Self {
        Self {
            stream: stream.stream,
            unread: Bytes::new(),
            read_ended: false,
            write_ended: false,
        }
    }
}

impl TunnelBytes {
    /// What has come, to be taken with [`Self::consume`]; empty at the end. Waits for it.
    pub(in crate::proxy) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        while self.unread.is_empty() && !self.read_ended {
            match ready!(self.stream.poll_receive(cx)) {
                Ok(Received::Data(data)) => self.unread = data,
                Ok(Received::End) | Err(Gone::Ended) => self.read_ended = true,
                Err(gone) => return Poll::Ready(Err(error(gone))),
            }
        }
        Poll::Ready(Ok(&self.unread))
    }

    pub(in crate::proxy) fn consume(&mut self, taken: usize) {
        self.unread.advance(taken);
        self.stream.release(taken);
    }

    /// Takes what there is room for.
    pub(in crate::proxy) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let want = slices.iter().map(|s| s.len()).sum::<usize>().min(WRITE);
        if want == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.stream.poll_room(cx, want)).map_err(write_error)?;
        let mut data = BytesMut::with_capacity(room);
        for slice in slices {
            let left = room - data.len();
            data.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        self.stream.send(data.freeze()).map_err(write_error)?;
        Poll::Ready(Ok(room))
    }

    /// Ends what is sent. What was written before goes out first.
    pub(in crate::proxy) fn shutdown(&mut self) -> io::Result<()> {
        if self.write_ended {
            return Ok(());
        }
        self.stream.give_room_back();
        self.stream.send_end().map_err(write_error)?;
        self.write_ended = true;
        Ok(())
    }

    /// See [`Stream::refuse_when`].
    pub(in crate::proxy) fn refuse_when(&mut self, refuses: Arc<AtomicBool>) {
        self.stream.refuse_when(refuses);
    }

    /// Drops it without a reset, although the peer may not have ended.
    pub(in crate::proxy) fn close(self) {
        self.stream.close();
    }
}

fn error(gone: Gone) -> io::Error {
    match gone {
        Gone::Ended | Gone::Reset => io::ErrorKind::ConnectionReset.into(),
        Gone::Refused => {
            let gone = TunnelGone(Reason::UnreachableByPeer);
            io::Error::new(io::ErrorKind::ConnectionReset, gone)
        }
        Gone::Tunnel(reason) => io::Error::new(io::ErrorKind::ConnectionReset, TunnelGone(reason)),
    }
}

/// A peer that has dropped the stream takes nothing more, but what it said before can still be read.
fn write_error(gone: Gone) -> io::Error {
    match gone {
        Gone::Ended => io::ErrorKind::BrokenPipe.into(),
        gone => error(gone),
    }
}
