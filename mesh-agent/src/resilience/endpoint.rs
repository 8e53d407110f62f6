//! Run-time state of one endpoint of a service port. It survives rebuilds of the catalog: whoever rebuilds carries the
//! `Arc` over.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Admit, Attempt, Breaker, BreakerState, Ejection, Ejections, Line, Permit, Permits,
    breaker::Transition,
    moment::{AtomicMoment, instant, nanos},
};
use crate::{
    balance::{Measured, PeakEwma},
    model::CircuitBreaker,
};

/// Why the endpoint last failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    pub at: Instant,
    pub error: Arc<str>,
}

/// What active checks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not checked, or not yet.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

impl Health {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

#[derive(Debug)]
pub struct EndpointState {
    connections: Arc<Permits>,
    requests: Arc<Permits>,
    health: AtomicU8,
    /// Start of slow start: joined, or recovered.
    ramping_since: AtomicMoment,
    /// The breaker's state, to be read without the lock: [`CLOSED`], [`HALF_OPEN`], or until when it is open or, with
    /// the bit [`PROBING`], until when its probe may take.
    state: AtomicU64,
    /// Requests have been sent to it.
    has_requests: AtomicBool,
    latency: Mutex<Latency>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Latency {
    peak: PeakEwma,
    measured: Measured,
}

const CLOSED: u64 = 0;
const HALF_OPEN: u64 = 1;
const PROBING: u64 = 1 << 63;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) breaker: Breaker,
    /// Held from the opening of the breaker until it is closed.
    pub(super) ejection: Option<Ejection>,
    pub(super) last_failure: Option<LastFailure>,
}

impl EndpointState {
    /// The endpoint joined a running mesh now: slow start applies.
    pub fn new(now: Instant) -> Arc<Self> {
        Self::with(Some(now), None)
    }

    /// The endpoint was there before this agent: no slow start.
    pub fn settled() -> Arc<Self> {
        Self::with(None, None)
    }

