//! The generic cell rate algorithm in whole numbers.
//!
//! A bucket holds `burst` tokens, gets `requests` of them in each `per`, and a request takes one. It is kept as one
//! number, the time at which it will be full again. Times are nanoseconds multiplied by `requests`: one token is then
//! worth exactly `per` in nanoseconds, whatever the rate, and nothing is ever rounded.

use std::time::Duration;

use crate::model::RateLimit;

/// The rate and size of buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    requests: u128,
    /// Worth of one token.
    token: u128,
    /// Tokens of a full bucket.
    burst: u128,
}

/// When a bucket will be full, in the unit of its [`Rate`]; 0: it is.
pub(super) type Full = u128;

/// What is in a bucket after a request, or when one will fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Fits { full: Full },
    Refused { wait: Duration },
}

impl Rate {
    pub(super) fn new(limit: &RateLimit) -> Self {
        Self {
            requests: u128::from(limit.requests.max(1)),
            token: limit.per.as_nanos().max(1),
            burst: u128::from(limit.burst.max(1)),
        }
    }

    /// Asks for a token at `now` (nanoseconds); the caller keeps `full` if he takes it.
    pub(super) fn ask(self, full: Full, now: u64) -> Answer {
        let now = u128::from(now) * self.requests;
        let next = full.max(now) + self.token;
        let latest = now + self.burst * self.token;
        if next <= latest {
            return Answer::Fits { full: next };
        }
        let nanos = (next - latest).div_ceil(self.requests);
        Answer::Refused {
            wait: duration(nanos),
        }
    }

    /// Tokens in the bucket.
    pub(super) fn remaining(self, full: Full, now: u64) -> u64 {
        let missing = self.debt(full, now).div_ceil(self.token);
        u64::try_from(self.burst.saturating_sub(missing)).unwrap_or(u64::MAX)
    }

    /// Until it is full.
    pub(super) fn until_full(self, full: Full, now: u64) -> Duration {
        duration(self.debt(full, now).div_ceil(self.requests))
    }

    fn debt(self, full: Full, now: u64) -> u128 {
        full.saturating_sub(u128::from(now) * self.requests)
    }
}

fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
