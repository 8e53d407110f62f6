//! One HTTP/1 connection upstream, driven by the task whose request it carries.
//!
//! No task of its own: what hyper would wake a second task for happens in the poll that the request waits in. Only when
//! the response begins before the request has ended does the connection get a task, because then the request must go on
//! even when nobody takes the response.

use std::{
    error::Error,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use ::http::{Method, Request, Response, StatusCode, Version};
use bytes::Bytes;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::http1::{Builder, Connection, SendRequest},
};
use tokio::time::Instant;

use super::{
    Held, RequestBody, SendFailed, Take,
    body::{Upgraded, UpstreamBody},
    endpoint::Endpoint,
    exchange::{Exchange, unwoken},
    message,
};
use crate::{model::ConnectionPool, proxy::http::io::Io, telemetry::Reason};

/// Bytes of the head of a response, and of what is read or written at once.
const BUFFER: usize = 64 << 10;
/// Polls of the connection in a row before others get their turn.
const TURNS: usize = 4;

/// One connection.
pub(super) struct Http1<B: RequestBody> {
    requests: SendRequest<Sending<B>>,
    /// `None`: it has ended.
    connection: Option<Connection<Io, Sending<B>>>,
    /// What was left when it ended, with bytes that were read too far.
    rest: Option<(Io, Bytes)>,
    exchange: Arc<Exchange>,
    waker: Waker,
    endpoint: Arc<Endpoint<B>>,
    pub(super) held: Held,
    pub(super) options: ConnectionPool,
    pub(super) born: Instant,
    pub(super) idle_since: Instant,
    pub(super) served: u32,
    /// It has been idle in the pool.
    pub(super) reused: bool,
    /// For so long, when it was taken.
    pub(super) rested: Duration,
}

impl<B: RequestBody> Http1<B> {
    pub(super) async fn new(
        io: Io,
        held: Held,
        endpoint: &Arc<Endpoint<B>>,
        options: &ConnectionPool,
    ) -> Result<Box<Self>, Reason> {
        let exchange = Exchange::new(Arc::clone(&endpoint.stirred));
        let io = io.noting(Arc::clone(&exchange));
        let mut builder = Builder::new();
        // At most 100 header fields, hyper's own limit: to state one, even this, costs a filled table for each response.
        builder.max_buf_size(BUFFER);
        // Does nothing on the wire.
        let (requests, connection) = builder.handshake(io).await.map_err(|error| {
            tracing::warn!(%error, "cannot set up an upstream connection");
            Reason::Internal
        })?;
        let now = Instant::now();
        Ok(Box::new(Self {
            requests,
            connection: Some(connection),
            rest: None,
            waker: Waker::from(Arc::clone(&exchange)),
            exchange,
            endpoint: Arc::clone(endpoint),
            held,
            options: *options,
            born: now,
            idle_since: now,
            served: 0,
            reused: false,
            rested: Duration::ZERO,
        }))
    }

    /// Sends a request, returns the head of the response.
    pub(super) async fn send(
        mut self: Box<Self>,
        request: Request<B>,
    ) -> Result<Response<UpstreamBody>, SendFailed<B>> {
        self.exchange.begin();
        self.served += 1;
        let connects = *request.method() == Method::CONNECT;
        let mut request = request.map(|body| Sending::new(body, &self.exchange));
        message::for_http1(&mut request);
        self.exchange.hold();
        let mut response = pin!(self.requests.try_send_request(request));
        let result = poll_fn(|cx| self.drive(cx, |_| response.as_mut().poll(&mut unwoken()))).await;
        match result {
            Ok(response) => Ok(self.answered(response, connects)),
            Err(mut failed) => {
                let request = failed.take_message().map(unwrapped);
                let error = failed.into_error();
                Err(self.failed(&error, request))
            }
        }
    }

