//! The node's view of the world: what every source says, merged into one immutable snapshot.
//!
//! Readers load the snapshot without a lock. A source hands in the full set of its resources; a change rebuilds only
//! what it touches (`build`), and everything else is shared with the snapshot before.

mod authorization;
mod build;
mod distribution;
mod inbound;
mod merge;
mod route_policies;
mod routes;
mod services;
mod snapshot;
mod upstream;
mod workloads;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, Guard};
use ipnet::IpNet;
use tokio::sync::watch;

pub use inbound::InboundPort;
pub use routes::{Condition, ParentStatus, Reason, RouteScope, RouteStatus, ServiceRoutes};
pub use snapshot::Snapshot;
pub use upstream::{Upstream, UpstreamEndpoint};

use crate::{api::Config, model::ResourceName};

/// What the catalog needs to know of its agent.
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    pub node: Arc<str>,
    /// Policies of this namespace without selector apply to the whole mesh.
    pub root_namespace: String,
    /// Ranges that a workload may reach under `registered-only` whatever its policy says.
    pub exceptions: Vec<IpNet>,
}

impl CatalogOptions {
    /// With root namespace `mesh-system`; link-local ranges and the DNS servers of `/etc/resolv.conf` are exceptions.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let mut exceptions = link_local();
        exceptions.extend(name_servers(&resolv_conf).map(IpNet::from));
        Self {
            node: node.into(),
            root_namespace: "mesh-system".to_owned(),
            exceptions,
        }
    }
}

fn link_local() -> Vec<IpNet> {
    [
        IpNet::new([169, 254, 0, 0].into(), 16),
        IpNet::new([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Addresses of the `nameserver` lines.
fn name_servers(resolv_conf: &str) -> impl Iterator<Item = IpAddr> + '_ {
    resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        // A zone (fe80::1%eth0) is link-local and so an exception anyway.
        address.parse().ok()
    })
}

/// Names a source to the catalog; the order of registration is the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceId(usize);

/// Holds the snapshot and takes what sources say.
#[derive(Debug)]
pub struct Catalog {
    current: ArcSwap<Snapshot>,
    by_netns: ArcSwap<HashMap<u64, ResourceName>>,
    /// The names in `by_netns`.
    captured: ArcSwap<HashSet<ResourceName>>,
    /// Until what an earlier agent captured is taken over, everybody counts as captured.
    adopting: AtomicBool,
    changed: watch::Sender<u64>,
    /// Held while a change is built; readers never wait for it.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sources: Vec<Config>,
    builder: build::Builder,
}

impl Catalog {
    pub fn new(node: impl Into<String>) -> Arc<Self> {
        Self::with_options(CatalogOptions::new(node.into()))
    }

    pub fn with_options(options: CatalogOptions) -> Arc<Self> {
        let empty = Arc::new(Snapshot::empty(&options));
        Arc::new(Self {
            current: ArcSwap::new(empty),
            by_netns: ArcSwap::default(),
            captured: ArcSwap::default(),
            adopting: AtomicBool::new(false),
            changed: watch::Sender::new(0),
            state: Mutex::new(State {
                sources: Vec::new(),
                builder: build::Builder::new(options),
            }),
        })
    }

    /// The snapshot, to keep.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The snapshot, to look something up: cheaper than `snapshot`, not to be held across an await.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The version, which grows with every applied change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Makes room for a source. Where two sources define the same thing, the one that registered first wins.
    pub fn register(&self) -> SourceId {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sources.push(Config::default());
        SourceId(state.sources.len() - 1)
    }

    /// Takes the full set of a source's resources, and returns what of it yields to other sources. Takes as long as
    /// the change is large; call it where blocking is allowed.
    pub fn apply(&self, source: SourceId, config: Config) -> Vec<String> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        if let Some(slot) = state.sources.get_mut(source.0) {
            *slot = config;
        }
        let (merged, yielded) = merge::merge(&state.sources);
        let previous = self.current.load_full();
        if let Some(next) = state.builder.build(&previous, &merged, Instant::now()) {
            let version = next.version;
            self.current.store(Arc::new(next));
            // Sent under the lock, so that versions arrive in order.
            self.changed.send_replace(version);
        }
        yielded
    }

    /// Says that a network namespace (by cookie) is that of a workload, which is captured from now on.
    #[allow(clippy::needless_pass_by_value)] // the map keeps it; the clone is for a retry of the swap only
    pub fn bind_netns(&self, cookie: u64, name: ResourceName) {
        self.by_netns.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.insert(cookie, name.clone());
            map
        });
        self.note_captured();
    }

    pub fn unbind_netns(&self, cookie: u64) {
        self.by_netns.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.remove(&cookie);
            map
        });
        self.note_captured();
    }

    fn note_captured(&self) {
        let names = self.by_netns.load().values().cloned().collect();
        self.captured.store(Arc::new(names));
    }

    /// Whether this agent captures the workload now. O(1).
    pub fn is_captured(&self, name: &ResourceName) -> bool {
        self.adopting.load(Ordering::Acquire) || self.captured.load().contains(name)
    }

    /// An agent that follows another takes its workloads over one by one. Meanwhile a source must not dial in plain text
    /// whom it reached in a tunnel before.
    pub fn set_adopting(&self, adopting: bool) {
        self.adopting.store(adopting, Ordering::Release);
    }

    /// Whose network namespace it is. O(1).
    pub fn workload_by_netns(&self, cookie: u64) -> Option<ResourceName> {
        self.by_netns.load().get(&cookie).cloned()
    }
}
