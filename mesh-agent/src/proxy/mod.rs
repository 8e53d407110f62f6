//! The L4 proxy: accepts what capture steers here, finds out where it was to go, connects there and carries the bytes.
//!
//! `accept` takes connections, `outbound` and `inbound` are the two pipelines, `connect` tries candidates, `tcp` and
//! `copy` carry bytes, `limits` and `workers` say how many and where. Nothing here knows BPF: capture is reached
//! through [`PodSockets`] alone, so the tests run over loopback.

mod accept;
mod admission;
mod baggage;
mod checks;
mod connect;
mod copy;
pub(crate) mod decide;
mod http;
mod inbound;
mod limits;
mod outbound;
mod pause;
mod pipes;
mod served;
mod socket;
mod tcp;
pub mod tunnel;
mod workers;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::BorrowedFd,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, join_all};
use mesh_common::Role;
use tokio::time::sleep;

pub(crate) use self::http::Plan;
#[cfg(fuzzing)]
pub use self::http::fuzz as http_fuzz;
use self::{
    accept::Reserve, copy::CopyShared, limits::Limits, served::Served, tunnel::Tunnels,
    workers::Workers,
};
pub use self::{
    copy::CopyOptions,
    limits::{Capacity, raise_nofile},
    socket::Keepalive,
    tunnel::{Credentials, TunnelOptions},
    workers::{EVENT_INTERVAL, WorkerMode},
};
use crate::{
    catalog::Catalog,
    model::{EffectivePolicy, ResourceName},
    telemetry::{PoolGauge, Reason, Telemetry, TunnelGauge},
};

/// The seam to capture: one enrolled workload, and sockets in its network namespace.
pub trait PodSockets: Send + Sync + 'static {
    fn name(&self) -> &ResourceName;

    /// Cookie of its network namespace.
    fn cookie(&self) -> u64;

    /// The policy in effect now.
    fn policy(&self) -> Arc<EffectivePolicy>;

    /// A marked, nonblocking, unconnected TCP socket in the workload's namespace.
    fn socket(&self, v6: bool) -> BoxFuture<'_, io::Result<socket2::Socket>>;

    /// For an accepted outbound connection: what the application dialled, and the cookie of its socket. `None`: it was
    /// not captured.
    fn original_dst(&self, fd: BorrowedFd<'_>) -> io::Result<Option<(SocketAddr, u64)>>;

    /// Says on whose behalf a socket will dial the application. Before connect().
    fn set_client(&self, fd: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()>;

    /// After connect(): true if the application does not know the client that [`Self::set_client`] named, and would see
    /// the agent's own address.
    fn client_lost(&self, _fd: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(false)
    }

    /// Where the application listens, when an inbound connection was accepted with this local address. `None`: it was
    /// not steered, the workload dialled the agent's listener itself.
    fn application(&self, accepted: SocketAddr) -> Option<SocketAddr> {
        Some(accepted)
    }

    /// Whether a connection to this destination is capture's own test of itself, which is closed without a word.
    fn is_self_test(&self, _client: SocketAddr, _destination: SocketAddr) -> bool {
        false
    }
}

/// How the proxy works; the defaults suit a node.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    pub workers: WorkerMode,
    pub copy: CopyOptions,
    pub keepalive: Keepalive,
    pub tunnel: TunnelOptions,
    /// Connections and pipes at once.
    pub capacity: Capacity,
    /// All attempts to connect together, where no TrafficPolicy says otherwise.
    pub connect_timeout: Duration,
    /// One attempt, while another candidate is left. Above the second after which a lost SYN is sent again.
    pub attempt_timeout: Duration,
}

impl ProxyOptions {
    /// The defaults, for a process with so many descriptors.
    pub fn for_nofile(nofile: u64) -> Self {
        Self {
            workers: WorkerMode::default(),
            copy: CopyOptions::default(),
            keepalive: Keepalive::default(),
            tunnel: TunnelOptions::default(),
            capacity: Capacity::of(nofile),
            connect_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_millis(2500),
        }
    }
}

/// The proxy of one agent.
pub struct Proxy {
    shared: Arc<Shared>,
    served: Mutex<Table>,
}

/// Workloads by cookie of their namespace.
#[derive(Default)]
struct Table {
    serving: HashMap<u64, Arc<Served>>,
    /// No longer accepting, connections are left. The same namespace may be served anew meanwhile, under another name
    /// or policy: that must not get what is stopping here.
    stopping: Vec<Arc<Served>>,
}

/// What every connection uses.
struct Shared {
    catalog: Arc<Catalog>,
    telemetry: Arc<Telemetry>,
    options: ProxyOptions,
    copy: CopyShared,
    limits: Arc<Limits>,
    tunnels: Arc<Tunnels>,
    /// Connections upstream on which requests go.
    http: http::Pools<http::Body>,
    /// Copies of requests that are on their way.
    mirrors: http::Mirrors,
    workers: Workers,
    reserve: Reserve,
}

/// How full the proxy is, for `mesh-agent status`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProxyStatus {
    pub connections: usize,
    pub max_connections: usize,
    /// What one workload alone may take of them.
    pub max_connections_per_workload: usize,
    pub workloads: Vec<WorkloadStatus>,
}

/// One workload's part of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WorkloadStatus {
    pub name: ResourceName,
    pub connections: usize,
}

impl Proxy {
    /// A proxy without identities: it makes and takes no tunnel.
    ///
    /// # Errors
    /// As [`Self::with_credentials`].
    pub fn new(
        catalog: Arc<Catalog>,
        telemetry: Arc<Telemetry>,
        options: ProxyOptions,
    ) -> io::Result<Arc<Self>> {
        Self::with_credentials(catalog, telemetry, Arc::new(tunnel::NoCredentials), options)
    }

