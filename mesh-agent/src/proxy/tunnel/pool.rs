//! The tunnels that we dial, shared by the connections of one workload to one destination.
//!
//! Never shared further: the key has the workload (a tunnel's socket is in its network namespace) and its identity. Who
//! needs a place where none is free joins a connect that is under way, or starts one; a task of its own makes the tunnel,
//! so nobody holds a lock meanwhile, everybody keeps his own deadline, and who gives up takes nothing away from others.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::{sync::watch, time::timeout_at};

use super::{
    Credentials, TunnelOptions, TunnelRequest, TunnelStream,
    client::{Client, Failed, Maker, Slot, Stage, Target, no_socket},
    link::Links,
};
use crate::{
    model::SpiffeId,
    proxy::{
        PodSockets, connect,
        limits::{Limits, Share},
        socket::Keepalive,
    },
    telemetry::{Reason, Telemetry, TunnelGauge},
};

/// Connects under way to one destination at once; each will have room for many.
const CONNECTS: usize = 4;

/// The tunnels of one agent.
pub(crate) struct Tunnels {
    pub(super) options: TunnelOptions,
    pub(super) credentials: Arc<dyn Credentials>,
    telemetry: Arc<Telemetry>,
    keepalive: Keepalive,
    /// Handshakes under way.
    dialled: Arc<Limits>,
    pub(super) accepted: Arc<Limits>,
    /// By cookie of the workload's namespace.
    pods: Mutex<HashMap<u64, Arc<Pod>>>,
    /// That we dialled, that others did.
    outbound: Arc<Links>,
    pub(super) inbound: Links,
}

/// The tunnels of one workload.
#[derive(Default)]
pub(super) struct Pod {
    /// Its handshakes under way, as client and as server.
    dialling: Arc<Share>,
    pub(super) accepting: Arc<Share>,
    gone: AtomicBool,
    destinations: Mutex<HashMap<Key, Destination>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: SpiffeId,
    peer: SocketAddr,
    expected: SpiffeId,
    /// The source address that the application chose.
    from: Option<IpAddr>,
}

#[derive(Default)]
struct Destination {
    tunnels: Vec<Arc<Client>>,
    connects: Vec<Arc<Connect>>,
}

/// A connect under way.
struct Connect {
    done: watch::Sender<Option<Result<(), Reason>>>,
    /// Those who wait for it and will need a place.
    waiting: AtomicUsize,
    stage: Stage,
}

/// What to do for want of a place.
enum Next {
    Use(Slot),
    Join(Arc<Connect>),
    Start(Arc<Connect>),
}

impl Tunnels {
    pub(crate) fn new(
        credentials: Arc<dyn Credentials>,
        telemetry: Arc<Telemetry>,
        options: TunnelOptions,
        keepalive: Keepalive,
    ) -> Arc<Self> {
        Arc::new(Self {
            options,
            credentials,
            telemetry,
            keepalive,
            dialled: Limits::new(options.max_handshakes),
            accepted: Limits::new(options.max_handshakes),
            pods: Mutex::default(),
            outbound: Arc::default(),
            inbound: Links::default(),
        })
    }

    /// How many tunnels there are, for the metrics.
    pub(crate) fn gauges(&self) -> Vec<TunnelGauge> {
        [("outbound", &*self.outbound), ("inbound", &self.inbound)]
            .into_iter()
            .map(|(direction, links)| {
                let (open, streams) = links.count();
                TunnelGauge {
                    direction,
                    open,
                    streams,
                }
            })
            .collect()
    }

