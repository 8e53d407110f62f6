//! Reads requests from one client connection and answers them.
//!
//! hyper does the protocol. What it does not bound by itself is bounded here: how long a client may take for the headers
//! of a request, how long a connection may wait for the next one, and how many of each thing HTTP/2 lets a client ask for.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use ::http::{
    HeaderValue, Method, Request, Response,
    header::{CONTENT_LENGTH, USER_AGENT},
    request::Parts,
};
use bytes::Bytes;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    rt::{Executor, Read, ReadBufCursor, Write},
    service::service_fn,
    upgrade::Upgraded,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    HttpVersion,
    body::{Body, BodyError},
    gather::Gathered,
    headers::{self, MAX_HEADER_BYTES},
    io::Io,
};
use crate::telemetry::{RequestStart, TraceContext};

/// Bounds of one client connection. The defaults are those of docs/reference/defaults.md.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct ServerSettings {
    /// From the first byte of a request's headers to their last; checked at this interval, so it may take twice as long.
    pub(in crate::proxy) header_timeout: Duration,
    /// Between requests.
    pub(in crate::proxy) idle_timeout: Duration,
    /// Bytes of the request line and headers.
    pub(in crate::proxy) max_header_bytes: usize,
    /// Requests at once on one HTTP/2 connection.
    pub(in crate::proxy) max_streams: u32,
    /// Windows of HTTP/2: what a client may send before the upstream has taken it.
    pub(in crate::proxy) stream_window: u32,
    pub(in crate::proxy) connection_window: u32,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(3600),
            max_header_bytes: MAX_HEADER_BYTES,
            max_streams: 250,
            stream_window: 1 << 20,
            connection_window: 4 << 20,
        }
    }
}

/// Streams that a client has reset before they were looked at; more end the connection (CVE-2023-44487).
const PENDING_RESETS: usize = 50;
/// Streams that were reset because of what the client did; more end the connection (CVE-2025-8671).
const ERROR_RESETS: usize = 256;
/// Bytes of one response that wait to be written.
const SEND_BUFFER: usize = 256 << 10;

/// Answers requests.
pub(in crate::proxy) trait Handler: Send + Sync + 'static {
    fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// What is reported of a request whose head has come; gives it an id if it has none.
pub(super) fn start(parts: &mut Parts) -> RequestStart {
    let request_id = headers::ensure_request_id(&mut parts.headers, rand::random);
    RequestStart {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        version: parts.version,
        authority: headers::authority(parts).and_then(|host| HeaderValue::from_str(host).ok()),
        request_id: Some(request_id),
        user_agent: parts.headers.get(USER_AGENT).cloned(),
        grpc: headers::is_grpc(&parts.headers),
        trace: TraceContext::extract(&parts.headers),
    }
}

/// In the extensions of a response: nothing of it is sent. Its stream of HTTP/2, or its connection of HTTP/1, is reset.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) enum Abort {
    /// As the application did.
    Reset,
    /// Nothing of the request has reached the application: of HTTP/2 that is REFUSED_STREAM (RFC 9113 section 8.7).
    Refused,
}

