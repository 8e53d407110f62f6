//! How many endpoints of one service port may be ejected at once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// How many of `endpoints` may be ejected: the percentage rounded down and, below 100, always one less than all.
pub fn may_eject(endpoints: u32, percent: u32) -> u32 {
    if percent >= 100 {
        return endpoints;
    }
    let share = (u64::from(endpoints) * u64::from(percent) / 100) as u32;
    share.min(endpoints.saturating_sub(1))
}

/// Counts the ejected endpoints of one service port; shared by their states and carried over rebuilds.
#[derive(Debug, Default)]
pub struct Ejections {
    /// Endpoints in the high half, ejected ones in the low half: one atomic, so that the limit is exact.
    counts: AtomicU64,
}

impl Ejections {
    pub fn new(endpoints: u32) -> Arc<Self> {
        let ejections = Self::default();
        ejections.set_endpoints(endpoints);
        Arc::new(ejections)
    }

    /// The number of endpoints with weight changed.
    pub fn set_endpoints(&self, endpoints: u32) {
        let set = |counts| Some(pack(endpoints, unpack(counts).1));
        // Cannot fail: the closure always gives a value.
        let _ = self
            .counts
            .try_update(Ordering::AcqRel, Ordering::Acquire, set);
    }

    pub fn endpoints(&self) -> u32 {
        unpack(self.counts.load(Ordering::Acquire)).0
    }

    pub fn ejected(&self) -> u32 {
        unpack(self.counts.load(Ordering::Acquire)).1
    }

    /// A place among the ejected, if one is free.
    pub(super) fn eject(self: &Arc<Self>, percent: u32) -> Option<Ejection> {
        self.update(|endpoints, ejected| {
            (ejected < may_eject(endpoints, percent)).then_some(ejected + 1)
        })
        .then(|| Ejection {
            of: Arc::clone(self),
            counted: true,
        })
    }

    fn update(&self, change: impl Fn(u32, u32) -> Option<u32>) -> bool {
        self.counts
            .try_update(Ordering::AcqRel, Ordering::Acquire, |counts| {
                let (endpoints, ejected) = unpack(counts);
                Some(pack(endpoints, change(endpoints, ejected)?))
            })
            .is_ok()
    }
}

/// One place among the ejected; given back when dropped, so also when its endpoint is removed.
#[derive(Debug)]
pub struct Ejection {
    of: Arc<Ejections>,
    counted: bool,
}

impl Ejection {
    /// Gives the place back only if there are more ejected than `percent` of the endpoints allows: endpoints were
    /// removed since, or the policy changed.
    pub(super) fn pardon_if_over(&mut self, percent: u32) -> bool {
        let pardoned = self.counted
            && self.of.update(|endpoints, ejected| {
                (ejected > may_eject(endpoints, percent)).then(|| ejected.saturating_sub(1))
            });
        self.counted &= !pardoned;
        pardoned
    }
}

impl Drop for Ejection {
    fn drop(&mut self) {
        if self.counted {
            self.of.update(|_, ejected| Some(ejected.saturating_sub(1)));
        }
    }
}

fn pack(endpoints: u32, ejected: u32) -> u64 {
    u64::from(endpoints) << 32 | u64::from(ejected)
}

fn unpack(counts: u64) -> (u32, u32) {
    ((counts >> 32) as u32, counts as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_the_endpoints() {
        for (endpoints, percent, expected) in [
            (0, 50, 0),
            (0, 100, 0),
            (1, 50, 0),
            (1, 99, 0),
            (1, 100, 1),
            (2, 50, 1),
            (3, 50, 1),
            (3, 10, 0),
            (4, 50, 2),
            (4, 99, 3),
            (4, 100, 4),
            (4, 0, 0),
            (1_000, 50, 500),
            (u32::MAX, 99, u32::MAX - u32::MAX / 100 - 1),
        ] {
            assert_eq!(
                may_eject(endpoints, percent),
                expected,
                "{percent} % of {endpoints}"
            );
        }
    }

    #[test]
    fn exact_under_threads() {
        let ejections = Ejections::new(9);
        let most = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let place = ejections.eject(50);
                        most.fetch_max(u64::from(ejections.ejected()), Ordering::SeqCst);
                        drop(place);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 4);
        assert_eq!(ejections.ejected(), 0);
    }

    #[test]
    fn removed_endpoints_pardon_exactly_the_excess() {
        let ejections = Ejections::new(4);
        let mut first = ejections.eject(50).unwrap();
        let mut second = ejections.eject(50).unwrap();
        assert!(ejections.eject(50).is_none());
        assert!(!first.pardon_if_over(50));
        ejections.set_endpoints(2);
        assert!(first.pardon_if_over(50));
        assert!(!first.pardon_if_over(50));
        assert!(!second.pardon_if_over(50));
        drop(first);
        assert_eq!(ejections.ejected(), 1);
        drop(second);
        assert_eq!(ejections.ejected(), 0);
    }
}
