//! How many targets are usable, and what they carry: for overflow between rings, panic and bounded load.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Target, Usability, group::Group, locality::RINGS};

const LEVELS: [Usability; 3] = [Usability::Ready, Usability::Ejected, Usability::Unhealthy];

/// Up to so many targets are counted anew for each choice that needs it.
const EXACT: usize = 32;

/// With more of them a count is used again for so long for each target, and for at most an eighth as many choices as
/// there are targets. So a choice looks at eight targets on average, however many there are, and a count of 1,000 is no
/// older than 2 ms.
const AGE: Duration = Duration::from_micros(2);

/// The targets of one ring by [`Usability`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    count: [u32; 3],
    in_flight: [u64; 3],
    weight: [u64; 3],
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    pub(super) rings: [Tally; RINGS],
}

impl Tally {
    fn add<T: Target>(&mut self, target: &T, now: Instant) {
        let level = target.usable(now) as usize;
        self.count[level] += 1;
        self.in_flight[level] += u64::from(target.in_flight());
        self.weight[level] += u64::from(target.weight());
    }

    /// Targets that are at most as bad as `worst`.
    fn usable(&self, worst: Usability) -> u32 {
        self.count.iter().take(worst as usize + 1).sum()
    }

    /// What part of all traffic the ring can take: 1 from `threshold` percent of usable targets on, less below it.
    pub(super) fn fill(&self, worst: Usability, threshold: u32) -> f64 {
        let (usable, all) = (self.usable(worst), self.usable(Usability::Unhealthy));
        if usable == 0 {
            return 0.0;
        }
        let needed = f64::from(all) * f64::from(threshold) / 100.0;
        (f64::from(usable) / needed).min(1.0)
    }

    /// What is in flight on the usable targets, and their weight.
    pub(super) fn load(&self, worst: Usability) -> (u64, u64) {
        let sum = |of: &[u64; 3]| of.iter().take(worst as usize + 1).sum();
        (sum(&self.in_flight), sum(&self.weight))
    }
}

impl Health {
    pub(super) fn count<T: Target>(groups: &[Group], targets: &[T], now: Instant) -> Self {
        let mut health = Self::default();
        for (tally, group) in health.rings.iter_mut().zip(groups) {
            for target in group.targets(targets) {
                tally.add(target, now);
            }
        }
        health
    }

    /// The worst targets that are to be used so that at least `threshold` percent are in use. More than
    /// [`Usability::Ready`] is panic: the few that are left would break under the load of all. The ejected come in
    /// before the unreachable, who come in only if that is still too few.
    pub(super) fn worst_allowed(&self, threshold: u32) -> Usability {
        let at_most = |worst| -> u64 {
            let usable = self.rings.iter().map(|ring| u64::from(ring.usable(worst)));
            usable.sum()
        };
        let needed = at_most(Usability::Unhealthy) * u64::from(threshold.min(100));
        LEVELS
            .into_iter()
            .find(|&worst| at_most(worst) * 100 >= needed)
            .unwrap_or(Usability::Unhealthy)
    }
}

/// The last count.
#[derive(Debug, Default)]
pub(super) struct Cache {
    last: Mutex<Option<(Instant, Health)>>,
    uses: AtomicU32,
}

impl Cache {
    pub(super) fn get<T: Target>(&self, groups: &[Group], targets: &[T], now: Instant) -> Health {
        if targets.len() <= EXACT {
            return Health::count(groups, targets, now);
        }
        let uses = self.uses.fetch_add(1, Ordering::Relaxed) as usize;
        // Copied out: nobody waits for a count of thousands.
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, health)) = last
            && uses < targets.len() / 8
            && now.saturating_duration_since(at) < AGE * targets.len() as u32
        {
            return health;
        }
        let health = Health::count(groups, targets, now);
        self.uses.store(0, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, health));
        health
    }
}
