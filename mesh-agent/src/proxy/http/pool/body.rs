//! The body of a response on its way from a pooled connection, and the connection itself after an upgrade.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::h2::{RecvStream, SendStream};
use ::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::{
    Held,
    exchange::{deaf, unwoken},
    http1::Drive,
    http2::Slot,
    tasks::Task,
};
use crate::{proxy::http::io::Io, telemetry::Reason};

/// Why a response broke off.
#[derive(Debug, thiserror::Error)]
#[error("the response broke off: {reason}")]
pub(in crate::proxy) struct UpstreamError {
    /// Of the connection, where more is known than that it is gone.
    pub(in crate::proxy) reason: Reason,
    #[source]
    source: Source,
}

#[derive(Debug, thiserror::Error)]
enum Source {
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] ::h2::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Holds what the connection needs to go back to the pool. Dropped before its end, an HTTP/1 connection is reset and an
/// HTTP/2 stream cancelled.
pub(in crate::proxy) struct UpstreamBody(State);

enum State {
    /// All there is; the connection has gone its way.
    Buffered {
        data: Option<Bytes>,
        trailers: Option<HeaderMap>,
        error: Option<hyper::Error>,
    },
    Driven {
        incoming: Incoming,
        connection: Box<dyn Drive>,
    },
    /// The connection has a task, because the request has not ended.
    Spawned {
        incoming: Incoming,
        task: Task,
        is_request_done: Box<dyn Fn() -> bool + Send + Sync>,
    },
    Stream(Box<Stream>),
    Upgraded(Box<Upgraded>),
    Broken,
}

struct Stream {
    receive: RecvStream,
    data_done: bool,
    left: Option<u64>,
    slot: Slot,
    _upload: Option<Task>,
}

/// A connection that speaks another protocol from here on.
pub(in crate::proxy) enum Upgraded {
    Io {
        io: Io,
        /// Read already.
        prefix: Bytes,
        held: Held,
    },
    Stream {
        send: SendStream<Bytes>,
        receive: RecvStream,
        slot: Slot,
    },
}

impl UpstreamBody {
    /// Of an exchange that has ended on the connection: at most one chunk is left of it.
    pub(super) fn buffered(mut incoming: Incoming) -> Self {
        let mut data = None;
        let mut trailers = None;
        let mut error = None;
        // Taking what is left tells the connection that there is room again, which it does not care for any more.
        deaf(|| {
            while let Poll::Ready(Some(frame)) = Pin::new(&mut incoming).poll_frame(&mut unwoken())
            {
                match frame {
                    Ok(frame) => match frame.into_data() {
                        Ok(chunk) => data = Some(chunk),
                        Err(frame) => trailers = frame.into_trailers().ok(),
                    },
                    Err(failed) => {
                        error = Some(failed);
                        break;
                    }
                }
            }
        });
        Self(State::Buffered {
            data,
            trailers,
            error,
        })
    }

    pub(super) fn driven(connection: Box<dyn Drive>, incoming: Incoming) -> Self {
        Self(State::Driven {
            incoming,
            connection,
        })
    }

    pub(super) fn spawned(
        incoming: Incoming,
        task: Task,
        is_request_done: Box<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        Self(State::Spawned {
            incoming,
            task,
            is_request_done,
        })
    }

