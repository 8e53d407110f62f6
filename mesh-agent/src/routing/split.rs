//! Which backend the next request of a rule gets.
//!
//! The backends are the leaves of a balanced tree. At each node the k-th request goes left when the left share of k + 1
//! requests, rounded to the nearest, is one more than that of k (Bresenham's line). So the choice is a function of how
//! many requests there were: one atomic counter is all that threads share, nobody waits, and after any number of
//! requests a backend is within half a request of its share for each level of the tree: a half when there are two
//! backends, two when there are sixteen.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::Backend;

/// Backends of one rule, as Gateway API limits them.
pub const MAX_BACKENDS: usize = 16;
/// The highest weight in Gateway API.
const MAX_WEIGHT: u32 = 1_000_000;

/// How many requests a rule has split so far. The rule that follows it after a change goes on counting.
#[derive(Clone, Debug, Default)]
pub(super) struct Split {
    count: Arc<AtomicU64>,
}

impl Split {
    pub(super) fn pick(
        &self,
        backends: &[Backend],
        redistribute: bool,
        available: impl Fn(&Backend) -> bool,
    ) -> Option<usize> {
        let takes = |backend: &Backend| !redistribute || available(backend);
        let sums = match Sums::new(backends, takes) {
            Some(sums) => sums,
            None if redistribute => Sums::new(backends, |_| true)?,
            None => return None,
        };
        Some(sums.choose(|| self.count.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Weights added up: those of the first n backends.
struct Sums {
    sums: [u64; MAX_BACKENDS + 1],
    count: usize,
}

impl Sums {
    /// `None`: nobody has weight.
    fn new(backends: &[Backend], takes: impl Fn(&Backend) -> bool) -> Option<Self> {
        let mut sums = [0; MAX_BACKENDS + 1];
        let mut total = 0;
        let count = backends.len().min(MAX_BACKENDS);
        for (sum, backend) in sums[1..].iter_mut().zip(backends) {
            if backend.weight > 0 && takes(backend) {
                total += u64::from(backend.weight.min(MAX_WEIGHT));
            }
            *sum = total;
        }
        (total > 0).then_some(Self { sums, count })
    }

    fn choose(&self, next: impl FnOnce() -> u64) -> usize {
        let (mut low, mut high) = (0, self.count);
        // Where one backend has all of the weight, there is nothing to count.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let (left, all) = (self.weight(low, middle), self.weight(low, high));
            if left == all {
                high = middle;
            } else if left == 0 {
                low = middle;
            } else {
                return self.descend(low, high, next() % all);
            }
        }
        low
    }

    fn descend(&self, mut low: usize, mut high: usize, mut nth: u64) -> usize {
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let (left, all) = (self.weight(low, middle), self.weight(low, high));
            let share = |requests: u64| (2 * requests * left + all) / (2 * all);
            let before = share(nth);
            if share(nth + 1) > before {
                (high, nth) = (middle, before);
            } else {
                (low, nth) = (middle, nth - before);
            }
        }
        low
    }

    fn weight(&self, low: usize, high: usize) -> u64 {
        self.sums[high] - self.sums[low]
    }
}
