//! Consistent hashing with bounded load (Mirrokni, Thorup, Zadimoghaddam 2018).
//!
//! A key begins at its slot of the Maglev table and goes on from slot to slot. Who is ejected or was tried before is
//! passed over, and so is who carries 150 % of the average already; neighbours in the table are unrelated, so what they
//! cannot take spreads over all. The order for a key is the same in every agent and for every retry.

use super::{Target, candidates::Candidates, maglev};

/// 3/2: the load that a target may carry, by the average.
pub(crate) const BOUND: (u128, u128) = (3, 2);

impl<T: Target> Candidates<'_, T> {
    /// The next in the order of the key that has a slot.
    pub(super) fn by_hash(&mut self, key: u64) -> Option<usize> {
        let table = self.group().maglev(self.targets);
        let start = maglev::slot(key);
        while self.slots < maglev::SLOTS {
            let position = table.at(start + self.slots)?;
            self.slots += 1;
            if !self.seen.contains(position) {
                return Some(position);
            }
        }
        None
    }

    /// Whether a target carries all that it may with one more request in flight: `ceil(3/2 * share of its weight)`. The
    /// bounds add up to more than everything in flight, so there is always somebody with room.
    pub(super) fn is_full(&mut self, target: &T) -> bool {
        let (worst, ring) = (self.worst_allowed(), self.ring);
        let tally = self.health().rings.get(ring).copied();
        let (in_flight, weight) = tally.unwrap_or_default().load(worst);
        if weight == 0 {
            return false;
        }
        let share = BOUND.0 * (u128::from(in_flight) + 1) * u128::from(target.weight());
        u128::from(target.in_flight()) >= share.div_ceil(BOUND.1 * u128::from(weight))
    }
}
