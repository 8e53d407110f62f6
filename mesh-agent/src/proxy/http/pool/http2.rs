//! One HTTP/2 connection upstream, shared by many requests, and the request that goes out on it.
//!
//! h2 is used without hyper: a request is put on the connection by its own task, where hyper would hand it to a second
//! one and have a third wait for the answer. One task drives the connection itself.

use std::{
    error::Error,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use ::h2::{
    Ping, PingPong, SendStream,
    client::{Builder, Connection, SendRequest},
};
use ::http::{Method, Request, Response, header::CONTENT_LENGTH};
use bytes::{Buf, Bytes};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::{
    Held, RequestBody, SendFailed,
    body::{Upgraded, UpstreamBody},
    exchange::{Exchange, unwoken},
    message::{self, Informational},
    tasks::Tasks,
};
use crate::{
    model::ConnectionPool,
    proxy::http::{gather::Gathered, io::Io},
    telemetry::Reason,
};

/// What one upstream may send before it is taken: on one stream, on all of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a request's body that wait to be written.
const SEND_BUFFER: usize = 256 << 10;
/// Bytes of the head of a response.
const MAX_HEAD: u32 = 64 << 10;
/// How often a plain connection with streams is asked whether it lives, and how long it may take to show it.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a new connection has to say what it takes.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// Stands for "the peer has not said yet how many streams it takes".
const UNSETTLED: usize = 1 << 24;

/// One connection, as those see it who put requests on it.
pub(super) struct Http2 {
    requests: SendRequest<Bytes>,
    exchange: Arc<Exchange>,
    /// Streams that are open.
    streams: AtomicU32,
    served: AtomicU32,
    /// Milliseconds after `born` when the last stream ended.
    idle_since: AtomicU64,
    pub(super) born: Instant,
    pub(super) worker: usize,
    pub(super) options: ConnectionPool,
    /// True once the peer's SETTINGS have come, or the connection has ended.
    pub(super) settled: watch::Sender<bool>,
    ended: AtomicBool,
    pub(super) held: Held,
}

/// A place for one stream.
pub(in crate::proxy) struct Slot {
    connection: Arc<Http2>,
    requests: SendRequest<Bytes>,
    /// The connection was idle, and had served before.
    reused: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let connection = &self.connection;
        let now = connection.born.elapsed().as_millis() as u64;
        connection.idle_since.store(now, Ordering::Relaxed);
        connection.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Http2 {
    /// A connection, and what drives it to its end.
    pub(super) async fn new(
        io: Io,
        held: Held,
        options: &ConnectionPool,
        exchange: Arc<Exchange>,
        worker: usize,
        plain: bool,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + use<>), Reason> {
        let io = Gathered::new(io.noting(Arc::clone(&exchange)));
        let sender = io.clone();
        let handshake = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(UNSETTLED)
            .enable_push(false)
            .handshake::<_, Bytes>(TokioIo::new(io))
            .await;
        let (requests, connection) = handshake.map_err(|error| {
            tracing::debug!(%error, "no HTTP/2 with an upstream");
            exchange.fault().unwrap_or(Reason::UpstreamReset)
        })?;
        let this = Arc::new(Self {
            requests,
            exchange,
            streams: AtomicU32::new(0),
            served: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            born: Instant::now(),
            worker,
            options: *options,
            settled: watch::Sender::new(false),
            ended: AtomicBool::new(false),
            held,
        });
        let driver = drive(Arc::downgrade(&this), connection, sender, plain);
        Ok((this, driver))
    }

    /// Streams that may be open at once, as far as is known.
    pub(super) fn limit(&self) -> u32 {
        if !self.is_settled() {
            return 1;
        }
        let peer = self.requests.current_max_send_streams();
        if peer == UNSETTLED {
            return 1;
        }
        let peer = u32::try_from(peer).unwrap_or(u32::MAX);
        peer.min(self.options.max_concurrent_streams)
    }

    pub(super) fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    /// Until the peer has said what it takes, or has had its time.
    pub(super) async fn wait_settled(&self) {
        let mut settled = self.settled.subscribe();
        let _ = timeout(SETTLE, settled.wait_for(|settled| *settled)).await;
    }

    pub(super) fn streams(&self) -> u32 {
        self.streams.load(Ordering::Acquire)
    }

    /// No more streams may be put on it.
    pub(super) fn is_worn(&self, now: Instant) -> bool {
        let served = self.served.load(Ordering::Relaxed);
        self.ended.load(Ordering::Acquire)
            || self
                .options
                .max_requests_per_connection
                .is_some_and(|most| served >= most)
            || self
                .options
                .max_connection_age
                .is_some_and(|age| now - self.born >= age)
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        self.is_worn(now)
            || (self.streams() == 0 && now - self.born >= since + self.options.idle_timeout)
    }

    /// A place, if there is room. `Err`: it takes no more requests at all.
    pub(super) fn slot(self: &Arc<Self>, now: Instant) -> Result<Option<Slot>, ()> {
        if self.is_worn(now) {
            return Err(());
        }
        let mut requests = self.requests.clone();
        match requests.poll_ready(&mut unwoken()) {
            Poll::Ready(Ok(())) => {}
            // GOAWAY, or broken.
            Poll::Ready(Err(_)) => return Err(()),
            Poll::Pending => return Ok(None),
        }
        let limit = self.limit();
        let taken = self
            .streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then(|| n + 1)
            });
        let Ok(before) = taken else {
            return Ok(None);
        };
        let served = self.served.fetch_add(1, Ordering::Relaxed);
        let idle = before == 0;
        if idle {
            self.exchange.begin();
        }
        Ok(Some(Slot {
            connection: Arc::clone(self),
            requests,
            reused: idle && served > 0,
        }))
    }
}

