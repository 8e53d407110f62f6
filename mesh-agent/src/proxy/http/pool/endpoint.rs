//! The connections to one endpoint for one workload: idle HTTP/1 ones by the worker that made them, HTTP/2 ones that have
//! room.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use super::{
    Counts, Held, Open, PATIENCE_COUNTS, PoolKey, RESTED, RESTED_LEAST, RESTED_PART, RequestBody,
    Take,
    exchange::Exchange,
    http1::Http1,
    http2::{Http2, SETTLE, Slot},
    tasks::Tasks,
};
use crate::{
    model::ConnectionPool,
    proxy::{
        connect::{Connected, Link},
        http::io::Io,
    },
    telemetry::Reason,
};

/// HTTP/2 connects under way to one endpoint at once; each will have room for many.
const CONNECTS: usize = 8;
/// Streams on other workers' connections from which on a worker makes one of its own.
const BUSY: u32 = 16;

/// Idle connections of one worker.
type Idle<B> = Vec<Box<Http1<B>>>;

pub(super) struct Endpoint<B: RequestBody> {
    key: PoolKey,
    /// For requests that name no host.
    authority: String,
    pub(super) tasks: Arc<Tasks>,
    pub(super) stirred: Arc<Notify>,
    counts: Arc<Counts>,
    /// Nothing is put here any more.
    gone: AtomicBool,
    idle: Box<[Mutex<Idle<B>>]>,
    idle_count: AtomicU32,
    /// The shortest time after which the server was seen to close a connection that rested, and when.
    patience: Mutex<Option<(Duration, Instant)>>,
    shared: Mutex<Shared>,
}

/// HTTP/2 connections, those that take more streams, and those that are being made.
#[derive(Default)]
struct Shared {
    connections: Vec<Arc<Http2>>,
    connects: Vec<Arc<Connect>>,
    /// Streams that the last connection took.
    room: Option<u32>,
}

/// A connect under way.
pub(super) struct Connect {
    done: watch::Sender<Option<Outcome>>,
    waiting: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Made,
    Failed,
    /// Whoever made it gave up.
    Dropped,
}

/// What a request that wants a stream does next.
pub(super) enum Next {
    Use(Slot),
    Join(Arc<Connect>),
    Settle(watch::Receiver<bool>),
    Start(Arc<Connect>),
    /// Makes a connection that nobody waits for.
    Alone,
}

