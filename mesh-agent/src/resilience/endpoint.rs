//! Run-time state of one endpoint of a service port. It survives rebuilds of the catalog: whoever rebuilds carries the
//! `Arc` over.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    Admit, Breaker, BreakerState, Ejection, Ejections, Permit, Permits, breaker::Transition,
};
use crate::model::CircuitBreaker;

/// Why the endpoint last failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    pub at: Instant,
    pub error: Arc<str>,
}

#[derive(Debug)]
pub struct EndpointState {
    connections: Arc<Permits>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    breaker: Breaker,
    /// Held from the opening of the breaker until it is closed.
    ejection: Option<Ejection>,
    /// Start of slow start: joined, or recovered.
    ramping_since: Option<Instant>,
    last_failure: Option<LastFailure>,
}

impl EndpointState {
    /// The endpoint joined a running mesh now: slow start applies.
    pub fn new(now: Instant) -> Arc<Self> {
        Self::with_ramp(Some(now))
    }

    /// The endpoint was there before this agent: no slow start.
    pub fn settled() -> Arc<Self> {
        Self::with_ramp(None)
    }

    fn with_ramp(ramping_since: Option<Instant>) -> Arc<Self> {
        Arc::new(Self {
            connections: Permits::new(),
            inner: Mutex::new(Inner {
                breaker: Breaker::default(),
                ejection: None,
                ramping_since,
                last_failure: None,
            }),
        })
    }

    /// Connections in flight.
    pub fn in_flight(&self) -> u32 {
        self.connections.in_use()
    }

    /// One connection to the endpoint, `None` at the limit. Held for the life of the connection.
    #[must_use = "the connection counts while the permit is held"]
    pub fn acquire(&self, limit: Option<u32>) -> Option<Permit> {
        self.connections.acquire(limit)
    }

    pub fn breaker_state(&self, now: Instant) -> BreakerState {
        self.lock().breaker.state(now)
    }

    /// Failures since the last success.
    pub fn consecutive_failures(&self) -> u32 {
        self.lock().breaker.consecutive_failures()
    }

    pub fn last_failure(&self) -> Option<LastFailure> {
        self.lock().last_failure.clone()
    }

    /// For [`crate::balance::Target::ramping_since`].
    pub fn ramping_since(&self) -> Option<Instant> {
        self.lock().ramping_since
    }

    /// Asks the breaker for one attempt; `None` when it is open, or half-open with its probe under way. `ejections`
    /// are those of the service port. No policy: always admitted, and an earlier breaker is forgotten.
    pub fn admit(
        self: &Arc<Self>,
        policy: Option<&CircuitBreaker>,
        ejections: &Arc<Ejections>,
        now: Instant,
    ) -> Option<Attempt> {
        let mut inner = self.lock();
        let percent = policy.map(|p| p.max_ejection_percent);
        let pardoned = match (&mut inner.ejection, percent) {
            (Some(ejection), Some(percent)) => ejection.pardon_if_over(percent),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if pardoned {
            inner.close(now);
        }
        let probe = match inner.breaker.admit(now) {
            Admit::Refuse => return None,
            Admit::Pass => None,
            Admit::Probe(number) => Some(number),
        };
        Some(Attempt {
            endpoint: Arc::clone(self),
            ejections: Arc::clone(ejections),
            policy: policy.copied(),
            probe,
        })
    }

    /// Admits past an open breaker: so few endpoints are usable that all are used (`balance`, panic). The breaker learns
    /// nothing from it; its probes decide when it closes.
    pub fn admit_in_panic(
        self: &Arc<Self>,
        policy: Option<&CircuitBreaker>,
        ejections: &Arc<Ejections>,
    ) -> Attempt {
        Attempt {
            endpoint: Arc::clone(self),
            ejections: Arc::clone(ejections),
            policy: policy.copied(),
            probe: None,
        }
    }

    /// A panic elsewhere leaves the state usable.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn close(&mut self, now: Instant) {
        self.breaker.close();
        self.ejection = None;
        self.ramping_since = Some(now);
    }
}

/// One admitted attempt to connect. Dropped without a result it counts as nothing.
#[derive(Debug)]
#[must_use = "say succeeded or failed"]
pub struct Attempt {
    endpoint: Arc<EndpointState>,
    ejections: Arc<Ejections>,
    policy: Option<CircuitBreaker>,
    probe: Option<u64>,
}

impl Attempt {
    /// Whether this is the probe of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// The connection was established.
    pub fn succeeded(mut self, now: Instant) -> Option<Transition> {
        self.result(None, now, 0.0)
    }

    /// The connection was refused, timed out or had no way. `random`: uniform in 0.0..1.0.
    pub fn failed(mut self, error: &str, now: Instant, random: f64) -> Option<Transition> {
        self.result(Some(error), now, random)
    }

    fn result(&mut self, error: Option<&str>, now: Instant, random: f64) -> Option<Transition> {
        let probe = self.probe.take();
        if self.policy.is_none() && error.is_none() {
            return None;
        }
        let mut guard = self.endpoint.lock();
        let inner = &mut *guard;
        if let Some(error) = error {
            inner.last_failure = Some(LastFailure {
                at: now,
                error: error.into(),
            });
        }
        let policy = self.policy.as_ref()?;
        let ejection = &mut inner.ejection;
        let may_open = || {
            *ejection = self.ejections.eject(policy.max_ejection_percent);
            ejection.is_some()
        };
        let ok = error.is_none();
        let transition = inner
            .breaker
            .on_result(policy, probe, ok, now, random, may_open);
        if transition == Some(Transition::Closed) {
            inner.close(now);
        }
        transition
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(number) = self.probe {
            self.endpoint.lock().breaker.give_back(number);
        }
    }
}

#[cfg(test)]
mod tests;