    pub(super) fn stream(
        receive: RecvStream,
        length: Option<&HeaderValue>,
        slot: Slot,
        upload: Option<Task>,
    ) -> Self {
        let left = length
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse().ok());
        Self(State::Stream(Box::new(Stream {
            receive,
            data_done: false,
            left,
            slot,
            _upload: upload,
        })))
    }

    pub(super) fn upgraded(upgraded: Upgraded) -> Self {
        Self(State::Upgraded(Box::new(upgraded)))
    }

    pub(super) fn broken() -> Self {
        Self(State::Broken)
    }

    /// The connection, when the response has made it another protocol's: 101 (Switching Protocols), or 2xx to CONNECT.
    #[allow(clippy::result_large_err)] // itself
    pub(in crate::proxy) fn into_upgraded(self) -> Result<Upgraded, Self> {
        match self.0 {
            State::Upgraded(upgraded) => Ok(*upgraded),
            other => Err(Self(other)),
        }
    }

    fn end(&mut self) {
        self.0 = State::Buffered {
            data: None,
            trailers: None,
            error: None,
        };
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            State::Buffered { .. } => "Buffered",
            State::Driven { .. } => "Driven",
            State::Spawned { .. } => "Spawned",
            State::Stream(_) => "Stream",
            State::Upgraded(_) => "Upgraded",
            State::Broken => "Broken",
        };
        f.debug_tuple("UpstreamBody").field(&state).finish()
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = &mut *self;
        match &mut this.0 {
            State::Buffered {
                data,
                trailers,
                error,
            } => {
                let frame = if let Some(data) = data.take() {
                    Some(Ok(Frame::data(data)))
                } else if let Some(error) = error.take() {
                    Some(Err(broken_off(error, None)))
                } else {
                    trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(trailers)))
                };
                Poll::Ready(frame)
            }
            State::Driven {
                incoming,
                connection,
            } => {
                let frame = ready!(connection.poll_frame(cx, incoming));
                let frame =
                    frame.map(|frame| frame.map_err(|error| broken_off(error, connection.fault())));
                if frame.is_none() || connection.is_over() {
                    let State::Driven {
                        incoming,
                        connection,
                    } = std::mem::replace(&mut this.0, State::Broken)
                    else {
                        return Poll::Ready(frame);
                    };
                    *this = Self::buffered(incoming);
                    connection.release();
                }
                Poll::Ready(frame)
            }
            State::Spawned {
                incoming,
                is_request_done,
                ..
            } => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                if frame.is_none() {
                    // The connection goes back by itself, unless the rest of the request is still to come: the upstream
                    // has said all it has to say, and the client need not go on.
                    let done = is_request_done();
                    let state = std::mem::replace(&mut this.0, State::Broken);
                    this.end();
                    if done && let State::Spawned { task, .. } = state {
                        task.leave();
                    }
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|error| broken_off(error, None))))
            }
            State::Stream(stream) => {
                let frame = ready!(stream.poll_frame(cx));
                let over = match &frame {
                    Some(Ok(frame)) => frame.is_trailers(),
                    Some(Err(_)) | None => true,
                };
                if over {
                    this.end();
                }
                Poll::Ready(frame)
            }
            // Nobody has taken it over: it is no body.
            State::Upgraded(_) | State::Broken => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Buffered {
                data,
                trailers,
                error,
            } => data.is_none() && trailers.is_none() && error.is_none(),
            State::Driven { incoming, .. } | State::Spawned { incoming, .. } => {
                incoming.is_end_stream()
            }
            State::Stream(stream) => stream.receive.is_end_stream(),
            State::Upgraded(_) | State::Broken => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Buffered {
                data,
                trailers: None,
                error: None,
            } => SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64)),
            State::Buffered { .. } => SizeHint::default(),
            State::Driven { incoming, .. } | State::Spawned { incoming, .. } => {
                incoming.size_hint()
            }
            State::Stream(stream) if stream.receive.is_end_stream() => SizeHint::with_exact(0),
            State::Stream(stream) => stream
                .left
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            State::Upgraded(_) | State::Broken => SizeHint::with_exact(0),
        }
    }
}

impl Stream {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        if !self.data_done {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails on a stream that is gone: then nobody waits for room.
                    let _ = self.receive.flow_control().release_capacity(data.len());
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.failed(error)),
                None => self.data_done = true,
            }
        }
        match ready!(self.receive.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(self.failed(error)),
        }
    }

    fn failed(&self, error: ::h2::Error) -> Option<Result<Frame<Bytes>, UpstreamError>> {
        // RFC 9113 8.1: the response is whole, and the rest of the request not wanted.
        if error.is_reset() && error.reason() == Some(::h2::Reason::NO_ERROR) {
            return None;
        }
        let reason = match self.slot.exchange().fault() {
            Some(reason) => reason,
            None if error.is_reset() && error.is_remote() => Reason::StreamReset,
            None if error.is_io() || error.is_remote() => Reason::UpstreamReset,
            None => Reason::UpstreamProtocol,
        };
        let source = error.into();
        Some(Err(UpstreamError { reason, source }))
    }
}

fn broken_off(error: hyper::Error, fault: Option<Reason>) -> UpstreamError {
    let invalid = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|io| {
            matches!(
                io.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
            )
        });
    let reason = match fault {
        Some(reason) => reason,
        None if invalid => Reason::UpstreamProtocol,
        None => Reason::UpstreamReset,
    };
    UpstreamError {
        reason,
        source: error.into(),
    }
}