    /// Polls the connection until `inner` is ready, which nothing else can make it.
    fn drive<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut inner: impl FnMut(&mut Self) -> Poll<T>,
    ) -> Poll<T> {
        for _ in 0..TURNS {
            self.exchange.hold();
            self.poll_connection();
            if let Poll::Ready(result) = inner(self) {
                return Poll::Ready(result);
            }
            if self.exchange.wait(cx) {
                return Poll::Pending;
            }
        }
        // Busy without getting on: others first.
        self.exchange.hold();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_connection(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let ended = Pin::new(connection).poll(&mut Context::from_waker(&self.waker));
        if let Poll::Ready(result) = ended {
            if let Err(error) = result {
                tracing::debug!(%error, "an upstream connection failed");
            }
            // Dropping it answers whoever still waits for it.
            self.rest = self.connection.take().map(|connection| {
                let parts = connection.into_parts();
                (parts.io, parts.read_buf)
            });
        }
    }

    /// The exchange has ended both ways, and the next one may begin.
    fn is_idle(&self) -> bool {
        self.connection.is_some() && self.requests.is_ready()
    }

    fn answered(
        mut self: Box<Self>,
        response: Response<Incoming>,
        connects: bool,
    ) -> Response<UpstreamBody> {
        let (mut parts, incoming) = response.into_parts();
        parts.version = Version::HTTP_11;
        let status = parts.status;
        let upgrades =
            status == StatusCode::SWITCHING_PROTOCOLS || (connects && status.is_success());
        let body = if upgrades {
            // hyper has let go of the connection with the head; if not, it does when polled.
            self.poll_connection();
            match self.rest.take() {
                Some((io, prefix)) => UpstreamBody::upgraded(Upgraded::Io {
                    io,
                    prefix,
                    held: self.held.take(),
                }),
                None => UpstreamBody::broken(),
            }
        } else if self.is_idle() {
            let body = UpstreamBody::buffered(incoming);
            self.park();
            body
        } else if self.connection.is_none() {
            let body = UpstreamBody::buffered(incoming);
            self.finish();
            body
        } else if self.exchange.is_request_done() {
            UpstreamBody::driven(self, incoming)
        } else {
            let exchange = Arc::clone(&self.exchange);
            let is_request_done = Box::new(move || exchange.is_request_done());
            let endpoint = Arc::clone(&self.endpoint);
            let task = endpoint.tasks.spawn(async move {
                let mut this = self;
                poll_fn(|cx| {
                    this.drive(cx, |this| {
                        if this.is_idle() || this.connection.is_none() {
                            Poll::Ready(())
                        } else {
                            Poll::Pending
                        }
                    })
                })
                .await;
                this.release();
            });
            UpstreamBody::spawned(incoming, task, is_request_done)
        };
        Response::from_parts(parts, body)
    }

    fn failed(&self, error: &hyper::Error, request: Option<Request<B>>) -> SendFailed<B> {
        tracing::debug!(error = error as &dyn Error, "a request failed upstream");
        let reason = match self.exchange.fault() {
            Some(reason) => reason,
            // The body of the request broke off; its owner knows why.
            None if error.is_user() => Reason::ClientReset,
            None if error.is_parse() || error.is_parse_too_large() => Reason::UpstreamProtocol,
            None => Reason::UpstreamReset,
        };
        let stale = self.reused && !self.exchange.has_received();
        if stale {
            self.endpoint.note_closed_after(self.rested);
        }
        SendFailed {
            reason,
            // The last: the destination's agent says so.
            nothing_sent: request.is_some()
                || !self.exchange.has_sent()
                || reason == Reason::UnreachableByPeer,
            reused: stale,
            refused_stream: false,
            request,
        }
    }

    /// A connection that has carried nothing yet goes to the pool.
    pub(super) fn settle(mut self: Box<Self>) {
        self.exchange.hold();
        self.poll_connection();
        self.release();
    }

    /// Back to the pool, or to its end.
    fn release(self: Box<Self>) {
        if self.is_idle() {
            self.park();
        } else {
            self.finish();
        }
    }

    fn park(mut self: Box<Self>) {
        let now = Instant::now();
        self.idle_since = now;
        self.reused = true;
        if self.is_worn(now) {
            return self.finish();
        }
        if !self.exchange.park() {
            // Something came at the last moment.
            self.exchange.hold();
            self.poll_connection();
            if !self.is_idle() || !self.exchange.park() {
                return self.finish();
            }
        }
        let endpoint = Arc::clone(&self.endpoint);
        if let Err(surplus) = endpoint.put(self) {
            surplus.finish();
        }
    }

    /// No more requests may be put on it.
    pub(super) fn is_worn(&self, now: Instant) -> bool {
        let options = &self.options;
        let full = options.max_requests_per_connection;
        full.is_some_and(|most| self.served >= most)
            || options
                .max_connection_age
                .is_some_and(|age| now - self.born >= age)
    }

    /// Idle for too long, or worn by options that have changed.
    pub(super) fn is_expired(&self, now: Instant, idle_timeout: Duration) -> bool {
        now - self.idle_since >= idle_timeout || self.is_worn(now)
    }

    /// How long it rested: until something happened on it, or until now.
    pub(super) fn rested(&self, now: Instant) -> Duration {
        let stirred = self.exchange.is_stirred();
        let until = self.exchange.stirred_at().filter(|_| stirred);
        until.unwrap_or(now) - self.idle_since
    }

    /// Takes it out of the pool; false: it is dead. Before a request that must not meet a closed one the socket itself
    /// is asked: what the kernel knows of it may not have got to us yet.
    pub(super) fn wake_up(&mut self, take: Take) -> bool {
        let stirred = self.exchange.is_stirred();
        self.rested = self.rested(Instant::now());
        self.exchange.hold();
        let closely = take == Take::Young;
        if closely {
            self.exchange.look_closely(true);
        }
        if stirred || closely {
            self.poll_connection();
        }
        if closely {
            self.exchange.look_closely(false);
        }
        self.is_idle()
    }

    /// Something happened on it while it was idle.
    pub(super) fn is_stirred(&self) -> bool {
        self.exchange.is_stirred()
    }

    /// Looks what it was that happened while it was idle; false: it is dead.
    pub(super) fn still_lives(&mut self) -> bool {
        self.exchange.hold();
        self.poll_connection();
        self.is_idle() && self.exchange.park()
    }

    /// Nothing is owed on it any more.
    pub(super) fn finish(mut self: Box<Self>) {
        let io = match (self.connection.take(), self.rest.take()) {
            (Some(connection), _) => connection.into_parts().io,
            (None, Some((io, _))) => io,
            (None, None) => return,
        };
        if let Some(closing) = io.finish() {
            let held = self.held.take();
            self.endpoint.tasks.spawn_detached(async move {
                closing.await;
                drop(held);
            });
        }
    }
}

