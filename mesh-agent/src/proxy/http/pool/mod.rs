//! Connections upstream, kept for the next request.
//!
//! By workload, endpoint, version and identity, never shared further. An HTTP/1 connection (`http1`) belongs to one
//! request at a time and is driven by its task; one of HTTP/2 (`http2`) is shared. `endpoint` keeps those of one key,
//! `exchange` knows what happens on one while nobody looks, `body` is a response that holds its connection, `message`
//! prepares a request.

mod body;
mod endpoint;
mod exchange;
mod http1;
mod http2;
mod message;
#[cfg(test)]
mod speed;
mod tasks;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ::http::{Request, Response};
use bytes::Bytes;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

pub(in crate::proxy) use self::{
    body::{Upgraded, UpstreamBody},
    message::on_informational,
};
use self::{
    endpoint::{Endpoint, Next},
    http1::Http1,
    tasks::Tasks,
};
pub(in crate::proxy::http) use self::{exchange::Exchange, http2::Slot};
use super::HttpVersion;
use crate::{
    model::{ConnectionPool, SpiffeId},
    proxy::{connect::Connected, http::io::Io},
    resilience::Permit,
    telemetry::{PoolGauge, Reason},
};

/// Tables that the endpoints are spread over, so that workers do not wait for one another.
const TABLES: usize = 16;
/// How often idle connections are looked at, at least and at most.
const SWEEP: Duration = Duration::from_secs(5);
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// For how long an HTTP/1 connection may have rested that takes a request which must not be sent twice. Servers wait for
/// the next request for 2 s (gunicorn) and more.
pub(in crate::proxy::http) const RESTED: Duration = Duration::from_secs(1);
/// Where a server was seen to close earlier: this part of that time, or not at all when that is less than the least.
const RESTED_PART: u32 = 4;
const RESTED_LEAST: Duration = Duration::from_millis(25);
/// So long: a server that restarts has closed all it had too, and that says nothing of how long it waits.
const PATIENCE_COUNTS: Duration = Duration::from_secs(60);

/// A body that requests are sent with.
pub(in crate::proxy) trait RequestBody:
    hyper::body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static
{
}

/// Whom a connection may serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy) struct PoolKey {
    /// Cookie of the workload's network namespace.
    pub(in crate::proxy) pod: u64,
    pub(in crate::proxy) endpoint: SocketAddr,
    /// The source address that the client chose.
    pub(in crate::proxy) source: Option<IpAddr>,
    pub(in crate::proxy) version: HttpVersion,
    /// Expected at the other end; a changed one is never reused.
    pub(in crate::proxy) identity: Option<SpiffeId>,
}

/// Which connections a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Take {
    /// Any that lives.
    Any,
    /// It must not be sent twice, and so must not meet a server that closes a connection for having rested: of HTTP/1 only
    /// one that rested for moments (see [`RESTED`]), looked at once more, or a new one. HTTP/2 says what it has not
    /// processed (RFC 9113 section 6.8).
    Young,
    /// A new one, after an old one has failed.
    New,
}

/// What a connection holds for as long as it lives.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Held {
    _open: Option<Open>,
    _permits: Option<[Permit; 2]>,
    principals: Option<(SpiffeId, SpiffeId)>,
}

