//! Run-time state of one service, over all of its ports. It lives as long as the service's name: whoever rebuilds the
//! catalog carries the `Arc` over.

use std::{future::Future, sync::Arc, time::Duration};

use super::{Budget, Limiters, Line, Order, Permit, Permits};
use crate::model::{Limits, TrafficPolicy};

/// How long a request waits for the service's limits where its policy does not say.
const PENDING_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct ServiceState {
    /// Connections to the service.
    pub connections: Arc<Permits>,
    /// Requests in flight to the service; taken with [`Self::acquire_request`].
    pub requests: Arc<Permits>,
    pub budget: Budget,
    pub limiters: Limiters,
    /// Requests that wait in one of the lines.
    pending: Arc<Permits>,
    /// For `requests`.
    queue: Arc<Line>,
    /// For a place at an endpoint, or a connection.
    places: Arc<Line>,
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// The limit is reached and the policy lets nobody wait.
    Limit,
    /// As many wait as may.
    QueueFull,
    /// Waited, in vain.
    TimedOut,
}

impl Default for ServiceState {
    fn default() -> Self {
        let queue = Line::new(Order::Strict);
        let places = Line::new(Order::Open);
        Self {
            connections: Permits::waking(&places),
            requests: Permits::waking(&queue),
            budget: Budget::default(),
            limiters: Limiters::default(),
            pending: Permits::new(),
            queue,
            places,
        }
    }
}

impl ServiceState {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The policy changed, or is the first one.
    pub fn update(&self, policy: &TrafficPolicy) {
        self.limiters.update(&policy.rate_limits);
        self.budget.update(&policy.retry_budget);
        // A limit may be higher than it was.
        self.queue.changed();
        self.places.changed();
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.pending.in_use()
    }

    /// Who gives back a place at an endpoint otherwise than by dropping a permit (a connection that is idle again)
    /// tells this line.
    pub fn places(&self) -> &Arc<Line> {
        &self.places
    }

    /// How long one request waits, in all.
    pub fn pending_timeout(limits: &Limits) -> Duration {
        limits.pending_timeout.unwrap_or(PENDING_TIMEOUT)
    }

    /// One request to the service: at once, or when its turn has come. Those who wait are served in their order, and
    /// nobody overtakes them. `until` is called when the request has to wait, and gives its deadline. May be dropped at
    /// any time.
    pub async fn acquire_request<F: Future<Output = ()>>(
        &self,
        limits: &Limits,
        until: impl FnOnce() -> F,
    ) -> Result<Permit, Busy> {
        let max = limits.max_requests;
        self.acquire(&self.queue, limits, until, || self.requests.acquire(max))
            .await
    }

    /// What `take` finds at one of the service's endpoints (a request permit, a connection): at once, or when one was
    /// given back. `take` is asked again each time; it is to give `None` only for a limit that others can make room
    /// under, never for a breaker.
    pub async fn acquire_place<T, F: Future<Output = ()>>(
        &self,
        limits: &Limits,
        until: impl FnOnce() -> F,
        take: impl FnMut() -> Option<T>,
    ) -> Result<T, Busy> {
        self.acquire(&self.places, limits, until, take).await
    }

    async fn acquire<T, F: Future<Output = ()>>(
        &self,
        line: &Line,
        limits: &Limits,
        until: impl FnOnce() -> F,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<T, Busy> {
        if let Some(got) = line.try_now(&mut take) {
            return Ok(got);
        }
        let max = limits.max_pending_requests.unwrap_or(0);
        if max == 0 {
            return Err(Busy::Limit);
        }
        let Some(_pending) = self.pending.acquire(Some(max)) else {
            return Err(Busy::QueueFull);
        };
        line.wait(until(), take).await.ok_or(Busy::TimedOut)
    }
}

#[cfg(test)]
mod tests;
