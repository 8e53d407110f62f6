//! Choice of endpoints: pure, no I/O, no clock.
//!
//! A strategy is an ordered iterator of candidates ([`Candidates`]): what is ejected or unhealthy is left out, and the
//! next attempt takes the next one, without a turn of its own ([`Candidates::tried`]): the shares that the strategies
//! promise are those of first attempts, whatever fails. The first candidate costs O(1) (O(log n) for weighted round robin
//! and random, O(n) only for session affinity) and allocates nothing.
//!
//! ```text
//! Pick -> Rings (locality: node, zone, others) -> Group (strategy among the targets of one ring) -> Candidates
//!                `-- Health (how many of each ring are usable: overflow, panic, bounded load)
//! ```

mod affinity;
mod candidates;
mod consistent_hash;
mod ewma;
mod group;
mod health;
mod key;
mod locality;
mod maglev;
mod random;
mod seen;
mod slow_start;
mod two_choices;
mod weighted;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use candidates::Candidates;
#[cfg(test)]
pub(crate) use consistent_hash::BOUND as LOAD_BOUND;
pub use ewma::{DECAY, Measured, PeakEwma};
pub use key::{client_key, endpoint_key, hash_key};
pub use slow_start::{AGGRESSION, slow_start_share};

use crate::model::{LoadBalancer, Locality, Strategy};
use locality::Rings;

/// What a strategy needs to know of an endpoint.
pub trait Target {
    /// Declared weight; 0 takes no traffic.
    fn weight(&self) -> u32;
    /// Requests or connections that it carries now: the unit is the caller's.
    fn in_flight(&self) -> u32;
    /// Identity that outlives rebuilds and that every agent computes alike: [`endpoint_key`].
    fn key(&self) -> u64;
    /// When it joined or recovered; slow start counts from here. `None`: long ago.
    fn ramping_since(&self) -> Option<Instant> {
        None
    }
    /// Seconds that its answer is expected to take: [`PeakEwma::load`]. `None`: nothing is known of it yet.
    fn latency_load(&self, _now: Instant) -> Option<f64> {
        None
    }
    /// Where it runs, as far as is known.
    fn place(&self) -> Place<'_> {
        Place::default()
    }
    /// Whether it may be used. Asked once or twice for each candidate, so it should be cheap.
    fn usable(&self, _now: Instant) -> Usability {
        Usability::Ready
    }
}

/// A node and its zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place<'a> {
    pub node: Option<&'a str>,
    pub zone: Option<&'a str>,
}

/// Whether an endpoint may be used; in the order in which panic takes them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usability {
    /// Its breaker is closed, or half-open and would admit a probe.
    Ready,
    /// Its breaker is open.
    Ejected,
    /// Active checks say that it is not reachable.
    Unhealthy,
}

/// What one choice is made for.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// [`client_key`] of the client's address, for services with session affinity; decides alone then.
    pub affinity: Option<u64>,
    /// [`hash_key`] or [`client_key`] of what consistent hashing hashes; `None`: the request has none and is balanced
    /// at random. The other strategies have no use for it.
    pub hash: Option<u64>,
    /// Where the client runs; only asked for when the policy prefers near endpoints.
    pub client: Place<'a>,
    /// Whether the panic threshold applies: not when every endpoint may be ejected (`maxEjectionPercent: 100`).
    pub may_panic: bool,
    pub now: Instant,
}

impl Pick<'_> {
    /// A choice without any preference.
    pub fn at(now: Instant) -> Self {
        Self {
            affinity: None,
            hash: None,
            client: Place::default(),
            may_panic: true,
            now,
        }
    }
}

/// One balancer for each port of a service. It belongs to one slice of targets: whoever changes the slice makes a new
/// balancer.
#[derive(Debug)]
pub struct Balancer {
    strategy: Strategy,
    slow_start: Option<Duration>,
    locality: Locality,
    panic_threshold: u32,
    seed: u64,
    /// Number of targets it was made for.
    targets: usize,
    /// Made when first used: most services of a large mesh are never dialled from this node.
    rings: OnceLock<Box<Rings>>,
    /// The last choice that looked found panic.
    in_panic: AtomicBool,
}

impl Balancer {
    /// `seed` sets where each agent starts; it must differ between agents or they load the same endpoint first.
    pub fn new<T: Target>(policy: &LoadBalancer, targets: &[T], seed: u64) -> Self {
        Self {
            strategy: policy.strategy,
            slow_start: policy.slow_start,
            locality: policy.locality,
            panic_threshold: policy.panic_threshold,
            seed,
            targets: targets.len(),
            rings: OnceLock::new(),
            in_panic: AtomicBool::new(false),
        }
    }

    /// Takes the place of `previous`, so that the end of its panic is noticed.
    pub fn follow(self, previous: &Self) -> Self {
        let in_panic = AtomicBool::new(previous.in_panic.load(Ordering::Relaxed));
        Self { in_panic, ..self }
    }

    /// The targets with weight that may be used, each once, best first. `targets` is the slice the balancer was made
    /// for.
    pub fn candidates<'a, T: Target>(
        &'a self,
        targets: &'a [T],
        pick: Pick<'_>,
        rng: &mut impl rand::Rng,
    ) -> Candidates<'a, T> {
        debug_assert_eq!(
            self.targets,
            targets.len(),
            "the balancer was made for another slice"
        );
        let rings = locality::find(&self.rings, self, targets, pick.client);
        Candidates::new(self, rings, targets, pick, rng.next_u64())
    }

    /// Tells weighted round robin how an attempt went; the other strategies have no use for it.
    pub fn report(&self, index: usize, ok: bool) {
        if self.strategy == Strategy::WeightedRoundRobin {
            locality::each(&self.rings, |group| group.report(index, ok));
        }
    }
}