impl Held {
    fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// What the metrics show of the pools.
#[derive(Debug, Default)]
pub(super) struct Counts {
    opened: AtomicU64,
    closed: AtomicU64,
    reused: AtomicU64,
    stale: AtomicU64,
}

impl Counts {
    /// One that was idle is found dead.
    pub(super) fn stale(&self) {
        self.stale.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts a connection for as long as it lives.
#[derive(Debug)]
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.opened.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pools of one proxy.
pub(in crate::proxy) struct Pools<B: RequestBody> {
    tables: Arc<Tables<B>>,
    tasks: Arc<Tasks>,
    stirred: Arc<Notify>,
    counts: Arc<Counts>,
    workers: usize,
    reaper: JoinHandle<()>,
}

struct Tables<B: RequestBody>([Table<B>; TABLES]);

type Table<B> = RwLock<HashMap<PoolKey, Arc<Endpoint<B>>>>;

impl<B: RequestBody> Pools<B> {
    /// Must be called in a tokio runtime.
    pub(in crate::proxy) fn new() -> Self {
        let tables = Arc::new(Tables(std::array::from_fn(|_| RwLock::default())));
        let stirred = Arc::new(Notify::new());
        let reaper = tokio::spawn(reap(Arc::clone(&tables), Arc::clone(&stirred)));
        Self {
            tables,
            tasks: Arc::default(),
            stirred,
            counts: Arc::default(),
            workers: thread::available_parallelism()
                .map_or(1, usize::from)
                .min(64),
            reaper,
        }
    }

    /// An idle connection that still lives, room on an HTTP/2 one, or else a new one that `connect` makes.
    pub(in crate::proxy) async fn checkout<F>(
        &self,
        key: &PoolKey,
        options: &ConnectionPool,
        take: Take,
        connect: impl FnOnce() -> F + Send,
    ) -> Result<Checkout<B>, Reason>
    where
        F: Future<Output = Result<Connected, Reason>> + Send,
    {
        let endpoint = self.endpoint(key);
        let kind = match key.version {
            HttpVersion::Http1 => {
                let idle = match take {
                    Take::New => None,
                    Take::Any | Take::Young => endpoint.take(options, take),
                };
                Kind::Http1(match idle {
                    Some(connection) => connection,
                    // Seldom, and large: boxed, so that not every request carries the room for it.
                    None => boxed(alone(&endpoint, take, options, connect)).await?,
                })
            }
            HttpVersion::Http2 => {
                let next = endpoint.next(options, take == Take::New);
                Kind::Http2(match next {
                    Next::Use(slot) => slot,
                    next => boxed(endpoint.slot(next, options, connect)).await?,
                })
            }
        };
        let checkout = Checkout { kind, endpoint };
        if checkout.is_reused() {
            self.counts.reused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(checkout)
    }

    /// Puts a connection into the pool that was made before it was known what it is for.
    pub(in crate::proxy) async fn adopt(
        &self,
        key: &PoolKey,
        connected: Connected,
        options: &ConnectionPool,
    ) {
        let endpoint = self.endpoint(key);
        match key.version {
            HttpVersion::Http1 => {
                if let Ok(connection) = made(connected, &endpoint, options).await {
                    connection.settle();
                }
            }
            HttpVersion::Http2 => endpoint.adopt(connected, options).await,
        }
    }

    /// The workload is gone: closes what is idle of it, and what is busy when it is idle.
    pub(in crate::proxy) fn release(&self, pod: u64) {
        let mut gone = Vec::new();
        for table in &self.tables.0 {
            let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
            gone.extend(table.extract_if(|key, _| key.pod == pod).map(|(_, e)| e));
        }
        for endpoint in gone {
            endpoint.close();
        }
    }

    /// Nobody comes with the key any more: closes what is idle, and what is busy when it is idle.
    pub(in crate::proxy) fn forget(&self, key: &PoolKey) {
        let endpoint = {
            let mut table = self.tables.of(key).write();
            let table = table.as_mut().unwrap_or_else(|error| error.get_mut());
            table.remove(key)
        };
        if let Some(endpoint) = endpoint {
            endpoint.close();
        }
    }

    fn endpoint(&self, key: &PoolKey) -> Arc<Endpoint<B>> {
        let table = self.tables.of(key);
        if let Some(endpoint) = table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
        {
            return Arc::clone(endpoint);
        }
        let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
        let endpoint = table.entry(key.clone()).or_insert_with(|| {
            Arc::new(Endpoint::new(
                key.clone(),
                self.workers,
                Arc::clone(&self.tasks),
                Arc::clone(&self.stirred),
                Arc::clone(&self.counts),
            ))
        });
        Arc::clone(endpoint)
    }

    /// For the metrics.
    pub(in crate::proxy) fn gauge(&self) -> PoolGauge {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let endpoints = self.tables.0.iter().flat_map(|table| {
            let table = table.read().unwrap_or_else(PoisonError::into_inner);
            table.values().cloned().collect::<Vec<_>>()
        });
        // The closed first: a connection that ends meanwhile must not make it negative.
        let closed = read(&self.counts.closed);
        let opened = read(&self.counts.opened);
        PoolGauge {
            open: opened.saturating_sub(closed),
            idle: endpoints.map(|endpoint| endpoint.idle()).sum(),
            opened,
            closed,
            reused: read(&self.counts.reused),
            stale: read(&self.counts.stale),
        }
    }

    /// Idle HTTP/1 connections, HTTP/2 connections.
    #[cfg(test)]
    fn count(&self) -> (usize, usize) {
        let tables = self.tables.0.iter();
        let endpoints = tables.flat_map(|table| {
            let table = table.read().unwrap();
            table.values().cloned().collect::<Vec<_>>()
        });
        endpoints
            .map(|endpoint| endpoint.count())
            .fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }
}

impl<B: RequestBody> Drop for Pools<B> {
    fn drop(&mut self) {
        self.reaper.abort();
        self.tasks.abort_all();
    }
}

impl<B: RequestBody> Tables<B> {
    fn of(&self, key: &PoolKey) -> &Table<B> {
        let address = match key.endpoint.ip() {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip) as u64,
        };
        let mixed = (address ^ key.pod ^ u64::from(key.endpoint.port()))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.0[(mixed >> 60) as usize % TABLES]
    }

    fn sweep(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for table in &self.0 {
            let endpoints: Vec<_> = {
                let table = table.read().unwrap_or_else(PoisonError::into_inner);
                table.values().cloned().collect()
            };
            let mut empty = Vec::new();
            for endpoint in endpoints {
                match endpoint.sweep(now) {
                    Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                    None => empty.push(endpoint),
                }
            }
            let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
            for endpoint in empty {
                // The table's and ours: nobody has one, and nobody can get one meanwhile.
                if Arc::strong_count(&endpoint) == 2 {
                    table.remove(endpoint.key());
                }
            }
        }
        next
    }
}

/// Closes connections that have been idle for too long, or that the other side has closed.
async fn reap<B: RequestBody>(tables: Arc<Tables<B>>, stirred: Arc<Notify>) {
    loop {
        let now = Instant::now();
        let next = tables.sweep(now).map_or(now + SWEEP, |next| {
            next.clamp(now + SWEEP_PAUSE, now + SWEEP)
        });
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            // Many may die at once.
            () = stirred.notified() => tokio::time::sleep(SWEEP_PAUSE).await,
        }
    }
}

/// Without its type, which is too deep for the compiler to look through again in every future around it.
fn boxed<'a, T>(
    future: impl Future<Output = T> + Send + 'a,
) -> Pin<Box<dyn Future<Output = T> + Send + 'a>> {
    Box::pin(future)
}

