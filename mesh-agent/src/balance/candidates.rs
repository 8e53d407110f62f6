//! The ordered iterator of candidates: ring after ring, in each by the strategy, without those that may not be used, and
//! those last whom slow start or bounded load passes over.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Instant};

use super::{
    AGGRESSION, Balancer, Pick, Target, Usability,
    group::Group,
    health::Health,
    key::{Dice, mix},
    locality::{self, Rings},
    seen::{RANKED, Seen},
    slow_start_share,
};
use crate::model::{Prefer, Strategy};

/// How often a random draw is repeated for one that may be used: it fails once in 30 choices when 9 of 10 may not be.
pub(super) const DRAWS: u32 = 32;

/// Enough that the last one is needed by 1 choice in 5 while all ramp up at their tenth, and by none otherwise.
const REDRAWS: u32 = 16;

/// Targets of one choice, best first; each is found when it is asked for.
#[derive(Debug)]
pub struct Candidates<'a, T> {
    balancer: &'a Balancer,
    rings: &'a Rings,
    pub(super) targets: &'a [T],
    affinity: Option<u64>,
    /// The key of consistent hashing, with that strategy.
    hash: Option<u64>,
    may_panic: bool,
    pub(super) now: Instant,
    pub(super) dice: Dice,
    health: Option<Health>,
    worst: Option<Usability>,
    skipped: Option<Usability>,
    /// What comes now is for a retry.
    retries: bool,
    panic_turned: Option<bool>,
    /// The ring at hand, and the rings that are done with or at hand, by bit.
    pub(super) ring: usize,
    tried: u8,
    /// Positions in this ring that have come up.
    pub(super) seen: Seen,
    /// Where the plain order after the ranked candidates goes on.
    position: Option<usize>,
    /// Consistent hashing: slots looked at.
    pub(super) slots: usize,
    /// Session affinity: the order from the second candidate on, worst first.
    pub(super) by_affinity: Option<Vec<usize>>,
    /// How often slow start may still send a random choice back to draw again.
    redraws: u32,
    /// Passed over because of slow start or load, to be yielded after all others. Indices, not positions.
    deferred: VecDeque<usize>,
}

impl<'a, T: Target> Candidates<'a, T> {
    pub(super) fn new(
        balancer: &'a Balancer,
        rings: &'a Rings,
        targets: &'a [T],
        pick: Pick<'_>,
        seed: u64,
    ) -> Self {
        let by_hash = balancer.strategy == Strategy::ConsistentHash && pick.affinity.is_none();
        let mut candidates = Self {
            balancer,
            rings,
            targets,
            affinity: pick.affinity,
            hash: pick.hash.filter(|_| by_hash),
            may_panic: pick.may_panic,
            now: pick.now,
            dice: Dice::new(seed),
            health: None,
            worst: None,
            skipped: None,
            retries: false,
            panic_turned: None,
            ring: 0,
            tried: 0,
            seen: Seen::default(),
            position: None,
            slots: 0,
            by_affinity: None,
            redraws: REDRAWS,
            deferred: VecDeque::new(),
        };
        if balancer.in_panic.load(Ordering::Relaxed) {
            candidates.worst_allowed();
        }
        candidates.first_ring();
        candidates
    }

    /// Whether so few targets are usable that those that are not are used as well. The caller lets them through their
    /// breakers then. It is looked at when it matters: false until a target came up that is not ready.
    pub fn in_panic(&self) -> bool {
        self.worst.is_some_and(|worst| worst > Usability::Ready)
    }

    /// Panic began (true) or ended (false), and this choice is the first to know.
    pub fn panic_turned(&mut self) -> Option<bool> {
        self.panic_turned.take()
    }

    /// The candidate that came last is really tried: those that follow are for retries, and take no turns. One that is
    /// not tried, because its breaker or a limit is against it, hands its turn on to the next instead.
    pub fn tried(&mut self) {
        self.retries = true;
    }

    /// The best of what was left out so far: why there are no (more) candidates.
    pub fn skipped(&self) -> Option<Usability> {
        self.skipped
    }

    fn first_ring(&mut self) {
        let rings = self.rings.groups().len();
        if self.balancer.locality.prefer != Prefer::None && rings > 1 {
            let unit = match self.affinity.or(self.hash) {
                Some(key) => locality::unit_of(key),
                None => self.dice.unit(),
            };
            let worst = self.worst_allowed();
            let locality = self.balancer.locality;
            self.ring = locality::choose(self.health(), rings, worst, &locality, unit);
        }
        self.tried = 1 << self.ring;
    }

    /// Goes on to the nearest ring that is left.
    fn next_ring(&mut self) -> bool {
        let next = (0..self.rings.groups().len()).find(|ring| self.tried & (1 << ring) == 0);
        let Some(ring) = next else {
            return false;
        };
        self.ring = ring;
        self.tried |= 1 << ring;
        self.seen = Seen::default();
        self.position = None;
        self.slots = 0;
        self.by_affinity = None;
        true
    }

    /// The best position of this ring that has not come up yet.
    fn advance(&mut self) -> Option<usize> {
        if self.seen.len() >= self.rings.groups().get(self.ring)?.len() {
            return None;
        }
        if let Some(client) = self.affinity {
            return self.by_affinity(client);
        }
        let ranked = match (self.balancer.strategy, self.hash) {
            (Strategy::ConsistentHash, Some(key)) => self.by_hash(key),
            // Of retries the neighbour of one that fails would get all, so they go to anybody.
            (Strategy::RoundRobin, _) if self.retries => self.any_open(None),
            (Strategy::WeightedRoundRobin, _) if self.retries => self.any_by_weight(),
            (Strategy::RoundRobin, _) => self.in_turn(),
            _ if self.seen.len() >= RANKED => self.any_by_weight(),
            (Strategy::WeightedRoundRobin, _) => self
                .group()
                .schedule(self.targets)
                .pick(|position| self.seen.contains(position), self.seen.first()),
            (Strategy::Random | Strategy::ConsistentHash, _) => {
                let shares = self.group().shares(self.targets);
                shares.pick(&self.seen, &mut self.dice)
            }
            (Strategy::LeastConnections, _) => self.least_loaded(),
            (Strategy::PeakEwma, _) => self.quickest(),
        };
        ranked.or_else(|| self.walk())
    }

