//! A workload that is captured: what was made for it in its namespace and in the maps, and what keeps that true.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use mesh_common::{Addr, PodAddr, WL_INBOUND, WL_OUTBOUND, Workload, ip_key};
use tokio::task::JoinHandle;

use super::{
    WantedPod,
    error::EnrolError,
    listeners::{self, Listener},
    listening,
    maps::Maps,
    netlink::Netlink,
    netns::{Netns, NetnsId},
    pod::Pod,
    policy::{self, Exclusions},
    rtnl,
};

/// Addresses of one workload that are captured though no configuration names them. The maps are shared by all: a pod
/// that gives itself thousands must not keep others from being enrolled.
const MAX_UNNAMED: usize = 256;
/// The same for link-local ones; an interface has one.
const MAX_LINK_LOCAL: usize = 64;

/// One captured workload.
pub(super) struct Enrolled {
    pub pod: Arc<Pod>,
    pub path: PathBuf,
    pub id: NetnsId,
    /// Set when listeners or addresses may have changed.
    pub dirty: AtomicBool,
    inner: Mutex<Option<Inner>>,
    tasks: Mutex<Vec<AbortOnDrop>>,
}

/// What holds the namespace open, and what stands in the maps.
pub(super) struct Inner {
    pub netns: Arc<Netns>,
    pub diag: Netlink,
    pub rtnl: Netlink,
    pub listeners: Vec<Listener>,
    pub addresses: Vec<IpAddr>,
    /// Those in `pod_addrs` that lead to no listener.
    pub link_local: Vec<IpAddr>,
    /// What the namespace had at the last look: `addresses`, and those that are another workload's.
    pub seen: Vec<IpAddr>,
    pub listening: Vec<SocketAddr>,
    /// Entries of `listen_ports` whose listener was missing at the last look.
    pub missing: HashSet<Addr>,
    pub exclusions: Exclusions,
    pub wanted: WantedPod,
    /// `WL_OUTBOUND | WL_INBOUND`, as far as capture is on.
    pub capture: u32,
}

/// A task that ends with its owner.
pub(super) struct AbortOnDrop(pub JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Enrolled {
    pub(super) fn new(pod: Arc<Pod>, inner: Inner) -> Self {
        Self {
            path: inner.netns.path.clone(),
            id: inner.netns.id,
            pod,
            dirty: AtomicBool::new(false),
            inner: Mutex::new(Some(inner)),
            tasks: Mutex::default(),
        }
    }

    pub(super) fn cookie(&self) -> u64 {
        self.pod.cookie
    }

    /// What it holds; `None` once let go.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Inner>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn own_task(&self, task: JoinHandle<()>) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(AbortOnDrop(task));
    }

    /// Closes what capture holds of the namespace. If that is `gone`, the pod's sockets too: they would keep it alive.
    /// Otherwise connections that the proxy still carries may need more of them.
    pub(super) fn let_go(&self, gone: bool) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let inner = self.lock().take();
        drop(inner);
        if gone {
            self.pod.close();
        }
    }

    /// True if its path leads to another namespace now, or nowhere.
    pub(super) fn is_gone(&self) -> bool {
        NetnsId::of(&self.path) != Some(self.id)
    }

    /// Takes a changed policy or protection over.
    pub(super) fn update(&self, maps: &Maps, wanted: &WantedPod) -> io::Result<()> {
        self.pod.policy.store(wanted.policy.clone());
        let cookie = self.cookie();
        let mut inner = self.lock();
        let Some(inner) = inner.as_mut() else {
            return Ok(());
        };
        if inner.wanted == *wanted {
            return Ok(());
        }
        inner.wanted = wanted.clone();
        inner.exclusions.sync(maps, cookie, &wanted.policy)?;
        inner.write_row(maps, cookie)
    }

    /// Reads addresses anew and brings maps to them.
    pub(super) fn sync_addresses(&self, maps: &Maps) -> Result<(), EnrolError> {
        let cookie = self.cookie();
        let mut inner = self.lock();
        let Some(inner) = inner.as_mut() else {
            return Ok(());
        };
        let now: Vec<IpAddr> = rtnl::addresses(&mut inner.rtnl)
            .map_err(EnrolError::io("cannot read addresses over rtnetlink"))?
            .into_iter()
            .filter(|a| a.usable)
            .map(|a| a.ip)
            .collect();
        // One that is another's may have become free; one of ours may have been taken back.
        if now == inner.seen
            && now.len() == inner.addresses.len() + inner.link_local.len()
            && inner
                .holds(maps, cookie)
                .map_err(EnrolError::io("cannot read pod_addrs"))?
        {
            return Ok(());
        }
        if now != inner.seen {
            tracing::info!(workload = %self.pod.name, addresses = ?now, "addresses changed");
        }
        let before = inner.addresses.clone();
        inner.set_addresses(maps, cookie, now)?;
        if inner.addresses == before {
            return Ok(());
        }
        self.pod.addresses.store(Arc::new(inner.addresses.clone()));
        // A listener for IPv6 only has one entry for each address.
        self.dirty.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads where applications listen and brings `listen_ports` to it. `found` is what stands there for this pod.
    /// False if another look is needed soon.
    pub(super) fn sync_listening(&self, maps: &Maps, found: &HashSet<Addr>) -> io::Result<bool> {
        let cookie = self.cookie();
        let mut inner = self.lock();
        let Some(inner) = inner.as_mut() else {
            return Ok(true);
        };
        inner.listening = listening::sync(
            maps,
            cookie,
            &mut inner.diag,
            &inner.listeners,
            &inner.addresses,
            found,
            &mut inner.missing,
        )?;
        Ok(inner.missing.is_empty())
    }
}

