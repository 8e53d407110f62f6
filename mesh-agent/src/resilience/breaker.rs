//! The circuit breaker of one endpoint: a pure state machine.
//!
//! Closed: everything is admitted; `failure_threshold` consecutive failures, or a failure ratio over the window with a
//! minimum volume, open it, if the service may eject one more. Connects and requests are counted apart, each with its
//! own row and its own window: answers to requests over a connection that still lives say nothing about whether new ones
//! can be made, and the other way round. Open: nothing is admitted until its time is over. HalfOpen: one probe at a
//! time; a failure opens it again for longer, `success_threshold` successes close it.

use std::time::{Duration, Instant};

use super::{Verdict, ring::Ring};
use crate::model::CircuitBreaker;

/// A probe without any result is given up after this, and the next may go.
const PROBE_PATIENCE: Duration = Duration::from_secs(30);
/// A probe whose response began well is a success after this, however long the response goes on.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

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

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connect,
    Request,
}

impl Kind {
    /// For metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Request => "request",
        }
    }
}

/// What opened a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Consecutive,
    Ratio,
    /// The probe of half-open failed.
    Probe,
}

impl Cause {
    /// For metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive_failures",
            Self::Ratio => "failure_ratio",
            Self::Probe => "probe",
        }
    }
}

/// Answer to one wish for an attempt.
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
    Opened {
        until: Instant,
        kind: Kind,
        cause: Cause,
    },
    HalfOpen,
    Closed,
    /// It would have opened, but as many endpoints are out as `maxEjectionPercent` allows. Told no more than once in a
    /// `recovery_timeout`.
    Refused {
        kind: Kind,
        cause: Cause,
    },
}

#[derive(Clone, Debug)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        probe: Option<Probe>,
        successes: u32,
    },
}

/// The probe that is out.
#[derive(Clone, Copy, Debug)]
struct Probe {
    number: u64,
    /// Sent, or answered.
    since: Instant,
    /// Its response began, and not as a failure.
    answered: bool,
}

impl Probe {
    /// When it is given up, or counts as a success.
    fn until(self) -> Instant {
        let patience = match self.answered {
            true => ANSWER_PATIENCE,
            false => PROBE_PATIENCE,
        };
        self.since + patience
    }
}

/// What is counted of connects, and of requests.
#[derive(Clone, Debug, Default)]
struct Side {
    consecutive: u32,
    /// Only where the policy has a ratio: there may be very many endpoints.
    ring: Option<Box<Ring>>,
}