impl<B: RequestBody> Endpoint<B> {
    pub(super) fn new(
        key: PoolKey,
        workers: usize,
        tasks: Arc<Tasks>,
        stirred: Arc<Notify>,
        counts: Arc<Counts>,
    ) -> Self {
        Self {
            authority: key.endpoint.to_string(),
            key,
            tasks,
            stirred,
            counts,
            gone: AtomicBool::new(false),
            idle: (0..workers).map(|_| Mutex::default()).collect(),
            idle_count: AtomicU32::new(0),
            patience: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    pub(super) fn key(&self) -> &PoolKey {
        &self.key
    }

    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Connections that wait for a request.
    pub(super) fn idle(&self) -> u64 {
        let shared = lock(&self.shared);
        let http2 = shared.connections.iter().filter(|c| c.streams() == 0);
        u64::from(self.idle_count.load(Ordering::Relaxed)) + http2.count() as u64
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    // HTTP/1

    /// The server has closed a connection that rested for so long.
    pub(super) fn note_closed_after(&self, rested: Duration) {
        let now = Instant::now();
        let mut patience = lock(&self.patience);
        let known = patience.filter(|(_, at)| now - *at < PATIENCE_COUNTS);
        if known.is_none_or(|(shortest, _)| rested < shortest) {
            *patience = Some((rested, now));
        }
    }

    /// How long a connection may have rested that [`Take::Young`] takes.
    fn may_have_rested(&self) -> Duration {
        let seen = lock(&self.patience).filter(|(_, at)| at.elapsed() < PATIENCE_COUNTS);
        match seen.map(|(shortest, _)| shortest / RESTED_PART) {
            Some(most) if most < RESTED_LEAST => Duration::ZERO,
            Some(most) => most.min(RESTED),
            None => RESTED,
        }
    }

    /// An idle connection that lives; first one of this worker, and of those the one that rested least.
    pub(super) fn take(&self, options: &ConnectionPool, take: Take) -> Option<Box<Http1<B>>> {
        if self.idle_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let now = Instant::now();
        let most = match take {
            Take::Young => self.may_have_rested(),
            Take::Any | Take::New => Duration::MAX,
        };
        let own = super::worker(self.idle.len());
        for i in 0..self.idle.len() {
            let shelf = &self.idle[(own + i) % self.idle.len()];
            loop {
                // What is dead is closed here, not under the lock.
                let taken = lock(shelf).pop_if(|connection| now - connection.idle_since < most);
                let Some(mut connection) = taken else { break };
                self.idle_count.fetch_sub(1, Ordering::AcqRel);
                connection.options = *options;
                if !connection.is_expired(now, options.idle_timeout) {
                    if connection.wake_up(take) {
                        return Some(connection);
                    }
                    self.counts.stale();
                    self.note_closed_after(connection.rested);
                }
                connection.finish();
            }
        }
        None
    }

    /// A new connection was made although one rests, for too long: it takes that one's place, or they would add up.
    pub(super) fn replace_oldest(&self) {
        let (now, most) = (Instant::now(), self.may_have_rested());
        let shelf = &self.idle[super::worker(self.idle.len())];
        let oldest = {
            let mut shelf = lock(shelf);
            let oldest = shelf.first();
            let old = oldest.is_some_and(|connection| now - connection.idle_since >= most);
            old.then(|| shelf.remove(0))
        };
        if let Some(oldest) = oldest {
            self.idle_count.fetch_sub(1, Ordering::AcqRel);
            oldest.finish();
        }
    }

    /// Puts an idle connection back; gives it back when it is one too many.
    pub(super) fn put(&self, connection: Box<Http1<B>>) -> Result<(), Box<Http1<B>>> {
        let most = connection.options.max_idle_per_endpoint;
        let shelf = &self.idle[super::worker(self.idle.len())];
        let mut shelf = lock(shelf);
        // Under the lock, which `close` takes after it has said so.
        if self.gone.load(Ordering::Acquire) {
            return Err(connection);
        }
        let room = self
            .idle_count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < most).then(|| n + 1)
            });
        if room.is_err() {
            return Err(connection);
        }
        shelf.push(connection);
        Ok(())
    }

    // HTTP/2

    /// `fresh`: only on a new connection.
    pub(super) fn next(&self, options: &ConnectionPool, fresh: bool) -> Next {
        if fresh {
            return Next::Alone;
        }
        lock(&self.shared).next(super::worker(self.idle.len()), options)
    }

    /// Room for one stream.
    pub(super) async fn slot<F>(
        self: &Arc<Self>,
        mut next: Next,
        options: &ConnectionPool,
        connect: impl FnOnce() -> F,
    ) -> Result<Slot, Reason>
    where
        F: Future<Output = Result<Connected, Reason>>,
    {
        loop {
            match next {
                Next::Use(slot) => return Ok(slot),
                Next::Alone => return self.connect_alone(options, connect).await,
                Next::Settle(mut settled) => {
                    // Should it not say, it counts as one that takes one stream.
                    let _ = timeout(SETTLE, settled.wait_for(|settled| *settled)).await;
                    lock(&self.shared).settle_all();
                }
                Next::Join(connecting) => {
                    let mut done = connecting.done.subscribe();
                    let outcome = done.wait_for(Option::is_some).await;
                    let outcome = outcome.ok().and_then(|outcome| *outcome);
                    if outcome == Some(Outcome::Failed) {
                        return self.connect_alone(options, connect).await;
                    }
                }
                Next::Start(connecting) => {
                    let mut promise = Promise {
                        endpoint: self,
                        connect: connecting,
                        outcome: Outcome::Dropped,
                    };
                    let made = self.connect_alone(options, connect).await;
                    promise.outcome = match made {
                        Ok(_) => Outcome::Made,
                        Err(_) => Outcome::Failed,
                    };
                    return made;
                }
            }
            next = self.next(options, false);
        }
    }

