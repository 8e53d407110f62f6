//! The better of two random choices: least connections and peak EWMA.
//!
//! Two choices keep the fullest near the mean (Mitzenmacher 2001), and unlike the best of all they do not send every
//! agent to the one that looks best at this moment.

use std::cmp::Ordering;

use super::{
    Target,
    candidates::{Candidates, DRAWS},
};

/// With so few targets least connections looks at all of them instead of at two.
const COMPARE_ALL: usize = 4;

impl<T: Target> Candidates<'_, T> {
    /// Fewest in flight for its weight.
    pub(super) fn least_loaded(&mut self) -> Option<usize> {
        if self.group().len() > COMPARE_ALL {
            return self.better_of_two(Self::less_loaded);
        }
        let mut best = None;
        for position in 0..self.group().len() {
            if self.is_open(position) {
                best = Some(best.map_or(position, |b| self.less_loaded(b, position)));
            }
        }
        best
    }

    /// Quickest answer expected.
    pub(super) fn quickest(&mut self) -> Option<usize> {
        self.better_of_two(Self::quicker)
    }

    fn better_of_two(
        &mut self,
        better: impl Fn(&mut Self, usize, usize) -> usize,
    ) -> Option<usize> {
        let first = self.any_open(None)?;
        match self.any_open(Some(first)) {
            Some(second) => Some(better(self, first, second)),
            None => Some(first),
        }
    }

    /// A random target that may be taken, other than `except`.
    pub(super) fn any_open(&mut self, except: Option<usize>) -> Option<usize> {
        let len = self.group().len();
        // Seldom more than one draw. The walk, which favours who stands behind a row of ejected ones, is for when nearly
        // all are.
        for _ in 0..DRAWS {
            let position = self.dice.below(len as u64) as usize;
            if Some(position) != except && self.is_open(position) {
                return Some(position);
            }
        }
        let start = self.dice.below(len as u64) as usize;
        (0..len)
            .map(|step| (start + step) % len)
            .find(|&position| Some(position) != except && self.is_open(position))
    }

    /// The one with fewer in flight for its weight.
    fn less_loaded(&mut self, a: usize, b: usize) -> usize {
        let (Some(x), Some(y)) = (self.target(a), self.target(b)) else {
            return a;
        };
        let load = |target: &T| (f64::from(target.in_flight()), self.weight_now(target));
        let (x, y) = (load(x), load(y));
        if self.is_lower(x, y) { a } else { b }
    }

    /// The one with less expected latency x (in flight + 1) / weight. As long as nothing is known of one of them the
    /// latencies count as equal, and it is the one with fewer in flight: newcomers are neither flooded nor starved until
    /// their first answer.
    fn quicker(&mut self, a: usize, b: usize) -> usize {
        let (Some(x), Some(y)) = (self.target(a), self.target(b)) else {
            return a;
        };
        let load = |target: &T, latency: Option<f64>| {
            let in_flight = f64::from(target.in_flight());
            let load = latency.map_or(in_flight, |latency| latency * (in_flight + 1.0));
            (load, f64::from(target.weight()))
        };
        let (x, y) = match (x.latency_load(self.now), y.latency_load(self.now)) {
            (Some(of_x), Some(of_y)) => (load(x, Some(of_x)), load(y, Some(of_y))),
            _ => (load(x, None), load(y, None)),
        };
        if self.is_lower(x, y) { a } else { b }
    }

    /// Whether the first of two loads is lower for its weight; of equals one wins at random, by weight.
    fn is_lower(&mut self, (a, weight_a): (f64, f64), (b, weight_b): (f64, f64)) -> bool {
        match (a * weight_b).total_cmp(&(b * weight_a)) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => self.dice.unit() * (weight_a + weight_b) < weight_a,
        }
    }
}
