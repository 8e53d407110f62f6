//! How many certificates a node may ask for: a bucket for each, so that one that has gone wild leaves the others theirs.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// As many at once as a large node has identities when it starts.
const BURST: f64 = 1000.0;
/// And this many a second from then on.
const PER_SECOND: f64 = 50.0;
/// Above this many nodes, those whose bucket is full again are forgotten.
const REMEMBERED: usize = 10_000;

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * PER_SECOND).min(BURST);
        self.at = now;
    }
}

#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<HashMap<String, Bucket>>);

impl Limits {
    /// Takes one; when there is none, answers when there will be.
    pub(super) fn take(&self, node: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(node) {
            buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.left < BURST
            });
        }
        let bucket = buckets.entry(node.to_owned()).or_insert(Bucket {
            left: BURST,
            at: now,
        });
        bucket.refill(now);
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / PER_SECOND));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_each_node_its_own() {
        let limits = Limits::default();
        let start = Instant::now();
        for _ in 0..1000 {
            limits.take("n1", start).unwrap();
        }
        assert_eq!(limits.take("n1", start), Err(Duration::from_millis(20)));
        limits.take("n2", start).unwrap();
        let later = start + Duration::from_secs(1);
        for _ in 0..50 {
            limits.take("n1", later).unwrap();
        }
        assert!(limits.take("n1", later).is_err());
    }

    #[test]
    fn nodes_that_ask_no_more_are_forgotten() {
        let limits = Limits::default();
        let start = Instant::now();
        for node in 0..REMEMBERED {
            limits.take(&node.to_string(), start).unwrap();
        }
        limits.take("new", start + Duration::from_secs(1)).unwrap();
        assert_eq!(limits.0.lock().unwrap().len(), 1);
    }
}
