//! Weighted random choice by binary search over running totals.

use super::{key::Dice, seen::Seen};

/// Running totals of the weights.
#[derive(Debug)]
pub(super) struct Shares {
    totals: Box<[u64]>,
}

impl Shares {
    pub(super) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let totals = weights
            .scan(0u64, |total, w| {
                *total += u64::from(w);
                Some(*total)
            })
            .collect();
        Self { totals }
    }

    /// A target by weight among those not seen; `None` when no weight is left.
    pub(super) fn pick(&self, seen: &Seen, dice: &mut Dice) -> Option<usize> {
        let total = self.totals.last().copied().unwrap_or(0);
        // Drawing again is exact and cheap while the seen ones are light; a heavy one would make it endless.
        for _ in 0..4 {
            if let Some(index) = self.draw(dice).filter(|&i| !seen.contains(i)) {
                return Some(index);
            }
        }
        let spent: u64 = seen.first().map(|i| self.weight(i)).sum();
        let mut drawn = dice.below(total.checked_sub(spent).filter(|&left| left > 0)?);
        for index in (0..self.totals.len()).filter(|&i| !seen.contains(i)) {
            let weight = self.weight(index);
            if drawn < weight {
                return Some(index);
            }
            drawn -= weight;
        }
        None
    }

    /// A target by weight; `None` when there is no weight.
    pub(super) fn draw(&self, dice: &mut Dice) -> Option<usize> {
        let drawn = dice.below(self.totals.last().copied()?);
        let index = self.totals.partition_point(|&t| t <= drawn);
        (index < self.totals.len()).then_some(index)
    }

    fn weight(&self, index: usize) -> u64 {
        let at = |i: usize| self.totals.get(i).copied().unwrap_or(0);
        at(index) - index.checked_sub(1).map_or(0, at)
    }
}