/// What hyper makes of [`Abort`]: it looks for the code of the reset among the sources.
#[derive(Debug, thiserror::Error)]
#[error("reset, for the application")]
struct Aborted(#[source] h2::Error);

impl From<Abort> for Aborted {
    fn from(abort: Abort) -> Self {
        let code = match abort {
            Abort::Reset => h2::Reason::INTERNAL_ERROR,
            Abort::Refused => h2::Reason::REFUSED_STREAM,
        };
        Self(code.into())
    }
}

/// How a connection ended, as far as its own protocol goes.
#[derive(Debug)]
pub(in crate::proxy) enum ServerEnd {
    /// In order, or by an upgrade.
    Done,
    /// The client broke it off, or its socket failed.
    Gone(hyper::Error),
    /// The client did not speak HTTP as it should.
    Protocol(hyper::Error),
    /// The headers of a request took too long.
    HeaderTimeout,
    /// No request came for the idle time.
    Idle,
}

/// Serves the connection to its end. An upgraded connection is left to whoever has taken its `OnUpgrade`.
///
/// When `draining` becomes true, requests that are under way are finished and no more are taken.
pub(in crate::proxy) async fn serve<I, H>(
    io: I,
    version: HttpVersion,
    settings: &ServerSettings,
    mut draining: watch::Receiver<bool>,
    handler: Arc<H>,
) -> ServerEnd
where
    I: Read + Write + Unpin + Send + 'static,
    H: Handler,
{
    let activity = Arc::new(Activity::new());
    let io = Watched {
        io,
        activity: Arc::clone(&activity),
    };
    let service = service_fn(|request: Request<Incoming>| {
        let busy = Busy::new(&activity);
        let head = request.method() == Method::HEAD;
        let handler = Arc::clone(&handler);
        async move {
            // Called here, not outside: a future that is moved into this one would take its space twice.
            let mut response = handler.call(request).await;
            if let Some(abort) = response.extensions().get::<Abort>() {
                return Err(Aborted::from(*abort));
            }
            if head && let Body::Fixed(text) = response.body() {
                // hyper leaves the body out for HTTP/1 only.
                let length = text.len().into();
                response.headers_mut().insert(CONTENT_LENGTH, length);
                *response.body_mut() = Body::Empty;
            }
            Ok::<_, Aborted>(response.map(|body| Answer { body, _busy: busy }))
        }
    });
    let mut clock = pin!(sleep(settings.header_timeout));
    macro_rules! drive {
        // `polled` is called after each poll of the connection.
        ($connection:expr, $polled:expr) => {{
            let mut connection = pin!($connection);
            let mut drains = false;
            loop {
                tokio::select! {
                    biased;
                    end = poll_fn(|cx| {
                        let end = connection.as_mut().poll(cx);
                        $polled(cx);
                        end
                    }) => return ended(end),
                    () = clock.as_mut() => match activity.look(settings, version) {
                        Some(end) => return end,
                        None => clock.as_mut().reset(Instant::now() + settings.header_timeout),
                    },
                    _ = draining.wait_for(|draining| *draining), if !drains => {
                        drains = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }};
    }
    match version {
        HttpVersion::Http1 => {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                // A FIN with a request under way is a client that gave up: FIN and close() look alike from here.
                .half_close(false)
                .auto_date_header(false)
                .header_read_timeout(None)
                // At most 100 header fields, hyper's own limit: to state one costs a filled table for each request.
                // Not pipeline_flush: with it hyper's own refusals are never sent.
                .max_buf_size(settings.max_header_bytes.max(8192));
            let nothing = |_: &mut Context<'_>| {};
            drive!(
                builder.serve_connection(io, service).with_upgrades(),
                nothing
            )
        }
        HttpVersion::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(Spawn);
            builder
                .auto_date_header(false)
                .enable_connect_protocol()
                .initial_stream_window_size(settings.stream_window)
                .initial_connection_window_size(settings.connection_window)
                .max_concurrent_streams(settings.max_streams)
                .max_header_list_size(settings.max_header_bytes as u32)
                .max_pending_accept_reset_streams(PENDING_RESETS)
                .max_local_error_reset_streams(ERROR_RESETS)
                .max_send_buf_size(SEND_BUFFER);
            let io = Gathered::new(io);
            let gathered = io.clone();
            let send = |cx: &mut Context<'_>| gathered.send(cx);
            drive!(builder.serve_connection(io, service), send)
        }
    }
}

fn ended(result: hyper::Result<()>) -> ServerEnd {
    match result {
        Ok(()) => ServerEnd::Done,
        // Its request says why.
        Err(error) if error.is_user() => ServerEnd::Done,
        Err(error) if is_protocol(&error) => ServerEnd::Protocol(error),
        Err(error) => ServerEnd::Gone(error),
    }
}

/// Whether the client broke HTTP, in difference to a connection that broke.
fn is_protocol(error: &hyper::Error) -> bool {
    if error.is_parse() {
        return true;
    }
    let source = std::error::Error::source(error);
    let h2 = source.and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|h2| h2.is_library() || (h2.is_go_away() && !h2.is_remote()))
}

/// Runs the streams of an HTTP/2 connection beside it, on its own worker.
#[derive(Clone, Copy)]
struct Spawn;

impl<F> Executor<F> for Spawn
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        // Ends with its connection: h2 wakes every stream of one that is dropped.
        tokio::spawn(stream);
    }
}

/// What a connection is doing, for its clock.
#[derive(Debug)]
struct Activity {
    begun: Instant,
    /// Requests whose response has not ended.
    busy: AtomicU32,
    /// Milliseconds after `begun`, plus one, of the first byte after the last request ended; 0: none has come.
    head: AtomicU64,
    /// Milliseconds after `begun` when the last request ended.
    idle: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            busy: AtomicU32::new(0),
            head: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        }
    }

    fn millis(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    fn read(&self) {
        if self.busy.load(Ordering::Relaxed) == 0 && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(self.millis() + 1, Ordering::Relaxed);
        }
    }

    fn look(&self, settings: &ServerSettings, version: HttpVersion) -> Option<ServerEnd> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let now = self.millis();
        let past =
            |since: u64, limit: Duration| now.saturating_sub(since) >= limit.as_millis() as u64;
        let head = self.head.load(Ordering::Relaxed);
        // In HTTP/2 what comes between streams may be a PING as well; there the idle time is the bound.
        if version == HttpVersion::Http1 && head > 0 && past(head - 1, settings.header_timeout) {
            return Some(ServerEnd::HeaderTimeout);
        }
        past(self.idle.load(Ordering::Relaxed), settings.idle_timeout).then_some(ServerEnd::Idle)
    }
}

/// One request under way.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.busy.fetch_add(1, Ordering::Relaxed);
        activity.head.store(0, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle.store(self.0.millis(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body, which keeps its connection busy.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The client's connection itself, after an upgrade of HTTP/1; a stream of HTTP/2 stays what it is.
pub(super) fn into_io(upgraded: Upgraded) -> Result<(Io, Bytes), Upgraded> {
    let parts = upgraded.downcast::<Watched<Io>>()?;
    Ok((parts.io.io, parts.read_buf))
}

/// A connection whose reads are noted.
struct Watched<I> {
    io: I,
    activity: Arc<Activity>,
}

impl<I: Read + Unpin> Read for Watched<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if read.is_ready() {
            this.activity.read();
        }
        read
    }
}

impl<I: Write + Unpin> Write for Watched<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }
}