/// A connection behind a response body, whatever its requests look like.
pub(super) trait Drive: Send {
    /// The next frame; the connection goes back to the pool as soon as it can, which leaves `None` in its place.
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>>;

    /// Both messages have ended.
    fn is_over(&self) -> bool;

    fn release(self: Box<Self>);

    fn fault(&self) -> Option<Reason>;
}

impl<B: RequestBody> Drive for Http1<B> {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // What is there already comes first; then the connection is not asked, and back-pressure is what that makes.
        self.exchange.hold();
        if let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(&mut unwoken()) {
            return Poll::Ready(frame);
        }
        self.drive(cx, |_| Pin::new(&mut *incoming).poll_frame(&mut unwoken()))
    }

    fn is_over(&self) -> bool {
        self.connection.is_none() || self.is_idle()
    }

    fn release(self: Box<Self>) {
        Http1::release(self);
    }

    fn fault(&self) -> Option<Reason> {
        self.exchange.fault()
    }
}

/// The body of a request, which tells when hyper has taken it whole.
pub(super) struct Sending<B> {
    body: B,
    exchange: Option<Arc<Exchange>>,
}

impl<B: RequestBody> Sending<B> {
    fn new(body: B, exchange: &Arc<Exchange>) -> Self {
        let exchange = if body.is_end_stream() {
            exchange.note_request_done();
            None
        } else {
            Some(Arc::clone(exchange))
        };
        Self { body, exchange }
    }

    fn done(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.note_request_done();
        }
    }
}

fn unwrapped<B>(request: Request<Sending<B>>) -> Request<B> {
    request.map(|sending| sending.body)
}

impl<B: RequestBody> HttpBody for Sending<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // A chunk that hyper can not write at once may be the end for it, but not for the upstream.
        let large = matches!(&frame, Some(Ok(frame)) if frame.data_ref().is_some_and(|data| data.len() > BUFFER));
        if frame.is_none() || (self.body.is_end_stream() && !large) {
            self.done();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
