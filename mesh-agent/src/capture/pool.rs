//! Marked, unconnected sockets made in a pod's namespace ahead of need.
//!
//! Small while idle (descriptors are scarce with many pods), larger while sockets are taken: each time the pool runs
//! dry the next batch doubles, each quiet period halves it.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use mesh_common::{SOCK_AGENT, SockState};
use socket2::{Domain, Socket, Type};

use super::{
    error::EnrolError,
    maps::Maps,
    netns::{Netns, NetnsThread},
};

const IDLE: usize = 2;
const LARGEST: usize = 128;

/// The pool of one pod and family.
pub(super) struct SocketPool {
    v6: bool,
    thread: NetnsThread,
    maps: Arc<Maps>,
    state: Mutex<State>,
    /// Sockets to hold.
    target: AtomicUsize,
    filling: AtomicBool,
    taken: AtomicUsize,
}

struct State {
    sockets: VecDeque<Socket>,
    /// `None` once the pod is gone.
    netns: Option<Arc<Netns>>,
}

impl SocketPool {
    pub(super) fn new(
        v6: bool,
        netns: Arc<Netns>,
        thread: NetnsThread,
        maps: Arc<Maps>,
    ) -> Arc<Self> {
        Arc::new(Self {
            v6,
            thread,
            maps,
            state: Mutex::new(State {
                sockets: VecDeque::new(),
                netns: Some(netns),
            }),
            target: AtomicUsize::new(IDLE),
            filling: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
        })
    }

    /// A socket: from the pool, or made now.
    pub(super) async fn take(self: &Arc<Self>) -> io::Result<Socket> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let (socket, left) = {
            let mut state = self.lock();
            (state.sockets.pop_front(), state.sockets.len())
        };
        let Some(socket) = socket else {
            // One taker makes a batch, the others their own: a burst must not make a batch each.
            let mut made = match Filling::begin(&self.filling) {
                Some(_filling) => {
                    self.grow();
                    self.make(self.target.load(Ordering::Relaxed)).await?
                }
                None => self.make(1).await?,
            };
            let first = made.pop().ok_or(io::ErrorKind::NotConnected)?;
            self.store(made);
            return Ok(first);
        };
        if left <= self.target.load(Ordering::Relaxed) / 4 {
            self.refill();
        }
        Ok(socket)
    }

    /// Makes sockets ready in the background, unless that happens already.
    fn refill(self: &Arc<Self>) {
        if self.filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            let Some(pool) = pool.upgrade() else { return };
            let held = pool.lock().sockets.len();
            let wanted = pool.target.load(Ordering::Relaxed).saturating_sub(held);
            // An error here comes again where a socket is needed at once, and is reported there.
            if let Ok(made) = pool.make(wanted).await {
                pool.store(made);
            }
            pool.filling.store(false, Ordering::Release);
        });
    }

    fn grow(&self) {
        let target = self.target.load(Ordering::Relaxed);
        self.target
            .store((target * 2).min(LARGEST), Ordering::Relaxed);
    }

    /// Called now and then: gives back what a quiet pod does not need.
    pub(super) fn shrink(&self) {
        if self.taken.swap(0, Ordering::Relaxed) > 0 {
            return;
        }
        let target = (self.target.load(Ordering::Relaxed) / 2).max(IDLE);
        self.target.store(target, Ordering::Relaxed);
        let surplus = {
            let mut state = self.lock();
            let keep = state.sockets.len().min(target);
            state.sockets.split_off(keep)
        };
        drop(surplus);
    }

    /// Drops every socket and the namespace; `take` fails from now on.
    pub(super) fn close(&self) {
        let (sockets, netns) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.sockets), state.netns.take())
        };
        drop((sockets, netns));
    }

    async fn make(&self, n: usize) -> io::Result<Vec<Socket>> {
        let netns = self.lock().netns.clone().ok_or_else(gone)?;
        let (v6, maps) = (self.v6, self.maps.clone());
        self.thread
            .run(netns, move || make(v6, n, &maps))
            .await
            .map_err(|e| match e {
                EnrolError::Io { source, .. } => source,
                other => io::Error::other(other),
            })?
    }

    fn store(&self, made: Vec<Socket>) {
        let mut state = self.lock();
        // Closed meanwhile: dropping them lets the namespace die.
        if state.netns.is_some() {
            let room = LARGEST.saturating_sub(state.sockets.len());
            state.sockets.extend(made.into_iter().take(room));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to fill the pool; given back also when the taker goes away half-way.
struct Filling<'a>(&'a AtomicBool);

impl<'a> Filling<'a> {
    fn begin(flag: &'a AtomicBool) -> Option<Self> {
        // Not `then_some`: its argument would be made and dropped, which gives back what somebody else holds.
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(flag))
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the workload was released")
}

fn make(v6: bool, n: usize, maps: &Maps) -> io::Result<Vec<Socket>> {
    let mut made = Vec::with_capacity(n);
    for _ in 0..n {
        match tcp_socket(v6, SOCK_AGENT, maps) {
            Ok(socket) => made.push(socket),
            // Fewer is enough as long as there is one.
            Err(_) if !made.is_empty() => break,
            Err(e) => return Err(e),
        }
    }
    Ok(made)
}

/// A nonblocking TCP socket of the calling thread's namespace, marked before anything can be done with it.
pub(super) fn tcp_socket(v6: bool, flags: u32, maps: &Maps) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    // socket2 sets CLOEXEC in the same call.
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    if v6 {
        // An IPv4 destination is dialled from an IPv4 socket.
        socket.set_only_v6(true)?;
    }
    maps.sk_state.insert(
        &socket.as_fd().as_raw_fd(),
        &SockState {
            flags,
            ..SockState::default()
        },
    )?;
    Ok(socket)
}
