//! Smooth weighted round robin in O(log n).
//!
//! Each target has a virtual start time: how often it was chosen, divided by its weight. The virtual time of the whole
//! is the mean of the start times by weight. A target is eligible when it has not started later than that (it is not
//! ahead of its share); of the eligible ones the one that must finish first (start + 1/weight) is chosen. This is WF2Q
//! (Bennett and Zhang 1996) for packets of one size: nobody is ever more than one choice ahead of its share or behind
//! it, and so in any window nobody exceeds the ceiling of its share by more than one. The well-known method of nginx
//! (add weights, take the largest, subtract the sum) has no such bound and is O(n).

use std::{cmp::Reverse, collections::BinaryHeap};

use super::key::mix;

/// Virtual times are fixed-point with 64 fractional bits.
const ONE: i128 = 1 << 64;

/// Declared weights are multiplied by this, so that a weight of 1 can fall too.
const SCALE: u64 = 16;

/// Start times are pulled back to zero when the virtual time reaches this, to keep products within i128.
const REBASE: i128 = 16 * ONE;

#[derive(Debug)]
struct Unit {
    /// Declared weight x [`SCALE`].
    declared: u64,
    /// Effective weight, `1..=declared`; 0 when the declared one is 0.
    weight: u64,
    start: i128,
    /// Order among equals; differs between agents.
    tie: u32,
    /// Entries in the heaps with another version are dead.
    version: u32,
}

impl Unit {
    fn step(&self) -> i128 {
        ONE / i128::from(self.weight.max(1))
    }

    fn mass(&self) -> i128 {
        self.start * i128::from(self.weight)
    }
}

/// Ordered by time, then by tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    time: i128,
    tie: u32,
    index: u32,
    version: u32,
}

type Queue = BinaryHeap<Reverse<Entry>>;

/// The state of one balancer.
#[derive(Debug)]
pub(super) struct Schedule {
    units: Vec<Unit>,
    /// Not yet eligible, by start.
    waiting: Queue,
    /// Eligible, by finish.
    ready: Queue,
    /// Sum of the effective weights.
    total: i128,
    /// Sum of weight x start; divided by `total` it is the virtual time.
    mass: i128,
    degraded: u32,
}

impl Schedule {
    pub(super) fn new(weights: impl ExactSizeIterator<Item = u32>, seed: u64) -> Self {
        let count = weights.len().max(1) as u64;
        let units: Vec<_> = (seed % count..)
            .zip(weights)
            .map(|(place, weight)| Unit {
                declared: u64::from(weight) * SCALE,
                weight: u64::from(weight) * SCALE,
                start: 0,
                tie: (place % count) as u32,
                version: 0,
            })
            .collect();
        let total = units.iter().map(|u| i128::from(u.weight)).sum();
        let mut schedule = Self {
            units,
            waiting: Queue::new(),
            ready: Queue::new(),
            total,
            mass: 0,
            degraded: 0,
        };
        schedule.requeue();
        // Agents that start together must not all begin with the heaviest.
        for _ in 0..mix(seed) % count.min(64) {
            schedule.pick(|_| false, std::iter::empty());
        }
        schedule
    }

    /// The next in the schedule that is not excluded; `None` when every target with weight is. `skipped` lists what
    /// this choice has yielded before: excluded all of it.
    pub(super) fn pick(
        &mut self,
        excluded: impl Fn(usize) -> bool,
        skipped: impl Iterator<Item = usize>,
    ) -> Option<usize> {
        self.release();
        let index = match self.take(&excluded) {
            Some(index) => index,
            None => {
                self.forgive(&excluded, skipped)?;
                self.release();
                self.take(&excluded)?
            }
        };
        self.charge(index);
        Some(index)
    }

