//! Choice of endpoints: pure, no I/O, no clock.
//!
//! A strategy is an ordered iterator of candidates ([`Candidates`]): the caller skips what is ejected or full, and the
//! next attempt takes the next one. The first candidate costs O(1) (O(log n) for weighted round robin, O(n) only for
//! session affinity) and allocates nothing.

mod candidates;
mod ewma;
mod key;
mod random;
mod seen;
mod slow_start;
mod weighted;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub use candidates::Candidates;
pub use ewma::{DECAY, PeakEwma};
pub use key::{client_key, endpoint_key};
pub use slow_start::{AGGRESSION, slow_start_share};

use crate::model::{LoadBalancer, Strategy};

/// What a strategy needs to know of an endpoint.
pub trait Target {
    /// Declared weight; 0 takes no traffic.
    fn weight(&self) -> u32;
    /// Connections that it carries now.
    fn in_flight(&self) -> u32;
    /// Identity that outlives rebuilds and that every agent computes alike: [`endpoint_key`].
    fn key(&self) -> u64;
    /// When it joined or recovered; slow start counts from here. `None`: long ago.
    fn ramping_since(&self) -> Option<Instant> {
        None
    }
}

/// One balancer for each port of a service. It belongs to one slice of targets: whoever changes the slice makes a new
/// balancer.
#[derive(Debug)]
pub struct Balancer {
    strategy: Strategy,
    slow_start: Option<Duration>,
    seed: u64,
    /// Number of targets it was made for.
    targets: usize,
    /// Positions of the targets with weight; `None` when all have one.
    active: Option<Box<[u32]>>,
    /// Round robin: the next position.
    cursor: AtomicUsize,
    /// Made when first used: most services of a large mesh are never dialled from this node.
    weighted: OnceLock<Mutex<weighted::Schedule>>,
    random: OnceLock<random::Shares>,
    /// Targets whose effective weight is below the declared one; lets [`Balancer::report`] return early.
    degraded: AtomicU32,
}

impl Balancer {
    /// `seed` sets where each agent starts; it must differ between agents or they load the same endpoint first.
    pub fn new<T: Target>(policy: &LoadBalancer, targets: &[T], seed: u64) -> Self {
        let all = targets.iter().all(|t| t.weight() > 0);
        let active = (!all).then(|| {
            (0u32..)
                .zip(targets)
                .filter(|(_, t)| t.weight() > 0)
                .map(|(i, _)| i)
                .collect()
        });
        Self {
            strategy: policy.strategy,
            slow_start: policy.slow_start,
            seed,
            targets: targets.len(),
            active,
            cursor: AtomicUsize::new(key::mix(seed) as usize >> 1),
            weighted: OnceLock::new(),
            random: OnceLock::new(),
            degraded: AtomicU32::new(0),
        }
    }

    /// Every target with weight, once, best first. `affinity` is [`client_key`] of the client's address for services
    /// with session affinity, and then decides alone. `targets` is the slice the balancer was made for.
    pub fn candidates<'a, T: Target>(
        &'a self,
        targets: &'a [T],
        affinity: Option<u64>,
        now: Instant,
        rng: &mut impl rand::Rng,
    ) -> Candidates<'a, T> {
        Candidates::new(self, targets, affinity, now, rng.next_u64())
    }

    /// Tells weighted round robin how an attempt went; the other strategies have no use for it.
    pub fn report(&self, index: usize, ok: bool) {
        if self.strategy != Strategy::WeightedRoundRobin
            || (ok && self.degraded.load(Ordering::Relaxed) == 0)
        {
            return;
        }
        let Some(schedule) = self.weighted.get() else {
            return;
        };
        let degraded = lock(schedule).report(index, ok);
        self.degraded.store(degraded, Ordering::Relaxed);
    }

    /// Number of targets with weight.
    fn active_len(&self) -> usize {
        self.active.as_ref().map_or(self.targets, |a| a.len())
    }

    /// Target at a position among those with weight.
    fn active_at(&self, position: usize) -> usize {
        match &self.active {
            None => position,
            Some(list) => list.get(position).map_or(0, |&i| i as usize),
        }
    }

    fn schedule<T: Target>(&self, targets: &[T]) -> MutexGuard<'_, weighted::Schedule> {
        lock(self.weighted.get_or_init(|| {
            let weights = targets.iter().map(Target::weight);
            Mutex::new(weighted::Schedule::new(weights, self.seed))
        }))
    }

    fn shares<T: Target>(&self, targets: &[T]) -> &random::Shares {
        self.random
            .get_or_init(|| random::Shares::new(targets.iter().map(Target::weight)))
    }
}

/// A panic elsewhere leaves the schedule usable: at worst one slot is lost.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
