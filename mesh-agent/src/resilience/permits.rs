//! Exact limits: a counter and the guards that hold its units.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::Line;

/// Units in use. Shared by every guard, so that it outlives the snapshot it was made for; the limit is an argument,
/// so that a changed policy applies to what is already held.
#[derive(Debug, Default)]
pub struct Permits {
    in_use: AtomicU32,
    /// Those who wait for one.
    line: Option<Arc<Line>>,
}

impl Permits {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Each permit that is given back wakes one who waits in the line.
    pub fn waking(line: &Arc<Line>) -> Arc<Self> {
        Arc::new(Self {
            in_use: AtomicU32::new(0),
            line: Some(Arc::clone(line)),
        })
    }

    /// Takes one unit unless `limit` are in use; `None` limits nothing but counts. Never more than `limit` guards
    /// are alive, however many threads ask.
    #[must_use = "the unit is given back when the permit is dropped"]
    pub fn acquire(self: &Arc<Self>, limit: Option<u32>) -> Option<Permit> {
        let limit = limit.unwrap_or(u32::MAX);
        // The orderings are those that `Line::released` relies on.
        self.in_use
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n < limit).then(|| n + 1)
            })
            .ok()?;
        Some(Permit(Arc::clone(self)))
    }

    pub fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }
}

/// One unit; given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Permits>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::SeqCst);
        if let Some(line) = &self.0.line {
            line.released();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A plain model: a number and a list of guards.
        #[test]
        fn never_more_than_the_limit(limit in 0u32..6, steps in prop::collection::vec(any::<(bool, u8)>(), 0..60)) {
            let permits = Permits::new();
            let mut held = Vec::new();
            for (take, which) in steps {
                if take {
                    let got = permits.acquire(Some(limit));
                    prop_assert_eq!(got.is_some(), (held.len() as u32) < limit);
                    held.extend(got);
                } else if !held.is_empty() {
                    held.swap_remove(which as usize % held.len());
                }
                prop_assert_eq!(permits.in_use(), held.len() as u32);
            }
        }
    }

    #[test]
    fn exact_under_threads() {
        const LIMIT: u32 = 3;
        let permits = Permits::new();
        let alive = AtomicU32::new(0);
        let most = AtomicU32::new(0);
        let granted = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        if let Some(permit) = permits.acquire(Some(LIMIT)) {
                            let now = alive.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            granted.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            alive.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= LIMIT);
        assert!(granted.load(Ordering::SeqCst) > 0);
        assert_eq!(permits.in_use(), 0);
    }

    #[test]
    fn a_lower_limit_applies_to_what_is_held() {
        let permits = Permits::new();
        let first = permits.acquire(None);
        let second = permits.acquire(Some(2));
        assert!(second.is_some());
        assert!(permits.acquire(Some(1)).is_none());
        drop(first);
        assert!(permits.acquire(Some(1)).is_none());
        drop(second);
        assert!(permits.acquire(Some(1)).is_some());
    }
}
