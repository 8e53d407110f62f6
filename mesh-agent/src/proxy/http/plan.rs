//! What applies to one request: the service's TrafficPolicy, and what a route says on top of it.

use std::time::Duration;

use crate::{
    model::{RetryPolicy, Timeouts, TrafficPolicy},
    routing::Rule,
};

#[derive(Debug)]
pub(crate) struct Plan<'p> {
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<&'p RetryPolicy>,
}

impl<'p> Plan<'p> {
    pub(crate) fn of(service: &'p TrafficPolicy, rule: Option<&'p Rule>) -> Self {
        let mut timeouts = service.timeouts;
        let mut retry = service.retry.as_ref();
        if let Some(rule) = rule {
            if let Some(policy) = &rule.policy {
                timeouts = over(&policy.timeouts, &timeouts);
                retry = policy.retry.as_ref().or(retry);
            }
            let own = Timeouts {
                request: rule.timeouts.request,
                attempt: rule.timeouts.backend_request,
                ..Timeouts::default()
            };
            timeouts = over(&own, &timeouts);
            retry = rule.retry.as_ref().or(retry);
        }
        if let Some(own) = retry.and_then(|retry| retry.attempt_timeout) {
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
