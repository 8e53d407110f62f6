//! What applies to one request: the service's TrafficPolicy, and what a route says on top of it.

use std::{borrow::Cow, time::Duration};

use crate::{
    model::{RetryConditions, RetryPolicy, Timeouts, TrafficPolicy},
    routing::{RouteRetry, Rule},
};

/// Codes that a route's `retry` repeats when it lists none.
const RETRY_CODES: [(u16, u16); 2] = [(500, 500), (502, 504)];

#[derive(Debug)]
pub(crate) struct Plan<'p> {
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<Cow<'p, RetryPolicy>>,
}

impl<'p> Plan<'p> {
    pub(crate) fn of(service: &'p TrafficPolicy, rule: Option<&'p Rule>) -> Self {
        let mut timeouts = service.timeouts;
        let mut retry = service.retry.as_ref().map(Cow::Borrowed);
        if let Some(rule) = rule {
            if let Some(policy) = &rule.policy {
                timeouts = over(&policy.timeouts, &timeouts);
                if let Some(own) = &policy.retry {
                    retry = Some(Cow::Borrowed(own));
                }
            }
            let own = Timeouts {
                request: rule.timeouts.request,
                attempt: rule.timeouts.backend_request,
                ..Timeouts::default()
            };
            timeouts = over(&own, &timeouts);
            if let Some(own) = &rule.retry {
                retry = Some(Cow::Owned(of_route(own)));
            }
        }
        if let Some(own) = retry.as_ref().and_then(|retry| retry.attempt_timeout) {
            timeouts.attempt = Some(own);
        }
        Self {
            timeouts: Timeouts {
                request: enabled(timeouts.request),
                attempt: enabled(timeouts.attempt),
                idle: enabled(timeouts.idle),
                max_stream: enabled(timeouts.max_stream),
            },
            retry,
        }
    }
}

/// Each timeout of `own` that is set, else that of `below`.
fn over(own: &Timeouts, below: &Timeouts) -> Timeouts {
    Timeouts {
        request: own.request.or(below.request),
        attempt: own.attempt.or(below.attempt),
        idle: own.idle.or(below.idle),
        max_stream: own.max_stream.or(below.max_stream),
    }
}

/// `0s` is no timeout.
fn enabled(timeout: Option<Duration>) -> Option<Duration> {
    timeout.filter(|timeout| !timeout.is_zero())
}

/// A route's `retry` as a policy: its codes, and whatever says that no answer came.
fn of_route(route: &RouteRetry) -> RetryPolicy {
    let status_codes = match route.codes.as_slice() {
        [] => RETRY_CODES.to_vec(),
        codes => codes.iter().map(|&code| (code, code)).collect(),
    };
    let mut backoff = crate::model::Backoff::default();
    if let Some(least) = route.backoff {
        backoff.base = least;
        backoff.max = backoff.max.max(least * 10);
    }
    RetryPolicy {
        attempts: route.attempts.unwrap_or(1),
        conditions: RetryConditions {
            connect_failure: true,
            reset: true,
            refused_stream: true,
            attempt_timeout: true,
            status_codes,
            grpc_codes: Vec::new(),
        },
        non_idempotent: false,
        backoff,
        attempt_timeout: None,
    }
}
