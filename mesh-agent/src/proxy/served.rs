//! One workload that is served: its accept loops, its connections, and how both are ended.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinHandle},
    time::timeout_at,
};

use super::{PodSockets, Shared, admission::Admission, inbound::Rules, limits::Share};
use crate::{
    model::{ResourceName, SpiffeId},
    telemetry::{ByteCounters, ConnGuard, LegProbe, Protocol, Reason, RequestGuard, RequestStart},
};

pub(super) struct Served {
    pub(super) pod: Arc<dyn PodSockets>,
    pub(super) share: Share,
    tasks: Mutex<Tasks>,
    /// What the inbound connections were last decided by, all of them.
    rules: Mutex<Option<Rules>>,
    /// Signalled when the last connection has ended.
    idle: Notify,
    /// True when no more connections are taken.
    draining: watch::Sender<bool>,
    /// Reason of the connections that are cut from now on.
    cut: OnceLock<Reason>,
    started: Instant,
    /// Milliseconds after `started`, plus one; 0 for never.
    last_accept: AtomicU64,
}

#[derive(Default)]
struct Tasks {
    accepting: Vec<JoinHandle<()>>,
    next: u64,
    connections: HashMap<u64, Entry>,
}

#[derive(Default)]
struct Entry {
    /// `None` between the entry and the spawn of the task.
    task: Option<AbortHandle>,
    admission: Option<Arc<Admission>>,
}

/// Names one connection to its [`Served`].
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionId(u64);

#[cfg(test)]
impl ConnectionId {
    pub(super) fn test() -> Self {
        Self(0)
    }
}

impl Served {
    pub(super) fn new(pod: Arc<dyn PodSockets>) -> Self {
        Self {
            pod,
            share: Share::default(),
            tasks: Mutex::default(),
            rules: Mutex::default(),
            idle: Notify::new(),
            draining: watch::Sender::new(false),
            cut: OnceLock::new(),
            started: Instant::now(),
            last_accept: AtomicU64::new(0),
        }
    }

    pub(super) fn add_accept_loop(&self, task: JoinHandle<()>) {
        self.lock().accepting.push(task);
    }

    pub(super) fn note_accept(&self) {
        let at = self.started.elapsed().as_millis() as u64 + 1;
        self.last_accept.store(at, Ordering::Relaxed);
    }

    pub(super) fn since_last_accept(&self) -> Option<Duration> {
        let at = self.last_accept.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            self.started
                .elapsed()
                .saturating_sub(Duration::from_millis(at)),
        )
    }

    /// Runs one connection that was admitted. Its place is given back when the task ends, however it ends.
    pub(super) fn spawn<F>(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        connection: impl FnOnce(ConnectionId) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = {
            let mut tasks = self.lock();
            let id = tasks.next;
            tasks.next += 1;
            tasks.connections.insert(id, Entry::default());
            id
        };
        let place = Place {
            served: Arc::clone(self),
            shared: Arc::clone(shared),
            id,
        };
        let connection = connection(ConnectionId(id));
        // Not under the lock: a runtime that shuts down drops the task in here, and with it the place.
        let task = shared.workers.spawn(async move {
            let _place = place;
            connection.await;
        });
        let task = task.abort_handle();
        let mut tasks = self.lock();
        let Some(entry) = tasks.connections.get_mut(&id) else {
            return;
        };
        let admission = entry.admission.as_ref();
        if admission.is_some_and(|admission| admission.cut().is_some()) {
            // Cut before its task was known.
            drop(tasks);
            return task.abort();
        }
        entry.task = Some(task);
    }

    /// Keeps what an inbound connection is decided on, until it ends. Before the first decision.
    pub(super) fn register(&self, id: ConnectionId, admission: Arc<Admission>) {
        if let Some(entry) = self.lock().connections.get_mut(&id.0) {
            entry.admission = Some(admission);
        }
    }

    /// What a new inbound connection is decided by: for a workload that is being released, what applied last.
    pub(super) fn rules(&self, shared: &Shared) -> Rules {
        Rules::of(shared, self)
            .or_else(|| self.last_rules().clone())
            .unwrap_or_else(|| Rules::closed(self))
    }

    fn last_rules(&self) -> MutexGuard<'_, Option<Rules>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides every inbound connection and request anew, if its rules changed, and cuts the losers. Returns their number.
    pub(super) fn decide_anew(&self, shared: &Shared) -> usize {
        let rules = {
            // Locked before the look, so that of two calls at once the later one stores the later rules.
            let mut last = self.last_rules();
            let Some(rules) = Rules::of(shared, self) else {
                // What lives may end in its own time.
                return 0;
            };
            if last.as_ref().is_some_and(|last| last.same(&rules)) {
                return 0;
            }
            *last = Some(rules.clone());
            rules
        };
        let (mut losers, mut requests) = (Vec::new(), 0);
        for entry in self.lock().connections.values() {
            let Some(admission) = &entry.admission else {
                continue;
            };
            if admission.cut().is_some() {
                continue;
            }
            if let Some((reason, policy)) = rules.refusal(admission) {
                admission.set_cut(reason, policy);
                losers.push(entry.task.clone());
            } else {
                // Ended by the tasks that they run in.
                requests += rules.cut_requests(admission);
            }
        }
        // Not under the lock: what is aborted may be dropped in here, and its place with it.
        for task in losers.iter().flatten() {
            task.abort();
        }
        losers.len() + requests
    }

    /// Becomes true when the workload takes no more connections: for tunnels, which have to be told to end.
    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Stops accepting, waits for the connections, cuts those that are left after `grace`.
    pub(super) async fn stop(&self, grace: Duration, cut: Reason) {
        self.draining.send_replace(true);
        let accepting = std::mem::take(&mut self.lock().accepting);
        for task in &accepting {
            task.abort();
        }
        for task in accepting {
            // Cancelled, or ended by itself; from here on no connection is added.
            let _ = task.await;
        }
        let ended = match tokio::time::Instant::now().checked_add(grace) {
            Some(deadline) => timeout_at(deadline, self.wait_idle()).await.is_ok(),
            None => {
                self.wait_idle().await;
                true
            }
        };
        if ended {
            return;
        }
        let _ = self.cut.set(cut);
        let left: Vec<_> = self
            .lock()
            .connections
            .values()
            .filter_map(|entry| entry.task.clone())
            .collect();
        tracing::info!(
            workload = %self.pod.name(),
            connections = left.len(),
            reason = %cut,
            "resetting connections that did not end in time"
        );
        for task in left {
            task.abort();
        }
        self.wait_idle().await;
    }

    async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.lock().connections.is_empty() {
                return;
            }
            idle.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection among its workload's and the agent's.