    async fn connect_alone<F>(
        self: &Arc<Self>,
        options: &ConnectionPool,
        connect: impl FnOnce() -> F,
    ) -> Result<Slot, Reason>
    where
        F: Future<Output = Result<Connected, Reason>>,
    {
        let connection = self.share(connect().await?, options).await?;
        let slot = connection.slot(Instant::now()).ok().flatten();
        let slot = slot.ok_or(Reason::UpstreamReset)?;
        self.add(connection);
        Ok(slot)
    }

    /// Makes an HTTP/2 connection and starts what drives it.
    async fn share(
        self: &Arc<Self>,
        connected: Connected,
        options: &ConnectionPool,
    ) -> Result<Arc<Http2>, Reason> {
        let Connected {
            link,
            permits,
            principals,
            ..
        } = connected;
        let plain = matches!(link, Link::Plain(_));
        let held = Held {
            _open: Some(Open::new(&self.counts)),
            _permits: permits,
            principals,
        };
        let exchange = Exchange::new(Arc::clone(&self.stirred));
        let worker = super::worker(self.idle.len());
        let (connection, driver) =
            Http2::new(Io::from(link), held, options, exchange, worker, plain).await?;
        let (endpoint, weak) = (Arc::downgrade(self), Arc::downgrade(&connection));
        self.tasks.spawn_detached(async move {
            driver.await;
            if let (Some(endpoint), Some(connection)) = (endpoint.upgrade(), weak.upgrade()) {
                lock(&endpoint.shared).retire(&connection);
            }
        });
        Ok(connection)
    }

    fn add(&self, connection: Arc<Http2>) {
        let mut shared = lock(&self.shared);
        if !self.gone.load(Ordering::Acquire) {
            shared.connections.push(connection);
        }
    }

    /// Puts a connection here that was made elsewhere.
    pub(super) async fn adopt(self: &Arc<Self>, connected: Connected, options: &ConnectionPool) {
        if let Ok(connection) = self.share(connected, options).await {
            self.add(connection);
        }
    }

    // Both

    /// Closes what is idle; what is busy ends when it is idle.
    pub(super) fn close(&self) {
        self.gone.store(true, Ordering::Release);
        for shelf in &self.idle {
            for connection in std::mem::take(&mut *lock(shelf)) {
                connection.finish();
            }
        }
        let shared = std::mem::take(&mut lock(&self.shared).connections);
        drop(shared);
    }

    /// Closes what has been idle for too long or has died meanwhile. Returns when to look again; `None`: nothing is here.
    pub(super) fn sweep(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |next: Instant| next.min(at)));
        for shelf in &self.idle {
            let mut closing = Vec::new();
            {
                let mut shelf = lock(shelf);
                let mut i = 0;
                while i < shelf.len() {
                    let connection = &mut shelf[i];
                    let timeout = connection.options.idle_timeout;
                    let rested = connection.rested(now);
                    let stale = connection.is_stirred() && !connection.still_lives();
                    if stale {
                        self.counts.stale();
                        self.note_closed_after(rested);
                    }
                    if stale || connection.is_expired(now, timeout) {
                        closing.push(shelf.remove(i));
                    } else {
                        sooner(connection.idle_since + timeout);
                        i += 1;
                    }
                }
                self.idle_count
                    .fetch_sub(closing.len() as u32, Ordering::AcqRel);
            }
            for connection in closing {
                connection.finish();
            }
        }
        if let Some((_, at)) = *lock(&self.patience)
            && now - at < PATIENCE_COUNTS
        {
            sooner(at + PATIENCE_COUNTS);
        }
        let mut shared = lock(&self.shared);
        let mut closing = Vec::new();
        shared.connections.retain(|connection| {
            let keep = !connection.is_expired(now);
            if keep {
                sooner(now + connection.options.idle_timeout);
            } else {
                closing.push(Arc::clone(connection));
            }
            keep
        });
        if !shared.connects.is_empty() {
            sooner(now + SETTLE);
        }
        drop(shared);
        next
    }

    /// Idle HTTP/1 connections, HTTP/2 connections.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        let idle = self.idle.iter().map(|shelf| lock(shelf).len()).sum();
        (idle, lock(&self.shared).connections.len())
    }
}

