//! One carried connection's stream of a tunnel.
//!
//! How the ends of TCP and HTTP/2 map to one another (RFC 9113 8.5):
//!
//! | TCP leg | stream |
//! | --- | --- |
//! | FIN | END_STREAM, both ways |
//! | RST, an error of the socket | RST_STREAM CONNECT_ERROR |
//! | a request that reached no application | RST_STREAM REFUSED_STREAM (docs/adr/0013) |
//! | RST | RST_STREAM with any code but the two below; GOAWAY that leaves the stream out; the tunnel's end |
//! | what came is delivered, then FIN | RST_STREAM NO_ERROR or CANCEL |
//!
//! Peers built on h2 send CANCEL when they merely drop a stream, and NO_ERROR when a server is done before its client,
//! so both read as an end; ztunnel takes them the same way. Our agents send neither: a stream that is dropped, by abort
//! or panic too, sends CONNECT_ERROR, so what was cut never looks as if it had ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use super::link::Link;
use crate::telemetry::Reason;

/// Both halves. Dropped before both have ended, it is reset.
#[derive(Debug)]
pub(super) struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    link: Arc<Link>,
    /// Received and only looked at.
    early: Bytes,
    sent_end: bool,
    received_end: bool,
    refuses: Option<Arc<AtomicBool>>,
}

/// Why a stream is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// RST_STREAM that reads as an end.
    Ended,
    /// RST_STREAM that reads as RST.
    Reset,
    /// The same, and nothing of the request that was under way has reached the application.
    Refused,
    /// The tunnel as a whole.
    Tunnel(Reason),
}

/// What came from the stream.
pub(super) enum Received {
    Data(Bytes),
    End,
}

impl Stream {
    /// The stream was counted by its link already.
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, link: Arc<Link>) -> Self {
        Self {
            send,
            recv,
            link,
            early: Bytes::new(),
            sent_end: false,
            received_end: false,
            refuses: None,
        }
    }

    /// Should it be dropped while this is true, it says that nothing of what was under way has reached the application.
    pub(super) fn refuse_when(&mut self, refuses: Arc<AtomicBool>) {
        self.refuses = Some(refuses);
    }

    /// Asks for room to send `want` bytes, both of the peer's windows and of our own buffer; what there is of it now.
    /// With nothing the caller is woken when there is some.
    pub(super) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        want: usize,
    ) -> Poll<Result<usize, Gone>> {
        self.send.reserve_capacity(want);
        loop {
            let room = self.send.capacity().min(want);
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match self.send.poll_capacity(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.gone(&error))),
                Poll::Ready(None) => {
                    return match self.send.poll_reset(cx) {
                        Poll::Ready(Ok(code)) => Poll::Ready(Err(gone_by(code))),
                        Poll::Ready(Err(error)) => Poll::Ready(Err(self.gone(&error))),
                        Poll::Pending => Poll::Ready(Err(Gone::Tunnel(self.why()))),
                    };
                }
            }
        }
    }

    /// Gives room back that is not used: the window of the tunnel is for all its streams.
    pub(super) fn give_room_back(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Not more than there is room for.
    pub(super) fn send(&mut self, data: Bytes) -> Result<(), Gone> {
        self.send
            .send_data(data, false)
            .map_err(|error| self.gone(&error))
    }

    pub(super) fn send_end(&mut self) -> Result<(), Gone> {
        let sent = self.send.send_data(Bytes::new(), true);
        sent.map_err(|error| self.gone(&error))?;
        self.sent_end = true;
        Ok(())
    }

    /// What came first, which stays to be received: all there is of it, once it is more than `have` bytes or nothing more
    /// comes.
    pub(super) fn poll_peek(
        &mut self,
        cx: &mut Context<'_>,
        have: usize,
    ) -> Poll<Result<Bytes, Gone>> {
        while self.early.len() <= have && !self.received_end {
            match self.recv.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(data))) if self.early.is_empty() => self.early = data,
                Poll::Ready(Some(Ok(data))) => {
                    self.early = [&*self.early, &*data].concat().into();
                }
                Poll::Ready(None) => self.received_end = true,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.gone(&error))),
            }
        }
        Poll::Ready(Ok(self.early.clone()))
    }

    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, Gone>> {
        if !self.early.is_empty() {
            return Poll::Ready(Ok(Received::Data(std::mem::take(&mut self.early))));
        }
        if self.received_end {
            return Poll::Ready(Ok(Received::End));
        }
        match self.recv.poll_data(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(data))) => Poll::Ready(Ok(Received::Data(data))),
            // Trailers have no meaning here.
            Poll::Ready(None) => {
                self.received_end = true;
                Poll::Ready(Ok(Received::End))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(self.gone(&error))),
        }
    }

    /// Lets the peer send so many bytes more.
    pub(super) fn release(&mut self, taken: usize) {
        // Fails on a stream that is gone: then nobody waits for it.
        let _ = self.recv.flow_control().release_capacity(taken);
    }

    /// Resolves when the stream is reset; to be asked while nothing is received from it.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        match self.send.poll_reset(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(code)) => Poll::Ready(gone_by(code)),
            Poll::Ready(Err(error)) => Poll::Ready(self.gone(&error)),
        }
    }

    /// Both ends have gone through, or nothing is left that could be cut off.
    pub(super) fn close(mut self) {
        self.sent_end = true;
        self.received_end = true;
    }

    fn gone(&self, error: &h2::Error) -> Gone {
        if error.is_reset()
            && let Some(code) = error.reason()
        {
            return gone_by(code);
        }
        tracing::debug!(%error, "the tunnel of a stream is gone");
        Gone::Tunnel(self.why())
    }

    fn why(&self) -> Reason {
        self.link.was_cut().unwrap_or(Reason::TunnelBroken)
    }
}

fn gone_by(code: h2::Reason) -> Gone {
    match code {
        h2::Reason::NO_ERROR | h2::Reason::CANCEL => Gone::Ended,
        h2::Reason::REFUSED_STREAM => Gone::Refused,
        _ => Gone::Reset,
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !(self.sent_end && self.received_end) {
            let refuses = self.refuses.as_ref();
            self.send.send_reset(match refuses {
                Some(refuses) if refuses.load(Ordering::Relaxed) => h2::Reason::REFUSED_STREAM,
                _ => h2::Reason::CONNECT_ERROR,
            });
        }
        self.link.remove_stream();
    }
}