    /// The next in turn. While nobody was tried a further candidate takes a further turn, so that the share of an ejected
    /// endpoint falls to all others alike and not to its neighbour.
    fn in_turn(&mut self) -> Option<usize> {
        self.position = Some(self.group().turn());
        self.walk()
    }

    /// One of those that may be used, at random by weight, if it is found soon.
    fn any_by_weight(&mut self) -> Option<usize> {
        let shares = self.group().shares(self.targets);
        for _ in 0..DRAWS {
            let position = shares.draw(&mut self.dice)?;
            if self.is_open(position) {
                return Some(position);
            }
        }
        None
    }

    /// The next that has not come up, in plain order from where this choice began.
    fn walk(&mut self) -> Option<usize> {
        let len = self.group().len();
        let start = match (self.position, self.hash) {
            (Some(position), _) => position,
            (None, Some(key)) => Dice::new(key).below(len as u64) as usize,
            (None, None) => self.dice.below(len as u64) as usize,
        };
        for position in (0..len).map(|step| (start + step) % len) {
            if !self.seen.contains(position) {
                self.position = Some((position + 1) % len);
                return Some(position);
            }
        }
        None
    }

    /// The ring at hand. There is one whenever a position is asked for.
    pub(super) fn group(&self) -> &'a Group {
        &self.rings.groups()[self.ring]
    }

    pub(super) fn target(&self, position: usize) -> Option<&'a T> {
        self.targets.get(self.group().index(position))
    }

    /// Whether a position has not come up and may be used.
    pub(super) fn is_open(&mut self, position: usize) -> bool {
        !self.seen.contains(position) && self.target(position).is_some_and(|t| self.allows(t))
    }

    /// Whether a target may be used.
    fn allows(&mut self, target: &T) -> bool {
        let usability = target.usable(self.now);
        if usability == Usability::Ready || usability <= self.worst_allowed() {
            return true;
        }
        self.skipped = Some(self.skipped.map_or(usability, |s| s.min(usability)));
        false
    }

    pub(super) fn worst_allowed(&mut self) -> Usability {
        if let Some(worst) = self.worst {
            return worst;
        }
        let threshold = self.balancer.panic_threshold;
        let worst = match self.may_panic && threshold > 0 {
            true => self.health().worst_allowed(threshold),
            false => Usability::Ready,
        };
        let panic = worst > Usability::Ready;
        let known = &self.balancer.in_panic;
        if known.load(Ordering::Relaxed) != panic && known.swap(panic, Ordering::Relaxed) != panic {
            self.panic_turned = Some(panic);
        }
        *self.worst.insert(worst)
    }

    pub(super) fn health(&mut self) -> &Health {
        self.health.get_or_insert_with(|| {
            let groups = self.rings.groups();
            self.rings.health.get(groups, self.targets, self.now)
        })
    }

    pub(super) fn weight_now(&self, target: &T) -> f64 {
        f64::from(target.weight()) * self.share(target)
    }

    /// Part of its weight that slow start leaves to the target.
    fn share(&self, target: &T) -> f64 {
        match (self.balancer.slow_start, target.ramping_since()) {
            (Some(window), Some(since)) => slow_start_share(
                self.now.saturating_duration_since(since),
                window,
                AGGRESSION,
            ),
            _ => 1.0,
        }
    }

    /// Slow start thins out what the strategy chose. Least connections has it in its weights already; a client with
    /// affinity keeps its endpoint. A key of consistent hashing moves over once, when the share reaches it.
    fn is_ramping(&mut self, target: &T) -> bool {
        if self.affinity.is_some() || self.balancer.strategy == Strategy::LeastConnections {
            return false;
        }
        let share = self.share(target);
        share < 1.0
            && share
                <= match self.hash {
                    Some(key) => Dice::new(mix(key) ^ target.key()).unit(),
                    None => self.dice.unit(),
                }
    }

    /// A random choice that slow start rejects is drawn again among all, or the others would get more of it than their
    /// weights say. The next in turn has that of itself, as the rejected has had its turn.
    fn may_redraw(&mut self) -> bool {
        let random = match self.balancer.strategy {
            Strategy::Random | Strategy::PeakEwma => true,
            Strategy::ConsistentHash => self.hash.is_none(),
            Strategy::RoundRobin | Strategy::WeightedRoundRobin | Strategy::LeastConnections => {
                false
            }
        };
        let may = random && self.seen.len() < RANKED && self.redraws > 0;
        self.redraws -= u32::from(may);
        may
    }
}

impl<T: Target> Iterator for Candidates<'_, T> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            let Some(position) = self.advance() else {
                if self.next_ring() {
                    continue;
                }
                return self.deferred.pop_front();
            };
            let group = self.group();
            let index = group.index(position);
            let target = self.targets.get(index).filter(|t| self.allows(t));
            let ramping = target.is_some_and(|t| self.is_ramping(t));
            if ramping && self.may_redraw() {
                continue;
            }
            self.seen.insert(position, group.len());
            match target {
                None => {}
                Some(t) if ramping || (self.hash.is_some() && self.is_full(t)) => {
                    self.deferred.push_back(index);
                }
                Some(_) => return Some(index),
            }
        }
    }
}