impl Shared {
    fn next(&mut self, worker: usize, options: &ConnectionPool) -> Next {
        let now = Instant::now();
        let mut unsettled = None;
        let mut others = None;
        let mut least = u32::MAX;
        let mut own = None;
        self.connections.retain(|connection| {
            if own.is_some() {
                return true;
            }
            if !connection.is_settled() {
                unsettled = Some(connection.settled.subscribe());
            }
            if connection.worker != worker {
                let streams = connection.streams();
                if streams < connection.limit() && streams < least {
                    least = streams;
                    others = Some(Arc::clone(connection));
                }
                return !connection.is_worn(now);
            }
            match connection.slot(now) {
                Ok(Some(slot)) => own = Some(slot),
                Ok(None) => {}
                Err(()) => return false,
            }
            if connection.is_settled() {
                self.room = Some(connection.limit());
            }
            true
        });
        if let Some(slot) = own {
            return Next::Use(slot);
        }
        let busy = least >= BUSY && self.connections.iter().all(|c| c.worker != worker);
        if let Some(connection) = others.filter(|_| !busy) {
            match connection.slot(now) {
                Ok(Some(slot)) => return Next::Use(slot),
                Ok(None) => {}
                Err(()) => self.retire(&connection),
            }
        }
        if let Some(settled) = unsettled {
            return Next::Settle(settled);
        }
        let room = self.room.unwrap_or(options.max_concurrent_streams).max(1) as usize;
        let least = self
            .connects
            .iter()
            .min_by_key(|connect| connect.waiting.load(Ordering::Relaxed));
        if let Some(least) = least
            && (least.waiting.load(Ordering::Relaxed) < room || self.connects.len() >= CONNECTS)
        {
            least.waiting.fetch_add(1, Ordering::Relaxed);
            return Next::Join(Arc::clone(least));
        }
        let connect = Arc::new(Connect {
            done: watch::Sender::new(None),
            waiting: AtomicUsize::new(1),
        });
        self.connects.push(Arc::clone(&connect));
        Next::Start(connect)
    }

    fn retire(&mut self, connection: &Arc<Http2>) {
        self.connections.retain(|c| !Arc::ptr_eq(c, connection));
    }

    /// Those that had their time to say how many streams they take.
    fn settle_all(&self) {
        let now = Instant::now();
        for connection in &self.connections {
            if now - connection.born >= SETTLE {
                connection
                    .settled
                    .send_if_modified(|settled| !std::mem::replace(settled, true));
            }
        }
    }
}

/// Tells those who wait what became of a connect, also when it is dropped.
struct Promise<'a, B: RequestBody> {
    endpoint: &'a Endpoint<B>,
    connect: Arc<Connect>,
    outcome: Outcome,
}

impl<B: RequestBody> Drop for Promise<'_, B> {
    fn drop(&mut self) {
        lock(&self.endpoint.shared)
            .connects
            .retain(|c| !Arc::ptr_eq(c, &self.connect));
        self.connect.done.send_replace(Some(self.outcome));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
