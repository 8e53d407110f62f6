//! One admitted attempt at an endpoint, and its result.

use std::{sync::Arc, time::Instant};

use super::{Ejections, EndpointState, Kind, LastFailure, Transition, Verdict};
use crate::model::CircuitBreaker;

/// One admitted attempt, to connect or to have a request answered. Dropped without a result it counts as nothing.
#[derive(Debug)]
#[must_use = "say how it ended"]
pub struct Attempt {
    endpoint: Arc<EndpointState>,
    ejections: Arc<Ejections>,
    policy: Option<CircuitBreaker>,
    probe: Option<u64>,
    transition: Option<Transition>,
}

impl Attempt {
    pub(super) fn new(
        endpoint: Arc<EndpointState>,
        ejections: Arc<Ejections>,
        policy: Option<CircuitBreaker>,
        probe: Option<u64>,
        transition: Option<Transition>,
    ) -> Self {
        Self {
            endpoint,
            ejections,
            policy,
            probe,
            transition,
        }
    }

    /// Whether this is the probe of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// What admitting it did to the breaker: half-open now, or closed.
    pub fn transition(&self) -> Option<Transition> {
        self.transition
    }

    /// A connection was made and that was all that was wanted.
    pub fn succeeded(mut self, now: Instant) -> Option<Transition> {
        self.result(Kind::Connect, Verdict::Success, "", now, 0.0)
    }

    /// The connection was refused, timed out or had no way. `random`: uniform in 0.0..1.0.
    pub fn failed(mut self, error: &str, now: Instant, random: f64) -> Option<Transition> {
        self.result(Kind::Connect, Verdict::Failure, error, now, random)
    }

    /// A connection was made, for a request that is yet to be answered. Where one is reused there is nothing to tell.
    pub fn connected(&self, now: Instant) {
        let Some(policy) = &self.policy else {
            return;
        };
        let mut inner = self.endpoint.lock();
        // In half-open the answer decides.
        if inner.breaker.is_closed() {
            inner.breaker.on_result(
                policy,
                Kind::Connect,
                Verdict::Success,
                None,
                now,
                0.0,
                || false,
            );
        }
    }

    /// The response began, and not as a failure; its end is told when it comes. A probe whose response goes on counts as
    /// a success after a second, so that a long stream does not keep the breaker half-open.
    pub fn answered(&self, now: Instant) {
        if let Some(number) = self.probe {
            let mut inner = self.endpoint.lock();
            inner.breaker.answered(number, now);
            self.endpoint.publish(&inner);
        }
    }

    /// The response has ended well.
    pub fn request_succeeded(self, now: Instant) -> Option<Transition> {
        self.request_ended(Verdict::Success, "", now, 0.0)
    }

    /// The response says that the server failed, or there was none, or it broke off.
    pub fn request_failed(self, error: &str, now: Instant, random: f64) -> Option<Transition> {
        self.request_ended(Verdict::Failure, error, now, random)
    }

    /// 429, or its like.
    pub fn limited(self, error: &str, now: Instant, random: f64) -> Option<Transition> {
        self.request_ended(Verdict::Limited, error, now, random)
    }

    /// The request has ended. `error` is what is shown as the endpoint's last, unless it is a success.
    pub fn request_ended(
        mut self,
        verdict: Verdict,
        error: &str,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        self.result(Kind::Request, verdict, error, now, random)
    }

    fn result(
        &mut self,
        kind: Kind,
        verdict: Verdict,
        error: &str,
        now: Instant,
        random: f64,
    ) -> Option<Transition> {
        let probe = self.probe.take();
        let ok = verdict == Verdict::Success;
        if self.policy.is_none() && ok {
            return None;
        }
        let mut guard = self.endpoint.lock();
        let inner = &mut *guard;
        if !ok {
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
        let transition = inner
            .breaker
            .on_result(policy, kind, verdict, probe, now, random, may_open);
        match transition {
            Some(Transition::Closed) => self.endpoint.closed(inner, now),
            _ if inner.breaker.is_closed() => {}
            _ => self.endpoint.publish(inner),
        }
        transition
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(number) = self.probe {
            let mut inner = self.endpoint.lock();
            inner.breaker.give_back(number);
            self.endpoint.publish(&inner);
        }
    }
}
