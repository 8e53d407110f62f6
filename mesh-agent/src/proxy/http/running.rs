//! The requests that are under way on one inbound connection, with what they were decided on: a change of policy decides
//! them anew, and ends those that lose.

use std::{
    future::poll_fn,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::{Context, Poll},
};

use ::http::{HeaderMap, Method, Uri, request::Parts};
use futures::task::AtomicWaker;

use super::headers;
use crate::{
    model::ResourceName,
    policy::{HttpFacts, RequestHost, RequestPath},
};

/// Those of one connection.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Requests(Arc<Mutex<Vec<Arc<Running>>>>);

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub(in crate::proxy) struct Running {
    /// Set before the first decision.
    facts: OnceLock<Facts>,
    /// The policy that ended it, if one has a name.
    cut: OnceLock<Option<ResourceName>>,
    waiting: AtomicWaker,
}

/// A request's place among those that are under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    running: Arc<Running>,
    all: Weak<Mutex<Vec<Arc<Running>>>>,
}

#[derive(Debug)]
struct Facts {
    method: Method,
    uri: Uri,
    host: RequestHost<'static>,
    headers: HeaderMap,
}

impl Requests {
    pub(super) fn add(&self) -> Place {
        let running = Arc::new(Running {
            facts: OnceLock::new(),
            cut: OnceLock::new(),
            waiting: AtomicWaker::new(),
        });
        lock(&self.0).push(Arc::clone(&running));
        Place {
            running,
            all: Arc::downgrade(&self.0),
        }
    }

    /// Ends the requests that `decide` refuses, with the policy that it names. Returns their number.
    pub(in crate::proxy) fn decide_anew(
        &self,
        mut decide: impl FnMut(HttpFacts<'_>) -> Result<(), Option<ResourceName>>,
    ) -> usize {
        let all: Vec<_> = lock(&self.0).clone();
        let mut cut = 0;
        for running in all {
            if let Some(Err(policy)) = running.with_facts(&mut decide)
                && running.cut.set(policy).is_ok()
            {
                running.waiting.wake();
                cut += 1;
            }
        }
        cut
    }
}

impl Running {
    /// Notes what the request is decided on.
    pub(super) fn begin(&self, parts: &Parts) {
        let host = headers::authority(parts).unwrap_or_default();
        let _ = self.facts.set(Facts {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            host: RequestHost::new(host).into_owned(),
            headers: parts.headers.clone(),
        });
    }

    /// `None`: it has not begun, and its first decision is still to come.
    pub(super) fn with_facts<T>(&self, decide: impl FnOnce(HttpFacts<'_>) -> T) -> Option<T> {
        let facts = self.facts.get()?;
        Some(decide(HttpFacts {
            method: facts.method.as_str(),
            path: &RequestPath::new(facts.uri.path()),
            host: &facts.host,
            headers: &facts.headers,
        }))
    }

    /// Resolves when a change of policy has ended the request, with the policy. One waiter at a time.
    pub(super) async fn cut(&self) -> Option<ResourceName> {
        poll_fn(|cx| self.poll_cut(cx)).await
    }

    pub(super) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Option<ResourceName>> {
        if let Some(policy) = self.cut.get() {
            return Poll::Ready(policy.clone());
        }
        self.waiting.register(cx.waker());
        match self.cut.get() {
            Some(policy) => Poll::Ready(policy.clone()),
            None => Poll::Pending,
        }
    }

    pub(super) fn was_cut(&self) -> Option<Option<ResourceName>> {
        self.cut.get().cloned()
    }
}

impl Place {
    pub(super) fn running(&self) -> &Arc<Running> {
        &self.running
    }
}

impl Deref for Place {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(all) = self.all.upgrade() {
            let mut all = lock(&all);
            if let Some(at) = all
                .iter()
                .position(|other| Arc::ptr_eq(other, &self.running))
            {
                all.swap_remove(at);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
