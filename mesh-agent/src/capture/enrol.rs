//! Enrolling one workload, in the order of architecture.md section 3: nothing is captured before everything that takes
//! captured connections stands and was tried.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use mesh_common::{WL_INBOUND, WL_OUTBOUND};
use rustix::net::netlink::SOCK_DIAG;

use super::{
    WantedPod, conns,
    enrolled::{Enrolled, Inner},
    error::EnrolError,
    listeners, listening,
    loader::{self, LOOKUP},
    maps::Maps,
    netlink::Netlink,
    netns::{Netns, NetnsThread},
    pins::Pins,
    pod::Pod,
    policy::Exclusions,
    release,
    rtnl::{self, Address},
    selftest,
    share::{self, Shares},
    sys::{
        bpf::{self, AttachType},
        sock,
    },
    versions,
};
use crate::model::ResourceName;

/// What every enrolment and release works on.
pub(super) struct Shared {
    pub maps: Arc<Maps>,
    pub pins: Pins,
    /// The `sk_lookup` program.
    pub lookup: OwnedFd,
    pub thread: NetnsThread,
    pub shares: Shares,
    /// Which workload has which namespace.
    pub claims: Mutex<HashMap<u64, ResourceName>>,
    /// Namespaces in which this agent has had sockets.
    pub known: Mutex<HashSet<u64>>,
}

/// Opened and looked at, nothing changed yet.
struct Found {
    netns: Arc<Netns>,
    diag: Netlink,
    rtnl: Netlink,
    changes: OwnedFd,
    cookie: u64,
    addresses: Vec<Address>,
}

/// Gives the claim on a namespace back when enrolment fails.
struct Claim<'a> {
    shared: &'a Shared,
    cookie: u64,
    kept: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.claims().remove(&self.cookie);
        }
    }
}

impl Shared {
    pub(super) fn claims(&self) -> std::sync::MutexGuard<'_, HashMap<u64, ResourceName>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cookie of the namespace at `path`.
    pub(super) async fn cookie_of(&self, path: &std::path::Path) -> Result<u64, EnrolError> {
        let netns = Arc::new(Netns::open(path)?);
        self.thread
            .run(netns, || {
                let socket = Netlink::open(None)?;
                sock::netns_cookie(socket.as_fd())
            })
            .await?
            .map_err(EnrolError::io("cannot read the namespace's cookie"))
    }

    /// Enrols one workload. On an error nothing is left behind, but for a workload that an earlier agent captured: that
    /// stays under its fail policy.
    pub(super) async fn enrol(
        &self,
        wanted: &WantedPod,
    ) -> Result<(Arc<Enrolled>, OwnedFd), EnrolError> {
        let found = self.look(wanted).await?;
        let cookie = found.cookie;
        let mut claim = self.claim(cookie, wanted)?;
        self.check_lookup(&found.netns, cookie)?;
        let usable = owned_addresses(wanted, &found)?;
        let adopted = self
            .maps
            .workloads
            .get(&cookie)
            .map_err(EnrolError::io("cannot read the workload's row"))?;
        let flags = match adopted {
            Some(row) => row.flags,
            None => versions::captured(&self.pins, cookie),
        };
        let row = adopted.is_some();
        match self.build(wanted, found, usable, flags, row).await {
            Ok(done) => {
                claim.kept = true;
                Ok(done)
            }
            Err(error) => {
                if adopted.is_none() && flags == 0 {
                    release::forget(self, cookie);
                }
                Err(error)
            }
        }
    }

