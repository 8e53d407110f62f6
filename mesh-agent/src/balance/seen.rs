//! The targets that one choice has already yielded.

/// How many candidates of a ring come up by the strategy; what follows them comes at random by weight or in plain order,
/// because a strategy that looked around every ejected endpoint again for each candidate would cost O(n^2).
pub(super) const RANKED: usize = 8;

/// A set of indices. The first [`RANKED`] need no allocation.
#[derive(Debug, Default)]
pub(super) struct Seen {
    first: [u32; RANKED],
    len: usize,
    /// One bit for each target, from the ninth on.
    rest: Option<Box<[u64]>>,
}

impl Seen {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first [`RANKED`] in order of insertion.
    pub(super) fn first(&self) -> impl Iterator<Item = usize> + '_ {
        self.first
            .iter()
            .take(self.len.min(RANKED))
            .map(|&i| i as usize)
    }

    pub(super) fn contains(&self, index: usize) -> bool {
        match &self.rest {
            Some(bits) => bits
                .get(index / 64)
                .is_some_and(|word| word & (1 << (index % 64)) != 0),
            None => self.first().any(|i| i == index),
        }
    }

    /// `targets`: how many there are in all. The index must not be in the set yet.
    pub(super) fn insert(&mut self, index: usize, targets: usize) {
        if let Some(slot) = self.first.get_mut(self.len) {
            *slot = index as u32;
        } else {
            let first = self.first;
            let bits = self.rest.get_or_insert_with(|| {
                let mut bits = vec![0u64; targets.div_ceil(64)].into_boxed_slice();
                for i in first {
                    set(&mut bits, i as usize);
                }
                bits
            });
            set(bits, index);
        }
        self.len += 1;
    }
}

fn set(bits: &mut [u64], index: usize) {
    if let Some(word) = bits.get_mut(index / 64) {
        *word |= 1 << (index % 64);
    }
}