#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    connects: Side,
    requests: Side,
    /// Openings since it was last closed.
    openings: u32,
    probes: u64,
    /// When [`Transition::Refused`] was told.
    refused: Option<Instant>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed,
            connects: Side::default(),
            requests: Side::default(),
            openings: 0,
            probes: 0,
            refused: None,
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

    /// Failures since the last success, of connects or of requests, whichever are more.
    pub fn consecutive_failures(&self) -> u32 {
        self.connects.consecutive.max(self.requests.consecutive)
    }

    pub fn admit(&mut self, policy: &CircuitBreaker, now: Instant) -> (Admit, Option<Transition>) {
        let told = match self.state {
            State::Closed => return (Admit::Pass, None),
            State::Open { until } if now < until => return (Admit::Refuse, None),
            State::Open { .. } => {
                self.state = State::HalfOpen {
                    probe: None,
                    successes: 0,
                };
                Some(Transition::HalfOpen)
            }
            State::HalfOpen { probe: None, .. } => None,
            State::HalfOpen {
                probe: Some(out), ..
            } => {
                if now < out.until() {
                    return (Admit::Refuse, None);
                }
                if out.answered && self.probe_succeeded(policy) {
                    return (Admit::Pass, Some(Transition::Closed));
                }
                None
            }
        };
        self.probes += 1;
        if let State::HalfOpen { probe, .. } = &mut self.state {
            *probe = Some(Probe {
                number: self.probes,
                since: now,
                answered: false,
            });
        }
        (Admit::Probe(self.probes), told)
    }

    /// Until when it is open, or was open before anybody asked.
    pub fn open_until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Until when the probe that is out keeps others from being admitted.
    pub fn probe_until(&self) -> Option<Instant> {
        match self.state {
            State::HalfOpen { probe, .. } => probe.map(Probe::until),
            _ => None,
        }
    }

    /// A probe ended without a result: the next wish becomes one.
    pub fn give_back(&mut self, number: u64) {
        if let Some(probe) = self.current(number) {
            *probe = None;
        }
    }

    /// The response to a probe began, and not as a failure: it may go on for very long.
    pub fn answered(&mut self, number: u64, now: Instant) {
        if let Some(Some(probe)) = self.current(number) {
            probe.answered = true;
            probe.since = now;
        }
    }

    /// The result of an attempt that was admitted as `Pass` (`probe`: `None`) or as a probe. `random` is uniform in
    /// 0.0..1.0. `may_open` is asked only when the breaker wants to leave Closed, and must reserve the place it grants.
    #[expect(clippy::too_many_arguments, reason = "time and chance are arguments")]
    pub fn on_result(
        &mut self,
        policy: &CircuitBreaker,
        kind: Kind,
        verdict: Verdict,
        probe: Option<u64>,
        now: Instant,
        random: f64,
        may_open: impl FnOnce() -> bool,
    ) -> Option<Transition> {
        match self.state {
            State::Closed => {
                let cause = self.count(policy, kind, verdict, now)?;
                if may_open() {
                    return Some(self.open(policy, kind, cause, now, random));
                }
                let lately = self.refused.is_some_and(|told| {
                    now.saturating_duration_since(told) < policy.recovery_timeout
                });
                if lately {
                    return None;
                }
                self.refused = Some(now);
                Some(Transition::Refused { kind, cause })
            }
            // An attempt that began before the breaker opened says nothing new.
            State::Open { .. } => None,
            State::HalfOpen { .. } => {
                // Nor does one that began before this probe.
                *self.current(probe?)? = None;
                match verdict {
                    Verdict::Failure => {
                        let side = self.side(kind);
                        side.consecutive = side.consecutive.saturating_add(1);
                        Some(self.open(policy, kind, Cause::Probe, now, random))
                    }
                    // Alive and busy: where that counts against it, the next probe shall tell; else it is a success.
                    Verdict::Limited if policy.failure_ratio.is_some() => None,
                    Verdict::Limited | Verdict::Success => {
                        self.probe_succeeded(policy).then_some(Transition::Closed)
                    }
                }
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

    /// The place of the current probe, if it has this number.
    fn current(&mut self, number: u64) -> Option<&mut Option<Probe>> {
        match &mut self.state {
            State::HalfOpen { probe, .. } => {
                probe.is_some_and(|p| p.number == number).then_some(probe)
            }
            _ => None,
        }
    }

    /// Returns whether that closed it.
    fn probe_succeeded(&mut self, policy: &CircuitBreaker) -> bool {
        if let State::HalfOpen { successes, .. } = &mut self.state {
            *successes += 1;
            if *successes >= policy.success_threshold {
                self.close();
                return true;
            }
        }
        false
    }

    fn side(&mut self, kind: Kind) -> &mut Side {
        match kind {
            Kind::Connect => &mut self.connects,
            Kind::Request => &mut self.requests,
        }
    }

    /// Counts a result; says why it is one too many.
    fn count(
        &mut self,
        policy: &CircuitBreaker,
        kind: Kind,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Cause> {
        let side = self.side(kind);
        side.consecutive = match verdict {
            Verdict::Success => 0,
            Verdict::Failure => side.consecutive.saturating_add(1),
            Verdict::Limited => side.consecutive,
        };
        let ok = verdict == Verdict::Success;
        let by_ratio = policy.failure_ratio.is_some_and(|ratio| {
            let (failures, total) =
                side.ring
                    .get_or_insert_default()
                    .record(ok, policy.window, now);
            total >= policy.min_volume && f64::from(failures) >= ratio * f64::from(total)
        });
        match verdict {
            // A success must not open, even when the ratio is still bad after it.
            Verdict::Success => None,
            Verdict::Failure if side.consecutive >= policy.failure_threshold => {
                Some(Cause::Consecutive)
            }
            _ => by_ratio.then_some(Cause::Ratio),
        }
    }

    fn open(
        &mut self,
        policy: &CircuitBreaker,
        kind: Kind,
        cause: Cause,
        now: Instant,
        random: f64,
    ) -> Transition {
        self.connects.ring = None;
        self.requests.ring = None;
        self.refused = None;
        let until = now + open_for(policy, self.openings, random);
        self.openings = self.openings.saturating_add(1);
        self.state = State::Open { until };
        Transition::Opened { until, kind, cause }
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