    /// A stream to the destination, accepted by its agent.
    pub(crate) async fn open(
        &self,
        pod: &dyn PodSockets,
        request: TunnelRequest,
    ) -> Result<TunnelStream, Reason> {
        let pool = self.pod(pod.cookie());
        let key = Key {
            source: request.source.clone(),
            peer: request.peer,
            expected: request.expected.clone(),
            from: request.chosen.then(|| request.client.ip()),
        };
        let mut retry = false;
        loop {
            let (slot, fresh) = self.slot(pod, &pool, &key, &request, retry).await?;
            let client = Arc::clone(slot.client());
            let opened = timeout_at(request.deadline, slot.open(&request)).await;
            match opened {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(Failed::Reason(reason))) => return Err(reason),
                Ok(Err(Failed::Unprocessed)) => {
                    pool.retire(&key, &client, false);
                    // Nothing was carried yet, so asking once more does no harm. What fails on a new one will again.
                    if retry || fresh {
                        return Err(Reason::TunnelBroken);
                    }
                    retry = true;
                }
                Err(_) => return Err(Reason::UpstreamTimeout),
            }
        }
    }

    /// A place on a tunnel, and whether that was made just now. `new`: the standing ones are not to be trusted.
    async fn slot(
        &self,
        pod: &dyn PodSockets,
        pool: &Arc<Pod>,
        key: &Key,
        request: &TunnelRequest,
        mut new: bool,
    ) -> Result<(Slot, bool), Reason> {
        let mut waited = false;
        loop {
            let next = pool
                .lock()
                .entry(key.clone())
                .or_default()
                .next(self.options.max_streams, new);
            let connect = match next {
                Next::Use(slot) => return Ok((slot, waited)),
                Next::Join(connect) => connect,
                Next::Start(connect) => {
                    self.start(pod, pool, key, request, &connect).await?;
                    connect
                }
            };
            let mut done = connect.done.subscribe();
            let outcome = timeout_at(request.deadline, done.wait_for(Option::is_some)).await;
            match outcome {
                Ok(Ok(outcome)) => (*outcome).unwrap_or(Err(Reason::Internal))?,
                Ok(Err(_)) => return Err(Reason::Internal),
                Err(_) => return Err(connect.stage.blame()),
            }
            waited = true;
            new = false;
        }
    }

    /// Starts the task that makes a tunnel and then drives it.
    async fn start(
        &self,
        pod: &dyn PodSockets,
        pool: &Arc<Pod>,
        key: &Key,
        request: &TunnelRequest,
        connect: &Arc<Connect>,
    ) -> Result<(), Reason> {
        let mut promise = Promise {
            pool: Arc::clone(pool),
            key: key.clone(),
            connect: Arc::clone(connect),
            // Should the caller give up here, those who wait do it themselves.
            outcome: Some(Ok(())),
        };
        let Some(handshake) = Handshake::admit(&self.dialled, &pool.dialling) else {
            promise.will_say(Err(Reason::HandshakeLimit));
            return Err(Reason::HandshakeLimit);
        };
        let socket = match timeout_at(request.deadline, pod.socket(request.peer.is_ipv6())).await {
            Ok(socket) => socket.and_then(|socket| {
                let client = connect::Client {
                    address: request.client,
                    chosen: request.chosen,
                };
                connect::choose_source(&socket, request.peer, client)?;
                Ok(socket)
            }),
            Err(_) => Err(rustix::io::Errno::TIMEDOUT.into()),
        };
        let socket = socket.map_err(|error| {
            tracing::warn!(workload = %pod.name(), %error, "no socket for a tunnel");
            let reason = no_socket(&error);
            promise.will_say(Err(reason));
            reason
        })?;
        let (credentials, telemetry) = (Arc::clone(&self.credentials), Arc::clone(&self.telemetry));
        let (options, keepalive) = (self.options, self.keepalive);
        let links = Arc::clone(&self.outbound);
        promise.will_say(Err(Reason::Internal));
        tokio::spawn(async move {
            let target = Target {
                source: promise.key.source.clone(),
                peer: promise.key.peer,
                expected: promise.key.expected.clone(),
            };
            let maker = Maker {
                credentials: credentials.as_ref(),
                telemetry: &telemetry,
                options: &options,
                keepalive: &keepalive,
                links: &links,
                stage: &promise.connect.stage,
            };
            let made = Box::pin(maker.make(socket, &target)).await;
            drop(handshake);
            let made = match made {
                Ok(made) => made,
                Err(reason) => {
                    promise.will_say(Err(reason));
                    return;
                }
            };
            let client = Arc::new(made.client);
            let (pool, key) = (Arc::clone(&promise.pool), promise.key.clone());
            if !pool.add(&key, &client) {
                promise.will_say(Err(Reason::WorkloadGone));
                return;
            }
            let client = Arc::downgrade(&client);
            promise.will_say(Ok(()));
            drop(promise);
            let retire = |if_idle| retire_weak(&pool, &key, &client, if_idle);
            made.driver
                .run(credentials.as_ref(), &options, retire)
                .await;
        });
        Ok(())
    }

    /// Puts nothing more on the workload's tunnels; each closes when its streams have ended.
    pub(crate) fn release(&self, cookie: u64) {
        let pod = self.lock().remove(&cookie);
        if let Some(pod) = pod {
            pod.gone.store(true, Ordering::Release);
            pod.lock().clear();
        }
    }

    /// Tunnels that stand, and the streams on them.
    #[cfg(test)]
    pub(crate) fn count(&self) -> (usize, usize) {
        let pods: Vec<_> = self.lock().values().cloned().collect();
        let mut count = (0, 0);
        for pod in pods {
            for client in pod.lock().values().flat_map(|d| &d.tunnels) {
                count.0 += 1;
                count.1 += client.link.streams();
            }
        }
        count
    }

    pub(super) fn pod(&self, cookie: u64) -> Arc<Pod> {
        Arc::clone(self.lock().entry(cookie).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pod {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Destination>> {
        self.destinations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// False: the workload is gone.
    fn add(&self, key: &Key, client: &Arc<Client>) -> bool {
        let mut destinations = self.lock();
        if self.gone.load(Ordering::Acquire) {
            return false;
        }
        let tunnels = &mut destinations.entry(key.clone()).or_default().tunnels;
        tunnels.push(Arc::clone(client));
        true
    }

    /// Puts nothing more on this tunnel. `if_idle`: unless it has got a stream.
    fn retire(&self, key: &Key, client: &Arc<Client>, if_idle: bool) -> bool {
        let mut destinations = self.lock();
        let Some(destination) = destinations.get_mut(key) else {
            return false;
        };
        // Under the lock that places are taken under.
        if if_idle && client.link.streams() > 0 {
            return false;
        }
        destination.tunnels.retain(|c| !Arc::ptr_eq(c, client));
        if destination.is_empty() {
            destinations.remove(key);
        }
        true
    }
}

fn retire_weak(pool: &Pod, key: &Key, client: &Weak<Client>, if_idle: bool) -> bool {
    let client = client.upgrade();
    client.is_some_and(|client| pool.retire(key, &client, if_idle))
}

impl Destination {
    fn next(&mut self, max_streams: usize, new: bool) -> Next {
        if !new {
            // The newest first: if one is stale, it is not that.
            for client in self.tunnels.iter().rev() {
                if let Some(slot) = client.slot() {
                    return Next::Use(slot);
                }
            }
        }
        let least = self
            .connects
            .iter()
            .min_by_key(|c| c.waiting.load(Ordering::Relaxed));
        if let Some(least) = least
            && (least.waiting.load(Ordering::Relaxed) < max_streams
                || self.connects.len() >= CONNECTS)
        {
            least.waiting.fetch_add(1, Ordering::Relaxed);
            return Next::Join(Arc::clone(least));
        }
        let connect = Arc::new(Connect {
            done: watch::Sender::new(None),
            waiting: AtomicUsize::new(1),
            stage: Stage::default(),
        });
        self.connects.push(Arc::clone(&connect));
        Next::Start(connect)
    }

    fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.connects.is_empty()
    }
}

/// Tells those who wait what became of a connect, also when its task is dropped.
struct Promise {
    pool: Arc<Pod>,
    key: Key,
    connect: Arc<Connect>,
    outcome: Option<Result<(), Reason>>,
}

impl Promise {
    fn will_say(&mut self, outcome: Result<(), Reason>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut destinations = self.pool.lock();
        if let Some(destination) = destinations.get_mut(&self.key) {
            destination
                .connects
                .retain(|c| !Arc::ptr_eq(c, &self.connect));
            if destination.is_empty() {
                destinations.remove(&self.key);
            }
        }
        drop(destinations);
        self.connect.done.send_replace(self.outcome.take());
    }
}

/// The place of one handshake under way.
pub(super) struct Handshake {
    limits: Arc<Limits>,
    share: Arc<Share>,
}

impl Handshake {
    pub(super) fn admit(limits: &Arc<Limits>, share: &Arc<Share>) -> Option<Self> {
        limits.admit(share).then(|| Self {
            limits: Arc::clone(limits),
            share: Arc::clone(share),
        })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.limits.release(&self.share);
    }
}