/// Drives a connection to its end.
async fn drive(
    this: std::sync::Weak<Http2>,
    mut connection: Connection<TokioIo<Gathered<Io>>, Bytes>,
    sender: Gathered<Io>,
    plain: bool,
) {
    let mut ping = connection.ping_pong();
    let mut settled = false;
    let mut clock = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pinged: Option<Instant> = None;
    let ended = loop {
        let polled = poll_fn(|cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            sender.send(cx);
            if !settled && connection.max_concurrent_send_streams() != UNSETTLED {
                settled = true;
                if let Some(this) = this.upgrade() {
                    this.settled.send_replace(true);
                }
            }
            if let Poll::Ready(result) = polled {
                return Poll::Ready(Some(result));
            }
            if let Some(ping) = &mut ping
                && pinged.is_some()
                && ping.poll_pong(cx).is_ready()
            {
                pinged = None;
            }
            // Inside a tunnel the tunnel's own pings do it.
            if plain && clock.poll_tick(cx).is_ready() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await;
        if let Some(result) = polled {
            break result;
        }
        if !still_lives(&this, ping.as_mut(), &mut pinged) {
            if let Some(this) = this.upgrade() {
                this.exchange.note_fault(Reason::PeerVanished);
            }
            break Ok(());
        }
    };
    if let Err(error) = ended {
        tracing::debug!(
            error = &error as &dyn Error,
            "an upstream connection failed"
        );
    }
    if let Some(this) = this.upgrade() {
        this.ended.store(true, Ordering::Release);
        this.settled.send_replace(true);
    }
    // The drop of the connection ends what is left of its streams.
}

/// Asks a connection with streams whether it lives, when nothing was heard of it.
fn still_lives(
    this: &std::sync::Weak<Http2>,
    ping: Option<&mut PingPong>,
    pinged: &mut Option<Instant>,
) -> bool {
    let (Some(this), Some(ping)) = (this.upgrade(), ping) else {
        return true;
    };
    if this.exchange.take_activity() {
        // Its answer to an older ping may still be on its way.
        return true;
    }
    match pinged {
        Some(at) => at.elapsed() < PING_TIMEOUT,
        None => {
            if this.streams() > 0 && ping.send_ping(Ping::opaque()).is_ok() {
                *pinged = Some(Instant::now());
            }
            true
        }
    }
}

impl Slot {
    pub(super) fn connection(&self) -> &Http2 {
        &self.connection
    }

    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    pub(super) fn exchange(&self) -> &Exchange {
        &self.connection.exchange
    }

    /// Sends a request, returns the head of the response.
    pub(super) async fn send<B: RequestBody>(
        mut self,
        request: Request<B>,
        tasks: &Arc<Tasks>,
        authority: &str,
    ) -> Result<Response<UpstreamBody>, SendFailed<B>> {
        let (mut parts, body) = request.into_parts();
        let connects = parts.method == Method::CONNECT;
        let informational = parts.extensions.remove::<Informational>();
        message::for_http2(&mut parts, authority);
        let ends = !connects && body.is_end_stream();
        if parts.extensions.get::<::h2::ext::Protocol>().is_some() {
            self.connection.wait_settled().await;
            if !self.requests.is_extended_connect_protocol_enabled() {
                tracing::debug!("the upstream does not take extended CONNECT (RFC 8441)");
                return Err(SendFailed {
                    reason: Reason::UpstreamProtocol,
                    nothing_sent: true,
                    reused: false,
                    refused_stream: false,
                    request: None,
                });
            }
        }
        let sent = self
            .requests
            .send_request(Request::from_parts(parts, ()), ends);
        let (response, stream) = match sent {
            Ok(sent) => sent,
            // The head is gone, but nothing of it went out.
            Err(error) => return Err(self.failed(&error, true)),
        };
        let mut response = pin!(response);
        // Of a tunnel the head is all that is sent here.
        let (mut tunnel, mut upload) = match (connects, ends) {
            (true, _) => (Some(stream), None),
            (false, true) => (None, None),
            (false, false) => (None, Some(Upload::new(body, stream))),
        };
        let answer = poll_fn(|cx| {
            if let Some(sending) = &mut upload
                && sending.poll(cx).is_ready()
            {
                upload = None;
            }
            if let Some(informational) = &informational {
                while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    informational.tell(interim.status(), interim.headers());
                }
            }
            response.as_mut().poll(cx)
        })
        .await;
        let response = answer.map_err(|error| self.failed(&error, false))?;
        let (parts, receive) = response.into_parts();
        let body = match tunnel.take() {
            Some(send) if parts.status.is_success() => UpstreamBody::upgraded(Upgraded::Stream {
                send,
                receive,
                slot: self,
            }),
            _ => {
                // The request goes on even when nobody takes the response.
                let upload = upload.filter(|_| !receive.is_end_stream());
                let upload = upload.map(|mut upload| {
                    tasks.spawn(async move { poll_fn(|cx| upload.poll(cx)).await })
                });
                UpstreamBody::stream(receive, parts.headers.get(CONTENT_LENGTH), self, upload)
            }
        };
        Ok(Response::from_parts(parts, body))
    }

    fn failed<B>(&self, error: &::h2::Error, nothing_sent: bool) -> SendFailed<B> {
        tracing::debug!(error = error as &dyn Error, "a request failed upstream");
        let exchange = self.exchange();
        // RFC 9113 8.7: neither was processed.
        let refused = error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(::h2::Reason::REFUSED_STREAM)));
        let reason = match exchange.fault() {
            Some(reason) => reason,
            None if refused => Reason::StreamRefused,
            None if error.is_reset() && error.is_remote() => Reason::StreamReset,
            None if error.is_io() || error.is_remote() || nothing_sent => Reason::UpstreamReset,
            None if error.reason().is_some() => Reason::UpstreamProtocol,
            None => Reason::UpstreamReset,
        };
        SendFailed {
            reason,
            nothing_sent: nothing_sent || refused || !exchange.has_sent(),
            reused: self.reused && !exchange.has_received() && !error.is_reset(),
            refused_stream: refused,
            request: None,
        }
    }
}

