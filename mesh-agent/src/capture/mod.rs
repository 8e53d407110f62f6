//! Capture: the userspace half of `mesh-ebpf`. Loads and pins the kernel programs, enrols workloads, makes sockets in
//! their namespaces, keeps the maps true. architecture.md, sections 3, 4 and 11.

mod cgroup;
mod check;
mod conns;
mod destroy;
mod diag;
mod enrol;
mod enrolled;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod listeners;
mod listening;
mod loader;
mod maps;
mod netlink;
mod netns;
mod pins;
mod pod;
mod policy;
mod pool;
mod release;
mod rtnl;
mod selftest;
mod share;
mod sockets;
mod stop;
pub(crate) mod sys;
mod table;
mod versions;
mod watch;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use mesh_common::{ConnRecord, Counter, Role, ip_key};
use tokio::sync::{Notify, mpsc};

pub use self::{
    check::{CheckItem, CheckResult, check},
    error::{CaptureError, EnrolError},
    pod::Pod,
    release::release_node,
    share::Shares,
    table::{PodState, PodStatus},
};
use self::{enrol::Shared, netns::NetnsThread, pins::Pins, table::Table};
use crate::model::{EffectivePolicy, ResourceName};

/// The role of a listener of [`Pod::take_listeners`].
pub type ListenerRole = Role;

/// Where capture works.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Name of the node; agents of different names do not see each other's workloads.
    pub node: String,
    /// The host's BPF filesystem.
    pub bpffs: PathBuf,
    /// Root of cgroup2; found by itself if `None`.
    pub cgroup2: Option<PathBuf>,
    /// Mount a BPF filesystem where there is none.
    pub mount_bpffs: bool,
    /// What each workload may have of the maps.
    pub shares: Shares,
}

impl CaptureOptions {
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            bpffs: "/sys/fs/bpf".into(),
            cgroup2: None,
            mount_bpffs: true,
            shares: Shares::default(),
        }
    }
}

/// A workload that shall be captured.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedPod {
    pub name: ResourceName,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Addresses that it must own; all that its namespace has are captured.
    pub addresses: Vec<IpAddr>,
    pub policy: Arc<EffectivePolicy>,
    /// A policy protects it: plain traffic never reaches it, whatever the fail policy.
    pub protected: bool,
}

/// News for the proxy.
#[derive(Debug)]
pub enum PodEvent {
    /// Captured and tested: accept on its listeners from now on.
    Enrolled(Arc<Pod>),
    /// Nothing is captured any more and nothing waits to be accepted: drop its listeners.
    Released {
        cookie: u64,
        /// The namespace is gone: close every socket in it now, or it stays alive. Otherwise connections may end in
        /// their own time.
        gone: bool,
    },
}

/// What capture tells others; each queue is bounded.
#[derive(Debug)]
pub struct CaptureStreams {
    /// Capture waits when this is not read.
    pub pods: mpsc::Receiver<PodEvent>,
    /// Final records, by socket cookie. When full, records are dropped and counted ([`Capture::lost_records`]).
    pub closed: mpsc::Receiver<(u64, ConnRecord)>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct MapStat {
    pub name: &'static str,
    pub entries: u64,
    pub max_entries: u64,
}

/// The kernel programs of this node and the workloads they capture.
pub struct Capture {
    shared: Arc<Shared>,
    table: Mutex<Table>,
    /// One pass at a time.
    reconciling: tokio::sync::Mutex<()>,
    pods: mpsc::Sender<PodEvent>,
    closed: mpsc::Sender<(u64, ConnRecord)>,
    lost: AtomicU64,
    /// Something happened that a pass should look at.
    wake: Arc<Notify>,
    /// Where the rotation over all pods stands.
    rotation: AtomicUsize,
    /// Some pod's listeners changed.
    listeners_changed: Arc<Notify>,
    /// True when programs of an earlier agent were taken over.
    adopted: bool,
    tasks: Mutex<Vec<enrolled::AbortOnDrop>>,
}

impl Capture {
    /// Loads the programs, or takes over those that an earlier agent pinned, and attaches them. Nothing is captured
    /// that was not before, until [`Self::apply`].
    pub async fn start(
        options: CaptureOptions,
    ) -> Result<(Arc<Self>, CaptureStreams), CaptureError> {
        let cgroup = match options.cgroup2.clone() {
            Some(path) => path,
            None => cgroup::find()?,
        };
        let shares = options.shares;
        let loading = tokio::task::spawn_blocking(move || {
            let pins = Pins::open(&options.bpffs, &options.node, options.mount_bpffs)?;
            let loaded = loader::load(&pins, &cgroup)?;
            Ok::<_, CaptureError>((pins, loaded))
        });
        let (pins, loaded) = loading.await.map_err(|e| CaptureError::Io {
            what: "loading the kernel programs".into(),
            source: std::io::Error::other(e),
        })??;
        let shared = Arc::new(Shared {
            maps: loaded.maps,
            pins,
            lookup: loaded.lookup,
            thread: NetnsThread::start()?,
            shares,
            claims: Mutex::default(),
            known: Mutex::default(),
        });
        let (pods, pods_rx) = mpsc::channel(1024);
        let (closed, closed_rx) = mpsc::channel(65_536);
        let capture = Arc::new(Self {
            shared,
            table: Mutex::default(),
            reconciling: tokio::sync::Mutex::default(),
            pods,
            closed,
            lost: AtomicU64::new(0),
            rotation: AtomicUsize::new(0),
            wake: Arc::default(),
            listeners_changed: Arc::default(),
            adopted: loaded.adopted,
            tasks: Mutex::default(),
        });
        watch::start(&capture, loaded.events, loaded.ebpf)?;
        Ok((
            capture,
            CaptureStreams {
                pods: pods_rx,
                closed: closed_rx,
            },
        ))
    }

