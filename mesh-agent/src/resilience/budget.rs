//! How many retries a service may get: a share of its requests, and a few a second always.
//!
//! A retry is allowed while the retries of the window, this one included, are no more than `percent` of the requests of
//! the window, or while those of the last second are no more than `minPerSecond`. Both windows slide: time is cut into
//! fortieths of them, and where one is neither wholly in nor out, its requests are left out and its retries counted. So
//! the budget is never exceeded in any stretch of that length, and at most a fortieth of it is given away.

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    moment::nanos,
    window::{PARTS, Window},
};
use crate::model::RetryBudget;

/// Of the second that the floor looks at.
const FLOOR_PART: u64 = 1_000_000_000 / PARTS;

/// One for each service. Counting a request takes no lock.
#[derive(Debug)]
pub struct Budget {
    /// Nanoseconds of one part of the window.
    width: AtomicU64,
    /// Made with the first request: a node calls few of the services of a large mesh.
    counts: OnceLock<Box<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: Window,
    retried: Mutex<Retried>,
}

#[derive(Debug, Default)]
struct Retried {
    window: Window,
    second: Window,
    /// Time does not go back, whoever comes late.
    latest: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            width: AtomicU64::new(width(&RetryBudget::default())),
            counts: OnceLock::new(),
        }
    }
}

impl Budget {
    /// A request came (not a retry).
    pub fn request(&self, now: Instant) {
        let width = self.width.load(Ordering::Relaxed);
        self.counts().requests.add(nanos(now) / width);
    }

    /// Takes over the window of a policy. Another one than before starts the counting afresh.
    pub fn update(&self, policy: &RetryBudget) {
        let width = width(policy);
        if self.width.swap(width, Ordering::Relaxed) != width
            && let Some(counts) = self.counts.get()
        {
            counts.requests.clear();
            counts.lock().window.clear();
        }
    }

    /// Counts one retry, if there is room for it.
    #[must_use = "the retry counts as made"]
    pub fn try_retry(&self, policy: &RetryBudget, now: Instant) -> bool {
        self.update(policy);
        let counts = self.counts();
        let mut retried = counts.lock();
        let (part, second) = retried.parts(width(policy), now);
        let allowed = retried.room(counts.requests.sum(part, PARTS), policy, part, second) > 0;
        if allowed {
            retried.window.add(part);
            retried.second.add(second);
        }
        allowed
    }

    /// How many retries would be allowed now.
    pub fn balance(&self, policy: &RetryBudget, now: Instant) -> u64 {
        let Some(counts) = self.counts.get() else {
            return policy.min_per_second.into();
        };
        let mut retried = counts.lock();
        let (part, second) = retried.parts(width(policy), now);
        retried.room(counts.requests.sum(part, PARTS), policy, part, second)
    }

    fn counts(&self) -> &Counts {
        self.counts.get_or_init(Box::default)
    }
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Retried> {
        self.retried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Retried {
    /// The parts of both windows that it is now.
    fn parts(&mut self, width: u64, now: Instant) -> (u64, u64) {
        self.latest = self.latest.max(nanos(now));
        (self.latest / width, self.latest / FLOOR_PART)
    }

    /// How many more there may be, with so many requests in the window.
    fn room(&self, requests: u64, policy: &RetryBudget, part: u64, second: u64) -> u64 {
        let share = (policy.percent * requests as f64 / 100.0) as u64;
        let share = share.saturating_sub(self.window.sum(part, PARTS + 1));
        let floor = u64::from(policy.min_per_second);
        let floor = floor.saturating_sub(self.second.sum(second, PARTS + 1));
        share.max(floor)
    }
}

fn width(policy: &RetryBudget) -> u64 {
    let window = u64::try_from(policy.window.as_nanos()).unwrap_or(u64::MAX);
    (window / PARTS).max(1_000_000)
}

#[cfg(test)]
mod tests;