    async fn look(&self, wanted: &WantedPod) -> Result<Found, EnrolError> {
        let netns = Arc::new(Netns::open(&wanted.netns)?);
        let inside = netns.clone();
        let (diag, rtnl, changes) = self
            .thread
            .run(netns, || {
                let diag = Netlink::open(Some(SOCK_DIAG))?;
                let rtnl = Netlink::open(None)?;
                // Before the first read, so that no change is missed.
                Ok((diag, rtnl, rtnl::subscribe()?))
            })
            .await?
            .map_err(EnrolError::io(
                "cannot open netlink sockets in the namespace",
            ))?;
        let mut found = Found {
            cookie: sock::netns_cookie(diag.as_fd()).map_err(EnrolError::io(
                "cannot read the namespace's cookie (needs kernel 5.14)",
            ))?,
            netns: inside,
            diag,
            rtnl,
            changes,
            addresses: Vec::new(),
        };
        found.addresses = rtnl::addresses(&mut found.rtnl)
            .map_err(EnrolError::io("cannot read addresses over rtnetlink"))?;
        Ok(found)
    }

    fn claim(&self, cookie: u64, wanted: &WantedPod) -> Result<Claim<'_>, EnrolError> {
        let mut claims = self.claims();
        if let Some(by) = claims.get(&cookie) {
            return Err(EnrolError::Claimed {
                path: wanted.netns.clone(),
                by: by.clone(),
            });
        }
        claims.insert(cookie, wanted.name.clone());
        Ok(Claim {
            shared: self,
            cookie,
            kept: false,
        })
    }

    /// Two agents that steer one namespace would fight over every connection.
    fn check_lookup(&self, netns: &Netns, cookie: u64) -> Result<(), EnrolError> {
        let mut own = versions::lookup_programs(&self.pins, cookie);
        own.extend(
            bpf::open_pin(&self.pins.lookup(cookie))
                .and_then(|link| bpf::link_program(link.as_fd())),
        );
        // A kernel that cannot answer is no reason to refuse.
        for id in bpf::attached_programs(netns.as_fd(), AttachType::SkLookup).unwrap_or_default() {
            if own.contains(&id) {
                continue;
            }
            let name = bpf::program_by_id(id).and_then(|p| bpf::program_info(p.as_fd()));
            if name.is_ok_and(|(_, name)| name == LOOKUP) {
                return Err(EnrolError::ForeignLookup);
            }
        }
        Ok(())
    }

    /// `flags` are those under which an earlier agent left it, `row` says whether it was one of this version: what is captured stays captured throughout.
    async fn build(
        &self,
        wanted: &WantedPod,
        found: Found,
        usable: Vec<IpAddr>,
        flags: u32,
        row: bool,
    ) -> Result<(Arc<Enrolled>, OwnedFd), EnrolError> {
        let (maps, cookie) = (&self.maps, found.cookie);
        let in_pod = maps.clone();
        let made = self
            .thread
            .run(found.netns.clone(), move || listeners::make(&in_pod))
            .await?
            .map_err(EnrolError::io(
                "cannot listen on the namespace's loopback addresses (is its lo up?)",
            ))?;
        let capture = flags & (WL_INBOUND | WL_OUTBOUND);
        share::grant(maps, cookie, self.shares)
            .map_err(EnrolError::io("cannot write the workload's row in usage"))?;
        let netns = found.netns.clone();
        let mut inner = Inner {
            netns: found.netns,
            diag: found.diag,
            rtnl: found.rtnl,
            listeners: made,
            addresses: Vec::new(),
            link_local: Vec::new(),
            seen: Vec::new(),
            listening: Vec::new(),
            missing: HashSet::new(),
            exclusions: Exclusions::default(),
            wanted: wanted.clone(),
            capture,
        };
        let serves_v6 = |a: &IpAddr| a.is_ipv6() && !rtnl::is_link_local(a);
        if usable.iter().any(serves_v6) && !inner.listeners.iter().any(|l| l.v6) {
            return Err(EnrolError::Io {
                what: "the workload has an IPv6 address but its namespace has no ::1 (is IPv6 disabled on lo?)",
                source: io::Error::from_raw_os_error(libc::EADDRNOTAVAIL),
            });
        }
        if capture == 0 || !row {
            // From here on the kernel records the pod's connections and listeners, and captures nothing yet.
            inner
                .set_capture(maps, cookie, 0)
                .map_err(EnrolError::io("cannot write the workload's row"))?;
            inner.capture = capture;
        }
        // Before anything leads to the listeners: what waits on them to be accepted is no application's.
        let existing = conns::existing(&mut inner.diag).map_err(EnrolError::io(
            "cannot list existing connections over sock_diag",
        ))?;
        if capture != 0 {
            self.drop_stale_addresses(cookie, &usable)?;
            inner.exclusions = Exclusions::found(maps, cookie)
                .map_err(EnrolError::io("cannot read exclusions"))?;
        }
        inner.set_addresses(maps, cookie, usable)?;
        let seeded = listening::found(maps).map_err(EnrolError::io("cannot read listen_ports"))?;
        inner.listening = listening::sync(
            maps,
            cookie,
            &mut inner.diag,
            &inner.listeners,
            &inner.addresses,
            seeded.get(&cookie).unwrap_or(&HashSet::new()),
            &mut inner.missing,
        )
        .map_err(EnrolError::io(
            "cannot read the listening sockets over sock_diag",
        ))?;
        loader::attach(
            &self.pins.lookup(cookie),
            &self.lookup,
            &*netns,
            AttachType::SkLookup,
        )
        .map_err(EnrolError::io(
            "cannot attach the sk_lookup program to the namespace",
        ))?;
        versions::take_over(&self.pins, cookie);
        let had_sockets = !self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(cookie);
        conns::adopt(maps, cookie, &existing, &inner.listening, had_sockets).map_err(
            EnrolError::io("cannot write records of existing connections"),
        )?;
        inner
            .exclusions
            .sync(maps, cookie, &wanted.policy)
            .map_err(EnrolError::io("cannot write exclusions"))?;
        let self_tests = selftest::run(self, &inner, cookie, capture == 0).await?;
        let pod = Arc::new(Pod::new(
            wanted.name.clone(),
            cookie,
            wanted.policy.clone(),
            &netns,
            &self.thread,
            maps,
            self_tests,
        ));
        pod.addresses.store(Arc::new(inner.addresses.clone()));
        let handed: io::Result<Vec<_>> = inner
            .listeners
            .iter()
            .map(|l| Ok((l.role, l.socket.try_clone()?)))
            .collect();
        pod.set_listeners(handed.map_err(EnrolError::io("cannot duplicate a listener"))?);
        for bits in [WL_INBOUND, WL_INBOUND | WL_OUTBOUND] {
            let bits = bits | capture;
            inner
                .set_capture(maps, cookie, bits)
                .map_err(EnrolError::io("cannot write the workload's row"))?;
        }
        Ok((Arc::new(Enrolled::new(pod, inner)), found.changes))
    }

    /// Addresses that the pod had under an earlier agent and has no more.
    fn drop_stale_addresses(&self, cookie: u64, usable: &[IpAddr]) -> Result<(), EnrolError> {
        let entries = self
            .maps
            .pod_addrs
            .entries()
            .map_err(EnrolError::io("cannot read pod_addrs"))?;
        for (key, row) in entries {
            let ip = mesh_common::ip_from_key(&key);
            if row.netns == cookie && !usable.contains(&ip) {
                self.maps
                    .pod_addrs
                    .remove(&key)
                    .map_err(EnrolError::io("cannot write pod_addrs"))?;
            }
        }
        Ok(())
    }
}

/// The addresses to capture; an error if configuration names one that the namespace does not have.
fn owned_addresses(wanted: &WantedPod, found: &Found) -> Result<Vec<IpAddr>, EnrolError> {
    let path = || wanted.netns.clone();
    let has = || found.addresses.iter().map(|a| a.ip);
    if let Some(missing) = wanted.addresses.iter().find(|a| !has().any(|h| h == **a)) {
        return Err(EnrolError::NotOwner {
            path: path(),
            missing: *missing,
            has: has().collect(),
        });
    }
    let usable: Vec<IpAddr> = found
        .addresses
        .iter()
        .filter(|a| a.usable)
        .map(|a| a.ip)
        .collect();
    if usable.iter().all(rtnl::is_link_local) {
        return Err(EnrolError::NoAddress { path: path() });
    }
    Ok(usable)
}