struct Place {
    served: Arc<Served>,
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.limits.release(&self.served.share);
        let empty = {
            let mut tasks = self.served.lock();
            tasks.connections.remove(&self.id);
            tasks.connections.is_empty()
        };
        if empty {
            self.served.idle.notify_waiters();
        }
    }
}

/// Reports the end of a connection exactly once, also when its task is cut.
pub(super) struct Report {
    guard: Option<ConnGuard>,
    served: Arc<Served>,
    admission: Option<Arc<Admission>>,
}

impl Report {
    pub(super) fn new(guard: ConnGuard, served: Arc<Served>) -> Self {
        Self {
            guard: Some(guard),
            served,
            admission: None,
        }
    }

    /// Reports the reason of a cut, should it come to one.
    pub(super) fn set_admission(&mut self, admission: Arc<Admission>) {
        self.admission = Some(admission);
    }

    /// Where the connection goes, or is tried to.
    pub(super) fn set_upstream(&self, address: SocketAddr, workload: Option<ResourceName>) {
        if let Some(guard) = &self.guard {
            guard.set_upstream(address, workload);
        }
    }

    /// See [`ConnGuard::set_security`].
    pub(super) fn set_security(&self, source: Option<SpiffeId>, destination: Option<SpiffeId>) {
        if let Some(guard) = &self.guard {
            guard.set_security(source, destination);
        }
    }

    /// See [`ConnGuard::set_policy`].
    pub(super) fn set_policy(&self, policy: ResourceName) {
        if let Some(guard) = &self.guard {
            guard.set_policy(policy);
        }
    }

    /// See [`ConnGuard::established`].
    pub(super) fn established(&self, leg: Weak<dyn LegProbe>) {
        if let Some(guard) = &self.guard {
            guard.established(Some(leg));
        }
    }

    /// See [`ConnGuard::set_agent_cookie`].
    pub(super) fn set_agent_cookie(&self, cookie: u64) {
        if let Some(guard) = &self.guard {
            guard.set_agent_cookie(cookie);
        }
    }

    /// See [`ConnGuard::set_rtt`].
    pub(super) fn set_rtt(&self, rtt: Duration, retransmits: u32) {
        if let Some(guard) = &self.guard {
            guard.set_rtt(rtt, retransmits);
        }
    }

    /// See [`ConnGuard::set_protocol`].
    pub(super) fn set_protocol(&self, protocol: Protocol) {
        if let Some(guard) = &self.guard {
            guard.set_protocol(protocol);
        }
    }

    /// See [`ConnGuard::request`]. `None`: the connection has ended.
    pub(super) fn request(&self, start: RequestStart) -> Option<RequestGuard> {
        self.guard.as_ref().map(|guard| guard.request(start))
    }

    pub(super) fn counters(&self) -> Arc<ByteCounters> {
        self.guard
            .as_ref()
            .map(|guard| Arc::clone(guard.counters()))
            .unwrap_or_default()
    }

    pub(super) fn finish(mut self, reason: Reason) {
        if let Some(guard) = self.guard.take() {
            guard.finish(reason);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            let alone = self.admission.as_ref().and_then(|a| a.cut());
            if let Some((reason, policy)) = alone {
                guard.set_policy(policy.clone());
                return guard.finish(*reason);
            }
            guard.finish(self.served.cut.get().copied().unwrap_or(Reason::Internal));
        }
    }
}