    /// Makes the captured workloads those of `wanted`: enrols, releases, changes policies. Returns when every workload
    /// was enrolled or has failed once (it is then tried again by itself); releases go on in the background.
    pub async fn apply(self: &Arc<Self>, wanted: Vec<WantedPod>) {
        self.table().set_wanted(wanted);
        self.reconcile().await;
    }

    /// Addresses that only the mesh knows; refused at connect() while no agent is there.
    pub fn set_mesh_addrs(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let wanted: HashSet<[u8; 16]> = addresses.into_iter().map(ip_key).collect();
        if let Err(error) = policy::sync_mesh_addrs(&self.shared.maps, &wanted) {
            tracing::error!(%error, addresses = wanted.len(), "cannot write the addresses of services into the kernel's map");
        }
    }

    /// Every wanted workload and how its capture stands.
    pub fn pods(&self) -> Vec<PodStatus> {
        self.table().status()
    }

    /// The pod of a captured workload.
    pub fn pod(&self, name: &ResourceName) -> Option<Arc<Pod>> {
        self.table().enrolled_by_name(name).map(|e| e.pod.clone())
    }

    /// True if this agent took over what an earlier one had pinned.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Records of all connections of captured workloads, by socket cookie.
    pub fn read_conns(&self) -> Vec<(u64, ConnRecord)> {
        self.shared.maps.conns.entries().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the connection records");
            Vec::new()
        })
    }

    /// The record of one connection.
    pub fn read_conn(&self, cookie: u64) -> Option<ConnRecord> {
        self.shared.maps.conns.get(&cookie).ok().flatten()
    }

    /// Replaces a record, unless its connection has ended.
    pub fn update_conn(&self, cookie: u64, record: &ConnRecord) {
        if let Err(error) = conns::update(&self.shared.maps, cookie, record) {
            tracing::debug!(%error, cookie, "cannot write a connection record");
        }
    }

    /// Final records that nobody read in time.
    pub fn lost_records(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Occupancy of the maps that can fill up.
    pub fn map_stats(&self) -> Vec<MapStat> {
        self.shared.maps.stats()
    }

    /// Counters of the kernel programs, with their labels.
    pub fn counters(&self) -> Vec<(Counter, &'static str, u64)> {
        self.shared.maps.counters()
    }

    /// Releases every workload, then removes programs and maps. Says what was removed. The agent captures nothing
    /// afterwards; start a new [`Capture`] to begin again.
    pub async fn release_all(self: &Arc<Self>) -> Vec<String> {
        let mut said = self.release_workloads().await;
        said.extend(self.shared.pins.remove_all());
        said
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Hands a final record on.
    fn report_closed(&self, cookie: u64, record: ConnRecord) {
        if self.closed.try_send((cookie, record)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn enrolled(&self) -> HashMap<u64, Arc<enrolled::Enrolled>> {
        self.table().enrolled()
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("adopted", &self.adopted)
            .finish_non_exhaustive()
    }
}
