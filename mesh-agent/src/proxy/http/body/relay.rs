//! An upstream's response on its way to the client, watched to its end.
//!
//! Counts bytes and reads grpc-status out of the trailers; `timed` keeps the deadlines of the request. Whatever happens,
//! its [`Finish`] hears of the end exactly once: also when the client goes away and hyper drops the body.

mod timed;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::http::{HeaderMap, HeaderValue, StatusCode, response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

pub(in crate::proxy) use self::timed::Timed;
use super::{Body, BodyError, Sent, Source};
use crate::proxy::http::running::Running;
use crate::telemetry::{Reason, RequestBytes};

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct End {
    /// [`Reason::Completed`] or what cut it.
    pub(in crate::proxy) reason: Reason,
    /// From the headers or the trailers.
    pub(in crate::proxy) grpc_status: Option<u32>,
    /// The upstream has sent the whole response.
    pub(in crate::proxy) complete: bool,
}

/// Hears of the end, exactly once.
pub(in crate::proxy) trait Finish: Send {
    fn finish(&mut self, end: End);
}

impl<F: FnMut(End) + Send> Finish for F {
    fn finish(&mut self, end: End) {
        self(end);
    }
}

/// What bounds a response in time; `None` is no bound.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::proxy) struct Times {
    /// From the first time that the request has gone out whole.
    pub(in crate::proxy) request: Option<Duration>,
    /// From the time that this attempt's request has.
    pub(in crate::proxy) attempt: Option<Duration>,
    /// The client's own deadline (grpc-timeout).
    pub(in crate::proxy) client: Option<Instant>,
    /// `timeouts.maxStream`, as a time.
    pub(in crate::proxy) stream: Option<Instant>,
    /// Nothing moves in either direction.
    pub(in crate::proxy) idle: Option<Duration>,
}

impl Times {
    pub(in crate::proxy) fn any(&self) -> bool {
        self.request.is_some()
            || self.attempt.is_some()
            || self.client.is_some()
            || self.stream.is_some()
            || self.idle.is_some()
    }

    /// The deadline that comes first of those that run already, and what it means. `answer`: when something of the
    /// response moved last.
    pub(in crate::proxy) fn next(
        &self,
        sent: &Sent,
        answer: Option<Instant>,
    ) -> Option<(Instant, Reason)> {
        let after = |from: Option<Instant>, wait: Duration| Some(from? + wait);
        let request = self.request.and_then(|w| after(sent.first_handed(), w));
        let attempt = self.attempt.and_then(|w| after(sent.handed(), w));
        let idle = self
            .idle
            .and_then(|w| after(answer.max(Some(sent.moved())), w));
        [
            (request, Reason::RequestTimeout),
            (self.client, Reason::DeadlineExceeded),
            (attempt, Reason::AttemptTimeout),
            (self.stream, Reason::StreamTimeout),
            (idle, Reason::IdleTimeout),
        ]
        .into_iter()
        .filter_map(|(at, reason)| Some((at?, reason)))
        .min_by_key(|(at, _)| *at)
    }
}

/// The body of a response towards the client.
pub(in crate::proxy) struct Relay<F: Finish + ?Sized> {
    source: Option<Source>,
    bytes: Arc<RequestBytes>,
    sent: Sent,
    times: Times,
    moved: Instant,
    /// The request was gRPC and so is the answer: it must end with a status.
    grpc: bool,
    grpc_status: Option<u32>,
    /// Ends it when policy does.
    running: Option<Arc<Running>>,
    finished: bool,
    finish: F,
}

impl<F: Finish + 'static> Relay<F> {
    /// `grpc`: the request was gRPC.
    pub(in crate::proxy) fn body(
        head: &response::Parts,
        source: impl Into<Source>,
        grpc: bool,
        sent: Sent,
        times: Times,
        bytes: Arc<RequestBytes>,
        finish: F,
    ) -> Body {
        let mut relay = Self {
            source: Some(source.into()),
            bytes,
            sent,
            times,
            moved: Instant::now(),
            // Clients of gRPC read another HTTP status instead of a grpc-status.
            grpc: grpc && head.status == StatusCode::OK,
            grpc_status: grpc_status(&head.headers),
            running: None,
            finished: false,
            finish,
        };
        if relay.is_end_stream() {
            // hyper does not poll what has ended.
            relay.complete();
            return Body::Empty;
        }
        if times.any() {
            Body::Timed(Timed::start(Box::new(relay)))
        } else {
            Body::Relay(Box::new(relay))
        }
    }
}

impl<F: Finish + ?Sized> Relay<F> {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(running) = &self.running
            && running.poll_cut(cx).is_ready()
        {
            self.end(Reason::PolicyDenied, false);
            let cut = BodyError::new(Reason::PolicyDenied, h2::Reason::CANCEL);
            return Poll::Ready(Some(Err(cut)));
        }
        let Some(source) = &mut self.source else {
            return Poll::Ready(None);
        };
        match source.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if self.times.idle.is_some() {
                    self.moved = Instant::now();
                }
                let ended = source.is_end_stream();
                if let Some(data) = frame.data_ref() {
                    self.bytes.add_response(data.len() as u64);
                    if ended {
                        self.complete();
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.grpc_status = grpc_status(trailers).or(self.grpc_status);
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cut))) => {
                let reason = cut.of_upstream();
                self.end(reason, false);
                Poll::Ready(Some(Err(BodyError::new(reason, cut.code()))))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// From here on a change of policy ends it.
    pub(super) fn until(&mut self, running: Arc<Running>) {
        self.running = Some(running);
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(Source::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.source
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Source::size_hint)
    }

    fn next_deadline(&self) -> Option<(Instant, Reason)> {
        self.times.next(&self.sent, Some(self.moved))
    }

    /// A deadline has passed: lets the upstream go. What the client gets for it is [`Self::farewell`].
    fn expire(&mut self, reason: Reason) {
        if self.grpc {
            self.grpc_status = Some(DEADLINE_EXCEEDED);
        }
        self.end(reason, false);
    }

    /// The last frame after a deadline. HTTP/1 and HTTP/2 have only the cut to say it with, gRPC has trailers.
    fn farewell(&self, reason: Reason) -> Result<Frame<Bytes>, BodyError> {
        if !self.grpc {
            return Err(BodyError::new(reason, h2::Reason::CANCEL));
        }
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from(DEADLINE_EXCEEDED));
        trailers.insert("grpc-message", HeaderValue::from_static(reason.as_str()));
        Ok(Frame::trailers(trailers))
    }

    /// The upstream has sent everything.
    fn complete(&mut self) {
        let reason = if self.grpc && self.grpc_status.is_none() {
            // To the client it goes as it came: its library says the same, and an invented status would hide the fault.
            Reason::GrpcStatusMissing
        } else {
            Reason::Completed
        };
        self.end(reason, true);
    }

    fn end(&mut self, reason: Reason, complete: bool) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        // Before the report, so that what is reported as over holds no connection and no permit.
        self.source = None;
        self.running = None;
        self.sent.close();
        self.finish.finish(End {
            reason,
            grpc_status: self.grpc_status,
            complete,
        });
    }
}

impl<F: Finish + ?Sized> Drop for Relay<F> {
    fn drop(&mut self) {
        self.end(Reason::ClientReset, false);
    }
}

const DEADLINE_EXCEEDED: u32 = 4;

/// `grpc-status`, in the headers or the trailers of a response.
pub(in crate::proxy) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