impl Inner {
    /// Turns capture on or off, and writes the row.
    pub(super) fn set_capture(&mut self, maps: &Maps, cookie: u64, capture: u32) -> io::Result<()> {
        debug_assert_eq!(capture & !(WL_INBOUND | WL_OUTBOUND), 0);
        self.capture = capture;
        self.write_row(maps, cookie)
    }

    /// Writes the row of `workloads`, as a whole: the kernel program sees the old or the new one.
    pub(super) fn write_row(&self, maps: &Maps, cookie: u64) -> io::Result<()> {
        let flags = policy::flags(&self.wanted.policy, self.wanted.protected, &self.addresses);
        let row = Workload {
            addr4: self.main_address(IpAddr::is_ipv4),
            addr6: self.main_address(IpAddr::is_ipv6),
            flags: flags | self.capture,
            pad: 0,
        };
        maps.workloads.insert(&cookie, &row)
    }

    /// True while all of `addresses` lead here.
    fn holds(&self, maps: &Maps, cookie: u64) -> io::Result<bool> {
        for address in self.addresses.iter().chain(&self.link_local) {
            let held = maps.pod_addrs.get(&ip_key(*address))?;
            if held.is_none_or(|h| h.netns != cookie) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The address of a family that captured connections are redirected to: the first that configuration names, else
    /// the first there is. Zero if there is none.
    fn main_address(&self, family: fn(&IpAddr) -> bool) -> [u8; 16] {
        let named = self
            .wanted
            .addresses
            .iter()
            .find(|a| family(a) && self.addresses.contains(a));
        named
            .or_else(|| self.addresses.iter().find(|a| family(a)))
            .map_or([0; 16], |a| ip_key(*a))
    }

    /// New addresses lead to the listeners before they are redirected to; old ones no longer are before they go.
    ///
    /// A namespace may have any address that its processes give it, and several may have the same (a bridge inside a
    /// pod). An address belongs to the workload whose configuration names it, else to the first that has it; for
    /// others it is left out. So no workload keeps another from being captured.
    pub(super) fn set_addresses(
        &mut self,
        maps: &Maps,
        cookie: u64,
        now: Vec<IpAddr>,
    ) -> Result<(), EnrolError> {
        let write = |what| EnrolError::io(what);
        let mut own = Vec::with_capacity(now.len());
        let mut link_local = Vec::new();
        let (mut taken, mut unnamed) = (None, 0);
        for address in &now {
            let named = self.wanted.addresses.contains(address);
            let neighbours_only = rtnl::is_link_local(address);
            if neighbours_only && link_local.len() == MAX_LINK_LOCAL {
                continue;
            }
            unnamed += usize::from(!named && !neighbours_only);
            if unnamed > MAX_UNNAMED && !named && !neighbours_only {
                if unnamed == MAX_UNNAMED + 1 && self.seen != now {
                    tracing::warn!(workload = %self.wanted.name, addresses = now.len(), "has so many addresses that some are not captured");
                }
                continue;
            }
            let key = ip_key(*address);
            let held = maps
                .pod_addrs
                .get(&key)
                .map_err(write("cannot read pod_addrs"))?;
            if held.is_some_and(|h| h.netns == cookie)
                && (neighbours_only || self.addresses.contains(address))
            {
                // Stands already. An agent on its way out has taken its listeners out of the map: not again.
                if neighbours_only {
                    link_local.push(*address);
                } else {
                    own.push(*address);
                }
                continue;
            }
            if let Some(PodAddr { netns }) = held.filter(|h| h.netns != cookie) {
                // A row without a workload is what a dead namespace left.
                let alive = maps
                    .workloads
                    .get(&netns)
                    .map_err(write("cannot read workloads"))?;
                if alive.is_some() && !named {
                    if !self.seen.contains(address) {
                        tracing::warn!(workload = %self.wanted.name, %address, netns, "an address is not captured: it is another workload's");
                    }
                    taken = Some((*address, netns));
                    continue;
                }
                if alive.is_some() {
                    tracing::warn!(workload = %self.wanted.name, %address, netns, "took its address back from a workload that is not configured to have it");
                }
            }
            if neighbours_only {
                link_local.push(*address);
            } else {
                own.push(*address);
                listeners::register(maps, &self.listeners, *address)
                    .map_err(write("cannot put a listener into the map"))?;
            }
            maps.pod_addrs
                .insert(&key, &PodAddr { netns: cookie })
                .map_err(write("cannot write pod_addrs"))?;
        }
        if let (Some((address, cookie)), true) = (taken, own.is_empty()) {
            // Without any address nothing would be captured.
            return Err(EnrolError::AddressTaken { address, cookie });
        }
        self.seen = now;
        let mut before = std::mem::replace(&mut self.addresses, own);
        before.append(&mut std::mem::replace(&mut self.link_local, link_local));
        self.write_row(maps, cookie)
            .map_err(write("cannot write the workload's row"))?;
        let gone = |a: &&IpAddr| !self.addresses.contains(a) && !self.link_local.contains(a);
        for address in before.iter().filter(gone) {
            drop_address(maps, cookie, *address).map_err(write("cannot take an address back"))?;
        }
        Ok(())
    }
}

/// Takes an address of the pod out of the maps, unless it is another's by now.
pub(super) fn drop_address(maps: &Maps, cookie: u64, address: IpAddr) -> io::Result<()> {
    let key = ip_key(address);
    if maps.pod_addrs.get(&key)?.is_some_and(|p| p.netns == cookie) {
        maps.pod_addrs.remove(&key)?;
        listeners::unregister(maps, address)?;
    }
    Ok(())
}