    /// `line`: those who wait for a place at the service's endpoints.
    pub fn with(ramping_since: Option<Instant>, line: Option<&Arc<Line>>) -> Arc<Self> {
        let permits = || line.map_or_else(Permits::new, Permits::waking);
        Arc::new(Self {
            connections: permits(),
            requests: permits(),
            health: AtomicU8::new(Health::default() as u8),
            ramping_since: AtomicMoment::new(ramping_since),
            state: AtomicU64::new(CLOSED),
            has_requests: AtomicBool::new(false),
            latency: Mutex::default(),
            inner: Mutex::new(Inner {
                breaker: Breaker::default(),
                ejection: None,
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

    pub fn requests_in_flight(&self) -> u32 {
        self.requests.in_use()
    }

    /// One request to the endpoint, `None` at the limit. Held until its response has ended.
    #[must_use = "the request counts while the permit is held"]
    pub fn acquire_request(&self, limit: Option<u32>) -> Option<Permit> {
        if !self.has_requests.load(Ordering::Relaxed) {
            self.has_requests.store(true, Ordering::Relaxed);
        }
        self.requests.acquire(limit)
    }

    /// What the endpoint is busy with, for the balancer: requests, where it gets any, for then its connections may be
    /// idle; else connections.
    pub fn work(&self) -> u32 {
        match self.has_requests.load(Ordering::Relaxed) {
            true => self.requests_in_flight(),
            false => self.in_flight(),
        }
    }

    /// An answer, or a failure to give one, came after `latency`. `ok` is false for whatever is not a
    /// [`super::Verdict::Success`].
    pub fn observe(&self, latency: Duration, ok: bool, now: Instant) {
        let mut of = lock(&self.latency);
        of.peak.observe(latency, ok, now);
        of.measured.observe(latency, now);
    }

    /// Seconds that an answer is expected to take, failures counted as slow ones; `None` before the first.
    pub fn load(&self, now: Instant) -> Option<f64> {
        lock(&self.latency).peak.load(now)
    }

    /// Seconds that answers have really taken of late; `None` before the first.
    pub fn measured_latency(&self) -> Option<f64> {
        lock(&self.latency).measured.seconds()
    }

    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// Result of active checks; returns the one before. It does not touch the breaker: a check that passes does not
    /// bring back what live traffic has put out.
    pub fn set_health(&self, health: Health) -> Health {
        let before = self.health();
        self.health.store(health as u8, Ordering::Relaxed);
        before
    }

    /// Whether its breaker would admit an attempt. Takes no lock.
    pub fn admits(&self, now: Instant) -> bool {
        match self.state.load(Ordering::Acquire) {
            CLOSED | HALF_OPEN => true,
            until => until & !PROBING <= nanos(now),
        }
    }

    /// Whether traffic may go to it: no active check says otherwise, and its breaker would admit it.
    pub fn usable(&self, now: Instant) -> bool {
        self.health() != Health::Unhealthy && self.admits(now)
    }

    /// Takes no lock.
    pub fn breaker_state(&self, now: Instant) -> BreakerState {
        match self.state.load(Ordering::Acquire) {
            CLOSED => BreakerState::Closed,
            state if state == HALF_OPEN || state & PROBING != 0 => BreakerState::HalfOpen,
            until if nanos(now) < until => BreakerState::Open {
                until: instant(until),
            },
            _ => BreakerState::HalfOpen,
        }
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
        self.ramping_since.load()
    }

    /// Asks the breaker for one attempt; `None` when it is open, or half-open with its probe under way. `ejections`
    /// are those of the service port. No policy: always admitted, and an earlier breaker is forgotten. Takes no lock
    /// while the breaker is closed.
    pub fn admit(
        self: &Arc<Self>,
        policy: Option<&CircuitBreaker>,
        ejections: &Arc<Ejections>,
        now: Instant,
    ) -> Option<Attempt> {
        let attempt = |probe, transition| {
            Attempt::new(
                Arc::clone(self),
                Arc::clone(ejections),
                policy.copied(),
                probe,
                transition,
            )
        };
        if self.state.load(Ordering::Acquire) == CLOSED {
            return Some(attempt(None, None));
        }
        let mut inner = self.lock();
        let pardoned = match (&mut inner.ejection, policy) {
            (Some(ejection), Some(policy)) => ejection.pardon_if_over(policy.max_ejection_percent),
            (_, None) => true,
            (None, _) => false,
        };
        let (Some(policy), false) = (policy, pardoned) else {
            inner.breaker.close();
            self.closed(&mut inner, now);
            return Some(attempt(None, Some(Transition::Closed)));
        };
        let (admit, transition) = inner.breaker.admit(policy, now);
        match transition {
            Some(Transition::Closed) => self.closed(&mut inner, now),
            _ => self.publish(&inner),
        }
        match admit {
            Admit::Refuse => None,
            Admit::Pass => Some(attempt(None, transition)),
            Admit::Probe(number) => Some(attempt(Some(number), transition)),
        }
    }

    /// Admits past an open breaker: so few endpoints are usable that all are used (`balance`, panic). The breaker learns
    /// nothing from it; its probes decide when it closes.
    pub fn admit_in_panic(
        self: &Arc<Self>,
        policy: Option<&CircuitBreaker>,
        ejections: &Arc<Ejections>,
    ) -> Attempt {
        Attempt::new(
            Arc::clone(self),
            Arc::clone(ejections),
            policy.copied(),
            None,
            None,
        )
    }

    /// When the endpoint will admit an attempt; `None`: now. Half-open with its probe under way counts as now.
    pub fn open_until(&self, now: Instant) -> Option<Instant> {
        match self.breaker_state(now) {
            BreakerState::Open { until } => Some(until),
            BreakerState::Closed | BreakerState::HalfOpen => None,
        }
    }

    /// The breaker has closed: the place among the ejected is free, and slow start begins.
    pub(super) fn closed(&self, inner: &mut Inner, now: Instant) {
        inner.ejection = None;
        self.ramping_since.store(Some(now));
        self.publish(inner);
    }

    /// Shows the breaker's state to those who do not take the lock.
    pub(super) fn publish(&self, inner: &Inner) {
        let breaker = &inner.breaker;
        let state = match (breaker.open_until(), breaker.probe_until()) {
            (Some(until), _) => nanos(until).max(HALF_OPEN + 1),
            (None, Some(until)) => nanos(until) | PROBING,
            (None, None) if breaker.is_closed() => CLOSED,
            (None, None) => HALF_OPEN,
        };
        self.state.store(state, Ordering::Release);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

/// A panic elsewhere leaves the state usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
