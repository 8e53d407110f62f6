//! How many retries a service may get: a share of its requests, and a few a second always.
//!
//! A retry is allowed while the retries of the window, this one included, are no more than `percent` of the requests of
//! the window, or while those of the last second are no more than `minPerSecond`. Both windows slide: time is cut into
//! fortieths of them, and where one is neither wholly in nor out, its requests are left out and its retries counted. So
//! the budget is never exceeded in any stretch of that length, and at most a fortieth of it is given away.

use std::{
    sync::{
        Mutex, PoisonError,
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
    requests: Window,
    /// Nanoseconds of one part of the window.
    width: AtomicU64,
    retries: Mutex<Retried>,
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
            requests: Window::default(),
            width: AtomicU64::new(width(&RetryBudget::default())),
            retries: Mutex::default(),
        }
    }
}

impl Budget {
    /// A request came (not a retry).
    pub fn request(&self, now: Instant) {
        let width = self.width.load(Ordering::Relaxed);
        self.requests.add(nanos(now) / width);
    }

    /// Counts one retry, if there is room for it. A policy with another window starts the counting afresh.
    #[must_use = "the retry counts as made"]
    pub fn try_retry(&self, policy: &RetryBudget, now: Instant) -> bool {
        let mut retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        let width = width(policy);
        if self.width.swap(width, Ordering::Relaxed) != width {
            self.requests.clear();
            retries.window.clear();
        }
        retries.latest = retries.latest.max(nanos(now));
        let part = retries.latest / width;
        let requests = self.requests.sum(part, PARTS) as f64;
        let so_far = retries.window.sum(part, PARTS + 1);
        let by_share = (so_far + 1) as f64 * 100.0 <= policy.percent * requests;
        let second = retries.latest / FLOOR_PART;
        let by_floor = retries.second.sum(second, PARTS + 1) < u64::from(policy.min_per_second);
        let allowed = by_share || by_floor;
        if allowed {
            retries.window.add(part);
            retries.second.add(second);
        }
        allowed
    }
}

fn width(policy: &RetryBudget) -> u64 {
    let window = u64::try_from(policy.window.as_nanos()).unwrap_or(u64::MAX);
    (window / PARTS).max(1_000_000)
}
