//! The ordered iterator of candidates.

use std::{cmp::Ordering, sync::atomic, time::Instant};

use super::{
    AGGRESSION, Balancer, Target,
    key::{Dice, mix},
    seen::{RANKED, Seen},
    slow_start_share,
};
use crate::model::Strategy;

/// With so few targets least connections looks at all of them instead of at two.
const COMPARE_ALL: usize = 4;

/// Targets of one choice, best first; each is found when it is asked for.
#[derive(Debug)]
pub struct Candidates<'a, T> {
    balancer: &'a Balancer,
    targets: &'a [T],
    affinity: Option<u64>,
    now: Instant,
    dice: Dice,
    seen: Seen,
    /// Where the plain order after the ranked candidates goes on.
    position: usize,
    /// Passed over because of slow start, to be yielded after all others.
    deferred: Vec<usize>,
    /// Session affinity: the order from the second candidate on, worst first.
    by_affinity: Option<Vec<usize>>,
}

impl<'a, T: Target> Candidates<'a, T> {
    pub(super) fn new(
        balancer: &'a Balancer,
        targets: &'a [T],
        affinity: Option<u64>,
        now: Instant,
        seed: u64,
    ) -> Self {
        debug_assert_eq!(
            balancer.targets,
            targets.len(),
            "the balancer was made for another slice"
        );
        Self {
            balancer,
            targets,
            affinity,
            now,
            dice: Dice::new(seed),
            seen: Seen::default(),
            position: 0,
            deferred: Vec::new(),
            by_affinity: None,
        }
    }

    /// The best target not yet seen.
    fn advance(&mut self) -> Option<usize> {
        let active = self.balancer.active_len().min(self.targets.len());
        if self.seen.len() >= active {
            return None;
        }
        if let Some(client) = self.affinity {
            return self.by_affinity(client);
        }
        let ranked = if self.seen.len() < RANKED {
            match self.balancer.strategy {
                Strategy::RoundRobin => self.in_turn(active),
                Strategy::WeightedRoundRobin => self
                    .balancer
                    .schedule(self.targets)
                    .pick(|i| self.seen.contains(i), self.seen.first()),
                Strategy::Random | Strategy::ConsistentHash | Strategy::PeakEwma => self
                    .balancer
                    .shares(self.targets)
                    .pick(&self.seen, &mut self.dice),
                Strategy::LeastConnections => self.least_loaded(active),
            }
        } else {
            None
        };
        ranked.or_else(|| self.walk(active))
    }

    /// The next in turn. A further candidate takes a further turn, so that the share of an ejected endpoint falls to
    /// all others alike and not to its neighbour.
    fn in_turn(&mut self, active: usize) -> Option<usize> {
        let turn = self.balancer.cursor.fetch_add(1, atomic::Ordering::Relaxed);
        self.position = turn % active;
        self.walk(active)
    }

    /// The next target not seen, in order from `position`.
    fn walk(&mut self, active: usize) -> Option<usize> {
        for _ in 0..active {
            let index = self.balancer.active_at(self.position % active);
            self.position = (self.position + 1) % active;
            if !self.seen.contains(index) {
                return Some(index);
            }
        }
        None
    }

    fn least_loaded(&mut self, active: usize) -> Option<usize> {
        if active <= COMPARE_ALL {
            let mut best = None;
            for index in (0..active).map(|p| self.balancer.active_at(p)) {
                if !self.seen.contains(index) {
                    best = Some(best.map_or(index, |b| self.less_loaded(b, index)));
                }
            }
            return best;
        }
        let first = self.any_unseen(active, None)?;
        let Some(second) = self.any_unseen(active, Some(first)) else {
            return Some(first);
        };
        Some(self.less_loaded(first, second))
    }

    /// A random target not seen and other than `except`.
    fn any_unseen(&mut self, active: usize, except: Option<usize>) -> Option<usize> {
        // Terminates early: at most RANKED of the targets are seen. The walk is for the unlucky.
        for _ in 0..8 {
            let index = self
                .balancer
                .active_at(self.dice.below(active as u64) as usize);
            if !self.seen.contains(index) && Some(index) != except {
                return Some(index);
            }
        }
        let start = self.dice.below(active as u64) as usize;
        (0..active)
            .map(|step| self.balancer.active_at((start + step) % active))
            .find(|&index| !self.seen.contains(index) && Some(index) != except)
    }

    /// The one with fewer connections for its weight; among equals one by weight, at random.
    fn less_loaded(&mut self, a: usize, b: usize) -> usize {
        let (Some(x), Some(y)) = (self.targets.get(a), self.targets.get(b)) else {
            return a;
        };
        let (weight_a, weight_b) = (self.weight_now(x), self.weight_now(y));
        let load_a = f64::from(x.in_flight()) * weight_b;
        let load_b = f64::from(y.in_flight()) * weight_a;
        match load_a.total_cmp(&load_b) {
            Ordering::Less => a,
            Ordering::Greater => b,
            Ordering::Equal if self.dice.unit() * (weight_a + weight_b) < weight_a => a,
            Ordering::Equal => b,
        }
    }

    fn weight_now(&self, target: &T) -> f64 {
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

    /// Weighted rendezvous hashing: each target scores by its own hash with the client, so that a target that leaves
    /// moves only its own clients and one that joins takes only its share.
    fn by_affinity(&mut self, client: u64) -> Option<usize> {
        if let Some(order) = &mut self.by_affinity {
            return order.pop();
        }
        if self.seen.len() == 0 {
            return self
                .scores(client)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, index)| index);
        }
        let mut scores: Vec<_> = self
            .scores(client)
            .filter(|&(_, index)| !self.seen.contains(index))
            .collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut order: Vec<_> = scores.into_iter().map(|(_, index)| index).collect();
        let next = order.pop();
        self.by_affinity = Some(order);
        next
    }

    /// Scores of the targets with weight; the greatest wins with the probability of its share of the weights
    /// (`-w / ln(u)`, Schindelhauer and Schomaker 2005).
    fn scores(&self, client: u64) -> impl Iterator<Item = (f64, usize)> + '_ {
        let targets = self.targets.iter().enumerate();
        targets.filter(|(_, t)| t.weight() > 0).map(move |(i, t)| {
            let hash = mix(client ^ t.key());
            // In (0, 1), never 0 or 1.
            let unit = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
            (-f64::from(t.weight()) / unit.ln(), i)
        })
    }

    /// Slow start thins out what the strategy chose. Least connections has it in its weights already; a client with
    /// affinity keeps its endpoint.
    fn passed_over(&mut self, index: usize) -> bool {
        if self.affinity.is_some() || self.balancer.strategy == Strategy::LeastConnections {
            return false;
        }
        let Some(target) = self.targets.get(index) else {
            return false;
        };
        let share = self.share(target);
        share < 1.0 && self.dice.unit() >= share
    }
}

impl<T: Target> Iterator for Candidates<'_, T> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while let Some(index) = self.advance() {
            self.seen.insert(index, self.targets.len());
            if !self.passed_over(index) {
                return Some(index);
            }
            self.deferred.push(index);
        }
        (!self.deferred.is_empty()).then(|| self.deferred.remove(0))
    }
}