    /// Must be called in a tokio runtime; with [`WorkerMode::Shared`] the connections run there.
    ///
    /// # Errors
    /// No threads or descriptors for the workers.
    pub fn with_credentials(
        catalog: Arc<Catalog>,
        telemetry: Arc<Telemetry>,
        credentials: Arc<dyn Credentials>,
        options: ProxyOptions,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            shared: Arc::new(Shared {
                catalog,
                copy: CopyShared::new(options.copy, options.capacity.pipes),
                limits: Limits::of(options.capacity),
                tunnels: Tunnels::new(
                    credentials,
                    Arc::clone(&telemetry),
                    options.tunnel,
                    options.keepalive,
                ),
                telemetry,
                http: http::Pools::new(),
                mirrors: http::Mirrors::default(),
                workers: Workers::new(options.workers)?,
                reserve: Reserve::new()?,
                options,
            }),
            served: Mutex::default(),
        }))
    }

    /// Accepts on the workload's listeners until [`Self::stop_pod`] or [`Self::drain`].
    ///
    /// # Errors
    /// A listener could not be registered; those before it are served.
    pub fn serve_pod(
        &self,
        pod: Arc<dyn PodSockets>,
        listeners: Vec<(Role, TcpListener)>,
    ) -> io::Result<()> {
        let cookie = pod.cookie();
        let served = {
            let mut table = self.lock();
            let served = table
                .serving
                .entry(cookie)
                .or_insert_with(|| Arc::new(Served::new(pod)));
            let served = Arc::clone(served);
            self.shared.limits.set_pods(table.serving.len());
            served
        };
        // So that there is something that applied last, should the workload leave the configuration.
        served.decide_anew(&self.shared);
        for (role, listener) in listeners {
            accept::start(&self.shared, &served, role, listener)?;
        }
        Ok(())
    }

    /// Drops the workload's listeners (the kernel resets what is queued on them), lets its connections end within
    /// `grace`, then resets the rest. [`Duration::MAX`]: as long as they live.
    pub async fn stop_pod(&self, cookie: u64, grace: Duration) {
        let all: Vec<_> = {
            let mut table = self.lock();
            let served = table.serving.remove(&cookie);
            table.stopping.extend(served);
            self.shared.limits.set_pods(table.serving.len());
            let same = table.stopping.iter().filter(|s| s.pod.cookie() == cookie);
            same.cloned().collect()
        };
        join_all(all.iter().map(|s| s.stop(grace, Reason::WorkloadGone))).await;
        if !self.lock().serving.contains_key(&cookie) {
            self.shared.http.release(cookie);
            self.shared.tunnels.release(cookie);
        }
        self.lock()
            .stopping
            .retain(|s| !all.iter().any(|ended| Arc::ptr_eq(s, ended)));
    }

    /// How long ago a connection of the workload was last accepted; `None` for none yet, or an unknown workload.
    pub fn since_last_accept(&self, cookie: u64) -> Option<Duration> {
        self.lock().serving.get(&cookie)?.since_last_accept()
    }

    /// Stops accepting for every workload, lets connections end within the `drainTimeout` of its policy, then resets
    /// the rest.
    pub async fn drain(&self) {
        let all: Vec<_> = {
            let mut table = self.lock();
            let serving: Vec<_> = table.serving.drain().map(|(_, served)| served).collect();
            serving
                .into_iter()
                .chain(table.stopping.drain(..))
                .collect()
        };
        let stopped = join_all(
            all.iter()
                .map(|s| s.stop(s.pod.policy().drain_timeout, Reason::Drained)),
        );
        let mut stopped = pin!(stopped);
        loop {
            // What is kept for a next request holds the connections of servers on this node open.
            for served in &all {
                self.shared.http.release(served.pod.cookie());
            }
            tokio::select! {
                _ = &mut stopped => return,
                () = sleep(Duration::from_millis(50)) => {}
            }
        }
    }

    /// Decides the inbound connections of every workload anew, where the catalog has changed what decides on them, and
    /// resets those that are no longer allowed. Returns their number.
    pub fn decide_anew(&self) -> usize {
        let all: Vec<_> = self.lock().all().cloned().collect();
        let mut cut = 0;
        for served in all {
            let lost = served.decide_anew(&self.shared);
            if lost > 0 {
                tracing::info!(workload = %served.pod.name(), connections = lost, "a change of policy ended connections");
            }
            cut += lost;
        }
        cut
    }

    /// How many tunnels there are, for the metrics.
    pub fn tunnels(&self) -> Vec<TunnelGauge> {
        self.shared.tunnels.gauges()
    }

    /// Connections for requests, for the metrics.
    pub fn pool(&self) -> PoolGauge {
        self.shared.http.gauge()
    }

    pub fn status(&self) -> ProxyStatus {
        let mut workloads: Vec<_> = self
            .lock()
            .all()
            .map(|s| WorkloadStatus {
                name: s.pod.name().clone(),
                connections: s.share.used(),
            })
            .collect();
        workloads.sort_by(|a, b| a.name.cmp(&b.name));
        workloads.dedup_by(|later, first| {
            let same = later.name == first.name;
            if same {
                first.connections += later.connections;
            }
            same
        });
        ProxyStatus {
            connections: self.shared.limits.used(),
            max_connections: self.shared.limits.max(),
            max_connections_per_workload: self.shared.limits.max_alone(),
            workloads,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn all(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.serving.values().chain(&self.stopping)
    }
}
