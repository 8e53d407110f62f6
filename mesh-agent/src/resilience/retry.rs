//! Whether a request is sent once more, after which wait, and to whom: pure.
//!
//! Without any policy a request is repeated only where no server has begun with it:
//! - the connect failed, so nothing was sent, and another endpoint is left to try: that one is next, at once. This is
//!   the search for an endpoint and no retry: it ends when there is no other endpoint, or with the connect deadline.
//! - once in its life, on a fresh connection: nothing was written of it, or the server refused the stream
//!   (REFUSED_STREAM, GOAWAY); and of an idempotent one, the connection was idle before and broke before a byte came back
//!   (it was stale, most likely, but the server may have read the request: RFC 9110 9.2.2, docs/adr/0012).
//!
//! None of these counts as a retry or costs the budget, and they are the same with a policy. What a policy lists is
//! repeated on top of them, within its number of attempts and the service's budget.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::Budget;
use crate::model::{Backoff, RetryBudget, RetryPolicy};

/// A server that wants the client to come back later than this wants it to give up.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection: nothing was sent.
    NotConnected,
    /// REFUSED_STREAM, or a GOAWAY that leaves the stream out: the server did nothing with it.
    StreamRefused,
    /// Broke before a byte of the response came.
    Broken {
        /// The connection had been idle before.
        idle: bool,
        nothing_sent: bool,
    },
    /// The attempt took too long.
    TimedOut,
    /// The head of a response, or all of it where it has no body.
    Answered {
        status: StatusCode,
        /// From the head or the trailers.
        grpc: Option<u32>,
        pushback: Option<Pushback>,
    },
    /// Anything that another attempt would not change.
    Final,
}

/// What the server says about coming back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// `Retry-After`: not before this.
    Least(Duration),
    /// `grpc-retry-pushback-ms`: after this.
    Exactly(Duration),
    /// A negative or unreadable `grpc-retry-pushback-ms`: not at all.
    Never,
}

/// What else the decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The request's body is there from its start.
    pub can_replay: bool,
    /// An endpoint is left that was not tried.
    pub another: bool,
    /// Until the request's deadline.
    pub left: Option<Duration>,
    pub now: Instant,
    /// Uniform in 0.0..1.0.
    pub random: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// No retry: the client gets what there is.
    Pass,
    /// It would be repeated, but every retry is used: the client gets what there is.
    Exhausted,
    /// It would be repeated, but the service's budget is used up: the client gets 503.
    BudgetEmpty,
    /// A retry, after the wait; to another endpoint, if there is one.
    After(Duration),
    /// Nothing was sent: the next endpoint, at once. Not a retry.
    NextEndpoint,
    /// The same endpoint at once, over a connection that is made now. Not a retry.
    FreshConnection,
}

/// The retries of one request.
#[derive(Clone, Debug)]
pub struct Retries<'p> {
    policy: Option<&'p RetryPolicy>,
    idempotent: bool,
    /// Retries made.
    made: u32,
    /// The one repetition on a fresh connection is used.
    refreshed: bool,
}

impl<'p> Retries<'p> {
    pub fn new(policy: Option<&'p RetryPolicy>, method: &Method) -> Self {
        Self {
            policy,
            idempotent: method.is_idempotent(),
            made: 0,
            refreshed: false,
        }
    }

    /// Whether the status of gRPC may decide about a retry.
    pub fn wants_grpc_status(&self) -> bool {
        self.policy.is_some_and(|policy| {
            self.made <= policy.attempts && !policy.conditions.grpc_codes.is_empty()
        })
    }

    /// Whether it does no harm to send it again when it may have been carried out.
    pub fn is_repeatable(&self) -> bool {
        self.idempotent || self.policy.is_some_and(|policy| policy.non_idempotent)
    }

    /// Retries made, those outside of the count left out.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Decides about the attempt that ended, and counts what it allows.
    pub fn next(
        &mut self,
        outcome: &Outcome,
        about: &Circumstances,
        budget: &Budget,
        budget_policy: &RetryBudget,
    ) -> Next {
        if !about.can_replay {
            return Next::Pass;
        }
        if *outcome == Outcome::NotConnected && about.another {
            return Next::NextEndpoint;
        }
        if self.begs_for_a_fresh_connection(outcome) && !self.refreshed {
            self.refreshed = true;
            return Next::FreshConnection;
        }
        let Some(policy) = self.policy.filter(|policy| policy.attempts > 0) else {
            return Next::Pass;
        };
        if !self.is_retryable(policy, outcome) {
            return Next::Pass;
        }
        let pushback = match outcome {
            Outcome::Answered { pushback, .. } => *pushback,
            _ => None,
        };
        let wait = match pushback {
            Some(Pushback::Never) => return Next::Pass,
            Some(Pushback::Least(wait) | Pushback::Exactly(wait))
                if wait > LONGEST_WAIT || about.left.is_some_and(|left| wait >= left) =>
            {
                return Next::Pass;
            }
            Some(Pushback::Exactly(wait)) => wait,
            Some(Pushback::Least(wait)) => wait.max(self.backoff(policy.backoff, about.random)),
            None => self.backoff(policy.backoff, about.random),
        };
        if self.made >= policy.attempts {
            return Next::Exhausted;
        }
        if !budget.try_retry(budget_policy, about.now) {
            return Next::BudgetEmpty;
        }
        self.made += 1;
        Next::After(wait)
    }

    fn is_retryable(&self, policy: &RetryPolicy, outcome: &Outcome) -> bool {
        let conditions = &policy.conditions;
        let repeatable = self.is_repeatable();
        match *outcome {
            Outcome::NotConnected => conditions.connect_failure,
            Outcome::StreamRefused => conditions.refused_stream,
            Outcome::Broken { nothing_sent, .. } => {
                conditions.reset && (repeatable || nothing_sent)
            }
            Outcome::TimedOut => conditions.attempt_timeout && repeatable,
            // All of gRPC is POST: who lists a code means it.
            Outcome::Answered {
                grpc: Some(code), ..
            } => conditions
                .grpc_codes
                .iter()
                .any(|listed| u32::from(*listed) == code),
            Outcome::Answered { status, .. } => conditions.has_status(status) && repeatable,
            Outcome::Final => false,
        }
    }

    fn begs_for_a_fresh_connection(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::StreamRefused => true,
            Outcome::Broken { idle, nothing_sent } => {
                *nothing_sent || (*idle && self.is_repeatable())
            }
            _ => false,
        }
    }

    /// Exponential with full jitter above the least wait: from `base` up to its doubling at the first retry, its
    /// fourfold at the second, and so on, up to `max`.
    fn backoff(&self, backoff: Backoff, random: f64) -> Duration {
        let doublings = self.made.saturating_add(1);
        let ceiling = backoff
            .base
            .saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(backoff.max.max(backoff.base));
        backoff.base + (ceiling - backoff.base).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests;