/// A new connection of HTTP/1, or in need one that was passed over.
async fn alone<B: RequestBody, F>(
    endpoint: &Arc<Endpoint<B>>,
    take: Take,
    options: &ConnectionPool,
    connect: impl FnOnce() -> F,
) -> Result<Box<Http1<B>>, Reason>
where
    F: Future<Output = Result<Connected, Reason>>,
{
    match connect().await {
        Ok(connected) => {
            if take == Take::Young {
                endpoint.replace_oldest();
            }
            made(connected, endpoint, options).await
        }
        // One that rested for longer is less of a risk than a refusal is a failure.
        Err(Reason::ConnectionLimit) if take == Take::Young => endpoint
            .take(options, Take::Any)
            .ok_or(Reason::ConnectionLimit),
        Err(reason) => Err(reason),
    }
}

async fn made<B: RequestBody>(
    connected: Connected,
    endpoint: &Arc<Endpoint<B>>,
    options: &ConnectionPool,
) -> Result<Box<Http1<B>>, Reason> {
    let held = Held {
        _open: Some(Open::new(endpoint.counts())),
        _permits: connected.permits,
        principals: connected.principals,
    };
    Http1::new(Io::from(connected.link), held, endpoint, options).await
}

/// The worker that asks, among so many.
fn worker(workers: usize) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static WORKER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    WORKER.with(|worker| *worker) % workers
}

/// A connection for one request.
pub(in crate::proxy) struct Checkout<B: RequestBody> {
    kind: Kind<B>,
    endpoint: Arc<Endpoint<B>>,
}

enum Kind<B: RequestBody> {
    Http1(Box<Http1<B>>),
    Http2(Slot),
}

/// Why there is no response.
#[derive(Debug)]
pub(in crate::proxy) struct SendFailed<B> {
    pub(in crate::proxy) reason: Reason,
    /// The upstream has not got, or not processed, anything of the request.
    pub(in crate::proxy) nothing_sent: bool,
    /// The connection had been idle, and nothing came back on it: another may well do.
    pub(in crate::proxy) reused: bool,
    /// REFUSED_STREAM, or GOAWAY before the stream.
    pub(in crate::proxy) refused_stream: bool,
    /// The request, where nobody has touched it.
    pub(in crate::proxy) request: Option<Request<B>>,
}

impl<B: RequestBody> Checkout<B> {
    /// The connection has been idle in the pool.
    pub(in crate::proxy) fn is_reused(&self) -> bool {
        match &self.kind {
            Kind::Http1(connection) => connection.reused,
            Kind::Http2(slot) => slot.is_reused(),
        }
    }

    /// Who dials and who was dialled, as mutual TLS proved it.
    pub(in crate::proxy) fn principals(&self) -> Option<&(SpiffeId, SpiffeId)> {
        let held = match &self.kind {
            Kind::Http1(connection) => &connection.held,
            Kind::Http2(slot) => &slot.connection().held,
        };
        held.principals.as_ref()
    }

    /// Sends the request. Done with the head of the response; dropped before that, the request is cancelled.
    pub(in crate::proxy) async fn send(
        self,
        request: Request<B>,
    ) -> Result<Response<UpstreamBody>, SendFailed<B>> {
        match self.kind {
            Kind::Http1(connection) => connection.send(request).await,
            Kind::Http2(slot) => {
                let endpoint = self.endpoint;
                slot.send(request, &endpoint.tasks, endpoint.authority())
                    .await
            }
        }
    }
}
