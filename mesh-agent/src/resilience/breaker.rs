//! The circuit breaker of one endpoint: a pure state machine.
//!
//! Closed: everything is admitted; `failure_threshold` consecutive failures, or a failure ratio over the window with a
//! minimum volume, open it, if the service may eject one more. Open: nothing is admitted until its time is over.
//! HalfOpen: one probe at a time; a failure opens it again for longer, `success_threshold` successes close it.

use std::time::{Duration, Instant};

use super::ring::Ring;
use crate::model::CircuitBreaker;

/// What others see of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    Open { until: Instant },
    HalfOpen,
}

impl BreakerState {
    /// Name in metrics and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "Closed",
            Self::Open { .. } => "Open",
            Self::HalfOpen => "HalfOpen",
        }
    }
}

/// Answer to one wish to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    Pass,
    /// The one probe of half-open, by its number; its result decides, or it must be given back.
    Probe(u64),
    Refuse,
}

/// A change worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    Opened { until: Instant },
    Closed,
}

#[derive(Clone, Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probe: Option<u64>, successes: u32 },
}

#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    consecutive: u32,
    ring: Ring,
    /// Openings since it was last closed.
    openings: u32,
    probes: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed,
            consecutive: 0,
            ring: Ring::default(),
            openings: 0,
            probes: 0,
        }
    }
}

impl Breaker {
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Open { until },
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Failures since the last success.
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive
    }

    pub fn admit(&mut self, now: Instant) -> Admit {
        match &mut self.state {
            State::Closed => Admit::Pass,
            State::Open { until } if now < *until => Admit::Refuse,
            State::HalfOpen { probe: Some(_), .. } => Admit::Refuse,
            State::Open { .. } => {
                self.probes += 1;
                self.state = State::HalfOpen {
                    probe: Some(self.probes),
                    successes: 0,
                };
                Admit::Probe(self.probes)
            }
            State::HalfOpen { probe, .. } => {
                self.probes += 1;
                *probe = Some(self.probes);
                Admit::Probe(self.probes)
            }
        }
    }

    /// A probe ended without a result: the next wish becomes one.
    pub fn give_back(&mut self, number: u64) {
        if let State::HalfOpen { probe, .. } = &mut self.state
            && *probe == Some(number)
        {
            *probe = None;
        }
    }

    /// The result of an attempt that was admitted as `Pass` (`probe`: `None`) or as a probe. `random` is uniform in
    /// 0.0..1.0. `may_open` is asked only when the breaker wants to leave Closed, and must reserve the place it grants.
    pub fn on_result(
        &mut self,
        policy: &CircuitBreaker,
        probe: Option<u64>,
        ok: bool,
        now: Instant,
        random: f64,
        may_open: impl FnOnce() -> bool,
    ) -> Option<Transition> {
        match &mut self.state {
            State::Closed => {
                self.consecutive = if ok {
                    0
                } else {
                    self.consecutive.saturating_add(1)
                };
                let too_many = self.too_many_failures(policy, ok, now);
                (too_many && may_open()).then(|| self.open(policy, now, random))
            }
            // A connection that began before the breaker opened says nothing new.
            State::Open { .. } => None,
            State::HalfOpen {
                probe: current,
                successes,
            } => {
                if probe.is_none() || probe != *current {
                    return None;
                }
                *current = None;
                if !ok {
                    self.consecutive = self.consecutive.saturating_add(1);
                    return Some(self.open(policy, now, random));
                }
                *successes += 1;
                if *successes < policy.success_threshold {
                    return None;
                }
                self.close();
                Some(Transition::Closed)
            }
        }
    }

    /// Closed and as new.
    pub fn close(&mut self) {
        let probes = self.probes;
        *self = Self {
            probes,
            ..Self::default()
        };
    }

    fn too_many_failures(&mut self, policy: &CircuitBreaker, ok: bool, now: Instant) -> bool {
        let by_ratio = policy.failure_ratio.is_some_and(|ratio| {
            let (failures, total) = self.ring.record(ok, policy.window, now);
            total >= policy.min_volume && f64::from(failures) >= ratio * f64::from(total)
        });
        // A success must not open, even when the ratio is still bad after it.
        !ok && (by_ratio || self.consecutive >= policy.failure_threshold)
    }

    fn open(&mut self, policy: &CircuitBreaker, now: Instant, random: f64) -> Transition {
        self.ring = Ring::default();
        let until = now + open_for(policy, self.openings, random);
        self.openings = self.openings.saturating_add(1);
        self.state = State::Open { until };
        Transition::Opened { until }
    }
}

/// Time open for the n-th time (from 0) in a row: `recovery_timeout` at first, then drawn from there up to its n-th
/// doubling or `max_recovery_timeout`, so that the agents of many nodes do not probe at once.
fn open_for(policy: &CircuitBreaker, openings: u32, random: f64) -> Duration {
    let first = policy.recovery_timeout;
    let ceiling = first
        .saturating_mul(1u32.checked_shl(openings).unwrap_or(u32::MAX))
        .min(policy.max_recovery_timeout.max(first));
    first + (ceiling - first).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
