//! Results over a sliding window: an exact ring of buckets.

use std::time::{Duration, Instant};

const BUCKETS: u64 = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    total: u32,
    failures: u32,
}

/// Counts of the last `window`, by tenths: what is older than the window is never counted, what is younger than nine
/// tenths of it always is.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    buckets: [Bucket; BUCKETS as usize],
    /// Start of the time that buckets are numbered from, and the number of the newest bucket.
    epoch: Option<Instant>,
    newest: u64,
    /// A different window starts the ring afresh.
    window: Duration,
}

impl Ring {
    /// Counts one result and gives (failures, total) of the window.
    pub(super) fn record(&mut self, ok: bool, window: Duration, now: Instant) -> (u32, u32) {
        if self.window != window {
            *self = Self {
                window,
                ..Self::default()
            };
        }
        let epoch = *self.epoch.get_or_insert(now);
        let width = (window.as_nanos() / u128::from(BUCKETS)).max(1);
        let elapsed = now.saturating_duration_since(epoch).as_nanos();
        // Results of other threads may arrive a little late; they count in the newest bucket.
        let number = ((elapsed / width) as u64).max(self.newest);
        for expired in (self.newest + 1..=number).take(BUCKETS as usize) {
            self.buckets[(expired % BUCKETS) as usize] = Bucket::default();
        }
        self.newest = number;
        let bucket = &mut self.buckets[(number % BUCKETS) as usize];
        bucket.total = bucket.total.saturating_add(1);
        bucket.failures = bucket.failures.saturating_add(u32::from(!ok));
        self.buckets.iter().fold((0, 0), |(failures, total), b| {
            (
                failures.saturating_add(b.failures),
                total.saturating_add(b.total),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the plain list of all results: between what nine tenths of the window hold and what all of it does.
        #[test]
        fn counts_what_the_window_holds(steps in prop::collection::vec((0u64..400, any::<bool>()), 1..80)) {
            let window = Duration::from_millis(1_000);
            let start = Instant::now();
            let mut ring = Ring::default();
            let mut all: Vec<(u64, bool)> = Vec::new();
            let mut at = 0;
            for (gap, ok) in steps {
                at += gap;
                all.push((at, ok));
                let (failures, total) = ring.record(ok, window, start + Duration::from_millis(at));
                let within = |ms: u64, bad: bool| {
                    all.iter().filter(|(t, ok)| at - t < ms && !(bad && *ok)).count() as u32
                };
                prop_assert!((within(901, false)..=within(1_000, false)).contains(&total));
                prop_assert!((within(901, true)..=within(1_000, true)).contains(&failures));
            }
        }
    }

    #[test]
    fn a_gap_longer_than_the_window_empties_it() {
        let start = Instant::now();
        let window = Duration::from_secs(10);
        let mut ring = Ring::default();
        for _ in 0..5 {
            ring.record(false, window, start);
        }
        for gap in [11, 100_000] {
            let (failures, total) = ring.record(true, window, start + Duration::from_secs(gap));
            assert_eq!((failures, total), (0, 1));
        }
    }
}
