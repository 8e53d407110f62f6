//! The one body type: what hyper sends to clients and to upstreams.
//!
//! `replay` is the request on its way up, kept as far as it may have to be sent again; `relay` is the response on its way
//! down, watched to its end; `cut` says what it means when a stream breaks off.

mod copy;
mod cut;
mod expect;
mod relay;
mod replay;
#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

#[cfg(test)]
pub(super) use self::replay::{CLIENT_SILENCE, CONTINUE_WAIT};
pub(in crate::proxy) use self::{
    cut::Cut,
    expect::pass_expectation,
    relay::{End, Finish, Relay, Timed, Times, grpc_status},
    replay::{Attempt, Replay, Sent},
};
use super::{pool::UpstreamBody, running::Running};
use crate::telemetry::Reason;

/// A request's or a response's body.
#[derive(Default)]
pub(in crate::proxy) enum Body {
    #[default]
    Empty,
    /// Bytes that the proxy wrote itself.
    Fixed(Bytes),
    /// A client's request, as one attempt sends it.
    Attempt(Attempt),
    /// A client's request, as it comes, for one who listens in.
    Copy(copy::Copy),
    /// An upstream's response.
    Relay(Box<Relay<dyn Finish>>),
    /// An upstream's response that must end in time.
    Timed(Timed),
}

impl Body {
    /// A response that a change of policy ends.
    pub(in crate::proxy) fn until(mut self, running: Arc<Running>) -> Self {
        if let Self::Relay(relay) = &mut self {
            relay.until(running);
        }
        self
    }

    pub(in crate::proxy) fn fixed(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            Self::Empty
        } else {
            Self::Fixed(bytes)
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Empty => "Empty",
            Self::Fixed(_) => "Fixed",
            Self::Attempt(_) => "Attempt",
            Self::Copy(_) => "Copy",
            Self::Relay(_) | Self::Timed(_) => "Relay",
        };
        f.debug_tuple("Body").field(&kind).finish()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Fixed(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Attempt(attempt) => attempt.poll_frame(cx),
            Self::Copy(copy) => copy.poll_frame(cx),
            Self::Relay(relay) => relay.poll_frame(cx),
            Self::Timed(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Fixed(bytes) => bytes.is_empty(),
            Self::Attempt(attempt) => attempt.is_end_stream(),
            Self::Copy(copy) => copy.is_end_stream(),
            Self::Relay(relay) => relay.is_end_stream(),
            Self::Timed(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Fixed(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Attempt(attempt) => attempt.size_hint(),
            Self::Copy(copy) => copy.size_hint(),
            Self::Relay(relay) => relay.size_hint(),
            Self::Timed(relay) => relay.size_hint(),
        }
    }
}

/// Why a body was cut short. hyper ends an HTTP/1 connection with it, and resets an HTTP/2 stream with the code that it
/// finds as the source.
#[derive(Debug, thiserror::Error)]
#[error("the body was cut short: {reason}")]
pub(in crate::proxy) struct BodyError {
    pub(in crate::proxy) reason: Reason,
    #[source]
    code: h2::Error,
}

impl BodyError {
    fn new(reason: Reason, code: h2::Reason) -> Self {
        Self {
            reason,
            code: code.into(),
        }
    }
}

/// Where the frames of a body come from.
pub(in crate::proxy) enum Source {
    Incoming(Incoming),
    Upstream(UpstreamBody),
    /// With the frame that was looked at.
    Peeked(Option<Frame<Bytes>>, UpstreamBody),
    #[cfg(test)]
    Script(script::Script),
}

impl From<Incoming> for Source {
    fn from(incoming: Incoming) -> Self {
        Self::Incoming(incoming)
    }
}

impl From<UpstreamBody> for Source {
    fn from(body: UpstreamBody) -> Self {
        Self::Upstream(body)
    }
}

impl From<(Option<Frame<Bytes>>, UpstreamBody)> for Source {
    fn from((peeked, body): (Option<Frame<Bytes>>, UpstreamBody)) -> Self {
        match peeked {
            None => Self::Upstream(body),
            peeked => Self::Peeked(peeked, body),
        }
    }
}

fn poll_upstream(
    body: &mut UpstreamBody,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
    Pin::new(body)
        .poll_frame(cx)
        .map_err(|error| match Cut::of(&error) {
            Cut::Connection => Cut::Lost(error.reason),
            known => known,
        })
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self {
            Self::Incoming(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map_err(|error| Cut::of(&error)),
            Self::Peeked(frame, body) => match frame.take() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => poll_upstream(body, cx),
            },
            Self::Upstream(body) => poll_upstream(body, cx),
            #[cfg(test)]
            Self::Script(script) => script.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Peeked(frame, body) => frame.is_none() && body.is_end_stream(),
            #[cfg(test)]
            Self::Script(script) => script.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Upstream(body) => body.size_hint(),
            // gRPC has no declared lengths.
            Self::Peeked(..) => SizeHint::default(),
            #[cfg(test)]
            Self::Script(script) => script.size_hint(),
        }
    }
}
