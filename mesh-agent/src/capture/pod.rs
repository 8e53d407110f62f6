//! An enrolled workload, as the proxy sees it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use mesh_common::{
    Addr, Role, SELF_TEST_PORT, SOCK_AGENT, SOCK_CLIENT, SOCK_CLIENT_LOST, SOCK_ORIG_DST,
    SockState, TUNNEL_PORT,
};

use super::{
    maps::Maps,
    netns::{Netns, NetnsThread},
    pool::SocketPool,
};
use crate::model::{EffectivePolicy, ResourceName};

/// Destination of the outbound self-test: never routed (RFC 5737, RFC 3849).
pub(super) const SELF_TEST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub(super) const SELF_TEST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// An enrolled workload. Holds its namespace until it is released.
pub struct Pod {
    pub name: ResourceName,
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// The policy in effect; replaced when configuration changes.
    pub policy: ArcSwap<EffectivePolicy>,
    pub(super) addresses: ArcSwap<Vec<IpAddr>>,
    maps: Arc<Maps>,
    v4: Arc<SocketPool>,
    v6: Arc<SocketPool>,
    listeners: Mutex<Vec<(Role, TcpListener)>>,
    /// Where self-tests dialled from that nobody has accepted yet.
    self_tests: Vec<SocketAddr>,
}

impl Pod {
    pub(super) fn new(
        name: ResourceName,
        cookie: u64,
        policy: Arc<EffectivePolicy>,
        netns: &Arc<Netns>,
        thread: &NetnsThread,
        maps: &Arc<Maps>,
        self_tests: Vec<SocketAddr>,
    ) -> Self {
        let pool = |v6| SocketPool::new(v6, netns.clone(), thread.clone(), maps.clone());
        Self {
            name,
            cookie,
            policy: ArcSwap::from(policy),
            addresses: ArcSwap::default(),
            maps: maps.clone(),
            v4: pool(false),
            v6: pool(true),
            listeners: Mutex::default(),
            self_tests,
        }
    }

    pub(super) fn set_listeners(&self, listeners: Vec<(Role, TcpListener)>) {
        *self.lock() = listeners;
    }

    /// The listeners, once: nonblocking, in the pod's namespace, one for each role and family that the pod has. Whoever
    /// takes them must accept on them until told that the pod is released, then drop them.
    pub fn take_listeners(&self) -> Vec<(Role, TcpListener)> {
        std::mem::take(&mut *self.lock())
    }

    /// A marked (never captured), nonblocking, unconnected TCP socket in the pod's namespace.
    ///
    /// # Errors
    /// Out of descriptors; or NotConnected after the pod was released.
    pub async fn socket(&self, v6: bool) -> io::Result<socket2::Socket> {
        if v6 {
            self.v6.take().await
        } else {
            self.v4.take().await
        }
    }

    /// What the application dialled, and the cookie of its socket (the key of its record), for a connection accepted
    /// on an outbound listener. `None`: somebody reached the listener otherwise.
    pub fn original_dst(&self, fd: BorrowedFd<'_>) -> io::Result<Option<(SocketAddr, u64)>> {
        let state = self.maps.sk_state.get(&fd.as_raw_fd())?;
        Ok(state
            .filter(|s| s.flags & SOCK_ORIG_DST != 0)
            .map(|s| (SocketAddr::from(s.peer), s.cookie)))
    }

    /// Says on whose behalf a socket of [`Self::socket`] will dial the application, which then sees `client` as its
    /// peer. Before connect().
    pub fn set_client(&self, fd: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        self.maps.sk_state.insert(
            &fd.as_raw_fd(),
            &SockState {
                flags: SOCK_AGENT | SOCK_CLIENT,
                peer: Addr::from(client),
                ..SockState::default()
            },
        )
    }

    /// After connect(): true if the application does not know the client of [`Self::set_client`] and sees the agent's
    /// own address. Such a connection is to be reset. The kernel refuses it before (EPERM) where it can tell.
    pub fn client_lost(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let state = self.maps.sk_state.get(&fd.as_raw_fd())?;
        Ok(state.is_none_or(|s| s.flags & SOCK_CLIENT_LOST != 0))
    }

    /// True for capture's own test of itself. A proxy that accepts such a connection closes it without a word: after a
    /// restart the test runs while applications' connections may queue on the same listeners.
    pub fn is_self_test(&self, client: SocketAddr, destination: SocketAddr) -> bool {
        [SELF_TEST_V4, SELF_TEST_V6].contains(&destination.ip().to_canonical())
            || ([SELF_TEST_PORT, TUNNEL_PORT].contains(&destination.port())
                && self.self_tests.contains(&client))
    }

    /// Its addresses, as its namespace has them now.
    pub fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.addresses.load_full()
    }

    pub(super) fn shrink_pools(&self) {
        self.v4.shrink();
        self.v6.shrink();
    }

    /// Lets go of everything that keeps the namespace alive.
    pub(super) fn close(&self) {
        self.v4.close();
        self.v6.close();
        let listeners = self.take_listeners();
        drop(listeners);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Role, TcpListener)>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod")
            .field("name", &self.name)
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}