/// The body of a request on its way into a stream.
struct Upload<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Taken from the body; waits for room.
    waits: Bytes,
    last: bool,
}

impl<B: RequestBody> Upload<B> {
    fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self {
            body,
            stream,
            waits: Bytes::new(),
            last: false,
        }
    }

    /// Ready when all was handed over, or nothing more can be. Why not is what the response says.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            while !self.waits.is_empty() {
                self.stream.reserve_capacity(self.waits.len());
                if self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => continue,
                        _ => return Poll::Ready(()),
                    }
                }
                let room = self.stream.capacity().min(self.waits.len());
                let data = self.waits.split_to(room);
                let end = self.last && self.waits.is_empty();
                if self.stream.send_data(data, end).is_err() || end {
                    return Poll::Ready(());
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.last = self.body.is_end_stream();
                        if self.last && !data.has_remaining() {
                            let _ = self.stream.send_data(data, true);
                            return Poll::Ready(());
                        }
                        self.waits = data;
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            // Fails on a stream that is gone.
                            let _ = self.stream.send_trailers(trailers);
                            return Poll::Ready(());
                        }
                    }
                },
                Some(Err(error)) => {
                    self.stream.send_reset(code(error.into().as_ref()));
                    return Poll::Ready(());
                }
                None => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// What a body that broke off says to the other side: what it carries itself, or that the request is not wanted any more.
fn code(error: &(dyn Error + 'static)) -> ::h2::Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = error
            .downcast_ref::<::h2::Error>()
            .and_then(::h2::Error::reason)
        {
            return code;
        }
        cause = error.source();
    }
    ::h2::Reason::CANCEL
}