    /// Lowers the effective weight by half on failure and raises it by an eighth of the declared one on success, never
    /// above it. Returns how many targets are below their declared weight.
    pub(super) fn report(&mut self, index: usize, ok: bool) -> u32 {
        let (total, mass) = (self.total, self.mass);
        let Some(unit) = self.units.get_mut(index).filter(|u| u.declared > 0) else {
            return self.degraded;
        };
        let old = unit.weight;
        let new = if ok {
            (old + (unit.declared / 8).max(1)).min(unit.declared)
        } else {
            (old / 2).max(unit.declared / SCALE)
        };
        if new == old {
            return self.degraded;
        }
        self.degraded += u32::from(old == unit.declared);
        self.degraded -= u32::from(new == unit.declared);
        // What it is owed, in choices, is kept; then the virtual time stays where it is.
        let now = mass / total;
        let owed = (now - unit.start) * i128::from(old);
        self.mass -= unit.mass();
        unit.weight = new;
        unit.start = now - owed / i128::from(new);
        self.mass += unit.mass();
        self.total += i128::from(new) - i128::from(old);
        self.wait(index);
        self.degraded
    }

    /// Moves what has become eligible.
    fn release(&mut self) {
        while let Some(&Reverse(entry)) = self.waiting.peek() {
            let alive = self.alive(&entry);
            if alive && entry.time * self.total > self.mass {
                return;
            }
            self.waiting.pop();
            if alive && let Some(unit) = self.units.get(entry.index as usize) {
                let time = unit.start + unit.step();
                self.ready.push(Reverse(Entry { time, ..entry }));
            }
        }
    }

    /// Takes the eligible target with the earliest finish that is not excluded.
    fn take(&mut self, excluded: &impl Fn(usize) -> bool) -> Option<usize> {
        let mut aside = Vec::new();
        let mut found = None;
        while let Some(Reverse(entry)) = self.ready.pop() {
            if !self.alive(&entry) {
                continue;
            }
            if !excluded(entry.index as usize) {
                found = Some(entry.index as usize);
                break;
            }
            aside.push(Reverse(entry));
        }
        self.ready.extend(aside);
        found
    }

    /// Nobody eligible is left but the ones this choice skipped. They lose what they are owed, up to the earliest start
    /// of the others: who was skipped because it is ejected must not get a burst when it comes back.
    fn forgive(
        &mut self,
        excluded: &impl Fn(usize) -> bool,
        skipped: impl Iterator<Item = usize>,
    ) -> Option<()> {
        let mut aside = Vec::new();
        let mut earliest = None;
        while let Some(Reverse(entry)) = self.waiting.pop() {
            if !self.alive(&entry) {
                continue;
            }
            aside.push(Reverse(entry));
            if !excluded(entry.index as usize) {
                earliest = Some(entry.time);
                break;
            }
        }
        self.waiting.extend(aside);
        let earliest = earliest?;
        for index in skipped {
            if let Some(unit) = self.units.get_mut(index).filter(|u| u.start < earliest) {
                self.mass -= unit.mass();
                unit.start = earliest;
                self.mass += unit.mass();
                self.wait(index);
            }
        }
        Some(())
    }

    /// Counts one choice.
    fn charge(&mut self, index: usize) {
        if let Some(unit) = self.units.get_mut(index) {
            self.mass -= unit.mass();
            unit.start += unit.step();
            self.mass += unit.mass();
            self.wait(index);
        }
        if self.mass > REBASE * self.total {
            let now = self.mass / self.total;
            for unit in self.units.iter_mut().filter(|u| u.weight > 0) {
                unit.start -= now;
            }
            self.mass -= now * self.total;
            self.requeue();
        }
    }

    /// Queues a target by its (new) start; older entries of it are dead.
    fn wait(&mut self, index: usize) {
        if let Some(unit) = self.units.get_mut(index) {
            unit.version = unit.version.wrapping_add(1);
            self.waiting.push(Reverse(Entry {
                time: unit.start,
                tie: unit.tie,
                index: index as u32,
                version: unit.version,
            }));
        }
    }

    fn requeue(&mut self) {
        self.ready.clear();
        self.waiting = (0u32..)
            .zip(&self.units)
            .filter(|(_, unit)| unit.weight > 0)
            .map(|(index, unit)| {
                Reverse(Entry {
                    time: unit.start,
                    tie: unit.tie,
                    index,
                    version: unit.version,
                })
            })
            .collect();
    }

    fn alive(&self, entry: &Entry) -> bool {
        self.units
            .get(entry.index as usize)
            .is_some_and(|unit| unit.version == entry.version)
    }
}

#[cfg(test)]
impl Schedule {
    pub(super) fn next(&mut self) -> usize {
        self.pick(|_| false, std::iter::empty()).unwrap()
    }
}

#[cfg(test)]
mod tests;
