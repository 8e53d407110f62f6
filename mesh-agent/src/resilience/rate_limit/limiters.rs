//! The limits of one service together.

use std::{
    hash::{BuildHasherDefault, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

use super::{
    fields::Quota,
    gcra::{Answer, Full, Rate},
    keys::{RequestFacts, applies, bucket},
};
use crate::{model::RateLimit, resilience::moment::nanos};

/// Limits with their buckets. One lock for all of them, so that asking all and charging all is one step.
#[derive(Debug, Default)]
pub struct Limiters {
    hashes: RandomState,
    /// The most specific first.
    limits: Mutex<Vec<Limiter>>,
}

#[derive(Debug)]
struct Limiter {
    limit: Arc<RateLimit>,
    rate: Rate,
    buckets: Buckets,
    counts: LimitCounts,
    /// What the request that is being decided would be charged.
    asked: Option<(u64, Full)>,
}

#[derive(Debug)]
enum Buckets {
    /// One for all requests.
    One(Full),
    /// One for each key; the least recently used is forgotten above `max`, and that is as good as full.
    Keyed {
        buckets: LruCache<u64, Full, AsIs>,
        max: usize,
    },
}

/// Requests of one limit so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitCounts {
    pub allowed: u64,
    pub refused: u64,
    /// Would have been refused, were the limit not in shadow mode.
    pub shadow_refused: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// With the limit that has least left, if one applies.
    Allowed(Option<Quota>),
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The most specific of those that refused.
    pub quota: Quota,
    /// Until none of them would refuse.
    pub wait: Duration,
}

impl Limiters {
    pub fn new(limits: &[Arc<RateLimit>]) -> Self {
        let limiters = Self::default();
        limiters.update(limits);
        limiters
    }

    /// Takes over a changed policy. A limit that is the same keeps its buckets, and one of the same name its counts.
    pub fn update(&self, limits: &[Arc<RateLimit>]) {
        let mut current = self.lock();
        let mut old = std::mem::take(&mut *current);
        let mut new: Vec<Limiter> = limits
            .iter()
            .map(|limit| {
                let known = old.iter().position(|old| old.limit.name == limit.name);
                Limiter::following(known.map(|at| old.swap_remove(at)), limit)
            })
            .collect();
        new.sort_by_key(|limiter| std::cmp::Reverse(limiter.limit.key.len()));
        *current = new;
    }

    /// Charges the request to every limit that it matches, or refuses it and charges none.
    pub fn check(&self, facts: &RequestFacts<'_>, now: Instant) -> Decision {
        let now = nanos(now);
        let mut limits = self.lock();
        let mut refused: Option<(usize, Full)> = None;
        let mut longest = Duration::ZERO;
        for (index, limiter) in limits.iter_mut().enumerate() {
            limiter.asked = None;
            if !applies(&limiter.limit, facts) {
                continue;
            }
            let key = limiter.key(facts, &self.hashes);
            let full = limiter.buckets.get(key);
            match limiter.rate.ask(full, now) {
                Answer::Fits { full } => limiter.asked = Some((key, full)),
                Answer::Refused { .. } if limiter.limit.shadow => {
                    limiter.counts.shadow_refused += 1;
                }
                Answer::Refused { wait } => {
                    limiter.counts.refused += 1;
                    refused.get_or_insert((index, full));
                    longest = longest.max(wait);
                }
            }
        }
        if let Some((index, full)) = refused {
            let quota = limits[index].quota(full, now);
            return Decision::Refused(Refusal {
                quota,
                wait: longest,
            });
        }
        let mut least: Option<(u64, usize, Full)> = None;
        for (index, limiter) in limits.iter_mut().enumerate() {
            let Some((key, full)) = limiter.asked.take() else {
                continue;
            };
            limiter.buckets.set(key, full);
            limiter.counts.allowed += 1;
            let remaining = limiter.rate.remaining(full, now);
            if !limiter.limit.shadow && least.is_none_or(|(least, ..)| remaining < least) {
                least = Some((remaining, index, full));
            }
        }
        Decision::Allowed(least.map(|(_, index, full)| limits[index].quota(full, now)))
    }

    /// Whether there is nothing to check.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Counts by name of the limit, for metrics.
    pub fn counts(&self) -> Vec<(Arc<str>, LimitCounts)> {
        let limits = self.lock();
        limits
            .iter()
            .map(|limiter| (Arc::clone(&limiter.limit.name), limiter.counts))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Limiter>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limiter {
    fn following(old: Option<Self>, limit: &Arc<RateLimit>) -> Self {
        let counts = old.as_ref().map(|old| old.counts).unwrap_or_default();
        let buckets = match old {
            Some(old) if same_buckets(&old.limit, limit) => old.buckets,
            _ => Buckets::new(limit),
        };
        Self {
            rate: Rate::new(limit),
            limit: Arc::clone(limit),
            buckets,
            counts,
            asked: None,
        }
    }

    fn key(&self, facts: &RequestFacts<'_>, hashes: &RandomState) -> u64 {
        match self.buckets {
            Buckets::One(_) => 0,
            Buckets::Keyed { .. } => bucket(&self.limit, facts, hashes),
        }
    }

    fn quota(&self, full: Full, now: u64) -> Quota {
        Quota {
            limit: Arc::clone(&self.limit),
            remaining: self.rate.remaining(full, now),
            reset: self.rate.until_full(full, now),
        }
    }
}

/// Whether buckets of one mean the same in the other.
fn same_buckets(old: &RateLimit, new: &RateLimit) -> bool {
    let RateLimit {
        name,
        requests,
        per,
        burst,
        key,
        methods,
        path_prefix,
        max_keys,
        shadow: _,
    } = new;
    (&old.name, old.requests, old.per, old.burst, old.max_keys)
        == (name, *requests, *per, *burst, *max_keys)
        && (&old.key, &old.methods, &old.path_prefix) == (key, methods, path_prefix)
}

impl Buckets {
    fn new(limit: &RateLimit) -> Self {
        if limit.key.is_empty() {
            return Self::One(0);
        }
        Self::Keyed {
            // Bounded below: a bounded one would take the memory of all keys at once.
            buckets: LruCache::unbounded_with_hasher(BuildHasherDefault::default()),
            max: limit.max_keys.max(1) as usize,
        }
    }

    fn get(&mut self, key: u64) -> Full {
        match self {
            Self::One(full) => *full,
            Self::Keyed { buckets, .. } => buckets.get(&key).copied().unwrap_or(0),
        }
    }

    fn set(&mut self, key: u64, value: Full) {
        match self {
            Self::One(full) => *full = value,
            Self::Keyed { buckets, max } => {
                buckets.put(key, value);
                if buckets.len() > *max {
                    buckets.pop_lru();
                }
            }
        }
    }
}

/// The keys are hashes.
type AsIs = BuildHasherDefault<Unhashed>;

#[derive(Debug, Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
